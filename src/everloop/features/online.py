"""Features of now: rows pushed as they arrive, looked up at the time a request asks for.

A lookup and ``history()`` at the same instant give the same bits: both evaluate the same
expressions and call :func:`everloop.features.retrieve.look_up`. A store keeps, for each view and
entity, the rows of the retention: the longest window or ttl and some slack, counted back from the
entity's newest row. A lookup at a time within the slack, or later, is never changed by trimming.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.expr import Kind, kind_of
from everloop.core.feature import Aggregate, Feature, Source
from everloop.core.time import duration_micros, to_micros
from everloop.data.frame import Table
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.features.compile_row import compile_row
from everloop.features.compile_vector import evaluate
from everloop.features.keys import distinct
from everloop.features.one import OneRow
from everloop.features.plan import Frame, Input, Plan, events_of, typed
from everloop.features.records import Codec
from everloop.features.retrieve import Found, Rows, Timeline, best_so_far, look_up
from everloop.features.sets import FeatureSet
from everloop.features.vectors import Array, Vector, from_values, to_arrow
from everloop.ports.online import OnlineStore

__all__ = ["FeatureRows", "OnlineFeatures"]

#: How far back of an entity's newest row a lookup may ask, unless told otherwise.
SLACK = "2d"
# Up to so many rows Python is quicker one by one than arrays are; both give equal bits.
_FEW = 4

_pack = msgspec.msgpack.Encoder().encode
_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "timestamp": (int,),
}


class FeatureRows:
    """Feature values of requests.

    Attributes:
        features: The features, in order.
        times: For each view when the newest row used had become visible; microseconds, -1 where
            no row was used or the view has no time. Shape (n,) each.
    """

    __slots__ = ("_lists", "_vectors", "features", "times")

    def __init__(
        self,
        features: tuple[Feature, ...],
        times: dict[str, npt.NDArray[np.int64]],
        *,
        vectors: list[Vector] | None = None,
        lists: list[list[Any]] | None = None,
    ) -> None:
        self.features = features
        self.times = times
        self._vectors = vectors
        self._lists = lists or []

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def columns(self) -> list[Vector]:
        """One vector for each feature."""
        if self._vectors is None:
            pairs = zip(self.features, self._lists, strict=True)
            self._vectors = [from_values(kind_of(f.type), values) for f, values in pairs]
        return self._vectors

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The values as a matrix (n, features), null as NaN.

        Raises:
            InvalidInput: If a feature is text, which no matrix holds.
        """
        texts = [f.name for f in self.features if f.type == "string"]
        if texts:
            raise InvalidInput(
                "a matrix holds numbers only",
                [Fault(name, "is text") for name in texts],
                hint="number them with .code([...])",
            )
        if self._vectors is None:
            return np.array(self._lists, np.float64).T  # None becomes NaN
        matrix = np.empty((len(self._vectors[0].data), len(self._vectors)))
        for place, vector in enumerate(self._vectors):
            matrix[:, place] = vector.data
            if vector.valid is not None:
                matrix[~vector.valid, place] = np.nan
        return matrix

    def to_arrow(self) -> pa.Table:
        """The values with their types, null as null."""
        pairs = zip(self.columns, self.features, strict=True)
        return pa.table({f.name: to_arrow(vector, f.type) for vector, f in pairs})


