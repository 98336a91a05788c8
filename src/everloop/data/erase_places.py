"""Where else than in tables a subject may stand: logs, ledgers, results of steps, files of runs.

Each function takes the bytes of one object and says what is to come in its place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.data.seek import Sought, json_of
from everloop.ports.blobs import BlobStore

__all__ = [
    "Answers",
    "cut_file",
    "is_in_result",
    "is_in_rows",
    "is_log",
    "may_hold",
    "seek_answers",
    "seek_labels",
]

_PARQUET, _ARROW = b"PAR1", b"ARROW1"
#: Texts of fewer letters stand in any file by chance.
_TELLING = 5


class Answers(NamedTuple):
    """What is left of a segment of predictions.

    Attributes:
        data: The new Parquet file.
        rows: The rows that are left, with ``id`` and ``at``.
        gone: How many went.
        requests: What labels name them by.
    """

    data: bytes
    rows: pa.Table
    gone: int
    requests: set[str]


def seek_answers(data: bytes, sought: Sought) -> Answers | None:
    """Predictions that were asked for the subject: by a feature, or by a field of the request."""
    rows = pq.read_table(pa.BufferReader(data))
    mask = np.ones(rows.num_rows, bool)
    said: list[Any] | None = None
    for column in sought.columns:
        one = np.zeros(rows.num_rows, bool)
        for name in (column, f"f.{column}"):
            part = sought.only(column).mask(rows, {column: name})
            one |= part if part is not None else False
        if "request" in rows.column_names:
            told = pc.match_substring(rows.column("request"), f'"{column}"').to_numpy()
            for n in np.flatnonzero(told & ~one).tolist():
                said = rows.column("request").to_pylist() if said is None else said
                one[n] = sought.only(column).is_in_json(json_of(said[n] or ""))
        mask &= one
    if not mask.any():
        return None
    erased = rows.filter(pa.array(mask)).select(["id", "request_id"]).to_pylist()
    left = rows.filter(pa.array(~mask)).combine_chunks()
    requests = {row["request_id"] or row["id"] for row in erased}
    return Answers(_parquet(left), left, int(mask.sum()), requests)


def seek_labels(data: bytes, sought: Sought, requests: set[str]) -> tuple[bytes, int] | None:
    """Labels of these requests, or of the subject itself; the new file and how many went."""
    rows = pq.read_table(pa.BufferReader(data))
    mask = pc.is_in(rows.column("request_id"), value_set=pa.array(sorted(requests), pa.string()))
    gone = mask.to_numpy()
    own = sought.mask(rows)
    if own is not None:
        gone = gone | own
    if not gone.any():
        return None
    return _parquet(rows.filter(pa.array(~gone)).combine_chunks()), int(gone.sum())


def is_in_result(
    text: bytes | str, blobs: BlobStore, sought: Sought, known: dict[str, bool]
) -> bool:
    """Whether a stored result of a step has the subject, in its text or in a table of it.

    Args:
        known: By the digest of a table whether it does; takes those that are opened here.
    """
    node = json_of(text)
    if node is None:
        return False
    if sought.is_in_json(node):
        return True
    for digest in _tables_in(node):
        if digest not in known:
            known[digest] = blobs.exists(digest) and is_in_rows(blobs.get(digest), sought)
        if known[digest]:
            return True
    return False


def _tables_in(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("$arrow", "$table", "$pandas", "$polars") and isinstance(value, str):
                yield value
            else:
                yield from _tables_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from _tables_in(item)


def is_in_rows(data: bytes, sought: Sought) -> bool:
    """Whether a Parquet or Arrow file has the subject; anything else has not."""
    rows = _rows(data)
    mask = None if rows is None else sought.mask(rows)
    return mask is not None and bool(mask.any())


def is_log(data: bytes) -> bool:
    """Whether a file is a segment of predictions."""
    if not data.startswith(_PARQUET):
        return False
    names = pq.read_schema(pa.BufferReader(data)).names
    return {"id", "request_id", "request"} <= set(names)


def cut_file(path: str, data: bytes, sought: Sought) -> tuple[bytes, int] | None:
    """A file of a run without the subject's rows, and how many went; None if it has none.

    Parquet and Arrow are known by their bytes, CSV and JSON by the name of the file.
    """
    rows = _rows(data)
    if rows is not None:
        mask = sought.mask(rows)
        if mask is None or not mask.any():
            return None
        left = rows.filter(pa.array(~mask)).combine_chunks()
        whole = _parquet(left) if data.startswith(_PARQUET) else _arrow(left)
        return whole, int(mask.sum())
    end = path.lower().rpartition(".")[2]
    if end in ("csv", "tsv"):
        return _cut_csv(data, "\t" if end == "tsv" else ",", sought)
    if end in ("jsonl", "ndjson"):
        lines = data.splitlines(keepends=True)
        left_lines = [line for line in lines if not sought.is_in_json(json_of(line))]
        gone = len(lines) - len(left_lines)
        return (b"".join(left_lines), gone) if gone else None
    if end == "json":
        node, count = sought.without(json_of(data))
        return (msgspec.json.encode(node), count) if count else None
    return None


def may_hold(data: bytes, sought: Sought) -> bool:
    """Whether bytes of no form that is known have a telling text of the subject in them."""
    return any(text in data for text in sought.texts(_TELLING))


def _cut_csv(data: bytes, mark: str, sought: Sought) -> tuple[bytes, int] | None:
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=mark))
    except (UnicodeDecodeError, csv.Error):
        return None
    if not lines or not set(sought.columns) <= set(lines[0]):
        return None
    head = lines[0]
    left = [r for r in lines[1:] if not sought.is_in_row(dict(zip(head, r, strict=False)))]
    if len(left) == len(lines) - 1:
        return None
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=mark, lineterminator="\n").writerows([head, *left])
    return sink.getvalue().encode(), len(lines) - 1 - len(left)


def _rows(data: bytes) -> pa.Table | None:
    try:
        if data.startswith(_PARQUET):
            return pq.read_table(pa.BufferReader(data))
        if data.startswith(_ARROW):
            with pa.ipc.open_file(pa.BufferReader(data)) as file:
                return file.read_all()
    except pa.ArrowException:
        return None
    return None


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=1 << 16)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _arrow(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # A dictionary would still name what went.
    plain = pa.schema([_undictionaried(field) for field in rows.schema], rows.schema.metadata)
    with pa.ipc.new_file(sink, plain) as writer:
        writer.write_table(rows.cast(plain))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _undictionaried(field: pa.Field) -> pa.Field:
    is_one = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.value_type) if is_one else field
