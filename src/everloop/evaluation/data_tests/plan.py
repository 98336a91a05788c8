"""A data test that is to be done: what was given, checked, and the trainings that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from everloop.core.data_test import TEST_TAG
from everloop.core.run import Run
from everloop.data.frame import Table
from everloop.errors import InvalidInput, UserCodeError
from everloop.evaluation.data_tests.inputs import Contender, HoldOutRows
from everloop.evaluation.data_tests.running import (
    Order,
    Outcome,
    Training,
    in_run,
    note_inputs,
    train_all,
)
from everloop.evaluation.data_tests.training import as_probabilities, name_of
from everloop.evaluation.metrics import MetricSpec, parse_metric

__all__ = ["Plan", "Trained", "check", "seeds_of", "specs_of"]


def specs_of(metrics: str | Sequence[str]) -> tuple[MetricSpec, ...]:
    """The metrics; raises InvalidInput if there is none, or one stands there twice."""
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if not names:
        raise InvalidInput("a data test needs a metric", [("metrics", "is empty")])
    if len(set(names)) < len(names):
        raise InvalidInput("each metric stands once", [("metrics", ", ".join(names))])
    return tuple(parse_metric(name) for name in names)


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds; raises InvalidInput if they are none."""
    is_number = isinstance(seeds, int) and not isinstance(seeds, bool)
    if not is_number and not isinstance(seeds, list | tuple | range):
        raise InvalidInput("seeds are whole numbers", [("seeds", repr(seeds))])
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    faults = [("seeds", f"{one!r}") for one in chosen if type(one) is not int or one < 0]
    if faults or not chosen:
        raise InvalidInput("seeds are whole numbers from 0", faults or [("seeds", "there is none")])
    if len(set(chosen)) < len(chosen):
        raise InvalidInput("each seed stands once", [("seeds", ", ".join(map(str, chosen)))])
    return chosen


def check(level: float, workers: int) -> None:
    """Raise InvalidInput where a number is out of its range."""
    faults = []
    if not 0 < level < 0.5:
        faults.append(("level", f"{level!r} does not lie between 0 and 0.5"))
    if type(workers) is not int or workers < 1:
        faults.append(("workers", f"{workers!r} is no number from 1"))
    if faults:
        raise InvalidInput("the data test cannot be done like this", faults)


class Trained(NamedTuple):
    """What the trainings gave: by version and seed, and one of them done twice."""

    outcomes: Mapping[tuple[str, int], Outcome]
    again: Outcome | None


class Plan(NamedTuple):
    """A test that is to be done."""

    train: Any
    against: str
    specs: tuple[MetricSpec, ...]
    seeds: tuple[int, ...]
    holdout: HoldOutRows
    contenders: tuple[Contender, ...]
    label: str
    level: float
    workers: int
    key: tuple[str, ...]

    def training(self, one: Contender) -> Training:
        """The training of a version."""
        train = self.train if one.rival is None else one.rival
        return Training.of(train, self.holdout.task)

    @property
    def experiment(self) -> str:
        return f"data test of {name_of(self.train)}"

    def run(self) -> tuple[Trained, Run]:
        """Train what is not in the store, as a run of the test's own."""
        trained, run = in_run(
            self.experiment, self.train, self._trained, {TEST_TAG: "test"}, self.workers
        )
        note_inputs(
            run.id,
            {"holdout": self.holdout.source} | {one.name: one.source for one in self.contenders},
        )
        return trained, run

    def first_of(self) -> dict[str, Contender]:
        """By content the first version that has it and can be trained."""
        first: dict[str, Contender] = {}
        for one in self.contenders:
            if not one.error:
                first.setdefault(one.identity, one)
        return first

    def _trained(self) -> Trained:
        able = list(self.first_of().values())
        orders = [
            Order((one.name, seed), training, partial(_rows_of, one), seed)
            for one in able
            for training in (self.training(one),)
            for seed in self.seeds
        ]
        if able:
            # The same again: whether equal seeds give equal models.
            orders.append(orders[0]._replace(place="again", repetition=1))
        found = train_all(self.holdout.features, orders, self.workers)
        again = found.pop("again", None)
        checked = {place: self._probable(outcome) for place, outcome in found.items()}
        if not any(outcome.scores is not None for outcome in checked.values()):
            self._raise_all(checked)
        return Trained(checked, again)

    def _probable(self, outcome: Outcome) -> Outcome:
        wanted = next((spec.name for spec in self.specs if spec.takes_probabilities), "")
        if outcome.scores is None or not wanted:
            return outcome
        try:
            as_probabilities(outcome.scores, wanted)
        except InvalidInput as error:
            return Outcome(None, str(error))
        return outcome

    def _raise_all(self, found: Mapping[tuple[str, int], Outcome]) -> None:
        untrained = [f"{one.name}: {one.error}" for one in self.contenders if one.error]
        told = next((outcome.error for outcome in found.values() if outcome.error), "")
        more = "\n".join(untrained)
        raise UserCodeError(
            "\n\n".join(part for part in (told, more, "no version could be trained") if part),
            hint="mend the training or the data and test again: what was trained is kept",
        )


def _rows_of(one: Contender) -> Table:
    return one.rows
