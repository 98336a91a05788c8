"""Stored values come back equal in value and type, and equal content has one text."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import subprocess
import sys
import uuid
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop.backends.blobs.local import LocalBlobs
from everloop.core.artifact import ModelArtifact
from everloop.core.model import Signature
from everloop.core.pipeline import StoredValue
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput
from everloop.pipelines.values import Unreadable, load, store, text_of


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> LocalBlobs:
    return LocalBlobs(tmp_path_factory.mktemp("objects"))


def over_the_wire(stored: StoredValue) -> StoredValue:
    return msgspec.json.decode(msgspec.json.encode(stored), type=StoredValue)


def round_trip(value: Any, blobs: LocalBlobs) -> Any:
    stored, _ = store(value, blobs, "a test")
    return load(over_the_wire(stored), blobs)


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        if math.isnan(left):
            return math.isnan(right)
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
)
keys = st.text(st.characters(codec="utf-8")) | st.integers() | st.sampled_from(["$dict", "$x"])
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees)
def test_tree_comes_back_as_it_was(blobs: LocalBlobs, value: Any) -> None:
    found = round_trip(value, blobs)
    assert same(found, value)
    assert text_of(found) == text_of(value)


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (1, True), (0.0, -0.0), ([1], (1,)), ("1", 1), ({1: 2}, {"1": 2}), (None, "null")],
)
def test_values_that_python_calls_alike_differ(left: Any, right: Any) -> None:
    assert text_of(left) != text_of(right)


class Color(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True)
class Plan:
    name: str
    steps: list[int]


class Limits(msgspec.Struct, frozen=True):
    low: float
    high: float = math.inf


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Point(1, 2),
        Plan("a", [1, 2]),
        Limits(-1.0),
        {1, 2},
        frozenset({"a"}),
        range(1, 9, 2),
        Path("a/b"),
        b"bytes",
        1 << 80,
        decimal.Decimal("1.10"),
        uuid.UUID(int=5),
        np.float32(1.5),
        np.int64(7),
        np.datetime64("2013-01-01", "us"),
        np.bool_(True),
        dt.datetime(2013, 10, 27, 1, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"), fold=1),
        "x" * 100_000,
        list(range(20_000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_comes_back(blobs: LocalBlobs, value: Any) -> None:
    found = round_trip(value, blobs)
    assert type(found) is type(value)
    assert found == value
    if isinstance(value, dt.datetime):
        assert (found.fold, found.tzinfo.key) == (1, "Europe/Paris")


ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array([], dtype="int8"),
    np.array(3.0),
    np.array(["a", "bc"]),
    np.array(["2013-01-01", "NaT"], dtype="datetime64[us]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.arange(10)[::3],
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_array_comes_back_read_only(blobs: LocalBlobs, value: np.ndarray) -> None:
    found = round_trip(value, blobs)
    assert type(found) is np.ndarray
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)
    assert not found.flags.writeable
    assert text_of(found) == text_of(value)


def test_arrow_table_is_mapped_and_keeps_its_types(blobs: LocalBlobs) -> None:
    table = pa.table(
        {
            "n": pa.chunked_array([[1, None], [3]], pa.int16()),
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "t": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
        }
    )
    found = round_trip(table, blobs)
    assert found.equals(table.unify_dictionaries().combine_chunks())
    assert found.schema == table.schema
    assert text_of(found) == text_of(table) == text_of(pa.concat_tables([table]))
    assert text_of(table.slice(1)) != text_of(table)
    assert round_trip(table.slice(0, 0), blobs).num_rows == 0


def test_frames_come_back(blobs: LocalBlobs) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index([5, 6], name="i"))
    pd.testing.assert_frame_equal(round_trip(frame, blobs), frame)
    polars = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert round_trip({"f": [polars]}, blobs)["f"][0].equals(polars)


def test_model_comes_back_and_its_files_are_stored_once(blobs: LocalBlobs) -> None:
    schema = Schema((Field("x", "float64"),))
    model = ModelArtifact(
        flavor="lightgbm",
        files={"model.txt": b"tree", "again.txt": b"tree"},
        signature=Signature(schema, schema),
        metrics={"auc": math.nan},
        trained_until=dt.datetime(2013, 4, 1, tzinfo=dt.UTC),
        reference=b"{}",
    )
    found = round_trip(model, blobs)
    assert math.isnan(found.metrics["auc"])
    assert msgspec.structs.replace(found, metrics={}) == msgspec.structs.replace(model, metrics={})


def test_everything_that_cannot_be_stored_is_named(blobs: LocalBlobs) -> None:
    itself: list[Any] = []
    itself.append(itself)
    value = {"a": [1, object()], "b": np.array([object()]), "c": lambda: 0, "d": "\ud800"}
    with pytest.raises(InvalidInput) as caught:
        store(value, blobs, "a test")
    paths = [fault.path for fault in caught.value.faults]
    assert paths[:3] == ["result['a'][1]", "result['b']", "result['c']"]
    with pytest.raises(InvalidInput, match="holds itself"):
        store(itself, blobs, "a test")
    with pytest.raises(InvalidInput, match="surrogate"):
        store("\ud800", blobs, "a test")


def test_value_of_a_class_that_is_gone_is_unreadable(blobs: LocalBlobs) -> None:
    stored, _ = store(Plan("a", []), blobs, "a test")
    text = stored.meta["text"].replace(":Plan", ":Plans")
    with pytest.raises(Unreadable):
        load(msgspec.structs.replace(stored, meta={"text": text}), blobs)
    text = stored.meta["text"].replace(__name__, "not_loaded")
    with pytest.raises(Unreadable, match="not loaded"):
        load(msgspec.structs.replace(stored, meta={"text": text}), blobs)


def test_array_made_writable_is_digested_again(blobs: LocalBlobs) -> None:
    found = round_trip(np.array(3.0), blobs)
    before = text_of(found)
    found.setflags(write=True)
    found[...] = 4.0
    assert text_of(found) != before


def test_numbers_and_text_load_neither_numpy_nor_arrow(tmp_path: Path) -> None:
    code = """
import sys
from everloop.backends.blobs.local import LocalBlobs
from everloop.pipelines import api, engine, worker
from everloop.pipelines.values import load, store
value = {"a": [1, 2.5, "x", None, b"bytes"], "b": (True,)}
blobs = LocalBlobs(sys.argv[1])
assert load(store(value, blobs, "a test")[0], blobs) == value
print([name for name in ("numpy", "pyarrow", "cloudpickle") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
