"""What is handed from step to step is the same in a first run as from the store, and private."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

from everloop.pipelines import api as ev
from everloop.pipelines.private import private


@dataclass
class Plan:
    steps: list[int] = field(default_factory=lambda: [1])


@dataclass(frozen=True)
class Frozen:
    steps: list[int]


class Pair(NamedTuple):
    left: list[int]
    right: int


class Settings(msgspec.Struct):
    names: list[str]


class Fixed(msgspec.Struct, frozen=True):
    names: list[str]


KINDS: dict[str, Any] = {
    "list": [1, 2],
    "nested": {"a": [[1]], "b": (1, [2])},
    "set": {1, 2},
    "dataclass": Plan(),
    "frozen": Frozen([1]),
    "pair": Pair([1], 2),
    "struct": Settings(["a"]),
    "fixed": Fixed(["a"]),
    "pandas": pd.DataFrame({"a": [1, 2]}),
    "polars": pl.DataFrame({"a": [1, 2]}),
    "array": np.arange(3),
}


def spoil(value: Any) -> None:
    """Change `value` in place, as a careless step does."""
    if isinstance(value, np.ndarray):
        with pytest.raises(ValueError, match="read-only"):
            value[0] = 99
    elif isinstance(value, list):
        value.append(99)
    elif isinstance(value, set):
        value.add(99)
    elif isinstance(value, dict):
        value["a"][0].append(99)
        value["b"][1].append(99)
        value["new"] = 99
    elif isinstance(value, pd.DataFrame):
        value["new"] = 99
        value.loc[0, "a"] = 99
    elif isinstance(value, pl.DataFrame):
        value[0, "a"] = 99
    elif isinstance(value, Settings | Fixed):
        value.names.append("z")
    elif isinstance(value, Pair):
        value.left.append(99)
    else:
        value.steps.append(99)


def shown(value: Any) -> str:
    return repr(value.to_dict(as_series=False) if isinstance(value, pl.DataFrame) else value)


_KEPT: list[Any] = []


@ev.step
def make(kind: str) -> Any:
    return KINDS[kind]


@ev.step
def careless(value: Any) -> str:
    spoil(value)
    return shown(value)


@ev.step
def look(value: Any, turn: int) -> str:
    return shown(value)


@ev.pipeline
def hands(kind: str) -> list[str]:
    value = make(kind)
    return [look(value, 1), careless(value), look(value, 2), shown(value)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_changes_in_place_nobody_else_sees(sqlite_workspace: Any, kind: str) -> None:
    before = shown(KINDS[kind])
    first = hands.run(kind=kind)
    assert first[0] == first[2] == first[3] == before
    assert hands.run(kind=kind) == first, "from the store it is the same"
    outcomes = {row.outcome for row in sqlite_workspace.pipelines.steps(hands.run_id)}
    assert outcomes == {"cached"}, "equal keys, so nothing was executed"
    assert shown(KINDS[kind]) == before


@ev.step
def gives_its_own() -> list[int]:
    _KEPT.append([1])
    return _KEPT[-1]


@ev.pipeline
def changes_afterwards() -> list[int]:
    found = gives_its_own()
    found.append(2)
    _KEPT[-1].append(3)
    return [*found, *gives_its_own()]


def test_what_is_stored_does_not_change_with_the_value(sqlite_workspace: Any) -> None:
    assert changes_afterwards.run() == [1, 2, 1]
    assert changes_afterwards.run() == [1, 2, 1]


def test_a_copy_has_the_shape_of_the_value() -> None:
    itself: list[Any] = [1]
    itself.append(itself)
    found = private(itself)
    assert found[1] is found
    assert found is not itself
    twice = [0]
    left, right = private([twice, twice])
    assert left is right
    lock = object()
    assert private({"lock": lock})["lock"] is lock, "what has no copy is given as it is"


def test_a_retry_gets_the_arguments_as_they_were(sqlite_workspace: Any) -> None:
    lengths: list[int] = []

    @ev.step(cache=False, retries=2)
    def grows(values: list[int]) -> int:
        values.append(1)
        lengths.append(len(values))
        if len(lengths) < 3:
            raise OSError("again")
        return len(values)

    @ev.pipeline
    def tries() -> int:
        return grows([])

    assert tries.run() == 1
    assert lengths == [1, 1, 1]
