"""A data test in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from everloop.core.data_test import Blame, DataTestReport, Effect, VersionResult

__all__ = ["answered", "blame_sentence", "figure", "headline", "summary_of", "with_interval"]


def figure(value: float | None, *, signed: bool = False) -> str:
    """A figure of a metric: four digits, or more where it is small."""
    if value is None:
        return "not defined"
    digits = 4 if value == 0 or abs(value) >= 0.001 else 6
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def with_interval(effect: Effect) -> str:
    """An effect with its interval, if it has one."""
    if effect.answer == "same data":
        return "0 exactly"
    shown = figure(effect.estimate, signed=True)
    if effect.low is None or effect.high is None:
        return shown
    return f"{shown} [{figure(effect.low, signed=True)}, {figure(effect.high, signed=True)}]"


def answered(effect: Effect) -> str:
    """What an effect shows, with the figures."""
    return f"{effect.answer}, {with_interval(effect)}"


def headline(report: DataTestReport) -> str:
    """The one sentence."""
    metric = report.metrics[0]
    if report.best:
        effect = report.version(report.best).metrics[0].effect
        assert effect is not None  # the best is held against another
        return f"{report.best} is better than {report.against} by {with_interval(effect)} {metric}"
    others = [one for one in report.versions if one.name != report.against and not one.error]
    if len(report.versions) == 1:
        return f"{report.against} alone: there is no other version to hold against it"
    if not others:
        return f"only {report.against} could be trained: there is nothing to hold it against"
    if all(one.metrics[0].effect and one.metrics[0].effect.answer == "same data" for one in others):
        return f"all versions have the content of {report.against}: nothing differs"
    return f"no version is better than {report.against} in {metric} by more than chance"


def summary_of(report: DataTestReport) -> str:
    """The whole test as lines of text."""
    return "\n".join(_lines(report))


def _lines(report: DataTestReport) -> Iterator[str]:
    yield headline(report)
    held = report.holdout
    yield (
        f"{report.train} with {_many(len(report.seeds), 'seed')} on"
        f" {_many(sum(not one.train for one in report.versions), 'version')}, judged on"
        f" {held.rows} rows of {held.name}; {1 - report.level:.0%} intervals over {held.drawn} and"
        " seeds, above 0 is better"
    )
    for one in report.versions:
        yield from _version(one)
    judged = [s for s in report.slices if s.effect.answer in ("better", "worse")]
    small = sum(s.effect.answer == "too small to tell" for s in report.slices)
    if report.slices:
        yield (
            f"slices: {len(report.slices)} looked at, {len(judged)} differ,"
            f" {small} too small to tell"
        )
    for part in judged:
        yield f"  {part.slice} ({part.rows} rows), {part.version}: {answered(part.effect)}"
    for blame in report.blames:
        yield blame_sentence(blame)
        for group in blame.groups:
            yield f"  {group.name} ({group.rows} rows): {with_interval(group.worth)}"
    for note in report.notes:
        yield f"note: {note}"


def _version(one: VersionResult) -> Iterator[str]:
    yield f"{one.name} ({one.rows} rows)"
    if one.error:
        yield "  failed:"
        yield from (f"    {line}" for line in one.error.splitlines())
    for metric in one.metrics:
        effect = "" if metric.effect is None else f"  {answered(metric.effect)}"
        yield f"  {metric.metric} {figure(metric.value)}{effect}"
    for note in one.notes:
        yield f"  {note}"


def blame_sentence(blame: Blame) -> str:
    """What was asked and how it was measured."""
    how = {
        "shapley": "shares that add up to it, exact over all sets of groups",
        "sampled shapley": "shares that add up to it, over some orders of the groups",
        "leave one out": "what is lost without each",
    }
    return (
        f"{blame.version} against {blame.against}: {with_interval(blame.total)} {blame.metric},"
        f" by {blame.by}: {how[blame.method]}"
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
