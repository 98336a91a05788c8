"""A pull: read what is new in a source, here, and hand it to the catalog as one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import FieldType
from everloop.core.source import DataSource, Pull, PullDraft, SourceState
from everloop.data.formats import fitted
from everloop.data.service import DataService
from everloop.data.source_files import read_files
from everloop.data.source_rules import DATABASES, lookback_of, scheme_of
from everloop.data.spool import Mark, Spool
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.ports.source import FileServer, QueryServer

__all__ = ["Home", "pull_into"]

#: Transactions that began before the last pull and ended after it have older times than it saw.
_LOOKBACK = timedelta(minutes=10)
#: A time without a zone may be ahead of the database's clock by that of its zone.
_ZONES = timedelta(hours=14)


class Home(Protocol):
    """What is needed of a workspace."""

    is_remote: bool

    @property
    def data(self) -> DataService:
        """Datasets."""
        ...

    def file_server(self, source: DataSource, scheme: str) -> FileServer:
        """The server of a location."""
        ...

    def query_server(self, source: DataSource) -> QueryServer:
        """The database of a source."""
        ...


def pull_into(home: Home, name: str, *, full: bool, note: str, run_id: str) -> Pull:
    """Pull the source of a dataset; see ``everloop.data.sources.pull``."""
    source = home.data.source(name)
    state = home.data.source_state(name)
    try:
        base: DatasetVersion | None = home.data.version(name)
    except NotFound:
        base = None
    wanted = _wanted(source, base)
    draft = PullDraft(
        generation=state.generation, full=full, run_id=run_id, note=note, watermark=state.watermark
    )
    with Spool() as spool:
        if scheme_of(source.locations[0]) in DATABASES:
            draft = _query(home, source, state, wanted, spool, draft)
            rows = spool.table()
        else:
            found, draft = _files(home, source, state, wanted, spool, draft)
            rows = spool.table() if found else None
        if rows is None and base is None:
            raise InvalidInput(f"the source of {name} has no rows, and there is no version yet")
        kept = None
        if rows is not None and source.mode == "upsert":
            rows, kept = _last_of_key(rows, source, spool.marks)
        with _places(spool.marks, kept):
            return home.data.commit_pull(name, rows, draft)


def _wanted(source: DataSource, base: DatasetVersion | None) -> dict[str, FieldType]:
    """The types that are known: the first pull's stay, and what is stated counts."""
    fields = list(base.schema.fields) if base is not None else []
    fields += source.schema.fields if source.schema is not None else ()
    return {field.name: field.type for field in fields}


# --- files ---------------------------------------------------------------------------------------


def _files(
    home: Home,
    source: DataSource,
    state: SourceState,
    wanted: dict[str, FieldType],
    spool: Spool,
    draft: PullDraft,
) -> tuple[bool, PullDraft]:
    inside = Path.cwd() if source.guarded and not home.is_remote else None
    with tempfile.TemporaryDirectory(prefix="everloop-fetch-") as folder:
        found = read_files(
            source,
            state,
            wanted,
            spool,
            lambda scheme: home.file_server(source, scheme),
            Path(folder),
            full=draft.full,
            inside=inside,
        )
    return found.is_read, msgspec.structs.replace(
        draft,
        files=found.files,
        touched=found.touched,
        gone=found.gone,
        read=spool.rows,
        sources=tuple(_node(location) for location in source.locations),
        notes=found.notes,
    )


def _node(location: str) -> str:
    """A location as OpenLineage names a dataset."""
    if scheme_of(location):
        return location
    return f"file://{Path(location).expanduser().absolute()}"


# --- queries -------------------------------------------------------------------------------------


def _query(
    home: Home,
    source: DataSource,
    state: SourceState,
    wanted: dict[str, FieldType],
    spool: Spool,
    draft: PullDraft,
) -> PullDraft:
    since = "" if draft.full or not source.watermark else _since(source, state.watermark)
    query = source.query.strip().rstrip(";")
    server = home.query_server(source)
    reading = server.read(query, watermark=source.watermark, since=since, wanted=dict(wanted))
    seen = _Watermark(source, "" if draft.full else state.watermark)
    with reading as result:
        spool.begin(result.schema)
        if source.watermark:
            seen.check(result.schema)
        for batch in result.batches:
            if source.watermark:
                seen.look(batch.column(source.watermark))
            spool.add(fitted(batch, wanted, "the query", spool.rows))
        watermark, notes = seen.settle(result.now, bool(since)) if source.watermark else ("", [])
    return msgspec.structs.replace(
        draft,
        since=since,
        watermark=watermark,
        read=spool.rows,
        sources=result.sources,
        notes=(*result.notes, *notes),
    )


_Value = int | date | datetime | str


def _value(text: str) -> _Value:
    """A watermark as it is compared: a number, a date, a time; else the text."""
    if text.removeprefix("-").isdecimal():
        return int(text)
    try:
        return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)
    except ValueError:
        return text


def _since(source: DataSource, watermark: str) -> str:
    """From where on rows are read again."""
    if not watermark:
        return ""
    value = _value(watermark)
    back = lookback_of(source.lookback) if source.lookback else None
    if isinstance(value, int):
        return str(value - int(source.lookback or 0))
    if isinstance(value, str):
        return watermark
    length = timedelta(microseconds=back) if back is not None else _LOOKBACK
    if source.lookback == "0":
        length = timedelta(0)
    if isinstance(value, datetime):
        return _text(value - length, watermark)
    return (value - max(length, timedelta(days=1) if length else length)).isoformat()


