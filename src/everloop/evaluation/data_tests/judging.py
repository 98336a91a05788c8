"""From scores to a report: effects of versions and slices, and what a reader should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from everloop.core.data_test import (
    DataTestReport,
    Effect,
    HoldOutFacts,
    SliceResult,
    VersionMetric,
    VersionResult,
)
from everloop.core.run import Run
from everloop.evaluation.data_tests.effects import (
    SAME,
    Measured,
    effect_of,
    interval_of,
    measured,
    number,
)
from everloop.evaluation.data_tests.inputs import Contender, source_fields
from everloop.evaluation.data_tests.plan import Plan, Trained
from everloop.evaluation.data_tests.running import Outcome, note_run, outcomes_of
from everloop.evaluation.data_tests.training import name_of
from everloop.evaluation.metrics import MetricSpec, parse_metric

__all__ = ["Judging"]


class Judging:
    """Judges the scores of one test."""

    def __init__(self, test: Plan, trained: Trained, run: Run) -> None:
        self._test = test
        self._run = run
        self._trained = trained
        self._first = test.first_of()
        self._measured: dict[tuple[str, str], Measured] = {}
        self.errors = {one.name: self._error(one) for one in test.contenders}
        self.well = [one for one in test.contenders if not self.errors[one.name]]
        named = [one for one in self.well if one.name == test.against]
        self.against = (named or self.well)[0]

    def _error(self, one: Contender) -> str:
        if one.error:
            return one.error
        return next((o.error for o in self._outcomes(one) if o.scores is None), "")

    def _outcomes(self, one: Contender) -> list[Outcome]:
        name = self._first[one.identity].name
        return [self._trained.outcomes[name, seed] for seed in self._test.seeds]

    def scores(self, one: Contender) -> list[Any]:
        """Of each seed."""
        return [outcome.scores for outcome in self._outcomes(one)]

    def measured(self, one: Contender, spec: MetricSpec) -> Measured:
        """On the whole hold-out; equal content is measured once."""
        place = (one.identity, f"{spec.name}@{spec.threshold}")
        if place not in self._measured:
            held = self._test.holdout
            self._measured[place] = measured(spec, held.y, self.scores(one), held.blocks)
        return self._measured[place]

    def report(self) -> DataTestReport:
        """All of it; the trainings are noted as runs."""
        test, held = self._test, self._test.holdout
        versions = tuple(self._version(one) for one in test.contenders)
        names = tuple(metric_name(spec) for spec in test.specs)
        trained, cached = outcomes_of(self._run.id)
        return DataTestReport(
            id=self._run.id,
            at=self._run.started_at,
            train=name_of(test.train),
            label=test.label,
            metrics=names,
            lower_is_better=tuple(metric_name(spec) for spec in test.specs if spec.sign < 0),
            seeds=test.seeds,
            holdout=HoldOutFacts(
                name=held.name,
                digest=held.digest,
                rows=len(held.y),
                unlabelled=held.unlabelled,
                positives=float(held.y.mean()) if held.task == "binary" else None,
                drawn="days" if held.by_day else "rows",
                blocks=int(held.blocks.max()) + 1,
                **source_fields(held.source),
            ),
            against=self.against.name,
            best=_best(versions),
            level=test.level,
            versions=versions,
            slices=tuple(self._slices()),
            notes=tuple(self._notes()),
            trained=trained,
            cached=cached,
        )

    # Versions

    def _version(self, one: Contender) -> VersionResult:
        test, error = self._test, self.errors[one.name]
        first = self._first.get(one.identity, one)
        same_as = first.name if first is not one else ""
        notes = list(one.notes)
        if same_as:
            notes.append(
                f"has the same content as {same_as}: trained once, the effect is exactly 0"
            )
        metrics = () if error else tuple(self._metric(one, spec) for spec in test.specs)
        return VersionResult(
            name=one.name,
            digest=one.identity,
            rows=len(one.rows),
            same_as=same_as,
            left_out=one.left_out,
            runs=() if same_as or one.error else tuple(self._runs(one, metrics)),
            error=error,
            train="" if one.rival is None else name_of(one.rival),
            notes=tuple(notes),
            metrics=metrics,
            **source_fields(one.source),
        )

    def _metric(self, one: Contender, spec: MetricSpec) -> VersionMetric:
        found = self.measured(one, spec)
        low, high = interval_of(found, self._test.level)
        return VersionMetric(
            metric=metric_name(spec),
            value=number(float(found.exact.mean())),
            low=low,
            high=high,
            by_seed=tuple(number(value) for value in found.exact),
            effect=self._effect(one, spec),
        )

    def _effect(self, one: Contender, spec: MetricSpec) -> Effect | None:
        if one is self.against:
            return None
        if one.identity == self.against.identity:
            return SAME
        family = len({other.identity for other in self.well}) - 1
        difference = self.measured(one, spec) - self.measured(self.against, spec)
        return effect_of(difference, spec.sign, level=self._test.level, family=family)

    def _runs(self, one: Contender, metrics: Sequence[VersionMetric]) -> Iterator[str]:
        for place, outcome in enumerate(self._outcomes(one)):
            seed = self._test.seeds[place]
            values = {m.metric: m.by_seed[place] for m in metrics}
            yield note_run(
                self._test.experiment,
                f"{one.name} seed {seed}",
                self._run.id,
                params={"version": one.name, "seed": str(seed), "rows": str(len(one.rows))},
                metrics={_plain(k): v for k, v in values.items() if v is not None},
                source=one.source,
                error=outcome.error,
            )

    # Slices and notes

    def _slices(self) -> Iterator[SliceResult]:
        held, spec = self._test.holdout, self._test.specs[0]
        others = [one for one in self.well if one.identity != self.against.identity]
        large = sum(int(mask.sum()) >= 1 for mask in held.masks.values())
        family = max(large * len({one.identity for one in others}), 1)
        for name, mask in held.masks.items():
            before = self._on(self.against, spec, mask)
            for one in others:
                after = self._on(one, spec, mask)
                rows = int(mask.sum())
                if before is None or after is None:
                    effect = Effect(estimate=None, answer="too small to tell")
                    yield SliceResult(
                        slice=name, version=one.name, rows=rows, before=None, after=None,
                        effect=effect,
                    )  # fmt: skip
                    continue
                yield SliceResult(
                    slice=name,
                    version=one.name,
                    rows=rows,
                    before=number(float(before.exact.mean())),
                    after=number(float(after.exact.mean())),
                    effect=effect_of(
                        after - before, spec.sign, level=self._test.level, family=family, rows=rows
                    ),
                )

    def _on(self, one: Contender, spec: MetricSpec, mask: Any) -> Measured | None:
        held = self._test.holdout
        if not mask.any():
            return None
        scores = [scores[mask] for scores in self.scores(one)]
        return measured(spec, held.y[mask], scores, held.blocks[mask], is_slice=True)

    def _notes(self) -> Iterator[str]:
        test, held = self._test, self._test.holdout
        if len(test.seeds) == 1:
            yield "one seed: the intervals hold the luck of the hold-out, not that of the training"
        if held.unlabelled:
            yield f"{held.unlabelled} rows of the hold-out have no {test.label} and were left out"
        wanted = test.against or test.contenders[0].name
        if self.against.name != wanted:
            yield f"{wanted} could not be trained: the others are held against {self.against.name}"
        again = self._trained.again
        first = next(iter(self._first.values()))
        once = self._trained.outcomes[first.name, test.seeds[0]].scores
        if again is not None and again.scores is not None and once is not None:
            apart = float(np.abs(again.scores - once).max()) if once.size else 0.0
            if apart > 0:
                yield (
                    f"the training is not deterministic: twice seed {test.seeds[0]} on {first.name}"
                    f" gave scores up to {apart:.3g} apart, so the seeds of two versions are no"
                    " pairs; the intervals hold it, but a second look may differ"
                )
        if not held.by_day and held.task == "binary" and min(held.y.sum(), (1 - held.y).sum()) < 20:
            rare = int(min(held.y.sum(), (1 - held.y).sum()))
            yield f"only {rare} rows of the hold-out are of the rarer class: intervals are wide"


def metric_name(spec: MetricSpec) -> str:
    """As it was given."""
    default = parse_metric(spec.name).threshold
    return spec.name if spec.threshold == default else f"{spec.name}@{spec.threshold:g}"


def _plain(name: str) -> str:
    # A tracking client's name for a metric has no @.
    return name.replace("@", "_at_")


def _best(versions: Sequence[VersionResult]) -> str:
    better = [
        one
        for one in versions
        if one.metrics
        and not one.train
        and one.metrics[0].effect
        and one.metrics[0].effect.answer == "better"
    ]
    # The largest estimate; which of the better ones is best is not tested.
    return max(better, key=lambda one: one.metrics[0].effect.estimate).name if better else ""  # type: ignore[union-attr, arg-type, return-value]
