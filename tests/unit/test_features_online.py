"""Online lookups give the bits of history(), whatever order the rows were pushed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.backends.online.lmdb import LmdbOnline
from everloop.errors import BackendError, InvalidInput, NotFound
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.features.online import OnlineFeatures
from everloop.features.sets import FeatureSet
from tests.unit import features_cases as cases

CASES = cases.definitions()
WILD = cases.wild()


class MemoryStore:
    """An OnlineStore in a dict, so that a property test need not wait for a disk."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, bytes], bytes] = {}

    def write(self, values: Mapping[str, Mapping[bytes, bytes]]) -> None:
        for view, own in values.items():
            self.held.update({(view, key): value for key, value in own.items()})

    def read(self, view: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.held.get((view, key)) for key in keys]

    def clear(self, view: str) -> None:
        for key in [key for key in self.held if key[0] == view]:
            del self.held[key]

    def close(self) -> None:
        """Nothing is held."""


def plain(rows: pa.Table, definition: FeatureSet) -> tuple[dict[str, list[Any]], Any]:
    columns = {
        f.name: rows.column(f.name).to_pylist() for f in definition.request.fields if f.name != "t"
    }
    return columns, rows.column("t").cast(pa.int64()).to_numpy()


def agree(online: OnlineFeatures, rows: pa.Table, data: dict[str, pa.Table]) -> None:
    definition = online.feature_set
    wanted = definition.history(rows, sources=data)
    columns, at = plain(rows, definition)
    many = online.lookup(columns, at).to_arrow()
    single = [
        online.lookup({name: values[i : i + 1] for name, values in columns.items()}, at[i : i + 1])
        for i in range(rows.num_rows)
    ]
    one_by_one = pa.concat_tables([found.to_arrow() for found in single])
    for name in definition.names:
        expected = cases.cells(wanted.column(name))
        assert cases.cells(many.column(name)) == expected, name
        assert cases.cells(one_by_one.column(name)) == expected, name


def without_text(definition: FeatureSet) -> FeatureSet:
    """The same without text, so that single requests take the quick way."""
    views = []
    for view in definition.views:
        kept = tuple(f for f in view.features if f.type != "string")
        if view.name != "mixed":
            views.append(msgspec.structs.replace(view, features=kept))
    return msgspec.structs.replace(definition, name="plain", views=tuple(views))


PLAIN = without_text(CASES)


@settings(max_examples=50, deadline=None)
@given(
    batches=st.lists(st.lists(cases.events, max_size=10), max_size=5),
    facts=st.lists(cases.facts, max_size=5),
    requests=st.lists(cases.requests, min_size=1, max_size=8),
    quick=st.booleans(),
)
def test_pushes_in_any_order_equal_history(
    batches: list[Any], facts: list[Any], requests: list[Any], quick: bool
) -> None:
    rows = cases.table(requests, cases.REQUESTS)
    written = [row for batch in batches for row in batch]
    data = {"events": cases.table(written, cases.EVENTS), "facts": cases.table(facts, cases.FACTS)}
    online = OnlineFeatures(PLAIN if quick else CASES, MemoryStore(), slack="182000d")
    for batch in batches:
        online.push("events", cases.table(batch, cases.EVENTS))
    for fact in facts:
        online.push("facts", cases.table([fact], cases.FACTS))
    agree(online, rows, data)


