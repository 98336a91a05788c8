"""Files that rows are handed out and taken back in: CSV, Parquet and JSON lines.

A CSV file is read as text, and ``fix_rows`` reads the text as the type of its column: what a
spreadsheet makes of a column does not matter. An empty cell is a null, a quoted one an empty text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from everloop.core.dataset import RowChangeSummary
from everloop.data.ledger import plain
from everloop.errors import InvalidInput, NotFound

__all__ = ["ledger_rows", "read_file", "write_file"]

_ENDS = (".csv", ".parquet", ".jsonl")
_PAGE = 10_000


def read_file(path: str | Path) -> pa.Table:
    """The rows of a CSV or Parquet file; those of CSV as text.

    Raises:
        NotFound: If there is no such file.
        InvalidInput: If it is none that can be read.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"there is no file {file}")
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        if file.suffix == ".csv":
            return _read_csv(file)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InvalidInput(f"{file} cannot be read: {first}") from error
    raise InvalidInput(f"{file} ends in neither .csv nor .parquet")


def _read_csv(file: Path) -> pa.Table:
    with pa.csv.open_csv(file) as reader:
        names = reader.schema.names
    return pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def write_file(path: str | Path, parts: Iterable[pa.Table]) -> int:
    """Write tables of the same columns, one after the other; how many rows they have.

    Nothing is left under the name if it fails half-way.

    Raises:
        InvalidInput: If the name ends in none of .csv, .parquet and .jsonl, or there is no table.
    """
    file = Path(path)
    if file.suffix not in _ENDS:
        raise InvalidInput(f"{file} must end in one of {', '.join(_ENDS)}")
    fresh = file.with_name(f"{file.name}.new")
    try:
        rows = _write(file.suffix, fresh, iter(parts))
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    return rows


def _write(kind: str, file: Path, parts: Iterator[pa.Table]) -> int:
    first = next(parts, None)
    if first is None:
        raise InvalidInput("there is nothing to write")
    count = 0
    with file.open("wb") as sink:
        if kind == ".jsonl":
            for part in _with(first, parts):
                sink.writelines(msgspec.json.encode(_nested(row)) + b"\n" for row in plain(part))
                count += part.num_rows
            return count
        if kind == ".csv":
            writer: Any = pa.csv.CSVWriter(sink, first.schema)
        else:
            writer = pq.ParquetWriter(sink, first.schema, compression="zstd")
        with writer:
            for part in _with(first, parts):
                writer.write_table(part)
                count += part.num_rows
    return count


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("row"), str) and "scope" in row:  # a row of the ledger
        row["row"] = msgspec.Raw(row["row"].encode())
    return row


def _with(first: pa.Table, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from parts


def ledger_rows(data: Any, changes: Iterable[RowChangeSummary]) -> Iterator[pa.Table]:
    """The rows of entries of the ledger, in pages: what was said, and the row as JSON.

    Args:
        data: The service, here or of a server.
        changes: The entries.
    """
    yield _page(None, [])
    for change in changes:
        for start in range(0, change.rows, _PAGE):
            rows = data.changed_page(change.dataset, change.detail, start=start, limit=_PAGE)
            yield _page(change, [msgspec.json.encode(row).decode() for row in plain(rows)])


def _page(change: RowChangeSummary | None, rows: list[str]) -> pa.Table:
    names = ("dataset", "scope", "rule", "action", "reason", "owner")
    told = {name: pa.array([getattr(change, name, "")] * len(rows), pa.string()) for name in names}
    at = pa.array([getattr(change, "at", None)] * len(rows), pa.timestamp("us", tz="UTC"))
    return pa.table({**told, "at": at, "row": pa.array(rows, pa.string())})
