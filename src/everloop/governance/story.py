"""The story of a loop: its events in the order of their causes, each as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Select, select

from everloop.catalog import loops, tables
from everloop.catalog.transaction import Transaction
from everloop.core.events import Event
from everloop.core.gate import Verdict
from everloop.core.time import span_text
from everloop.governance.records import StoryLine

__all__ = ["tell"]

_AT_ONCE = 500


def tell(tx: Transaction, name: str, given: Iterable[Verdict]) -> list[StoryLine]:
    """The lines of the story of the loop `name`, on whose model the verdicts were `given`.

    What nothing else caused comes in the order of time, and below each event what it led to: an
    event stands below the nearest of its causes that belongs to the story.
    """
    verdicts = {verdict.id: verdict for verdict in given}
    events = sorted(_events(tx, _subjects(tx, name, verdicts)), key=lambda event: event.seq)
    by_id = {event.id: event for event in events}
    below: dict[str, list[Event]] = {}
    for event in events:
        below.setdefault(_parent(tx, event, by_id), []).append(event)

    def lines(parent: Event | None, depth: int) -> Iterator[StoryLine]:
        for event in below.get(parent.id if parent else "", []):
            # A thing that moves on stays on its level: a rollout's steps do not march rightwards.
            same = parent is not None and parent.subject == event.subject
            level = depth - 1 if same else depth
            yield StoryLine(
                at=event.at,
                depth=level,
                kind=event.kind,
                sentence=_sentence(event, verdicts),
                event=event.id,
                subject=event.subject,
                actor=event.actor,
                cause=event.cause,
            )
            yield from lines(event, level + 1)

    return list(lines(None, 0))


def _subjects(tx: Transaction, name: str, verdicts: dict[str, Verdict]) -> list[str]:
    def ids(query: Select[Any], noun: str) -> list[str]:
        return [f"{noun}:{row.id}" for row in tx.all(query)]

    alerts, firings, rollouts, runs = (
        tables.alerts,
        tables.firings,
        tables.rollouts,
        tables.runs,
    )
    fired = select(firings.c.id).where(firings.c.loop == name)
    return [
        f"loop:{name}",
        f"deployment:{name}",
        *ids(select(alerts.c.id).where(alerts.c.deployment == name), "alert"),
        *ids(fired, "firing"),
        *ids(select(runs.c.id).where(runs.c.trigger.in_(fired)), "run"),
        *(f"verdict:{identifier}" for identifier in verdicts),
        *ids(select(rollouts.c.id).where(rollouts.c.deployment == name), "rollout"),
    ]


def _events(tx: Transaction, subjects: list[str]) -> Iterator[Event]:
    table = tables.events
    for at in range(0, len(subjects), _AT_ONCE):
        part = subjects[at : at + _AT_ONCE]
        query = select(table).where(table.c.subject.in_(part), table.c.kind.in_(list(_SENTENCES)))
        for row in tx.all(query):
            yield Event(**row._asdict())


def _parent(tx: Transaction, event: Event, known: dict[str, Event]) -> str:
    cause = event.cause
    while cause and cause not in known:
        found = loops.event(tx, cause)
        cause = found.cause if found is not None else ""
    return cause


def _sentence(event: Event, verdicts: dict[str, Verdict]) -> str:
    if event.kind == "verdict.Given":
        found = verdicts.get(event.subject.partition(":")[2])
        if found is not None:
            return _judged(found)
    return _SENTENCES[event.kind](event)


def _fired(event: Event) -> str:
    evidence = event.body.get("evidence") or {}
    windows = evidence.get("windows") or []
    told = f"{event.body.get('monitor', 'a monitor')} alerts"
    if "promised" in evidence:
        promised, subject = span_text(evidence["promised"]), evidence["measured_on"]
        return f"{told}: {span_text(evidence['value'])}, promised at most {promised} ({subject})"
    if evidence.get("rule"):
        told += f": {evidence.get('metric')} beyond its bound in {evidence['rule']}"
    if windows and windows[-1].get("value") is not None and windows[-1].get("bound") is not None:
        told += f", last {windows[-1]['value']:.4g} against {windows[-1]['bound']:.4g}"
    return told


def _judged(verdict: Verdict) -> str:
    if not verdict.champion and verdict.passed:
        return f"version {verdict.candidate} goes live: there was no champion yet"
    how = "passed" if verdict.passed else "was refused"
    reasons = "; ".join(verdict.reasons)
    against = f"version {verdict.champion}" if verdict.champion else "nobody, as the first"
    told = f"version {verdict.candidate} {how} against {against}"
    return f"{told}: {reasons}" if reasons else told


def _rolled(what: str) -> Callable[[Event], str]:
    def sentence(event: Event) -> str:
        told = f"version {event.body.get('candidate', '?')} {what}"
        reason = event.body.get("reason")
        return f"{told}: {reason}" if reason else told

    return sentence


def _advanced(event: Event) -> str:
    weight, stage = event.body.get("weight", 0), event.body.get("stage", "")
    return f"version {event.body.get('candidate', '?')} gets {weight:g} % of the traffic ({stage})"


def _said(text: str, *keys: str) -> Callable[[Event], str]:
    """A sentence with facts of the body in place of its ``{key}``."""

    def sentence(event: Event) -> str:
        return text.format(**{key: event.body.get(key) or "?" for key in keys})

    return sentence


def _first_line(key: str, text: str) -> Callable[[Event], str]:
    def sentence(event: Event) -> str:
        said = str(event.body.get(key) or "").strip().splitlines()
        return f"{text}: {said[-1]}" if said else text

    return sentence


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "loop.Declared": _said("{owner} answers for the loop; it runs {pipeline}", "owner", "pipeline"),
    "loop.Paused": _first_line("reason", "paused"),
    "loop.Resumed": _first_line("reason", "goes on"),
    "loop.Asked": _first_line("reason", "a person asks for a retraining"),
    "deployment.Created": _said("version {version} of {model} is served", "version", "model"),
    "alert.Fired": _fired,
    "alert.Cleared": _first_line("reason", "the alert clears"),
    "trigger.Fired": _said("a retraining starts because of {trigger}", "trigger"),
    "trigger.Skipped": _said("held back ({outcome}): {reason}", "outcome", "reason"),
    "trigger.Finished": _first_line("reason", "the retraining ends"),
    "run.Started": _said("{pipeline} runs", "pipeline"),
    "run.Resumed": _said("the run goes on"),
    "run.Lost": _said("the run's process is gone"),
    "run.Finished": _said("the run finished"),
    "run.Failed": _first_line("error", "the run failed"),
    "run.Killed": _said("the run was stopped"),
    "verdict.Given": _said("a verdict was given"),
    "rollout.Started": _rolled("begins to roll out"),
    "rollout.Advanced": _advanced,
    "rollout.Promoted": _rolled("is champion now"),
    "rollout.Aborted": _rolled("is taken out"),
}
