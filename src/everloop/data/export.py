"""A version written out as a folder that other products read: Parquet, Delta, Iceberg, Lance.

The folder is made beside its place under another name and renamed when all of it is on the disk, so
that a reader sees all or nothing. ``_everloop.json`` in it says what it is; engines pass over names
that begin with an underscore.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Schema
from everloop.data.blocks import BLOCK_ROWS
from everloop.data.privacy import MARK as MASKED_COLUMNS
from everloop.data.rows import read_rows
from everloop.data.service import DataService
from everloop.data.tree import shown
from everloop.errors import (
    BackendError,
    Conflict,
    Fault,
    InvalidInput,
    MissingExtra,
    NotAllowed,
    NotFound,
)
from everloop.ports.blobs import BlobStore

__all__ = ["FORMATS", "MARK", "Format", "Home", "Origin", "export"]

Format = Literal["parquet", "delta", "iceberg", "lance"]
FORMATS: tuple[Format, ...] = ("parquet", "delta", "iceberg", "lance")
#: What another machine began may take so long.
_LONGEST_S = 86_400
#: The file that says what an exported folder is.
MARK = "_everloop.json"
#: What a format has no unsigned integers for, and what holds all of their values.
_SIGNED = {pa.uint8(): pa.int32(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What an exported folder is of: a version by name, number and digest, and its schema.

    Attributes:
        masked: Columns that whoever exported it may not see.
        purpose: What the dataset may be used for, and under which licence, as it was stated.
    """

    dataset: str
    number: int
    digest: str
    schema: Schema
    masked: tuple[str, ...] = ()
    purpose: str = ""
    licence: str = ""


class Home(Protocol):
    """What is needed of a workspace."""

    @property
    def data(self) -> DataService:
        """Datasets."""
        ...

    @property
    def blobs(self) -> BlobStore:
        """The object store."""
        ...


def export(home: Home, version: DatasetVersion, format: Format, to: str | os.PathLike[str]) -> Path:
    """Write a version to the folder `to`, which must be new or empty; all of it or nothing.

    Args:
        home: The workspace; the log notes where data went (``dataset.Exported``).
        version: Of a table.
        format: ``delta``, ``iceberg`` and ``lance`` need the extra of that name. An Iceberg table
            names its files by their places, so its folder cannot be moved; its SQL catalog
            ``everloop`` is ``catalog.sqlite`` in it, the table ``everloop.<name>``.
        to: Its parent must be there.

    Returns:
        The folder.

    Raises:
        InvalidInput: If it is no table, or a column cannot be held: with all of them.
        Conflict: If there is something in `to`.
        NotFound: If the parent is not there.
        MissingExtra: If a library is not installed.
        BackendError: If the disk fails; then nothing is left.
    """
    if format not in FORMATS:
        raise InvalidInput(f"no format {format!r}", hint=f"there are {', '.join(FORMATS)}")
    if version.kind != "table":
        raise InvalidInput(
            f"{version.ref} is a {version.kind}",
            hint=f"everloop data checkout {version.ref} {os.fspath(to)}",
        )
    target = Path(os.path.abspath(to))
    if not target.parent.is_dir():
        raise NotFound(f"there is no folder {target.parent}")
    _refuse_full(target)
    begun = target.parent / f".{target.name[:200]}.begun-{secrets.token_hex(6)}"
    try:
        rows, masked = _rows(home, version)
        rows = _holdable(rows, version, format)
        _forget_begun(target)
        begun.mkdir()
        (begun / ".owner").write_text(f"{socket.gethostname()}\n{os.getpid()}")
        _writers()[format](rows, begun, target, version)
        terms = home.data.terms(version.dataset)
        origin = Origin(
            dataset=version.dataset,
            number=version.number,
            digest=version.digest,
            schema=version.schema,
            masked=masked,
            purpose=terms.purpose,
            licence=terms.licence,
        )
        (begun / MARK).write_bytes(msgspec.json.format(msgspec.json.encode(origin)))
        _settle(begun)
        (begun / ".owner").unlink()
        # First told: what is erased later must know of every copy, and one too many does no harm.
        home.data.note_export(
            version.dataset, version.number, format=format, to=shown(os.fsencode(target))
        )
        os.rename(begun, target)
        _sync(target.parent)
    except NotAllowed:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            _refuse_full(target)
        raise BackendError(f"{version.ref} could not be written to {target}: {error}") from error
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return target


