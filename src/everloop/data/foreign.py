"""Tables of other products, read to become versions: Parquet, Delta, Iceberg, Lance.

A folder from elsewhere is not trusted: a table that names a file outside of its folder is refused
before anything of it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Schema
from everloop.data.arrow import field_type
from everloop.data.export import FORMATS, MARK, Format, Home, Origin
from everloop.errors import EverloopError, Fault, InvalidInput, MissingExtra, NotFound

__all__ = ["import_table", "read_table"]


def import_table(
    home: Home,
    path: str | os.PathLike[str],
    name: str,
    *,
    format: Format | str = "",
    schema: Schema | None = None,
    at: int | None = None,
    note: str = "",
    branch: str = "main",
) -> DatasetVersion:
    """Commit the table in a folder as a version of the dataset `name`, in place of all rows.

    Args:
        home: The workspace.
        path: The folder; a single file for Parquet.
        name: Of the dataset.
        format: Told by what is in the folder if empty.
        schema: What must hold. If not given, the one that Everloop exported it with, else the
            latest version's, else the table's own.
        at: Version of the Delta or Lance table; the latest if not given.
        note: For people.
        branch: The line to commit to.

    Raises:
        NotFound: If there is no such table, or files of it are missing: with their names.
        InvalidInput: If a column is of a type that no field has (with all of them), or the folder
            names files outside of itself.
        MissingExtra: If a library is not installed.
    """
    folder = Path(os.path.abspath(path))
    rows, origin = read_table(folder, format, at=at)
    stated = schema or (origin.schema if origin is not None else None)
    source = folder.as_uri()
    return home.data.commit(
        name,
        rows,
        schema=stated,
        mode="replace",
        note=note or f"imported from {folder.name}",
        sources=[source] if len(source) < 400 and source.isascii() else [],
        branch=branch,
    )


def read_table(
    folder: Path, format: Format | str = "", *, at: int | None = None
) -> tuple[pa.Table, Origin | None]:
    """The rows of the table in a folder, and what Everloop exported it from, if it did.

    Raises:
        NotFound, InvalidInput, MissingExtra: As `import_table`.
    """
    if not folder.exists():
        raise NotFound(f"there is nothing at {folder}")
    format = format or _told(folder)
    if format not in FORMATS:
        raise InvalidInput(f"no format {format!r}", hint=f"there are {', '.join(FORMATS)}")
    readers: dict[str, Callable[[Path, int | None], pa.Table]] = {
        "parquet": _parquet,
        "delta": _delta,
        "iceberg": _iceberg,
        "lance": _lance,
    }
    if at is not None and format not in ("delta", "lance"):
        raise InvalidInput(f"a version cannot be chosen of {format}")
    try:
        rows = readers[format](folder, at)
    except (EverloopError, MissingExtra):
        raise
    except Exception as error:  # the libraries of the formats have no base class in common
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f"{folder} cannot be read as {format}: {first[:500]}") from error
    return _fields(rows, folder), _origin(folder)


def _told(folder: Path) -> str:
    if (folder / "_delta_log").is_dir():
        return "delta"
    if (folder / "metadata").is_dir():
        return "iceberg"
    if (folder / "_versions").is_dir():
        return "lance"
    return "parquet"


def _origin(folder: Path) -> Origin | None:
    try:
        return msgspec.json.decode((folder / MARK).read_bytes(), type=Origin)
    except OSError:
        return None
    except (msgspec.DecodeError, InvalidInput) as error:
        raise InvalidInput(
            f"{folder / MARK} is none of ours: {error}", hint="remove it to import without it"
        ) from error


def _fields(rows: pa.Table, folder: Path) -> pa.Table:
    """The rows, if there is a field type for every column.

    Raises:
        InvalidInput: With all columns for which there is none.
    """
    faults = [
        Fault(column.name, f"{column.type} has no field type")
        for column in rows.schema
        if field_type(column.type) is None
    ]
    if faults:
        raise InvalidInput(
            f"{folder} has columns that no dataset can hold",
            faults,
            hint="cast decimals to float64 or text, and spread what is nested over columns",
        )
    return rows


def _parquet(folder: Path, _: int | None) -> pa.Table:
    from pyarrow import dataset

    if folder.is_file():
        return dataset.dataset(str(folder), format="parquet").to_table()
    files = sorted(p for p in folder.rglob("*.parquet") if not _is_hidden(p, folder))
    if not files:
        raise NotFound(f"there are no Parquet files in {folder}", hint="they end in .parquet")
    _refuse_outside((str(path) for path in files), folder)
    options: Any = {"partition_base_dir": str(folder), "partitioning": "hive"}
    paths = [str(path) for path in files]
    found = dataset.dataset(paths, format="parquet", **options)
    # Of itself a dataset has the columns of its first file, and leaves out what others have more.
    every = [found.schema, *(pq.read_schema(path) for path in files)]
    whole = pa.unify_schemas(every, promote_options="permissive")
    whole = whole.remove_metadata()
    return dataset.dataset(paths, schema=whole, format="parquet", **options).to_table()


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)


def _delta(folder: Path, at: int | None) -> pa.Table:
    try:
        import deltalake
    except ImportError as error:
        raise MissingExtra.of("delta", "a Delta table") from error
    table = deltalake.DeltaTable(folder, version=at)
    _refuse_outside(table.file_uris(), folder)
    return table.to_pyarrow_table()


def _lance(folder: Path, at: int | None) -> pa.Table:
    try:
        import lance
    except ImportError as error:
        raise MissingExtra.of("lance", "a Lance dataset") from error
    found = lance.dataset(folder, version=at)
    files = []
    for fragment in found.get_fragments():
        for file in fragment.data_files():
            # A file of another base lies in a folder that the manifest names.
            base = getattr(file, "base_id", None)
            files.append(str(folder / "data" / file.path) if base is None else f"base:{base}")
    _refuse_outside(files, folder)
    return found.to_table()


def _iceberg(folder: Path, _: int | None) -> pa.Table:
    from everloop.data.iceberg import read

    return read(folder)


def _refuse_outside(files: Iterable[str], folder: Path) -> None:
    """Raise if a file lies outside of the folder, or is not there: with all of them."""
    root = os.path.realpath(folder)
    outside, lost = [], []
    for name in files:
        parts = urlsplit(name)
        is_file = parts.scheme in ("", "file") and not parts.netloc
        path = unquote(parts.path) if parts.scheme == "file" else name
        real = os.path.realpath(path)
        if not is_file or os.path.commonpath([real, root]) != root:
            outside.append(name)
        elif not os.path.isfile(real):
            lost.append(os.path.relpath(real, root))
    if outside:
        raise InvalidInput(
            f"the table in {folder} names files that lie outside of it",
            [(name[:200], "is outside") for name in outside[:100]],
        )
    if lost:
        shown = ", ".join(lost[:5])
        raise NotFound(
            f"{len(lost)} files of the table in {folder} are missing: {shown}",
            hint="get them, or give an earlier version of the table",
            details={"missing": lost[:1000]},
        )
