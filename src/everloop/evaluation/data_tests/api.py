"""``ev.data_test``: same code, same seeds, only the data differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from everloop.core.context import current_workspace
from everloop.core.data_test import (
    TEST_TAG,
    Blame,
    DataTestReport,
    Effect,
    VersionResult,
)
from everloop.core.run import PARENT_TAG
from everloop.errors import NotFound
from everloop.evaluation.data_tests.blame import blame_groups
from everloop.evaluation.data_tests.effects import SAME
from everloop.evaluation.data_tests.html import fragment, whole_page
from everloop.evaluation.data_tests.inputs import (
    Contender,
    contenders,
    holdout_rows,
    without_holdout,
)
from everloop.evaluation.data_tests.judging import Judging
from everloop.evaluation.data_tests.plan import Plan, check, seeds_of, specs_of
from everloop.evaluation.data_tests.stored import keep_report
from everloop.evaluation.data_tests.text import summary_of
from everloop.evaluation.data_tests.training import training_step

__all__ = ["DataTest", "data_test"]


def data_test(
    train: Any,
    versions: Sequence[Any] | Mapping[str, Any],
    *,
    holdout: Any,
    label: str,
    metrics: str | Sequence[str] = ("auc",),
    dataset: str = "",
    seeds: int | Sequence[int] = 5,
    slices: Sequence[str] | Mapping[str, str] = (),
    positive: Any = None,
    key: Sequence[str] = (),
    at: str = "",
    overlap: str = "error",
    against: str = "",
    rivals: Mapping[str, tuple[Any, Any]] | None = None,
    level: float = 0.05,
    workers: int = 1,
) -> DataTest:
    """Train the same code with the same seeds on each version of the data, and compare.

    Each training is a run below the test's run, with the dataset version as its input. It is kept
    like a step, by code, content of the data and seed: what was trained once is not trained again.

    Args:
        train: A plain function or step of rows (``ev.Table``), or of rows and a seed. It gives
            what predicts: a function of rows, something with ``predict_proba`` or ``predict``, or
            an ``ev.ModelArtifact``. Predictors see the rows without the label.
        versions: What to train on: numbers of `dataset`, references such as ``loans@3`` or
            ``loans@clean``, tables, frames; or a dict of these by name. All are held against the
            first.
        holdout: The rows to judge on: a dataset, a version or rows. Never rows of a version.
        label: The column to be predicted.
        metrics: By name, as everywhere (``auc``, ``brier``, ``tpr@0.3``, ``mae``). The first
            decides, and is the one of slices and blame.
        dataset: Of which dataset the numbers and tags of `versions` are.
        seeds: How many (0, 1, 2 ...), or which.
        slices: Columns of the hold-out, by whose values it is cut; or SQL conditions by name.
        positive: The value of a text label that counts as 1.
        key: Columns that name a row; those of the dataset if not given.
        at: A column of times in the hold-out: its days are drawn, not its rows. Say it where rows
            of a day are alike.
        overlap: What to do about rows that are in a version and in the hold-out: ``error``, or
            ``drop`` them from the training.
        against: Name of what the others are held against; the first version if not given.
        rivals: Other trainings by name, ``(training, version)``: to see what better data is worth
            beside a better model.
        level: Error probability of all intervals of a kind together.
        workers: Trainings at once; more than one each in a process of its own.

    Raises:
        InvalidInput: If something given cannot be; nothing was trained.
        NotFound: If there is no such dataset, version or column.
        UserCodeError: If no version could be trained; with the first traceback.
        StateError: If it is called within a run.
    """
    specs, chosen = specs_of(metrics), seeds_of(seeds)
    check(level, workers)
    held = holdout_rows(holdout, label=label, positive=positive, specs=specs, at=at, slices=slices)
    given = contenders(versions, dataset, label, rivals)
    names = [one.name for one in given]
    if against and against not in names:
        raise NotFound.named("version of the data test", against, names)
    found = tuple(without_holdout(given, held, tuple(key), overlap))
    for one in (train, *(one.rival for one in found if one.rival is not None)):
        training_step(one, held.task)  # refuses what is no training
    plan = Plan(train, against, specs, chosen, held, found, label, level, workers, tuple(key))
    return DataTest(plan, Judging(plan, *plan.run()))


class DataTest:
    """A data test that was done.

    Attributes:
        report: All of it as plain data; kept with the run of the test.
    """

    def __init__(self, plan: Plan, judged: Judging) -> None:
        self._plan = plan
        self._judged = judged
        self.report: DataTestReport = judged.report()
        self._keep()

    @property
    def id(self) -> str:
        """Id of the test's run; a server has its page at ``/data-tests/ID``."""
        return self.report.id

    @property
    def best(self) -> str | None:
        """The version that is better than the first by more than chance; None if none is."""
        return self.report.best or None

    def effect(self, version: str, metric: str = "") -> Effect:
        """How much better a version is than the one that all are held against.

        Args:
            version: Its name.
            metric: The first one if not given.

        Raises:
            NotFound: If there is no such version or metric, or it could not be trained.
        """
        one = self._named(version)
        if one.error:
            raise NotFound(f"{version} could not be trained", hint=one.error)
        wanted = metric or self.report.metrics[0]
        found = next((m for m in one.metrics if m.metric == wanted), None)
        if found is None:
            raise NotFound.named("metric of the data test", wanted, self.report.metrics)
        return found.effect or SAME

    def table(self) -> list[dict[str, Any]]:
        """A row for each version and metric: value, interval, effect and what it shows."""
        rows = []
        for one in self.report.versions:
            shared = {"version": one.name, "rows": one.rows}
            if one.error:
                rows.append(shared | {"metric": "", "answer": "failed", "error": one.error})
            for m in one.metrics:
                effect = m.effect
                rows.append(
                    shared
                    | {"metric": m.metric, "value": m.value, "low": m.low, "high": m.high}
                    | {
                        "effect": effect and effect.estimate,
                        "effect_low": effect and effect.low,
                        "effect_high": effect and effect.high,
                        "answer": effect.answer if effect else "what the others are held against",
                    }
                )
        return rows

    def blame(
        self,
        version: str = "",
        *,
        against: str = "",
        by: str | Mapping[str, str] = "auto",
        method: str = "auto",
        seeds: int | None = None,
        orders: int = 8,
    ) -> Blame:
        """What each group of changed rows is worth: which change made the difference.

        Args:
            version: Its name; the best one, else the last, if not given.
            against: Another version; the one that all are held against if not given.
            by: ``rule`` groups by the rule of the row ledger that changed or dropped a row,
                ``change`` by what happened (added, removed, which columns changed), the name of a
                column by its value, a dict by SQL conditions. ``auto`` is ``rule`` where the ledger
                knows of the changes.
            method: ``shapley`` (exact for up to five groups, else by `orders` orders and their
                reverses), ``leave one out``; ``auto`` is ``shapley``.
            seeds: How many of the test's seeds; all if not given.
            orders: Of a sampled Shapley value.

        Raises:
            NotFound: If there is no such version, or it could not be trained.
            InvalidInput: If nothing differs, or the rows cannot be grouped like this.
            UserCodeError: If the training fails without some of the changes.
        """
        name = version or self.report.best or self.report.versions[-1].name
        other = against or self.report.against
        pair = [self._able(one) for one in (name, other)]
        found = blame_groups(
            self._plan,
            pair[0],
            pair[1],
            scores={one.name: self._judged.scores(one) for one in pair},
            by=by,
            method=method,
            seeds=seeds,
            orders=orders,
            tags={PARENT_TAG: self.id, TEST_TAG: "blame"},
        )
        self.report = msgspec.structs.replace(self.report, blames=(*self.report.blames, found))
        self._keep()
        return found

    def _named(self, name: str) -> VersionResult:
        names = [one.name for one in self.report.versions]
        if name not in names:
            raise NotFound.named("version of the data test", name, names)
        return self.report.version(name)

    def _able(self, name: str) -> Contender:
        one = self._named(name)
        if one.error:
            raise NotFound(f"{name} could not be trained", hint=one.error)
        return next(c for c in self._plan.contenders if c.name == name)

    def _keep(self) -> None:
        keep_report(current_workspace(), self.report)

    def summary(self) -> str:
        """In sentences."""
        return summary_of(self.report)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, as JSON has it."""
        found: dict[str, Any] = msgspec.to_builtins(self.report)
        return found

    def to_html(self) -> str:
        """A whole page that needs nothing beside it."""
        return whole_page(self.report)

    def _repr_html_(self) -> str:
        return fragment(self.report)

    def __repr__(self) -> str:
        return self.summary()
