"""Backfill: one run of a pipeline for each of many values, such as the days of a month.

Every run has the same keys as any other: what is stored is not computed again, so a backfill that
was stopped is begun again and costs what is missing.
"""

from __future__ import annotations

import contextvars
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date, timedelta
from typing import Any, Literal

import msgspec

from everloop.core.context import current_workspace
from everloop.errors import EverloopError, InvalidInput, RunWaiting

__all__ = ["BACKFILL_TAG", "Backfill", "Part", "backfill", "spread"]

#: Tag of a run that says for which values a backfill started it.
BACKFILL_TAG = "everloop.backfill"
_MOST = 100_000
_RANGE = re.compile(r"(.+?)\.\.(.+)")


class Part(msgspec.Struct, frozen=True):
    """One value (or one combination of values), its run, and what came of it."""

    values: dict[str, Any]
    run_id: str
    outcome: Literal["ran", "cached", "failed", "waiting"]
    error: str = ""


class Backfill(msgspec.Struct, frozen=True):
    """What a backfill came to, in the order of its values."""

    parts: tuple[Part, ...]

    @property
    def failed(self) -> tuple[Part, ...]:
        """The parts that failed; begin again to try them once more."""
        return tuple(part for part in self.parts if part.outcome == "failed")

    def count(self, outcome: str) -> int:
        """How many parts came to `outcome`."""
        return sum(part.outcome == outcome for part in self.parts)

    def __str__(self) -> str:
        told = [f"{self.count(o)} {o}" for o in ("ran", "cached", "failed", "waiting")]
        return f"{len(self.parts)} parts: {', '.join(told)}"


def backfill(
    pipeline: Any,
    values: Mapping[str, Iterable[Any]],
    *,
    concurrency: int = 1,
    tell: Callable[[Part], None] | None = None,
    **fixed: Any,
) -> Backfill:
    """Run a pipeline for each value, or each combination of values.

    A part that fails does not stop the others. One whose run was cut off goes on by what is stored.

    Args:
        pipeline: The pipeline.
        values: By argument: its values.
        concurrency: Runs at the same time, in threads of this process.
        tell: Called with each part as it ends.
        **fixed: The other arguments, the same for all.

    Raises:
        InvalidInput: If there is nothing to run, too much, or the arguments do not fit.
    """
    chosen = {name: list(items) for name, items in values.items()}
    combined = [dict(zip(chosen, items, strict=True)) for items in _product(chosen)]
    if type(concurrency) is not int or concurrency < 1:
        raise InvalidInput("concurrency is a number from 1", [("concurrency", repr(concurrency))])
    twice = set(fixed) & set(chosen)
    if twice:
        raise InvalidInput("given twice", [(name, "as a value and fixed") for name in twice])
    for given in combined:  # all of them before anything runs
        pipeline.signature.bind((), {**fixed, **given})
    workspace, stop = current_workspace(), threading.Event()
    parts: dict[int, Part] = {}

    def one(number: int) -> None:
        if not stop.is_set():
            part = parts[number] = _part(workspace, pipeline, combined[number], fixed)
            if tell is not None:
                tell(part)

    with ThreadPoolExecutor(concurrency, thread_name_prefix="everloop-backfill") as pool:
        waiting = [
            pool.submit(contextvars.copy_context().run, one, number)
            for number in range(len(combined))
        ]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:  # Ctrl-C: what runs is finished, the rest is not begun
            stop.set()
            raise
    return Backfill(tuple(parts[number] for number in sorted(parts)))


def _product(values: Mapping[str, list[Any]]) -> Iterator[tuple[Any, ...]]:
    count = 1
    for items in values.values():
        count *= len(items)
    if not values or not count or count > _MOST:
        raise InvalidInput(
            f"a backfill has 1 to {_MOST} parts, got {count if values else 0}",
            hint="name an argument and its values: day=2013-01-01..2013-01-31",
        )
    return itertools.product(*values.values())


def _part(workspace: Any, pipeline: Any, given: dict[str, Any], fixed: dict[str, Any]) -> Part:
    # An object of its own: it keeps the id of its run, and several run at once.
    own = type(pipeline)(pipeline.function)
    outcome: Literal["ran", "cached", "failed", "waiting"] = "ran"
    error = ""
    try:
        own.run(**fixed, **given)
    except RunWaiting as waits:
        outcome, error = "waiting", waits.message
    except EverloopError as raised:
        outcome, error = "failed", raised.message.strip().splitlines()[-1]
    if own.run_id:
        told = " ".join(f"{name}={value}" for name, value in given.items())
        workspace.tracking.set_tag(own.run_id, BACKFILL_TAG, told)
        steps = workspace.pipelines.steps(own.run_id)
        if outcome == "ran" and steps and all(step.outcome == "cached" for step in steps):
            outcome = "cached"
    return Part(values=given, run_id=own.run_id, outcome=outcome, error=error)


def spread(text: str, hint: Any) -> list[str]:
    """The values that a text stands for: ``a..b`` (dates or whole numbers) or ``a,b,c``.

    Args:
        text: As written.
        hint: The type of the argument.

    Raises:
        InvalidInput: If a range goes backwards, or is of something else.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        return [item.strip() for item in text.split(",") if item.strip()]
    first, last = found[1].strip(), found[2].strip()
    try:
        if hint is int:
            numbers = range(int(first), int(last) + 1)
            made = [str(number) for number in numbers[: _MOST + 1]]
        else:
            begin, end = date.fromisoformat(first), date.fromisoformat(last)
            days = min((end - begin).days + 1, _MOST + 1)
            made = [(begin + timedelta(days=day)).isoformat() for day in range(days)]
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no range", hint="write dates or whole numbers: 2013-01-01..2013-01-31"
        ) from None
    if not made:
        raise InvalidInput(f"{text!r} is empty", hint="the first value comes first")
    return made