def _text(value: datetime, like: str) -> str:
    """A time as text in the form of `like`: SQLite compares times as texts."""
    digits = len(like.partition(".")[2].rstrip("Z").partition("+")[0])
    text = value.isoformat(sep=like[10], timespec="microseconds" if digits else "seconds")
    if digits and digits < 6:
        point = text.index(".")
        text = text[: point + 1 + digits] + text[point + 7 :]
    return text.replace("+00:00", "Z") if like.endswith("Z") else text


class _Watermark:
    """The greatest watermark of what is read, and what is odd about it."""

    def __init__(self, source: DataSource, before: str) -> None:
        self._column = source.watermark
        self._before = before
        self._most: _Value | None = None
        self._text = ""
        self._nulls = self._rows = 0
        self._shapes: set[str] = set()

    def check(self, schema: pa.Schema) -> None:
        """Refuse a column that does not order rows.

        Raises:
            NotFound: If there is no such column.
            InvalidInput: If its type has no order that everybody agrees on.
        """
        if self._column not in schema.names:
            raise NotFound.named("column of the query", self._column, schema.names)
        kind = schema.field(self._column).type
        orders = (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date, pa.types.is_string)
        if not any(is_one(kind) for is_one in orders):
            raise InvalidInput(
                f"the watermark {self._column} is {kind}",
                hint="take a whole number, a time or a date that grows with every change",
            )

    def look(self, column: pa.Array) -> None:
        """Take rows into account."""
        self._rows += len(column)
        self._nulls += column.null_count
        if column.null_count == len(column):
            return
        if pa.types.is_string(column.type):
            self._look_at_texts(column)
        most = pc.max(column).as_py()
        if self._most is None or most > self._most:
            self._most = most
            self._text = str(most) if isinstance(most, int | str) else most.isoformat()
            if isinstance(most, datetime):
                self._text = most.isoformat(timespec="microseconds")

    def _look_at_texts(self, column: pa.Array) -> None:
        shapes = pc.unique(pc.replace_substring_regex(column.drop_null(), r"\d", "0"))
        self._shapes |= set(shapes.to_pylist())
        odd = [shape for shape in self._shapes if not shape.startswith("0000-00-00")]
        if odd or len(self._shapes) > 1:
            shown = sorted(self._shapes)[:5]
            raise InvalidInput(
                f"the watermark {self._column} is text of several forms, or no time: {shown}",
                hint="texts are compared sign by sign: write all times in one form and one zone",
            )

    def settle(self, now: datetime, again: bool) -> tuple[str, list[str]]:
        """The watermark to keep, and what to tell.

        Args:
            now: By the clock of the source.
            again: Whether the rows of the last watermark were to come again.
        """
        notes = []
        if self._nulls:
            notes.append(f"{self._nulls} rows have no {self._column}: they are read each time")
        if self._most is None:
            if again and not self._rows:
                notes.append(
                    "the rows that the last pull ended with are gone; if the source was set back, "
                    "pull with full"
                )
            return self._before, notes
        text, limit = self._text, _limit(self._most, now)
        if limit is not None and _is_before(limit, self._most):
            notes.append(f"{self._column} lies in the future ({text}): read again until then")
            text = limit.isoformat()
        if self._before and _is_before(_value(text), _value(self._before)):
            notes.append(f"the newest {self._column} is before that of the last pull")
            text = self._before
        return text, notes


def _is_before(one: _Value, other: _Value) -> bool:
    try:
        return bool(one < other)  # type: ignore[operator]
    except TypeError:
        raise InvalidInput(
            f"the watermark was of another type at the last pull: {other}, and now {one}",
            hint="pull with full: everything is read, and it begins anew",
        ) from None


def _limit(most: _Value, now: datetime) -> date | datetime | None:
    """The greatest watermark that is believed: one in the future would hide all rows until then."""
    if isinstance(most, datetime):
        if most.tzinfo is None:
            return now.astimezone(UTC).replace(tzinfo=None) + _ZONES
        return now
    return (now + _ZONES).date() if isinstance(most, date) else None


# --- rows ----------------------------------------------------------------------------------------


def _last_of_key(
    rows: pa.Table, source: DataSource, marks: list[Mark]
) -> tuple[pa.Table, np.ndarray | None]:
    """Of rows of equal key the last one, as the later file or line counts; and which stay."""
    key = list(source.key)
    if not marks or any(name not in rows.column_names for name in key):
        return rows, None
    keys = pl.from_arrow(rows.select(key))
    assert isinstance(keys, pl.DataFrame)
    last = keys.with_row_index("__at").unique(key, keep="last", maintain_order=True)
    if last.height == rows.num_rows:
        return rows, None
    kept = last["__at"].sort().cast(pl.Int64).to_numpy()
    return rows.take(pa.array(kept)), kept


@contextmanager
def _places(marks: list[Mark], kept: np.ndarray | None) -> Iterator[None]:
    """Within the block a fault of a row names its file and its row there."""
    try:
        yield
    except InvalidInput as error:
        faults = [_placed(fault, marks, kept) for fault in error.faults] if marks else []
        if faults in ([], error.faults):
            raise
        raise InvalidInput(
            error.summary,
            faults,
            hint="rows are counted from 1 in their file; no version was made",
            details=error.details,
        ) from None


def _placed(fault: Fault, marks: list[Mark], kept: np.ndarray | None) -> Fault:
    found = re.fullmatch(r"rows\[(\d+)\](?:\.(.*))?", fault.path, re.DOTALL)
    if found is None:
        return fault
    row = int(found[1]) if kept is None else int(kept[int(found[1])])
    mark = next(mark for mark in reversed(marks) if mark.start <= row)
    column = f", {found[2]}" if found[2] else ""
    return Fault(f"{mark.path} row {row - mark.start + 1}{column}", fault.message)
