"""Files of rows as Arrow batches: Parquet, CSV, JSON lines, Excel; each in bounded memory.

A fault names the file and the row or line. Types are those wanted where they are known; what CSV
and JSON have otherwise is told from all rows of a pull, never from the first ones.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from everloop.core.schema import FieldType
from everloop.core.source import DataSource
from everloop.data.arrow import arrow_type
from everloop.data.texts import Guess, Unreadable, read_texts
from everloop.errors import Fault, InvalidInput, MissingExtra

__all__ = ["Part", "batches", "fitted", "guess"]

Types = Mapping[str, FieldType]

_BATCH_ROWS = 65_536
_CSV_BLOCK = 16 << 20
_LINES = 4 << 20
_SHOWN = 80


class Part(NamedTuple):
    """A file, or the bytes of it that are to be read.

    Attributes:
        file: Where the bytes are.
        name: As the source names it, for faults.
        start, end: Of JSON lines; `end` is -1 for all.
    """

    file: Path
    name: str
    start: int = 0
    end: int = -1


def batches(source: DataSource, part: Part, wanted: Types) -> Iterator[pa.RecordBatch]:
    """The rows of a file.

    Args:
        source: What it says of the format.
        part: The file.
        wanted: Types of columns that are known: a text that stands for one is read as it.

    Raises:
        InvalidInput: Says what is wrong, in which file and row.
    """
    read = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl, "excel": _excel}[source.format]
    return read(source, part, wanted)


def guess(source: DataSource, parts: Sequence[Part], wanted: Types) -> dict[str, FieldType]:
    """The types of all columns of CSV or JSON lines: those wanted, the others from every row.

    What has no value in any row is text.

    Raises:
        InvalidInput: If there is no row at all to tell a type from; or a column has several.
    """
    look = _guess_csv if source.format == "csv" else _guess_jsonl
    found, rows = look(source, parts, wanted)
    if found and not rows:
        raise InvalidInput(
            f"{parts[0].name} has no rows to tell the types of its columns from",
            [Fault(name, "is of an unknown type") for name in found],
            hint="state them: schema=ev.Schema([ev.Field(NAME, TYPE), ...])",
        )
    return dict(wanted) | dict(found)


def fitted(batch: pa.RecordBatch, wanted: Types, name: str, first: int) -> pa.RecordBatch:
    """`batch` with texts read as the wanted types.

    Args:
        name: Of the file or query.
        first: Number of its first row, from 0.
    """
    columns, faults = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        kind = wanted.get(field.name)
        if kind and kind not in ("string", "binary") and pa.types.is_string(field.type):
            found = read_texts(column, kind)
            if isinstance(found, Unreadable):
                faults.append(_unreadable(name, first + found.row, field.name, found.text, kind))
                found = column
            column = found
        columns.append(column)
    if faults:
        raise InvalidInput(f"{name} does not have the types that it had before", faults)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _unreadable(name: str, row: int, column: str, text: str, kind: str, line: int = 0) -> Fault:
    where = f"{name} line {line}" if line else f"{name} row {row + 1}"
    return Fault(f"{where}, {column}", f"{text[:_SHOWN]!r} is no {kind}")


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(source: DataSource, part: Part, wanted: Types) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(part.file) as file:
            doubled = _doubled(file.schema_arrow.names)
            if doubled:
                raise InvalidInput(f"{part.name} has columns of one name: {doubled}")
            if not file.metadata.num_rows:
                yield _plain(pa.RecordBatch.from_pylist([], schema=file.schema_arrow))
            first = 0
            for batch in file.iter_batches(_BATCH_ROWS):
                yield fitted(_plain(batch), wanted, part.name, first)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{part.name} is no Parquet file, or is damaged: {_short(error)}"
        ) from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with texts of one type: files may differ in how they keep them."""
    columns = []
    for column in batch.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        columns.append(column if kind == column.type else column.cast(kind))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _doubled(names: Sequence[str]) -> str:
    return ", ".join(sorted({repr(name) for name in names if names.count(name) > 1}))


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# --- CSV -----------------------------------------------------------------------------------------


def _guess_csv(source: DataSource, parts: Sequence[Part], wanted: Types) -> tuple[Types, int]:
    guesses: dict[str, Guess] = {}
    rows = 0
    for part in parts:
        for name in _header(source, part):
            if name not in wanted:
                guesses.setdefault(name, Guess())
        for batch in _texts(source, part):
            rows += batch.num_rows
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name in guesses:
                    guesses[name].look(column)
    return {name: guess.type or "string" for name, guess in guesses.items()}, rows