class OnlineFeatures:
    """Pushes rows of sources into an online store and looks features up in it.

    Lookups may run in many threads and processes beside the one object that pushes.

    Args:
        feature_set: What is looked up.
        store: Where rows are kept.
        slack: How long before an entity's newest row a lookup may still ask.
    """

    def __init__(self, feature_set: FeatureSet, store: OnlineStore, *, slack: str = SLACK) -> None:
        self.feature_set = feature_set
        self._store = store
        self._pushing = threading.Lock()
        self._views = [
            _OnlineView(Plan(view), duration_micros(slack)) for view in feature_set.views
        ]
        self._kinds: dict[str, Kind] = {
            field.name: kind_of(field.type)
            for field in feature_set.request.fields
            if field.type != "binary"
        }
        known: dict[str, Kind] = dict(self._kinds)
        for view in feature_set.views:
            known.update({feature.name: kind_of(feature.type) for feature in view.features})
        self._asked = [
            (feature, feature.value, compile_row(feature.value, known))
            for feature in feature_set.on_demand
            if not isinstance(feature.value, Aggregate)
        ]
        self._features = feature_set.features
        inputs = feature_set.on_demand_columns
        self._row_inputs = [name for name in inputs if name in self._kinds]
        self._view_inputs = [name for name in inputs if name not in self._kinds]
        keys = [key for view in feature_set.views for key in view.entity]
        self._needed = tuple(dict.fromkeys((*keys, *self._row_inputs)))

    def push(self, source: str | Source, rows: Any) -> int:
        """Add rows of a source; late ones and in any order.

        Args:
            source: Name of the dataset, for all sources over it; or one source, also written
                ``dataset.known_column``.
            rows: With the columns that the views read.

        Returns:
            How many rows were taken, summed over views; rows without key or visible time are not.

        Raises:
            NotFound: If no view reads from such a source.
            InvalidInput: If columns are missing or wrongly typed.
            BackendError: If the store fails; nothing is written then.
        """
        views = [view for view in self._views if _is_of(view.plan.view.source, source)]
        if not views:
            known = {view.source.dataset for view in self.feature_set.views}
            raise NotFound.named("source", str(source), known)
        frame = Frame(Table.of(rows).to_arrow(), str(getattr(source, "dataset", source)))
        ready = [(view, view.prepare(frame)) for view in views]  # every fault before any write
        with self._pushing:  # what is held is read, merged and written back, once for all views
            self._store.write({v.space: v.merged(self._store, fresh) for v, fresh in ready})
        return sum(len(fresh.records) for _, fresh in ready)

    def lookup(
        self, columns: Mapping[str, Any], at_us: npt.NDArray[np.int64] | Sequence[int]
    ) -> FeatureRows:
        """The features of requests, each at its own time.

        Args:
            columns: The request fields, each a list or array of n values; None is null.
            at_us: The instant of each, microseconds since 1970; shape (n,).

        Raises:
            InvalidInput: If a field is missing, of another length or type; nothing is coerced.
            BackendError: If the store fails.
        """
        at = np.asarray(at_us, np.int64)
        given = self._given(columns, at)
        if len(at) <= _FEW and all(view.one.able for view in self._views):
            return self._few(given, at)
        values: dict[str, Vector] = {}
        times = {}
        for view in self._views:
            found = view.look_up(self._store, [given[key] for key in view.plan.view.entity], at)
            values.update(zip(view.plan.view.names, found.values, strict=True))
            times[view.plan.view.name] = found.times
        inputs = {name: from_values(self._kinds[name], given[name]) for name in self._row_inputs}
        inputs |= {name: values[name] for name in self._view_inputs}
        for feature, node, _ in self._asked:
            made = evaluate(node, inputs, len(at))
            values[feature.name] = typed(Input(node, feature.type), made)
        return FeatureRows(self._features, times, vectors=[values[f.name] for f in self._features])

    def _few(self, given: dict[str, list[Any]], at: Array) -> FeatureRows:
        values: dict[str, list[Any]] = {}
        times = {}
        instants = at.tolist()
        for view in self._views:
            names = view.plan.view.names
            found = view.few(self._store, [given[key] for key in view.plan.view.entity], instants)
            for place, name in enumerate(names):
                values[name] = [row[place] for row, _ in found]
            times[view.plan.view.name] = np.array([used for _, used in found], np.int64)
        columns = {name: given[name] for name in self._row_inputs}
        columns |= {name: values[name] for name in self._view_inputs}
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(at))]
        for feature, _, function in self._asked:
            made = [function(row) for row in rows]
            if feature.type == "float64":
                made = [value if value is None else float(value) for value in made]
            values[feature.name] = made
        return FeatureRows(self._features, times, lists=[values[f.name] for f in self._features])

    def clear(self) -> None:
        """Forget everything that was pushed."""
        for view in self._views:
            self._store.clear(view.space)

    def _given(self, columns: Mapping[str, Any], at: Array) -> dict[str, list[Any]]:
        given, faults = {}, []
        for name in self._needed:
            if name not in columns and name == self.feature_set.time:
                given[name] = at.tolist()
                continue
            values = columns.get(name)
            if values is None:
                faults.append(Fault(name, "is missing"))
                continue
            values = values.tolist() if isinstance(values, np.ndarray) else list(values)
            kind = self._kinds[name]
            if kind == "timestamp":
                values = [to_micros(v) if isinstance(v, datetime) else v for v in values]
            allowed = _PYTHON[kind]
            if len(values) != len(at):
                faults.append(Fault(name, f"has {len(values)} values for {len(at)} times"))
            elif wrong := {type(v) for v in values} - {*allowed, type(None)}:
                names = ", ".join(sorted(t.__name__ for t in wrong))
                faults.append(Fault(name, f"holds {names}, must be {kind}"))
            given[name] = values
        if faults:
            raise InvalidInput("the request does not fit the feature set", faults)
        return given


