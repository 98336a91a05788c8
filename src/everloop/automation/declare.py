"""How a user writes a loop: plain functions that make the parts of a ``LoopSpec``.

Times are text such as ``"7d"``; rules read as people say them: ``"3 of 5 days"``,
``"4 per month"``, ``"latest 21 days"``, ``"p99_ms < 50"``. Only :func:`loop` writes anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec

from everloop.automation.gates import beats_champion
from everloop.automation.texts import budget_of, rule_of, share_of
from everloop.automation.triggers import (
    declare,
    is_collecting,
    named_triggers,
    parsed,
    pipeline_path,
    trigger_faults,
)
from everloop.core.context import current_workspace
from everloop.core.gate import Gate
from everloop.core.machines import RolloutPlan
from everloop.core.monitor import Monitor
from everloop.core.policy import Charter, LevelName, LoopSpec, ServiceLevel, Trigger
from everloop.core.schema import Schema
from everloop.core.time import SystemClock, duration_micros
from everloop.errors import Fault, InvalidInput
from everloop.evaluation.gates import gate_faults

__all__ = [
    "Objective",
    "canary",
    "charter",
    "contracts_of",
    "drift",
    "loop",
    "performance",
    "prediction_drift",
    "quality",
    "sla",
    "slo",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What loops of files imported by this process say of their datasets. A matter of the code, not of
#: the loop as it is kept: a dataset keeps the schema that it was committed with.
_contracts: dict[str, dict[str, Schema]] = {}


def contracts_of(loop: str) -> dict[str, Schema]:
    """The schemas that a loop states, by dataset."""
    return _contracts.get(loop, {})


class Objective(msgspec.Struct, frozen=True):
    """A limit that a candidate must hold while traffic moves to it."""

    name: Literal["p99_ms", "error_rate"]
    below: float


def loop(
    name: str,
    *,
    owner: str,
    pipeline: Callable[..., Any] | str,
    charter: Charter | None = None,
    gate: Sequence[Gate] | None = None,
    rollout: RolloutPlan | None = None,
    watch: Sequence[Monitor] = (),
    retrain_on: Sequence[Trigger] = (),
    cooldown: str | timedelta = "7d",
    cooldown_most: str | timedelta = "",
    min_new: str = "",
    budget: str = "4 per month",
    contracts: Mapping[str, Schema] | None = None,
) -> LoopSpec:
    """Declare a production loop; in the current workspace, where one is set.

    Args:
        name: Of the loop, its model and its deployment.
        owner: Who answers for it.
        pipeline: A pipeline that takes ``until`` (the last instant it may train on) and returns a
            registered model version; or ``path/to/file.py:function``.
        charter: Why it exists, see :func:`charter`.
        gate: What a candidate must meet; by default to beat the champion's Brier score on the
            latest 21 days. There is no loop without one.
        rollout: How traffic moves, see :func:`canary`.
        watch: Monitors, see :func:`performance`, :func:`drift`, :func:`quality`.
        retrain_on: Triggers, see ``everloop.automation.triggers``.
        cooldown: Shortest time between two retrainings; it doubles with each refusal in a row.
        cooldown_most: What it doubles up to; eight times the cooldown if not given.
        min_new: Labels since the champion's training data that make a retraining worth while, as
            a share of the rows it was trained on, such as ``"10%"``; needs ``ev.model(rows=...)``.
        budget: Most retrainings in a time, such as ``"4 per month"``.
        contracts: What must hold of the datasets that the pipeline reads, by name;
            ``everloop ci`` holds their newest rows against it.

    Raises:
        InvalidInput: If anything does not fit together; all faults are listed.
    """
    faults: list[Fault] = []
    path = parsed(faults, "pipeline", lambda: pipeline_path(pipeline), "")
    cooldown_s = parsed(faults, "cooldown", lambda: duration_micros(cooldown) / 1e6, 0.0)
    longest_s = 8 * cooldown_s
    if cooldown_most:
        longest_s = parsed(
            faults, "cooldown_most", lambda: duration_micros(cooldown_most) / 1e6, longest_s
        )
    share = parsed(faults, "min_new", lambda: share_of(min_new) if min_new else 0.0, 0.0)
    most, per_s = parsed(faults, "budget", lambda: budget_of(budget), (0, 0.0))
    monitors = tuple(msgspec.structs.replace(monitor, deployment=name) for monitor in watch)
    faults += _loop_faults(name, owner, monitors, retrain_on)
    faults += [
        Fault(f"contracts.{dataset}", f"must be an ev.Schema, not a {type(schema).__name__}")
        for dataset, schema in dict[str, Any](contracts or {}).items()
        if not isinstance(schema, Schema)
    ]
    gates = (beats_champion("brier"),) if gate is None else tuple(gate)
    faults += gate_faults(gates)
    if not gates:
        faults.append(Fault("gate", "must not be empty: no model goes live because it is new"))
    if faults:
        raise InvalidInput(f"the loop {name!r} is wrong", faults)
    now = SystemClock().now()
    spec = LoopSpec(
        name=name,
        owner=owner,
        pipeline=path,
        charter=charter or Charter(problem="", value="", owner=owner),
        monitors=monitors,
        gates=gates,
        rollout=rollout or RolloutPlan(),
        triggers=tuple(retrain_on),
        cooldown_s=cooldown_s,
        cooldown_most_s=longest_s,
        new_share=share,
        budget=most,
        budget_s=per_s,
        created_at=now,
        updated_at=now,
    )
    declare(spec)
    _contracts[name] = dict(contracts or {})
    if is_collecting():
        return spec
    return current_workspace().automation.declare(spec)  # type: ignore[no-any-return]


def charter(
    *,
    problem: str,
    value: str,
    owner: str = "",
    success: str = "",
    sla: Sequence[ServiceLevel] = (),
) -> Charter:
    """Why the project exists, who answers for it, and what is promised."""
    faults = [
        Fault(name, "must say something")
        for name, text in (("problem", problem), ("value", value))
        if not text.strip()
    ]
    names = [level.name for level in sla]
    faults += [
        Fault("sla", f"{n!r} is promised twice") for n in sorted(set(names)) if names.count(n) > 1
    ]
    if faults:
        raise InvalidInput("the charter is wrong", faults)
    return Charter(
        problem=problem, value=value, owner=owner, success=success, service_levels=tuple(sla)
    )


def sla(
    name: LevelName,
    at_most: str | timedelta,
    description: str = "",
) -> ServiceLevel:
    """A promise: how late a prediction may be, how long a retraining or a deployment may take, or
    how old the live model may become (``renewal``). Broken, it alerts as ``sla:NAME``.
    """  # noqa: D205 - the four meanings belong into one sentence
    known = get_args(LevelName)
    if name not in known:
        raise InvalidInput("the service level is wrong", [("name", f"{name!r} is none of {known}")])
    seconds = duration_micros(at_most) / 1e6
    return ServiceLevel(name=name, at_most_s=seconds, description=description)


def canary(
    *steps: float,
    every: str | timedelta = "1d",
    shadow: str | timedelta | None = "1d",
    min_requests: int = 0,
    abort_on: Sequence[Objective] = (),
) -> RolloutPlan:
    """Move traffic in `steps` (per cent, ascending, 100 last), after a time in the shadow."""
    limits = {objective.name: objective.below for objective in abort_on}
    return RolloutPlan(
        steps=tuple(float(share) for share in steps or (5, 25, 100)),
        every_s=duration_micros(every) / 1e6,
        shadow_s=duration_micros(shadow) / 1e6 if shadow else 0,
        min_requests=min_requests,
        p99_ms=limits.get("p99_ms", 0),
        error_rate=limits.get("error_rate", 1),
    )


def slo(text: str) -> Objective:
    """A limit for a rollout: ``"p99_ms < 50"`` or ``"error_rate < 0.1%"``."""
    match = re.fullmatch(r"\s*(p99_ms|error_rate)\s*<=?\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if match is None or (match[1] == "p99_ms" and (match[3] or not float(match[2]))):
        raise InvalidInput(
            f"{text!r} is no objective", hint='write "p99_ms < 50" or "error_rate < 0.1%"'
        )
    below = float(match[2]) / (100 if match[3] else 1)
    return Objective("p99_ms" if match[1] == "p99_ms" else "error_rate", below)


def performance(
    metric: str = "auc",
    *,
    label_delay: str | timedelta = "1d",
    fire: str = "3 of 5 days",
    clear: str = "",
    window: str | timedelta | None = None,
    bound: float | None = None,
    width: float = 2.0,
    floor: float = 0.0,
    min_rows: int = 200,
    name: str = "performance",
) -> Monitor:
    """Watch a realised metric (``auc``, ``brier``, ``brier_skill``, ``log_loss``) as labels mature.

    Args:
        metric: What to compute in each window.
        label_delay: How long after its end a window counts.
        fire: When it alerts, such as ``"3 of 5 days"``; the unit is the window's length.
        clear: When it clears; at most none of as many windows if not given.
        window: Length of a window; by default the unit of `fire`.
        bound: Breach beyond this; by default the band of the reference's own windows.
        width: Half width of that band, in standard deviations.
        floor: Smallest distance from the band's middle that counts.
        min_rows: Windows with fewer labelled rows tell nothing.
        name: Of the monitor, for :func:`alert`.
    """
    return _monitor(
        name, "performance", metric, fire=fire, clear=clear, window=window, delay=label_delay,
        bound=bound, width=width, floor=floor, min_rows=min_rows,
    )  # fmt: skip


def drift(
    *,
    fire: str = "3 of 5 days",
    clear: str = "",
    window: str | timedelta | None = None,
    width: float = 3.0,
    floor: float = 0.05,
    min_rows: int = 200,
    name: str = "drift",
) -> Monitor:
    """Watch how far each feature has moved from the reference. For diagnosis: see ``docs``."""
    return _monitor(
        name, "feature_drift", "distance", fire=fire, clear=clear, window=window,
        width=width, floor=floor, min_rows=min_rows,
    )  # fmt: skip


def prediction_drift(
    *,
    fire: str = "3 of 5 days",
    clear: str = "",
    window: str | timedelta | None = None,
    width: float = 3.0,
    floor: float = 0.05,
    min_rows: int = 200,
    name: str = "prediction_drift",
) -> Monitor:
    """Watch how far the scores have moved from the reference's."""
    return _monitor(
        name, "prediction_drift", "distance", fire=fire, clear=clear, window=window,
        width=width, floor=floor, min_rows=min_rows,
    )  # fmt: skip