@settings(max_examples=50, deadline=None)
@given(
    batches=st.lists(st.lists(cases.events, max_size=8), max_size=6),
    later=st.lists(st.tuples(cases.keys, cases.places, st.integers(0, 12)), min_size=1, max_size=8),
    quick=st.booleans(),
)
def test_trimming_changes_no_answer_within_the_slack(
    batches: list[Any], later: list[Any], quick: bool
) -> None:
    written = [row for batch in batches for row in batch]
    newest = max(
        (t for *_, e, k, _, _, _, _ in written for t in (e, k) if t is not None), default=0
    )
    rows = cases.table([(k, j, newest - 2 + more, 1.0) for k, j, more in later], cases.REQUESTS)
    data = {"events": cases.table(written, cases.EVENTS), "facts": cases.FACTS.empty_table()}
    online = OnlineFeatures(PLAIN if quick else CASES, MemoryStore(), slack="2us")
    for batch in batches:
        online.push("events", cases.table(batch, cases.EVENTS))
    agree(online, rows, data)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(width=64), max_size=16),
    times=st.lists(st.integers(0, 12), min_size=16, max_size=16),
)
def test_sums_have_the_same_bits_wherever_a_prefix_starts(
    values: list[float], times: list[int]
) -> None:
    events = [("a", 0, t, t, x, 0, "", True) for x, t in zip(values, times, strict=False)]
    rows = cases.table([("a", 0, t, None) for t in range(12, 24)], cases.REQUESTS)
    online = OnlineFeatures(WILD, MemoryStore(), slack="1us")
    for event in sorted(events, key=lambda e: e[2]):
        online.push("events", cases.table([event], cases.EVENTS))
    agree(online, rows, {"events": cases.table(events, cases.EVENTS)})


@pytest.fixture
def open_online(tmp_path: Path) -> Iterator[Callable[[FeatureSet], OnlineFeatures]]:
    store = LmdbOnline(tmp_path / "online")
    yield lambda definition: OnlineFeatures(definition, store)
    store.close()


def micros(hour: int, minute: int = 0, day: int = 1) -> int:
    return int(datetime(2013, 3, day, hour, minute, tzinfo=UTC).timestamp()) * 1_000_000


def instants(*values: int | None) -> pa.Array:
    return pa.array(values, cases.INSTANT)


def delays(**options: Any) -> FeatureSet:
    flights = source("flights", time="sched", known="landed", **options)
    features = {"late_24h": agg.mean(col.delay > 15, "24h"), "landed_24h": agg.count("24h")}
    return feature_set(
        "delay",
        feature_view("carrier", entity="carrier", source=flights, features=features),
        feature_view("newest", entity="carrier", source=flights, ttl="24h", features=[col.delay]),
        time="sched",
        request={"carrier": str | None},
        on_demand={"hour": col.sched.hour()},
    )


def landed(*rows: tuple[int, int, float | None]) -> pa.Table:
    sched, known, delay = zip(*rows, strict=True)
    columns = {"carrier": ["UA"] * len(rows), "id": list(range(len(rows)))}
    times = {"sched": instants(*sched), "landed": instants(*known)}
    return pa.table(columns | times | {"delay": pa.array(delay, pa.float64())})


def test_times_tell_the_newest_row_used(open_online: Any) -> None:
    online = open_online(delays())
    online.push("flights", landed((micros(8), micros(11), 20.0), (micros(9), micros(10), 5.0)))
    found = online.lookup(
        {"carrier": ["UA", "UA", "UA", None]}, [micros(12), micros(10), micros(9), micros(12)]
    )
    assert found.names == ("late_24h", "landed_24h", "delay", "hour")
    assert found.values[:, :3].tolist()[:2] == [[0.5, 2.0, 5.0], [0.0, 1.0, 5.0]]
    assert found.times["carrier"].tolist() == [micros(11), micros(10), -1, -1]
    assert found.times["newest"].tolist() == [micros(10), micros(10), -1, -1]
    assert np.isnan(found.values[3, :3]).all()
    assert found.values[2, 1] == 0.0


def test_row_is_not_seen_before_it_is_known(open_online: Any) -> None:
    online = open_online(delays())
    online.push("flights", landed((micros(8), micros(11), 20.0)))
    before = online.lookup({"carrier": ["UA"]}, [micros(11) - 1])
    assert before.values[0, 1] == 0.0


def test_push_that_is_repeated_counts_once_where_rows_have_an_id(open_online: Any) -> None:
    online = open_online(delays(id="id"))
    rows = landed((micros(8), micros(11), 20.0), (micros(9), micros(11), 20.0))
    for _ in range(3):
        online.push("flights", rows)
    assert online.lookup({"carrier": ["UA"]}, [micros(12)]).values[0, 1] == 2.0


