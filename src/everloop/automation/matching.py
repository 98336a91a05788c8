"""Which events a trigger is about. Pure: an event has topics, a trigger one, and a dict joins them.

With a thousand triggers an event costs a few lookups, not a thousand comparisons.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from everloop.core.events import Event
from everloop.core.policy import Trigger
from everloop.errors import Fault

__all__ = ["KINDS", "fits", "topics_of", "where_faults"]

_Topic = tuple[str, str]


def _dataset(event: Event) -> Iterator[_Topic]:
    yield "data", event.subject.partition(":")[2].rpartition("@")[0]


def _registered(event: Event) -> Iterator[_Topic]:
    yield "registered", event.subject.removeprefix("model:").rpartition("/")[0]


def _alias(event: Event) -> Iterator[_Topic]:
    model, alias = event.subject.removeprefix("model:").rpartition("/")[0], event.body.get("alias")
    if event.body.get("to"):
        yield "alias", f"{model}@{alias}"
        yield "alias", model


def _alert(event: Event) -> Iterator[_Topic]:
    monitor = str(event.body.get("monitor", ""))
    deployment = event.body.get("deployment", "")
    for name in (monitor, "sla") if monitor.startswith("sla:") else (monitor,):
        yield "alert", name
        yield "alert", f"{deployment}/{name}"


def _verdict(event: Event) -> Iterator[_Topic]:
    if event.body.get("passed") is False:
        yield "gate_failed", str(event.body.get("model", ""))


def _rolled_back(event: Event) -> Iterator[_Topic]:
    yield "rolled_back", str(event.body.get("deployment", ""))


def _run_failed(event: Event) -> Iterator[_Topic]:
    # A run that somebody stopped did not fail.
    if event.body.get("state") == "failed":
        name = str(event.body.get("pipeline", ""))
        yield "run_failed", name
        yield "run_failed", name.rpartition(".")[2]


def _never_ran(event: Event) -> Iterator[_Topic]:
    # What failed before there was a run, such as a file that cannot be imported.
    if event.body.get("outcome") == "failed" and not event.body.get("run"):
        yield "run_failed", str(event.body.get("loop", ""))


def _webhook(event: Event) -> Iterator[_Topic]:
    yield "webhook", event.subject.partition(":")[2]


def _files(event: Event) -> Iterator[_Topic]:
    yield "files", event.subject.partition(":")[2]


#: Kinds of events that triggers are about.
KINDS: Mapping[str, Callable[[Event], Iterator[_Topic]]] = {
    "alert.Fired": _alert,
    "dataset.VersionCommitted": _dataset,
    "files.Changed": _files,
    "model.AliasMoved": _alias,
    "model.Registered": _registered,
    "rollout.Aborted": _rolled_back,
    "run.Failed": _run_failed,
    "trigger.Finished": _never_ran,
    "verdict.Given": _verdict,
    "webhook.Received": _webhook,
}


def topics_of(event: Event) -> list[_Topic]:
    """What the triggers are called that an event is for: kind of trigger, and value or empty."""
    read = KINDS.get(event.kind)
    found = list(dict.fromkeys(read(event))) if read is not None else []
    return [*found, *dict.fromkeys((on, "") for on, _ in found)]


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "!=": operator.ne,
}


def where_faults(where: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with a filter."""
    faults = []
    for path, wanted in where.items():
        values = [wanted]
        if isinstance(wanted, dict):
            faults += [
                Fault(f"where[{path!r}]", f"{sign!r} is none of {', '.join(_COMPARE)}")
                for sign in wanted
                if sign not in _COMPARE
            ]
            values = list(wanted.values())
        elif isinstance(wanted, list | tuple):
            values = list(wanted)
        for value in values:
            if not (value is None or isinstance(value, str | int | float)):
                told = f"is a {type(value).__name__}, wanted text, a number, true or false"
                faults.append(Fault(f"where[{path!r}]", told))
    return faults


def fits(trigger: Trigger, event: Event) -> bool:
    """Whether the event's body says what the trigger asks for besides its topic.

    ``where`` maps a path of keys in the body, with dots between, to a value, to a list of which one
    must be it, or to comparisons such as ``{"<": 0.7}``. What the body does not say does not fit.
    """
    return all(_holds(wanted, _at(event.body, path)) for path, wanted in trigger.where.items())


_ABSENT = object()


def _at(body: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(body, dict) or name not in body:
            return _ABSENT
        body = body[name]
    return body


def _holds(wanted: Any, found: Any) -> bool:
    if found is _ABSENT:
        return False
    if isinstance(wanted, dict):
        try:
            return all(_COMPARE[sign](found, limit) for sign, limit in wanted.items())
        except TypeError:  # text against a number: it does not say what is asked for
            return False
    if isinstance(wanted, list | tuple):
        return any(_same(one, found) for one in wanted)
    return _same(wanted, found)


def _same(wanted: Any, found: Any) -> bool:
    # True is 1 to Python, and not to who writes a filter.
    return bool(wanted == found) and isinstance(wanted, bool) == isinstance(found, bool)