def _csv(source: DataSource, part: Part, wanted: Types) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in _texts(source, part):
        columns = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            kind = wanted.get(name, "string")
            found = read_texts(column, kind)
            if isinstance(found, Unreadable):
                row = first + found.row
                line = _line_of(source, part, row)
                told = _unreadable(part.name, row, name, found.text, kind, line)
                raise InvalidInput(
                    f"{part.name} does not have the types that it had before", [told]
                )
            columns.append(found)
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
        first += batch.num_rows


def _texts(source: DataSource, part: Part) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV file as they are written: every value a text or null."""
    names = _header(source, part)
    wide = {name: pa.string() for name in names}
    reading = pcsv.ReadOptions(block_size=_CSV_BLOCK, encoding=source.encoding)
    parsing = pcsv.ParseOptions(
        delimiter=source.delimiter, newlines_in_values=True, ignore_empty_lines=len(names) > 1
    )
    converting = pcsv.ConvertOptions(
        column_types=wide, strings_can_be_null=True, quoted_strings_can_be_null=False,
        null_values=list(source.nulls), include_columns=names,
    )  # fmt: skip
    try:
        with (
            _opened(part) as stream,
            pcsv.open_csv(stream, reading, parsing, converting) as reader,
        ):
            for batch in reader:
                _refuse_zero(batch, part)
                yield batch
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InvalidInput(f"{part.name}: {_csv_trouble(error, source)}") from error


def _refuse_zero(batch: pa.RecordBatch, part: Part) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        data = column.buffers()[2]
        if data is not None and b"\0" in memoryview(data).tobytes():
            raise InvalidInput(
                f"{part.name} holds a zero byte in {name}: it is no text, or of another encoding",
                hint='state it, as in encoding="utf-16"',
            )


def _csv_trouble(error: Exception, source: DataSource) -> str:
    text = _short(error)
    if "UTF8" in text or "UTF-8" in text or isinstance(error, UnicodeError):
        return f'it is not in {source.encoding}; state what it is in, as in encoding="latin-1"'
    if "straddling" in text:
        return f"a row is longer than {_CSV_BLOCK >> 20} MB, or a quote is never closed"
    # What follows is the row itself, which nobody asked to see in a log.
    return ": ".join(text.split(": ")[1:3]) if "Row #" in text else text


def _opened(part: Part) -> Any:
    packed = "gzip" if part.name.lower().endswith(".gz") else None
    return pa.input_stream(str(part.file), compression=packed)


def _lines(source: DataSource, part: Part) -> io.TextIOWrapper:
    import gzip

    raw = gzip.open(part.file) if part.name.lower().endswith(".gz") else open(part.file, "rb")  # noqa: SIM115 (the wrapper closes it)
    encoding = (
        "utf-8-sig"
        if source.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        else source.encoding
    )
    return io.TextIOWrapper(raw, encoding, newline="")


def _header(source: DataSource, part: Part) -> list[str]:
    try:
        with _lines(source, part) as lines:
            names = next(csv.reader(lines, delimiter=source.delimiter), None)
    except UnicodeError as error:
        raise InvalidInput(f"{part.name}: {_csv_trouble(error, source)}") from error
    except (OSError, EOFError, csv.Error) as error:
        raise InvalidInput(f"{part.name}: {_short(error)}") from error
    if not names:
        raise InvalidInput(f"{part.name} has no header: it is empty, or its first line is")
    faults = []
    if doubled := _doubled(names):
        faults.append(Fault("header", f"columns of one name: {doubled}"))
    if "" in names:
        faults.append(Fault("header", f"column {names.index('') + 1} has no name"))
    if any("\0" in name for name in names):
        faults.append(Fault("header", "holds a zero byte: it is no text, or of another encoding"))
    if faults:
        raise InvalidInput(f"{part.name} cannot be read", faults)
    return names


def _line_of(source: DataSource, part: Part, row: int) -> int:
    """The line that a row begins in: looked for only to tell of a fault."""
    with _lines(source, part) as lines:
        reader = csv.reader(lines, delimiter=source.delimiter)
        next(reader)
        at, line = -1, reader.line_num
        for values in reader:
            if values:
                at += 1
            if at == row:
                return line + 1
            line = reader.line_num
    return 0


# --- JSON lines ----------------------------------------------------------------------------------


def _jsonl(source: DataSource, part: Part, wanted: Types) -> Iterator[pa.RecordBatch]:
    kinds: dict[str, FieldType] = dict(wanted)
    line = 0
    for text in _pieces(part):
        rows = _rows(text, part, line)
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            columns = {
                n: _column([row.get(n) for row in rows], n, kinds, part, line) for n in names
            }
            batch = pa.RecordBatch.from_pydict(columns)
            yield fitted(batch, wanted, part.name, line)
        line += text.count(b"\n")


def _guess_jsonl(source: DataSource, parts: Sequence[Part], wanted: Types) -> tuple[Types, int]:
    seen: dict[str, set[type]] = {}
    count = 0
    for part in parts:
        line = 0
        for text in _pieces(part):
            for row in _rows(text, part, line):
                count += 1
                for name, value in row.items():
                    if name not in wanted:
                        seen.setdefault(name, set()).add(type(value))
            line += text.count(b"\n")
    kinds: dict[str, FieldType] = {}
    faults = []
    for name, found in seen.items():
        plain = {str if kind in (dict, list) else kind for kind in found - {type(None)}}
        kind = _kind_of(plain) if plain else "string"
        if kind is None:
            names = ", ".join(sorted(one.__name__ for one in plain))
            faults.append(Fault(name, f"is of several types: {names}"))
        else:
            kinds[name] = kind
    if faults:
        raise InvalidInput(f"the rows of {source.dataset} have columns of several types", faults)
    return kinds, count


def _pieces(part: Part) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time."""
    left = part.end - part.start if part.end >= 0 else 1 << 62
    rest = b""
    try:
        with _opened(part) as stream:
            if part.start:
                stream.seek(part.start)
            while left > 0 and (data := stream.read(min(_LINES, left))):
                left -= len(data)
                whole, mark, behind = (rest + data).rpartition(b"\n")
                if mark:
                    yield whole + mark
                rest = behind
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InvalidInput(f"{part.name} cannot be read: {_short(error)}") from error
    if rest.strip():
        yield rest


