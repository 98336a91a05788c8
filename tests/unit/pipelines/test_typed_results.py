"""What a step says that it takes and returns is what it takes and returns, or nothing is stored."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict

import numpy as np
import pandas as pd
import pytest

from everloop.data.frame import Table
from everloop.errors import InvalidInput
from everloop.pipelines import api as ev
from everloop.pipelines.signature import Signature
from tests.unit.pipelines import fan_steps as steps


@dataclass
class Score:
    value: float


class Point(NamedTuple):
    x: int


class Config(TypedDict):
    depth: int
    name: NotRequired[str]


class Color(enum.Enum):
    RED = "red"


UserId = NewType("UserId", int)


def returning(hint: Any) -> Signature:
    def function() -> Any: ...

    function.__annotations__["return"] = hint
    return Signature(function, "step", "flow.function")


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Any, object()),
        (object, object()),
        (None, None),
        (Table, Table.of({"a": [1]})),
        (pd.DataFrame, pd.DataFrame()),
        (np.ndarray, np.ones(2)),
        (dict[str, int], {"a": 1}),
        (Mapping[str, Any], {"a": object()}),
        (Score, Score(1.0)),
        (Point, Point(1)),
        (Config, {"depth": 1}),
        (Config, {"depth": 1, "name": "x"}),
        (list[Config], []),
        (int | None, None),
        (float, 1),
        (float, np.float32(1)),
        (tuple[int, ...], (1, 2)),
        (tuple[int, str], (1, "a")),
        (Literal["a", "b"], "a"),
        (Annotated[int, "a unit"], 1),
        (UserId, 7),
        (Iterable[int], [1, 2]),
        ("NoSuchName", 5),
    ],
)
def test_a_result_of_its_type_passes(hint: Any, value: Any) -> None:
    returning(hint).check_result(value)


@pytest.mark.parametrize(
    ("hint", "value", "fault"),
    [
        (None, 1, "result: wanted NoneType, got int 1"),
        (Table, pd.DataFrame(), "result: wanted Table, got DataFrame"),
        (pd.DataFrame, Table.of({"a": [1]}), "result: wanted DataFrame, got Table"),
        (np.ndarray, [1.0], "result: wanted ndarray, got list [1.0]"),
        (dict[str, int], {"a": 1, "b": "x", "c": None}, "result['c']: wanted int, got NoneType"),
        (dict[str, int], None, "result: wanted dict[str, int], got NoneType None"),
        (Score, {"value": 1.0}, "result: wanted Score, got dict"),
        (Config, {"name": 5}, "result['depth']: missing"),
        (Config, {"name": 5}, "result['name']: wanted str, got int 5"),
        (Config, {"depth": 1, "deep": 2}, "result['deep']: unknown key; there are: depth, name"),
        (list[Config], [{"depth": 1}, {"depth": "1"}], "result[1]['depth']: wanted int, got str"),
        (int | None, "1", "result: wanted int | None, got str '1'"),
        (int, True, "result: wanted int, got bool True"),
        (tuple[int, str], (1,), "result: wanted tuple[int, str], got tuple (1,)"),
        (Literal["a", "b"], "c", "got str 'c'"),
        (UserId, "7", "result: wanted int, got str '7'"),
    ],
)
def test_another_result_is_refused_with_its_path(hint: Any, value: Any, fault: str) -> None:
    with pytest.raises(InvalidInput, match=r"step flow\.function says that it returns") as caught:
        returning(hint).check_result(value)
    assert fault in str(caught.value)


@ev.step
def counts(right: bool) -> dict[str, int]:
    return {"a": 1} if right else {"a": "one"}  # type: ignore[dict-item]


@ev.pipeline
def counting(right: bool) -> dict[str, int]:
    return counts(right)


def test_a_wrong_result_is_not_stored(workspace: Any) -> None:
    with pytest.raises(InvalidInput, match="counts says that it returns dict") as caught:
        counting.run(right=False)
    assert [fault.path for fault in caught.value.faults] == ["result['a']"]
    [row] = workspace.pipelines.steps(counting.run_id)
    assert (row.outcome, workspace.pipelines.memo(row.key)) == ("failed", None)
    assert workspace.tracking.run(counting.run_id).state == "failed"
    assert counting.run(right=True) == {"a": 1}


@ev.pipeline
def mapped(n: int) -> list[int]:
    return steps.says_int.map(range(n))


def test_a_worker_refuses_a_wrong_result_too(full_workspace: Any) -> None:
    with pytest.raises(InvalidInput, match="says_int says that it returns int") as caught:
        mapped.run(n=3)
    assert [fault.message for fault in caught.value.faults] == ["wanted int, got str '2'"]
    notes = "\n".join(caught.value.__notes__)
    assert "1 of 3 calls" in notes
    assert "Traceback" not in notes, "none of the frames is the user's"
    assert mapped.run(n=2) == [0, 1]


@ev.step
def takes_anything(value: Any, config: Config, ids: list[UserId]) -> str:
    return type(value).__name__


@ev.pipeline
def wires(
    path: Path = "net.txt",  # type: ignore[assignment]
    since: dt.datetime | None = None,
    color: Color = Color.RED,
    config: Config = {"depth": 3},  # noqa: B006
    ids: list[UserId] | None = None,
) -> str:
    takes_anything(3, config, ids or [])
    return f"{type(path).__name__} {path} {since} {color.name}"


def test_texts_stand_for_what_json_has_no_type_for(sqlite_workspace: Any) -> None:
    assert wires.run() == "PosixPath net.txt None RED"
    found = wires.run(path="a/b", since="2026-01-02T03:04:05+00:00", color="red")  # type: ignore[arg-type]
    assert found == "PosixPath a/b 2026-01-02 03:04:05+00:00 RED"


def test_every_wrong_argument_of_a_pipeline_is_named_and_nothing_ran(sqlite_workspace: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        wires.run(path=5, since="tomorrow", color="blue", config={"deep": 1}, ids=["a"])  # type: ignore[arg-type, list-item, typeddict-item]
    paths = [fault.path for fault in caught.value.faults]
    assert paths == ["path", "since", "color", "config['depth']", "config['deep']", "ids"]
    assert sqlite_workspace.tracking.runs().runs == ()
