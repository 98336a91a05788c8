"""What a sweep may choose from: ranges of numbers, and lists of anything."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from everloop.errors import Fault, InvalidInput

__all__ = [
    "Choice",
    "Range",
    "Space",
    "choice",
    "integers",
    "loguniform",
    "read_distribution",
    "uniform",
]

#: Combinations of a grid at most: more is not a grid that anybody waits for.
_MOST_POINTS = 100_000


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included.

    Attributes:
        log: Whether each factor is as likely as any other, instead of each distance.
        whole: Whether they are whole numbers.
        step: Distance of neighbours; 0 for any number.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float = 0

    def values(self) -> list[Any] | None:
        """All of them; None if they are not to be counted."""
        if not self.step or self.log:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        if count > _MOST_POINTS:
            return None
        found = [self.low + number * self.step for number in range(count)]
        return [int(value) for value in found] if self.whole else found

    def holds(self, value: Any) -> bool:
        """Whether it may be chosen."""
        is_number = isinstance(value, int if self.whole else (int, float))
        return is_number and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "integers" if self.whole else ("loguniform" if self.log else "uniform")
        more = ", log=True" if self.whole and self.log else ""
        if self.step not in (0, 1 if self.whole else 0):
            more += f", step={self.step:g}"
        return f"{kind}({self.low:g}, {self.high:g}{more})"


class Choice(NamedTuple):
    """One of several values, of any kind that a pipeline takes."""

    options: tuple[Any, ...]

    def values(self) -> list[Any]:
        """All of them."""
        return list(self.options)

    def holds(self, value: Any) -> bool:
        """Whether it is one of them."""
        return self.place(value) >= 0

    def place(self, value: Any) -> int:
        """The how manieth option it is; -1 if it is none."""
        return next((n for n, option in enumerate(self.options) if _same(value, option)), -1)

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.options))})"


def uniform(low: float, high: float, *, step: float = 0) -> Range:
    """Numbers from `low` to `high`, each as likely; with `step` only ``low + n * step``.

    Raises:
        InvalidInput: If the range is empty or not finite.
    """
    return _checked(Range(low, high, step=step))


def loguniform(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, each power of ten as likely: for rates and strengths.

    Raises:
        InvalidInput: If the range is empty or reaches 0.
    """
    return _checked(Range(low, high, log=True))


def integers(low: int, high: int, *, log: bool = False, step: int = 1) -> Range:
    """Whole numbers from `low` to `high`, both included.

    Raises:
        InvalidInput: If the range is empty, or `log` with a `step` or a range that reaches 0.
    """
    return _checked(Range(low, high, log=log, whole=True, step=step))


def choice(*options: Any) -> Choice:
    """One of the values; numbers, text, True, None, lists: whatever the pipeline takes.

    Raises:
        InvalidInput: If there is none, or one is there twice.
    """
    if not options:
        raise InvalidInput("the choice is wrong", [("options", "there is none")])
    for number, option in enumerate(options):
        if any(_same(option, other) for other in options[:number]):
            raise InvalidInput("the choice is wrong", [("options", f"{option!r} is there twice")])
    return Choice(options)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _checked(found: Range) -> Range:
    faults = []
    for name, value in (("low", found.low), ("high", found.high), ("step", found.step)):
        if type(value) not in (int, float) or not math.isfinite(value):
            faults.append((name, f"must be a finite number, got {value!r}"))
        elif found.whole and int(value) != value:
            faults.append((name, f"must be a whole number, got {value!r}"))
    if not faults:
        if found.low > found.high:
            faults.append(("low", f"{found.low:g} is more than high, {found.high:g}"))
        if found.log and found.low <= 0:
            faults.append(("low", f"must be more than 0 on a log scale, got {found.low:g}"))
        if found.step < 0 or (found.whole and found.step < 1):
            faults.append(("step", f"must be more than 0, got {found.step:g}"))
        if found.log and found.step not in (0, 1):
            faults.append(("step", "does not go with a log scale"))
    if faults:
        raise InvalidInput("the range is wrong", faults)
    return found


class Space:
    """The arguments of the trials: what is chosen, and what is the same for all.

    Args:
        given: By name a :class:`Range`, a :class:`Choice`, or the value that all trials get.

    Raises:
        InvalidInput: If nothing is to be chosen.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.chosen = {n: v for n, v in given.items() if isinstance(v, Range | Choice)}
        self.fixed = {n: v for n, v in given.items() if n not in self.chosen}
        if not self.chosen:
            raise InvalidInput(
                "the space of the sweep is wrong",
                [("", "nothing is to be chosen")],
                hint='such as {"rate": ev.loguniform(1e-3, 1), "depth": ev.integers(2, 8)}',
            )

    def describe(self) -> dict[str, str]:
        """What is chosen, as text."""
        return {name: str(found) for name, found in sorted(self.chosen.items())}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last name changing fastest.

        Raises:
            InvalidInput: If a range has no steps, or there are too many combinations.
        """
        faults, axes = [], []
        for name, found in self.chosen.items():
            values = found.values()
            if values is None:
                faults.append(Fault(name, f"{found} cannot be counted; give it a step"))
            else:
                axes.append(values)
        if not faults and math.prod(map(len, axes)) > _MOST_POINTS:
            faults.append(Fault("", f"there are more than {_MOST_POINTS:,} combinations"))
        if faults:
            raise InvalidInput("the space is no grid", faults)
        return [dict(zip(self.chosen, point, strict=True)) for point in itertools.product(*axes)]

    def of_run(self, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was chosen for a run with these arguments; None if it is not of this space."""
        if not all(n in arguments and d.holds(arguments[n]) for n, d in self.chosen.items()):
            return None
        return {name: arguments[name] for name in self.chosen}


_MAKERS: dict[str, Any] = {
    "uniform": uniform,
    "loguniform": loguniform,
    "integers": integers,
    "choice": choice,
}


def read_distribution(text: str) -> Range | Choice | None:
    """What ``loguniform(1e-3, 1)`` or ``choice("a", "b")`` means; None if it is neither.

    Raises:
        InvalidInput: If it looks like one and is none.
    """
    if not text.strip().startswith(tuple(f"{name}(" for name in _MAKERS)):
        return None
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is more than one call")
        plain = [ast.literal_eval(value) for value in call.args]
        named = {str(value.arg): ast.literal_eval(value.value) for value in call.keywords}
        found: Range | Choice = _MAKERS[call.func.id](*plain, **named)
    except (SyntaxError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        hint = 'write it as loguniform(0.001, 1) or choice("gbdt", "dart")'
        raise InvalidInput(f"{text!r} cannot be read: {error}", hint=hint) from error
    return found
