"""What a data test came to: one training, several versions of the data, and what each is worth.

Effects are improvements: above 0 is better, whichever way the metric goes. A figure that is not
defined is None, never a neutral number.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

__all__ = [
    "ARTIFACT",
    "TEST_TAG",
    "Answer",
    "Blame",
    "DataTestReport",
    "Effect",
    "GroupWorth",
    "HoldOutFacts",
    "SliceResult",
    "VersionMetric",
    "VersionResult",
]

#: The file of the test's own run that holds its report.
ARTIFACT = "data-test.json"
#: Tag of that run, and of the runs below it, with what each is: ``test``, ``training``, ``blame``.
TEST_TAG = "everloop.data_test"

#: What a difference shows. ``same data`` is exactly 0, as nothing differs.
Answer = Literal["better", "worse", "no difference shown", "same data", "too small to tell"]


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How much better, in units of the metric; above 0 is better.

    Attributes:
        low, high: The interval. The intervals of a family (all versions on one metric, all slices,
            all groups of a blame) hold together, with the test's level for all of them.
        spread: Standard error, over rows of the hold-out and seeds.
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    answer: Answer


class VersionMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one version.

    Attributes:
        value: The mean over the seeds.
        low, high: Its own interval, over rows and seeds.
        by_seed: The value with each seed, in their order.
        effect: Against the version that all are held against; None for that one itself.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    by_seed: tuple[float | None, ...] = ()
    effect: Effect | None = None


class VersionResult(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the data.

    Attributes:
        name: As in the test: ``loans@2``, or what the caller calls it.
        dataset, number: Where it comes from; empty and 0 for rows that are in no dataset.
        digest: Of its content.
        same_as: The version before it in the test that has the same content, or empty.
        train: Name of another training that it was trained with, beside the test's own; or empty.
        left_out: Rows that are in the hold-out too and were not trained on.
        runs: Ids of the runs of its trainings.
        error: Why it could not be trained: the user's traceback first. Empty if it was.
        notes: What a reader should know of it.
    """

    name: str
    dataset: str = ""
    number: int = 0
    digest: str
    rows: int
    same_as: str = ""
    train: str = ""
    left_out: int = 0
    runs: tuple[str, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()
    metrics: tuple[VersionMetric, ...] = ()


class SliceResult(msgspec.Struct, frozen=True, kw_only=True):
    """The first metric on a part of the hold-out.

    Attributes:
        slice: ``purpose = car``, or the name of a condition.
        version: Of which version.
        rows: Of the hold-out in it.
        before, after: The metric with the first version and with this one.
    """

    slice: str
    version: str
    rows: int
    before: float | None
    after: float | None
    effect: Effect


class GroupWorth(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of changed rows is worth.

    Attributes:
        rows: How many rows it adds, removes or changes.
        worth: Its share of the difference (Shapley), or what is lost without it (leave one out).
        alone: The effect of this group's changes and no others; None if that was not measured.
        last: What its changes add to all the others; None if that was not measured.
    """

    name: str
    rows: int
    worth: Effect
    alone: float | None = None
    last: float | None = None


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """Which changed rows make the difference between two versions.

    Attributes:
        version, against: The two versions.
        by: What the rows are grouped by: ``rule``, ``change``, a column, or ``condition``.
        method: ``shapley`` over all sets of groups, ``sampled shapley`` over some orders, or
            ``leave one out``.
        total: The whole difference; the shares of a Shapley value add up to it.
        trainings: How many trainings were asked for, those taken from the store included.
    """

    version: str
    against: str
    metric: str
    by: str
    method: Literal["shapley", "sampled shapley", "leave one out"]
    total: Effect
    groups: tuple[GroupWorth, ...]
    trainings: int
    run_id: str = ""
    notes: tuple[str, ...] = ()


class HoldOutFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that all were judged on.

    Attributes:
        unlabelled: Rows without a label, which were left out.
        positives: Of two classes the share of the positive one.
        blocks: What was drawn: ``days`` or ``rows``, and how many.
    """

    name: str
    dataset: str = ""
    number: int = 0
    digest: str
    rows: int
    unlabelled: int = 0
    positives: float | None = None
    drawn: Literal["days", "rows"] = "rows"
    blocks: int


class DataTestReport(msgspec.Struct, frozen=True, kw_only=True):
    """A data test: same code, same seeds, only the data differs.

    Attributes:
        id: Of the test's run.
        train: Name of the training function.
        metrics: By name; the first decides.
        against: Name of the version that the others are held against.
        best: The version that is better than that one by more than chance, the best of them if
            there are several; empty if there is none.
        level: Error probability of each family of intervals.
        trained, cached: Trainings that were done, and that were taken from the store.
    """

    id: str
    at: datetime
    train: str
    label: str
    metrics: tuple[str, ...]
    lower_is_better: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    holdout: HoldOutFacts
    against: str
    best: str = ""
    level: float
    versions: tuple[VersionResult, ...]
    slices: tuple[SliceResult, ...] = ()
    blames: tuple[Blame, ...] = ()
    notes: tuple[str, ...] = ()
    trained: int = 0
    cached: int = 0

    def version(self, name: str) -> VersionResult:
        """One version; raises KeyError."""
        found = next((one for one in self.versions if one.name == name), None)
        if found is None:
            raise KeyError(name)
        return found