def quality(
    metric: str = "any",
    *,
    fire: str = "1 of 1 days",
    clear: str = "0 of 2",
    window: str | timedelta | None = None,
    width: float = 3.0,
    floor: float = 0.01,
    min_rows: int = 200,
    name: str = "quality",
) -> Monitor:
    """Watch for more nulls, unseen levels, values out of range or broken scores than before."""
    return _monitor(
        name, "quality", metric, fire=fire, clear=clear, window=window,
        width=width, floor=floor, min_rows=min_rows,
    )  # fmt: skip


def _monitor(
    name: str,
    kind: Literal["performance", "quality", "feature_drift", "prediction_drift"],
    metric: str,
    *,
    fire: str,
    clear: str,
    window: str | timedelta | None,
    width: float,
    floor: float,
    min_rows: int,
    delay: str | timedelta | None = None,
    bound: float | None = None,
) -> Monitor:
    faults: list[Fault] = []
    k, m, unit_s = parsed(faults, "fire", lambda: rule_of(fire), (1, 1, 86_400))
    quiet = parsed(faults, "clear", lambda: rule_of(clear)[:2] if clear else (0, m), (0, m))
    length = unit_s or 86_400
    if window is not None:
        given = parsed(faults, "window", lambda: duration_micros(window) // 1_000_000, length)
        if unit_s and given != unit_s:
            faults.append(Fault("window", f"{window} is not what {fire!r} says"))
        length = given
    delay_s = 0
    if delay is not None and delay not in ("0", "0d", "0s", timedelta(0)):
        delay_s = parsed(faults, "label_delay", lambda: duration_micros(delay) // 1_000_000, 0)
    if faults:
        raise InvalidInput(f"the monitor {name!r} is wrong", faults)
    return Monitor(
        name=name, deployment="", kind=kind, metric=metric, window_s=length, label_delay_s=delay_s,
        fire=(k, m), clear=quiet, bound=bound, width=width, min_rows=min_rows, floor=floor,
    )  # fmt: skip


def _loop_faults(
    name: str, owner: str, monitors: tuple[Monitor, ...], triggers: Sequence[Trigger]
) -> Iterator[Fault]:
    if not _NAME.fullmatch(name):
        yield Fault("name", f"{name!r} must be letters, digits, '.', '_' or '-'")
    if not owner.strip():
        yield Fault("owner", "somebody must answer for it")
    names = [monitor.name for monitor in monitors]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        yield Fault("watch", f"two monitors are called {twice!r}; give one another name=")
    yield from named_triggers(triggers, names)
    yield from trigger_faults(triggers)