def _rows(home: Home, version: DatasetVersion) -> tuple[pa.Table, tuple[str, ...]]:
    """All rows as whoever asks may see them, and the columns that came masked."""
    try:
        rows = read_rows(home.blobs, version, version.schema.names)
    except NotAllowed:  # the blocks hold personal data: rows are masked where the catalog is
        rows = home.data.read(version.dataset, version.number, purpose="export")
        told = (rows.schema.metadata or {}).get(MASKED_COLUMNS, b"").decode()
        return rows.replace_schema_metadata(None), tuple(filter(None, told.split(",")))
    home.data.note_access(version.dataset, version.number, door="export")
    return rows, ()


def _refuse_full(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise Conflict(f"{target} is there and is no folder", hint="export to a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise Conflict(f"there is something in {target}", hint="export to a new folder")


def _forget_begun(target: Path) -> None:
    """Remove what exports to this place left that were killed; one may be under way elsewhere."""
    for found in target.parent.glob(f".{target.name[:200]}.begun-*"):
        if not _is_written(found):
            shutil.rmtree(found, ignore_errors=True)


def _is_written(begun: Path) -> bool:
    """Whether somebody may still be writing it: on this machine that is known, else for a day."""
    try:
        host, pid = (begun / ".owner").read_text().split("\n")
        if host == socket.gethostname():
            os.kill(int(pid), 0)
            return True
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        pass  # it was only begun, or is another user's
    try:
        return time.time() - begun.stat().st_mtime < _LONGEST_S
    except OSError:
        return True


def _settle(folder: Path) -> None:
    """Have everything below a folder on the disk."""
    for here, _, names in os.walk(folder):
        for name in names:
            _sync(Path(here) / name)
        _sync(Path(here))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _holdable(rows: pa.Table, version: DatasetVersion, format: Format) -> pa.Table:
    """The rows in types that a format has.

    Raises:
        InvalidInput: With every column that it has none for.
    """
    faults = []
    if format in ("delta", "iceberg"):
        for position, field in enumerate(rows.schema):
            column = rows.column(position)
            if pa.types.is_uint64(field.type):
                most = pc.max(column).as_py()
                if most is not None and most >= 2**63:
                    message = f"{format} has no unsigned integers, and {most} is above 2^63 - 1"
                    faults.append(Fault(field.name, message))
                    continue
            wanted = _SIGNED.get(field.type, pa.int64())
            if pa.types.is_unsigned_integer(field.type):
                rows = rows.set_column(position, field.name, column.cast(wanted))
        lowered: dict[str, str] = {}
        for name in rows.column_names:
            other = lowered.setdefault(name.lower(), name)
            if format == "delta" and other != name:
                faults.append(Fault(name, f"Delta takes it for {other}: it ignores case"))
    for name in rows.column_names:
        if format == "lance" and "." in name:
            faults.append(Fault(name, "Lance takes a point for a field within a field"))
    if faults:
        raise InvalidInput(f"{version.ref} cannot be held by {format}", faults)
    return rows


# --- formats --------------------------------------------------------------------------------------

_Writer = Callable[[pa.Table, Path, Path, DatasetVersion], None]


def _writers() -> dict[str, _Writer]:
    return {"parquet": _parquet, "delta": _delta, "iceberg": _iceberg, "lance": _lance}


def _parquet(rows: pa.Table, begun: Path, target: Path, version: DatasetVersion) -> None:
    for number, start in enumerate(range(0, max(rows.num_rows, 1), BLOCK_ROWS)):
        part = rows.slice(start, BLOCK_ROWS)
        # Opened here: Arrow takes no path that is not UTF-8.
        with open(begun / f"part-{number:05}.parquet", "wb") as file:
            pq.write_table(part, file, compression="zstd")


def _delta(rows: pa.Table, begun: Path, target: Path, version: DatasetVersion) -> None:
    try:
        import deltalake
    except ImportError as error:
        raise MissingExtra.of("delta", "an export to Delta") from error
    told = f"{version.ref} of Everloop"
    _done("Delta", version, lambda: deltalake.write_deltalake(begun, rows, description=told))


def _lance(rows: pa.Table, begun: Path, target: Path, version: DatasetVersion) -> None:
    try:
        import lance
    except ImportError as error:
        raise MissingExtra.of("lance", "an export to Lance") from error
    _done("Lance", version, lambda: lance.write_dataset(rows, begun, mode="overwrite"))


def _iceberg(rows: pa.Table, begun: Path, target: Path, version: DatasetVersion) -> None:
    from everloop.data.iceberg import write

    _done("Iceberg", version, lambda: write(rows, begun, target, version.dataset))


def _done(product: str, version: DatasetVersion, write: Callable[[], Any]) -> None:
    try:
        write()
    except (MissingExtra, OSError):
        raise
    except Exception as error:  # the libraries of the formats have no base class in common
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f"{version.ref} cannot be held by {product}: {first}") from error