def _is_of(source: Source, asked: str | Source) -> bool:
    if isinstance(asked, Source):
        return source == asked
    return asked in (source.dataset, f"{source.dataset}.{source.known or source.time}")


class _Fresh(NamedTuple):
    """Rows to be pushed: their keys as bytes, the key of each, its record, words of texts."""

    keys: list[bytes]
    key: Array
    records: Array
    words: dict[str, int]


class _OnlineView:
    """One view in a store."""

    def __init__(self, plan: Plan, slack_us: int) -> None:
        view = plan.view
        self.plan = plan
        self.codec = Codec(plan)
        # By content: another definition under the same name never reads these bytes.
        self.space = f"{view.name}@{view.digest[:16]}"
        # A ttl needs no rows: of those that are older than all this the best one stays.
        self._retention = view.window_us + slack_us
        self._kinds = [kind_of(wanted.type) for wanted in plan.inputs]
        self.one = OneRow(plan, self.codec)

    def prepare(self, frame: Frame) -> _Fresh:
        """The rows of a frame that can ever be visible, as records."""
        view = self.plan.view
        columns = list(frame.columns(view.entity).values())
        codes, first = distinct(columns)
        events = events_of(self.plan, frame, codes >= 0)
        rows = slice(None) if events.rows is None else events.rows
        records = np.zeros(len(events.visible), self.codec.dtype)
        records["visible"] = events.visible
        if self.plan.ranked:
            records["event"], records["known"] = events.event, events.known
        if view.source.id:
            records["id"] = frame.id_hashes(view.source.id)[rows]
        words: dict[str, int] = {}
        for place, vector in enumerate(events.values):
            self.codec.put(records, place, vector, words)
        parts = [column.take(first).python() for column in columns]
        keys = [_pack(key) for key in zip(*parts, strict=True)]
        return _Fresh(keys, codes[rows], records, words)

    def merged(self, store: OnlineStore, fresh: _Fresh) -> dict[bytes, bytes]:
        """What the store is to hold of the entities of rows: these and what it holds."""
        if not len(fresh.records):
            return {}
        held, counts, words = self._read(store, fresh.keys)
        old = np.repeat(np.arange(len(fresh.keys)), counts)
        records = fresh.records
        if self.codec.has_text:
            records = self._with_words(records, fresh.words, words)
        key = np.concatenate([old, fresh.key])
        merged = np.concatenate([held, records])
        keep = self._kept(key, merged)
        key, merged = key[keep], merged[keep]
        here, ends = np.unique(key, return_index=True)
        ends = np.append(ends[1:], len(key))
        blobs = self.codec.encode(merged, ends, words)
        return {fresh.keys[k]: b for k, b in zip(here.tolist(), blobs, strict=True)}

    def look_up(self, store: OnlineStore, columns: list[list[Any]], at: Array) -> Found:
        """The features of entities at instants."""
        places: dict[Any, int] = {}
        key = [
            -1 if None in parts else places.setdefault(parts, len(places))
            for parts in zip(*columns, strict=True)
        ]
        held, counts, words = self._read(store, [_pack(parts) for parts in places])
        owner = np.repeat(np.arange(len(places)), counts)
        return look_up(self.plan, self._rows(owner, held, words, len(places)), np.array(key), at)

    def few(
        self, store: OnlineStore, columns: list[list[Any]], at: list[int]
    ) -> list[tuple[list[Any], int]]:
        """The same for a few requests, each with the time of the newest row used."""
        parts = list(zip(*columns, strict=True))
        keys = [_pack(part) for part in parts]
        blobs = store.read(self.space, keys)
        nothing: list[Any] = [None] * len(self.plan.places)
        return [
            (nothing, -1) if None in part else self.one.look_up(blob, instant)
            for part, blob, instant in zip(parts, blobs, at, strict=True)
        ]

    def _read(self, store: OnlineStore, keys: list[bytes]) -> tuple[Array, Array, list[str]]:
        blobs = store.read(self.space, keys) if keys else []
        there = [blob for blob in blobs if blob is not None]
        if not there:
            return np.empty(0, self.codec.dtype), np.zeros(len(keys), np.int64), []
        held, counts, words = self.codec.decode(there)
        if len(there) < len(blobs):
            every = np.zeros(len(blobs), np.int64)
            every[[place for place, blob in enumerate(blobs) if blob is not None]] = counts
            counts = every
        return held, counts, words

    def _rows(self, key: Array, records: Array, words: list[str], keys: int) -> Rows:
        visible = np.ascontiguousarray(records["visible"])
        timeline = Timeline(key, visible, max(keys, 1), ordered=True)
        event, best = visible, None
        if self.plan.ranked:
            event = np.ascontiguousarray(records["event"])
            if self.plan.windowed:  # else only rows that are the best of their time are kept
                best = best_so_far(key, event, records["known"], None)
        return Rows(timeline, visible, event, best, self.codec.values(records, words))

    def _with_words(self, records: Array, fresh: dict[str, int], words: list[str]) -> Array:
        """Number the texts of fresh records as those of held ones are; extends `words`."""
        place = {word: index for index, word in enumerate(words)}
        codes = []
        for word in fresh:
            if word not in place:
                place[word] = len(words)
                words.append(word)
            codes.append(place[word])
        if not words:
            words.append("")
        lookup = np.array(codes or [0], np.int32)
        for number, kind in enumerate(self._kinds):
            if kind == "string":
                records[f"v{number}"] = lookup[records[f"v{number}"]]
        return records

    def _kept(self, key: Array, records: Array) -> Array:
        """The places of rows to keep, sorted by key and visible time; held rows come first."""
        visible = records["visible"]
        order = np.lexsort((visible, key))  # stable: of equal ones the earlier written first
        if self.plan.view.source.id:
            order = order[_written_last(key[order], records[order])]
        sorted_key = key[order]
        last = np.append(sorted_key[1:] != sorted_key[:-1], True)
        if not self.plan.view.source.time:
            return np.asarray(order[last])
        ends = np.flatnonzero(last)
        newest = visible[order[ends]]
        counts = np.diff(ends, prepend=-1)
        young = visible[order] >= np.repeat(newest - self._retention, counts)
        if not self.plan.newest:
            return np.asarray(order[young])
        best = self._best(sorted_key, records[order])
        keep = young.copy()
        # Of the rows that are not young the best one stays: it holds until a young one comes.
        next_is_young = np.append(young[1:], True) | last
        keep[best[np.flatnonzero(~young & next_is_young)]] = True
        if not self.plan.windowed:
            # Nobody looks at a row unless it is the best at the end of its own instant.
            seen = np.zeros(len(order), np.bool_)
            seen[best[last | np.append(np.diff(visible[order]) != 0, True)]] = True
            keep &= seen
        return np.asarray(order[keep])

    def _best(self, key: Array, records: Array) -> Array:
        if not self.plan.ranked:
            return np.arange(len(key))
        return best_so_far(key, records["event"], records["known"], None)


def _written_last(key: Array, records: Array) -> Array:
    """Of sorted rows with equal key, visible time and id the places of those written last."""
    visible = records["visible"]
    same = (key[1:] == key[:-1]) & (visible[1:] == visible[:-1])
    if not same.any():
        return np.arange(len(key))
    # Only rows that share key and visible time with a neighbour can be one row written twice.
    shared = np.flatnonzero(np.append(same, False) | np.append(False, same))
    group = np.cumsum(np.append(True, ~same))[shared]
    ids = records["id"][shared]
    order = np.lexsort((ids, group))  # stable: of equal ones the earlier written first
    group, ids = group[order], ids[order]
    again = (group[1:] == group[:-1]) & (ids[1:] == ids[:-1])
    again &= ids[1:] != 0  # a row without an id is one of its own
    keep = np.ones(len(key), np.bool_)
    keep[shared[order[:-1][again]]] = False
    return np.flatnonzero(keep)