def _rows(text: bytes, part: Part, line: int) -> list[dict[str, Any]]:
    if line == 0 and not part.start:
        text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        rows = [_DECODER.decode(item) for item in text.split(b"\n") if item.strip()]
    except (msgspec.DecodeError, UnicodeError):
        rows = []
        for number, item in enumerate(text.split(b"\n"), line + 1):
            try:
                if item.strip():
                    rows.append(_DECODER.decode(item))
            except (msgspec.DecodeError, UnicodeError) as error:
                where = f"{part.name} line {number}" + (
                    " behind what was read" if part.start else ""
                )
                raise InvalidInput(f"{where}: no JSON object: {_short(error)}") from None
    return rows


_DECODER = msgspec.json.Decoder(dict[str, Any])


def _column(
    values: list[Any], name: str, kinds: dict[str, FieldType], part: Part, line: int
) -> pa.Array:
    """A column of JSON values; objects and lists are kept as their text."""
    kind = kinds.get(name)
    found = {type(value) for value in values if value is not None}
    if found & {dict, list}:
        values = [_as_text(value) for value in values]
        found = {str}
    if not found:
        return pa.nulls(len(values), arrow_type(kind) if kind else pa.null())
    if kind is None:
        kind = _kind_of(found)
    if kind is not None and (kind != "string" or found == {str}):
        try:
            return pa.array(values, pa.string() if found == {str} else arrow_type(kind))
        except OverflowError:
            names = f"a whole number that {kind} does not hold"
            where = f"{part.name} from line {line + 1}, {name}"
            raise InvalidInput(f"{part.name} cannot be read", [Fault(where, names)]) from None
        except (pa.ArrowException, TypeError):
            kind = None
    names = ", ".join(sorted(kind.__name__ for kind in found))
    wanted = kinds.get(name)
    told = f"wanted {wanted}, got {names}" if wanted else f"is of several types: {names}"
    raise InvalidInput(
        f"{part.name} cannot be read", [Fault(f"{part.name} from line {line + 1}, {name}", told)]
    )


def _as_text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _kind_of(found: set[type]) -> FieldType | None:
    if found == {bool}:
        return "bool"
    if found == {str}:
        return "string"
    if found == {int}:
        return "int64"
    return "float64" if found <= {int, float} else None


# --- Excel ---------------------------------------------------------------------------------------


def _excel(source: DataSource, part: Part, wanted: Types) -> Iterator[pa.RecordBatch]:
    try:
        import fastexcel
    except ModuleNotFoundError as error:
        raise MissingExtra.of("excel", f"reading {part.name}") from error
    try:
        book = fastexcel.read_excel(str(part.file))
        sheet = book.load_sheet(source.sheet or 0, dtypes=None)
        batch = sheet.to_arrow()
    except Exception as error:  # a hostile file may raise anything in the reader of Excel
        raise InvalidInput(f"{part.name} cannot be read as Excel: {_short(error)}") from error
    if doubled := _doubled(batch.schema.names):
        raise InvalidInput(f"{part.name} has columns of one name: {doubled}")
    yield fitted(_plain(batch), wanted, part.name, 0)