def test_repeated_pushes_of_the_newest_row_do_not_grow_the_store() -> None:
    store = MemoryStore()
    events = source("flights", time="sched", known="landed")
    view = feature_view("newest", entity="carrier", source=events, features=[col.delay])
    online = OnlineFeatures(feature_set("s", view, time="t", request={"carrier": str}), store)
    for _ in range(5):
        online.push("flights", landed((micros(8), micros(11), 20.0)))
    assert len({len(blob) for blob in store.held.values()}) == 1
    first = store.held.copy()
    online.push("flights", landed((micros(7), micros(12), 3.0)))
    assert store.held == first


def test_one_source_of_a_dataset_is_pushed_alone(open_online: Any) -> None:
    departed = source("flights", time="sched", known="departed")
    views = [
        feature_view("gone", entity="k", source=departed, features={"gone": agg.count("1h")}),
        feature_view("down", entity="k", source=source("flights", time="sched", known="landed"),
                     features={"down": agg.count("1h")}),
    ]  # fmt: skip
    online = open_online(feature_set("s", *views, time="t", request={"k": str}))
    rows = pa.table({"k": ["a"], "sched": instants(micros(8)), "departed": instants(micros(8))})
    assert online.push("flights.departed", rows) == 1
    assert online.push(departed, rows) == 1
    with pytest.raises(InvalidInput, match="landed: is missing"):
        online.push("flights", rows)
    assert online.lookup({"k": ["a"]}, [micros(8)]).values.tolist() == [[2.0, 0.0]]


def test_null_known_time_is_not_taken(open_online: Any) -> None:
    online = open_online(delays())
    assert online.push("flights", landed((micros(8), None, 20.0))) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "carrier: is missing"),
        ({"carrier": [1]}, "carrier: holds int, must be string"),
        ({"carrier": ["UA", "AA"]}, "carrier: has 2 values for 1 times"),
    ],
)
def test_request_that_does_not_fit_is_refused(open_online: Any, columns: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_online(delays()).lookup(columns, [micros(12)])


def test_unknown_source_names_the_known_ones(open_online: Any) -> None:
    with pytest.raises(NotFound, match="flights"):
        open_online(delays()).push("flihgts", landed((micros(8), micros(11), 1.0)))


def test_clear_forgets(open_online: Any) -> None:
    online = open_online(delays())
    online.push("flights", landed((micros(8), micros(11), 20.0)))
    online.clear()
    assert online.lookup({"carrier": ["UA"]}, [micros(12)]).values[0, 1] == 0.0


def test_another_definition_does_not_read_the_bytes_of_this_one() -> None:
    store = MemoryStore()
    OnlineFeatures(delays(), store).push("flights", landed((micros(8), micros(11), 20.0)))
    other = OnlineFeatures(delays(id="id"), store)
    assert other.lookup({"carrier": ["UA"]}, [micros(12)]).values[0, 1] == 0.0


def test_damaged_bytes_are_said() -> None:
    store = MemoryStore()
    online = OnlineFeatures(delays(), store)
    online.push("flights", landed((micros(8), micros(11), 20.0)))
    store.held = {key: blob[:-1] for key, blob in store.held.items()}
    for rows in (1, 9):
        with pytest.raises(BackendError, match="no rows of this view"):
            online.lookup({"carrier": ["UA"] * rows}, [micros(12)] * rows)


def test_text_features_are_refused_in_a_matrix() -> None:
    events = source("events", time="time")
    view = feature_view("v", entity="k", source=events, features={"s": col.s.cast("string")})
    online = OnlineFeatures(feature_set("s", view, time="t", request={"k": str}), MemoryStore())
    found = online.lookup({"k": ["a"]}, [0])
    assert found.to_arrow().column("s").to_pylist() == [None]
    with pytest.raises(InvalidInput, match="s: is text"):
        _ = found.values
