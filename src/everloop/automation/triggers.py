"""How a user writes what happens by itself: ``ev.on(trigger).run(pipeline)`` or ``.notify(to)``.

Triggers are plain values, refused where they are written if they make no sense; the same ones start
the retraining of a loop (``retrain_on=``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from everloop.automation.matching import where_faults
from everloop.automation.schedule import schedule_faults
from everloop.automation.texts import budget_of
from everloop.core.context import current_workspace, has_workspace
from everloop.core.policy import (
    Automation,
    LoopSpec,
    Missed,
    Notify,
    RunPipeline,
    Trigger,
)
from everloop.core.time import SystemClock, duration_micros
from everloop.errors import Fault, InvalidInput

__all__ = [
    "On",
    "alert",
    "alias_moved",
    "automation_faults",
    "collecting",
    "declare",
    "declared",
    "files",
    "gate_failed",
    "is_collecting",
    "new_data",
    "on",
    "parsed",
    "pipeline_path",
    "registered",
    "rolled_back",
    "run_failed",
    "schedule",
    "trigger_faults",
    "webhook",
]

T = TypeVar("T")

#: A path, or what is below a bucket; nothing before its name, where a secret might stand.
_FILES = re.compile(r"s3://[a-z0-9.\-]+(/|$)|(?!.*://)")
_HOOK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MISSED = ("skip", "latest", "all")
#: Where a message may go, by what an address begins with.
CHANNELS = ("log", "slack", "webhook", "mail")
#: Arguments that a run gets from its firing, if its pipeline takes them.
GIVEN = frozenset({"scheduled_for", "event"})

_declared: dict[str, LoopSpec | Automation] = {}
_only_collect: ContextVar[bool] = ContextVar("everloop_only_collect", default=False)


# --- what files declare --------------------------------------------------------------------------


def declared() -> list[LoopSpec | Automation]:
    """What files imported by this process have declared, in order."""
    return list(_declared.values())


def declare(spec: LoopSpec | Automation) -> None:
    """Remember what a file declares."""
    _declared.pop(spec.name, None)
    _declared[spec.name] = spec


def is_collecting() -> bool:
    """Whether what is declared is only remembered."""
    return _only_collect.get() or not has_workspace()


@contextmanager
def collecting() -> Iterator[None]:
    """Within the block what is declared is only remembered: importing a file changes nothing."""
    token = _only_collect.set(True)
    try:
        yield
    finally:
        _only_collect.reset(token)


# --- triggers ------------------------------------------------------------------------------------

_Where = Mapping[str, Any] | None


def alert(monitor: str, *, where: _Where = None) -> Trigger:
    """When a monitor alerts: its name, or ``deployment/monitor``.

    A promise of a charter that is broken alerts as ``sla:renewal`` (or ``retraining``,
    ``deployment``, ``prediction``); ``sla`` is any of them. A loop retrains on ``sla:renewal``.
    """
    return _trigger(Trigger(on="alert", value=monitor, where=dict(where or {})))


def schedule(cron: str, *, zone: str = "", missed: Missed = "latest") -> Trigger:
    """At the times of a cron expression.

    Args:
        cron: Five fields: minute, hour, day, month, weekday.
        zone: Time zone, such as ``"Europe/Paris"``; UTC if not given.
        missed: Which of the times that nobody was there for fire afterwards: none (``skip``), only
            the ``latest``, or ``all`` of them, the oldest first.

    Raises:
        InvalidInput: If the expression or the zone is wrong.
    """
    return _trigger(Trigger(on="schedule", value=cron, zone=zone, missed=missed))


def new_data(dataset: str, *, where: _Where = None) -> Trigger:
    """When a version of `dataset` is committed by anything but this."""
    return _trigger(Trigger(on="data", value=dataset, where=dict(where or {})))


def registered(model: str = "", *, where: _Where = None) -> Trigger:
    """When a version of `model` is registered; of any model if not given."""
    return _trigger(Trigger(on="registered", value=model, where=dict(where or {})))


def alias_moved(alias: str = "", *, where: _Where = None) -> Trigger:
    """When an alias moves to a version: ``model@alias``, or any alias of ``model``."""
    return _trigger(Trigger(on="alias", value=alias, where=dict(where or {})))


def gate_failed(model: str = "", *, where: _Where = None) -> Trigger:
    """When a gate refuses a version of `model`; of any model if not given."""
    return _trigger(Trigger(on="gate_failed", value=model, where=dict(where or {})))


def rolled_back(deployment: str = "", *, where: _Where = None) -> Trigger:
    """When a rollout of `deployment` is aborted; of any deployment if not given."""
    return _trigger(Trigger(on="rolled_back", value=deployment, where=dict(where or {})))


def run_failed(pipeline: str = "", *, where: _Where = None) -> Trigger:
    """When a run of `pipeline` fails, or a loop or automation of that name before it had a run."""
    return _trigger(Trigger(on="run_failed", value=pipeline, where=dict(where or {})))


def webhook(name: str, *, secret: str, where: _Where = None) -> Trigger:
    """When somebody who knows the secret posts to ``/hooks/NAME``.

    Args:
        name: The last part of the path.
        secret: Where the server finds the secret: ``"env:VARIABLE"`` or ``"file:/path"``.
        where: What the posted JSON must say, as ``{"payload.branch": "main"}``.
    """
    return _trigger(Trigger(on="webhook", value=name, secret=secret, where=dict(where or {})))


def files(pattern: str, *, where: _Where = None) -> Trigger:
    """When files that match a pattern come, change or go, such as ``"data/raw/*.parquet"``.

    Looked at every few seconds by the supervisor, relative to the folder that it runs in; or in a
    bucket, as ``"s3://lake/raw"`` (all below it) or ``"s3://lake/raw/**/*.parquet"``, which takes a
    request for every thousand objects.
    """
    return _trigger(Trigger(on="files", value=pattern, where=dict(where or {})))


def _trigger(made: Trigger) -> Trigger:
    faults = trigger_faults([made])
    if faults:
        raise InvalidInput(f"the trigger {made.on} {made.value!r} is wrong", faults)
    return made


def trigger_faults(triggers: Iterable[Trigger]) -> list[Fault]:
    """What is wrong with triggers."""
    faults = []
    for trigger in triggers:
        faults += where_faults(trigger.where)
        if trigger.on == "schedule":
            faults += schedule_faults(trigger.value, trigger.zone)
            if trigger.missed not in _MISSED:
                faults.append(Fault("missed", f"{trigger.missed!r} is none of {_MISSED}"))
        elif trigger.on == "webhook":
            if not _HOOK.fullmatch(trigger.value):
                told = f"{trigger.value!r} must be letters, digits, '.', '_' or '-', at most 100"
                faults.append(Fault("name", told))
            faults += reference_faults("secret", trigger.secret)
        elif trigger.on in ("alert", "data", "files") and not trigger.value.strip():
            faults.append(Fault(trigger.on, "must be named"))
        elif trigger.on == "files" and not _FILES.match(trigger.value):
            faults.append(Fault("files", "must be a path, or s3://bucket/prefix"))
    return faults


def reference_faults(path: str, reference: str) -> list[Fault]:
    """What is wrong with where a secret is said to be."""
    kind, colon, place = reference.partition(":")
    if kind in ("env", "file") and colon and place:
        return []
    return [Fault(path, "must say where it is: env:VARIABLE or file:/path, not what it is")]


# --- automations ---------------------------------------------------------------------------------


class On:
    """Triggers that wait for what they are to do, see :func:`on`."""

    def __init__(self, triggers: tuple[Trigger, ...], **options: Any) -> None:
        self._triggers = triggers
        self._options = options

    def run(self, pipeline: Callable[..., Any] | str, /, **arguments: Any) -> Automation:
        """Run a pipeline, with these arguments.

        A pipeline that takes ``scheduled_for`` (a ``datetime``) gets the instant it is for, one
        that takes ``event`` (a ``dict``) what happened.

        Args:
            pipeline: The pipeline, or ``path/to/file.py:function``.
            **arguments: What JSON can hold; dates and times as ISO text.

        Raises:
            InvalidInput: If anything does not fit together; all faults are listed.
        """
        faults: list[Fault] = []
        path = parsed(faults, "pipeline", lambda: pipeline_path(pipeline), "")
        faults += _argument_faults(pipeline, arguments)
        name = path.rpartition(":")[2]
        return self._declare(faults, name, RunPipeline(pipeline=path, arguments=arguments))

    def notify(self, to: str, text: str = "") -> Automation:
        """Tell somebody what happened.

        Args:
            to: ``log:``, ``slack:ADDRESS``, ``webhook:ADDRESS`` or ``mail:someone@example.org``; an
                address that is secret is named instead: ``slack:env:SLACK_WEBHOOK``.
            text: What to say; ``{kind}``, ``{subject}``, ``{at}`` and fields of the event's body
                such as ``{reason}`` are filled in. A sentence of our own if not given.

        Raises:
            InvalidInput: If the address is none.
        """
        channel = to.partition(":")[0]
        kinds = "-".join(dict.fromkeys(trigger.on for trigger in self._triggers))
        return self._declare([], f"tell-{channel}-{kinds}", Notify(to=to, text=text))

    def _declare(self, faults: list[Fault], name: str, action: RunPipeline | Notify) -> Automation:
        given = self._options
        seconds = {
            option: parsed(faults, option, lambda o=option: _seconds(given[o]), 0.0)  # type: ignore[misc]
            for option in ("debounce", "cooldown")
        }
        budget = given["budget"]
        most, per_s = (
            parsed(faults, "budget", lambda: budget_of(budget), (0, 0.0)) if budget else (0, 0.0)
        )
        now = SystemClock().now()
        frame_file = given["source"]
        spec = Automation(
            name=given["name"] or name,
            owner=given["owner"],
            triggers=self._triggers,
            action=action,
            debounce_s=seconds["debounce"],
            cooldown_s=seconds["cooldown"],
            budget=most,
            budget_s=per_s,
            concurrency=given["concurrency"],
            depth=given["depth"],
            source=frame_file,
            created_at=now,
            updated_at=now,
        )
        faults += automation_faults(spec)
        if faults:
            raise InvalidInput(f"the automation {spec.name!r} is wrong", faults)
        declare(spec)
        if is_collecting():
            return spec
        return current_workspace().automation.automate(spec)  # type: ignore[no-any-return]


def on(
    *triggers: Trigger,
    name: str = "",
    owner: str = "",
    debounce: str | timedelta = "",
    cooldown: str | timedelta = "",
    budget: str = "",
    concurrency: int = 1,
    depth: int = 1,
) -> On:
    """Say when something happens by itself; ``.run(pipeline)`` or ``.notify(to)`` says what.

    Args:
        *triggers: Any of them fires it; each event fires it once.
        name: Its name, which no loop has; by default that of the pipeline.
        owner: Who answers for it; who declares it if not given.
        debounce: Collect what happens within this time of the first event, such as ``"10m"``, and
            act once at its end.
        cooldown: Shortest time between two firings, such as ``"6h"``. What comes earlier waits and
            fires once when it is over.
        budget: Most firings in a time, such as ``"4 per day"``; what is above waits likewise.
        concurrency: How many of its runs may be open at once; the others queue.
        depth: How many firings of its own may have led to an event that fires it. With 1 what it
            does itself never fires it again.
    """
    return On(
        triggers,
        name=name,
        owner=owner,
        debounce=debounce,
        cooldown=cooldown,
        budget=budget,
        concurrency=concurrency,
        depth=depth,
        source=_caller_file(),
    )


def automation_faults(spec: Automation) -> list[Fault]:
    """What is wrong with an automation, wherever it comes from."""
    faults = trigger_faults(spec.triggers)
    if not spec.triggers:
        faults.append(Fault("triggers", "must not be empty: nothing would ever happen"))
    faults += [
        Fault("triggers", f"{trigger.on!r} is no trigger of an automation")
        for trigger in spec.triggers
        if trigger.on in ("first", "hand")
    ]
    for name, least in (("concurrency", 1), ("depth", 1), ("budget", 0)):
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            faults.append(Fault(name, f"must be a number from {least}, got {value!r}"))
    if isinstance(spec.action, RunPipeline):
        if not _PATH.fullmatch(spec.action.pipeline):
            faults.append(Fault("pipeline", f"{spec.action.pipeline!r} is not path/file.py:name"))
        return faults
    return faults + _channel_faults(spec.action.to)


_PATH = re.compile(r".+\.py:[A-Za-z_]\w*")


def _channel_faults(to: str) -> list[Fault]:
    channel, colon, address = to.partition(":")
    if channel not in CHANNELS or not colon:
        return [
            Fault("to", f"{to[:80]!r} must begin with one of {', '.join(CHANNELS)} and a colon")
        ]
    if channel == "log" or address.startswith(("env:", "file:")):
        return []
    if channel == "mail":
        if re.fullmatch(r"[^\s@,]+@[^\s@,]+(,[^\s@,]+@[^\s@,]+)*", address):
            return []
        return [Fault("to", f"{address[:80]!r} is no address of mail")]
    if address.startswith(("http://", "https://")):
        return []
    return [Fault("to", f"{channel} needs a URL, or env:VARIABLE that holds it")]


def _argument_faults(pipeline: object, arguments: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for name, value in arguments.items():
        try:
            msgspec.json.encode(value)
            plain = msgspec.to_builtins(value) == value
        except (TypeError, ValueError, OverflowError):
            plain = False
        if not plain:
            told = f"is a {type(value).__name__}, wanted what JSON can hold (a date as ISO text)"
            faults.append(Fault(name, told))
    signature = getattr(pipeline, "signature", None)
    if signature is None:
        return faults
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(
        inspect.unwrap(getattr(pipeline, "function"))  # noqa: B009 - known by its signature alone
    ).parameters
    faults += [
        Fault(name, f"unknown; the pipeline takes: {', '.join(parameters) or 'nothing'}")
        for name in arguments
        if name not in parameters
    ]
    return faults + [
        Fault(name, "is missing")
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in {*arguments, *GIVEN}
    ]


def _seconds(length: str | timedelta) -> float:
    return duration_micros(length) / 1e6 if length else 0.0


def _caller_file() -> str:
    """The file that calls :func:`on`, relative to the current folder; empty for what is no file."""
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    file = caller.f_code.co_filename if caller is not None else ""
    return shown_path(Path(file)) if file and Path(file).is_file() else ""


def parsed(faults: list[Fault], path: str, parse: Callable[[], T], default: T) -> T:
    """What `parse` returns, or `default` with what was wrong among the faults."""
    try:
        return parse()
    except InvalidInput as error:
        faults.append(Fault(path, error.summary))
        return default


def shown_path(path: Path) -> str:
    """Relative to the project, so that the folder can be copied elsewhere and still runs."""
    here, path = Path.cwd().resolve(), path.resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def pipeline_path(pipeline: Callable[..., Any] | str) -> str:
    """``path/to/file.py:function`` of a pipeline.

    Raises:
        InvalidInput: If it does not stand at the top level of a file.
    """
    if isinstance(pipeline, str):
        if not _PATH.fullmatch(pipeline):
            raise InvalidInput(f"{pipeline!r} is not path/to/file.py:function")
        return pipeline
    function = inspect.unwrap(getattr(pipeline, "function", pipeline))
    code = getattr(function, "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        raise InvalidInput(f"{pipeline!r} must be a function in a file: the supervisor imports it")
    if function.__qualname__ != function.__name__:
        raise InvalidInput(f"{function.__qualname__} must stand at the top level of its file")
    return f"{shown_path(Path(code.co_filename))}:{function.__name__}"


def named_triggers(triggers: Sequence[Trigger], names: Sequence[str]) -> Iterator[Fault]:
    """Faults of a loop's triggers: an alert must be of its own, and one that retraining may end."""
    for index, trigger in enumerate(triggers):
        if trigger.on == "alert" and trigger.value not in (*names, "sla:renewal"):
            known = ", ".join((*names, "sla:renewal"))
            yield Fault(f"retrain_on[{index}]", f"no monitor {trigger.value!r}; there are: {known}")
