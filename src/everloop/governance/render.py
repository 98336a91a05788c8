"""Text for a terminal of what governance tells. No rule and no look-up here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from everloop.core.gate import Verdict
from everloop.governance.maturity import Grade, Maturity
from everloop.governance.records import Neighbours, StoryLine, Why

__all__ = ["maturity_text", "neighbours_text", "story_text", "why_text"]

_INDENT = "  "


def story_text(lines: Iterable[StoryLine]) -> str:
    """The story, a line each, indented below its cause."""
    told = [f"{x.at:%Y-%m-%d %H:%M}  {_INDENT * x.depth}{_verb(x.kind)}{x.sentence}" for x in lines]
    return "\n".join(told) or "nothing has happened yet"


def maturity_text(found: Maturity) -> str:
    """The grades, Markdown: what is met with its evidence, and what to do about the rest."""
    return "\n".join(_maturity_lines(found))


def _maturity_lines(found: Maturity) -> Iterator[str]:
    grades = [item.grade for item in found.items]
    known: tuple[Grade, ...] = get_args(Grade)
    counts = ", ".join(f"{grades.count(grade)} {grade}" for grade in known)
    lacks = f"; level {found.level + 1} lacks {', '.join(map(str, found.lacks))}"
    yield f"# {found.loop}: level {found.level}, {found.name}"
    yield ""
    yield f"Of {len(grades)} items {counts}{lacks if found.lacks else ''}."
    for item in found.items:
        yield ""
        yield f"## {item.number}. {item.title}: {item.grade}"
        yield ""
        for condition in item.conditions:
            yield f"- {condition.grade}: {condition.claim}"
            yield from (f"  - {evidence}" for evidence in condition.evidence)
            if condition.grade == "not known" and not condition.evidence:
                yield "  - nothing is recorded of it"
            if condition.todo:
                yield f"  - to do: {condition.todo}"


def why_text(why: Why) -> str:
    """Everything behind one prediction, from the answer back to the rows and the owners."""
    return "\n".join(_why_lines(why))


def _why_lines(why: Why) -> Iterator[str]:
    p, version = why.prediction, why.version
    yield f"prediction {p.id}"
    asked = f" for request {p.request_id}" if p.request_id else ""
    yield f"  {p.value:.6g}{asked}, as of {p.at:%Y-%m-%d %H:%M:%S} UTC"
    if p.label is not None:
        known = f", known {p.label_at:%Y-%m-%d %H:%M} UTC" if p.label_at is not None else ""
        yield f"  the truth was {p.label:g}{known}"
    yield f"deployment {why.deployment}, revision {p.revision}, arm {p.arm}"
    until = f", trained until {version.trained_until:%Y-%m-%d}" if version.trained_until else ""
    yield f"model {version.ref} ({version.flavor}, {version.tier}){until}"
    yield from _verdict(why.verdict)
    yield from _run(why)
    yield "data it was trained on" + ("" if why.datasets else ": not stated")
    for use in why.datasets:
        yield f"  {use.name}@{use.version} {use.digest[:16]}, {use.extent}" + _by(use.owner)
    yield "features"
    width = max((len(feature.name) for feature in why.features), default=0)
    for feature in why.features:
        yield f"  {feature.name:<{width}}  {_value(feature.value)}" + _known(feature)
    if why.rows:
        yield "rows behind them"
    for row in why.rows:
        key = ", ".join(f"{name}={value}" for name, value in row.key.items()) or "all"
        yield f"  {row.view}: {row.dataset}@{row.version}, {key}"
        if row.row is not None:
            yield "    " + ", ".join(f"{k}={_value(v)}" for k, v in row.row.items())
    if why.changes:
        yield "rows that rules dropped or changed"
    for change in why.changes:
        yield f"  {change.scope}: {change.rule} {change.action} {change.rows}: {change.reason}" + (
            _by(change.owner)
        )
    yield "owners"
    for what, who in why.owners.items():
        yield f"  {what}: {who}"
    if why.not_stated:
        yield "not stated: " + ", ".join(why.not_stated)


def neighbours_text(found: Neighbours) -> str:
    """The training rows nearest to a prediction, from the distance to the owner."""
    return "\n".join(_neighbour_lines(found))


def _neighbour_lines(found: Neighbours) -> Iterator[str]:
    yield f"nearest of the {found.rows} rows of {found.step} in run {found.run}"
    yield f"  distance: {found.method}"
    yield f"  followed {found.followed}" if found.source else f"  not followed: {found.followed}"
    for n, one in enumerate(found.neighbours, 1):
        key = ", ".join(f"{name}={value}" for name, value in one.key.items())
        yield f"{n}. distance {one.distance:.4g}" + (f": {found.source}, {key}" if key else "")
        yield "   features: " + ", ".join(f"{k}={_value(v)}" for k, v in one.features.items())
        if one.row is not None:
            yield "   row: " + ", ".join(f"{k}={_value(v)}" for k, v in one.row.items())
        for change in one.changes:
            told = f"   {change.scope}: {change.rule} {change.action}: {change.reason}"
            yield told + _by(change.owner)
        if one.owners:
            yield f"   owners: {', '.join(one.owners)}"


def _verdict(verdict: Verdict | None) -> Iterator[str]:
    if verdict is None:
        yield "no verdict let it live: a person promoted it"
        return
    against = f"version {verdict.champion}" if verdict.champion else "nobody, as the first"
    yield f"verdict {verdict.id} of {verdict.at:%Y-%m-%d}: passed against {against}"
    for result in verdict.results:
        yield f"  {result.reason}"


def _run(why: Why) -> Iterator[str]:
    if why.run is None:
        yield "run: not known here"
        return
    yield f"run {why.run.id} of {why.run.pipeline or why.run.name} by {why.run.actor or 'unknown'}"
    if why.run.code:
        yield f"  code {why.run.code[:16]}"
    if why.run.git.get("commit"):
        dirty = ", with changes" if why.run.git.get("dirty") in ("true", "1", "True") else ""
        yield f"  commit {why.run.git['commit'][:12]}{dirty}"
    for name, value in sorted(why.run.params.items()):
        yield f"  {name} = {value}"


def _known(feature: Any) -> str:
    if not feature.view:
        return ""
    when = f"known {feature.known_at:%Y-%m-%d %H:%M} UTC" if feature.known_at else "no time"
    return f"  ({feature.view}, {when})"


def _by(owner: str) -> str:
    return f", owner {owner}" if owner else ""


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _verb(kind: str) -> str:
    return f"{kind.partition('.')[0]}: "
