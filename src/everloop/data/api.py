"""``ev.read`` and ``ev.commit``: datasets of the current workspace, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from everloop.core.context import current_workspace
from everloop.core.dataset import MAIN, DatasetVersion
from everloop.core.personal import TERMS
from everloop.core.profile import Profile
from everloop.core.quality import SHOWN_ROWS, QualityReport
from everloop.core.reads import asking_run, fixed
from everloop.core.reads import note as note_read
from everloop.core.schema import Check, Schema
from everloop.core.time import parse_instant, utc
from everloop.data.files import add, open_files
from everloop.data.frame import Table
from everloop.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl
    from duckdb import DuckDBPyRelation

__all__ = ["check", "commit", "export", "import_table", "paths", "profile", "read", "scan"]


def read(
    name: str,
    version: int | None = None,
    *,
    at: str | datetime = "",
    columns: list[str] | None = None,
    purpose: str = "",
) -> Any:
    """Read a dataset: a :class:`Table`, or :class:`Files` of a directory or file.

    What is returned remembers the version that it came from. No annotation says which of the two
    it is, for that lies in the data.

    Args:
        name: Of the dataset; a version, tag or branch may stand behind it: ``loans@3``,
            ``loans@2025q1``, ``loans@fix-weather``.
        version: Number; the latest if not given.
        at: A time: the version that was the latest then, of a branch if one is named. ISO 8601 text
            or a ``datetime``; a date is its first instant, and what has no zone is in UTC.
        columns: Only these, of a table.
        purpose: What for; kept in the access log of personal data. The run that asks, if not given.

    Raises:
        NotFound: If there is no such dataset, version, tag or column; with the nearest names.
        InvalidInput: If the version is stated twice, or `at` is no time.
    """
    found = _found(_ref(name, version, at))
    if found.kind != "table":
        if columns is not None:
            raise InvalidInput(f"{found.ref} is a {found.kind} and has no columns")
        return open_files(current_workspace(), found)
    rows = current_workspace().data.read(
        found.dataset, found.number, columns=columns, purpose=purpose or _asking()
    )
    told = rows.schema.metadata or {}
    if (view := told.get(b"everloop.view")) is not None:
        # What others may see, and so what comes of it, may be something else.
        note_read("masked", found.ref, view.decode())
        if b"everloop.masked" not in told:
            rows = rows.replace_schema_metadata(None)
    source = (found.dataset, found.number, found.digest)
    return Table(rows, sources=[source], key=found.schema.key)


def _asking() -> str:
    run = asking_run()
    return f"run:{run}" if run else ""


def _noted(found: DatasetVersion, door: str) -> None:
    """Keep in the access log that blocks are read here; a server does so itself."""
    workspace = current_workspace()
    if not workspace.is_remote and found.kind == "table":
        workspace.data.note_access(found.dataset, found.number, door=door, purpose=_asking())


def _found(ref: str) -> DatasetVersion:
    name, _, which = ref.partition("@")
    service = current_workspace().data
    found: DatasetVersion
    if which.isdecimal():
        return cast("DatasetVersion", service.version(name, int(which)))
    known = fixed("dataset", ref)
    found = service.version(name, int(known)) if known else service.find(ref)
    note_read("dataset", ref, str(found.number))
    return found


def paths(
    name: str, version: int | None = None, *, at: str | datetime = "", to: str | Path = ""
) -> list[str]:
    """Parquet files that hold exactly the rows of a version, in its order: for Spark, Ray, Trino.

    Where every row of the stored blocks counts, these are named as they are, and nothing is
    copied. Else files are written to the cache of this machine, once for each version.

    Args:
        name: As in ``read``.
        version: As in ``read``.
        at: As in ``read``.
        to: A new or empty folder that gets files of its own instead, which stay.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If it is no table.
        Conflict: If there is something in `to` already.
    """
    found = _found(_ref(name, version, at))
    if to:
        from everloop.data.export import export

        made = export(current_workspace(), found, "parquet", to)
        return [str(path) for path in sorted(made.glob("*.parquet"))]
    from everloop.data.paths import parquet_paths

    _noted(found, "scan")
    return [str(path) for path in parquet_paths(current_workspace(), found)]


def export(
    name: str,
    to: str | Path,
    format: Literal["parquet", "delta", "iceberg", "lance"] = "parquet",
    **when: Any,
) -> Path:
    """Write a version of a table to a folder that other products read; all of it or nothing.

    Args:
        name: As in ``read``.
        to: A new or empty folder.
        format: See ``everloop.data.export``.
        when: ``version`` or ``at``, as in ``read``.

    Raises:
        Conflict: If there is something in `to` already.
        InvalidInput: If a column cannot be held by the format: with all of them.
        MissingExtra: If the library of the format is not installed.
    """
    from everloop.data.export import export as write

    found = _found(_ref(name, when.get("version"), when.get("at", "")))
    return write(current_workspace(), found, format, to)


@overload
def scan(name: str, engine: Literal["polars"] = "polars", **when: Any) -> pl.LazyFrame: ...


@overload
def scan(name: str, engine: Literal["duckdb"], **when: Any) -> DuckDBPyRelation: ...


@overload
def scan(name: str, engine: Literal["arrow"], **when: Any) -> Any: ...


def scan(name: str, engine: Literal["polars", "duckdb", "arrow"] = "polars", **when: Any) -> Any:
    """A version that is read when it is asked for something, and no more of it than that needs.

    Args:
        name: As in ``read``; a table.
        engine: ``polars`` gives a LazyFrame, ``duckdb`` a relation of a connection of its own,
            ``arrow`` a ``pyarrow.dataset``; columns and rows are chosen where they are read.
        when: ``version`` or ``at``, as in ``read``.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If it is no table, or there is no such engine.
    """
    files = paths(name, **when)
    if engine == "polars":
        import polars as pl

        return pl.scan_parquet(files)
    if engine == "duckdb":
        import duckdb

        return duckdb.connect().read_parquet(files)
    if engine == "arrow":
        from pyarrow import dataset

        return dataset.dataset(files, format="parquet")
    raise InvalidInput(f"no engine {engine!r}", hint="there are polars, duckdb and arrow")


def _ref(name: str, version: int | None, at: str | datetime) -> str:
    which = name.partition("@")[2]
    stated = [part for part in (which, version, at) if part not in (None, "")]
    # A branch has versions by time as the main line has: "flights@fix-weather" with `at`.
    is_line = version is None and which and not which.isdecimal() and ":" not in which
    if len(stated) > 1 and not is_line:
        raise InvalidInput(
            f"the version of {name} is stated twice", hint="give one of name@..., version and at"
        )
    if at:
        instant = utc(at) if isinstance(at, datetime) else parse_instant(at)
        return f"{name}@{instant.isoformat()}"
    return name if version is None else f"{name}@{version}"


def check(
    rows: Any,
    contract: Schema | list[Check] | None = None,
    *,
    version: int | None = None,
    shown: int = SHOWN_ROWS,
) -> QualityReport:
    """Hold a dataset, or a frame, against what must be true of it; nothing is changed.

    Args:
        rows: The name of a dataset (``flights``, ``flights@3``, ``flights@TAG``), or anything that
            :meth:`Table.of` takes.
        contract: A schema, or checks beside the dataset's own rules; None for those alone.
        version: Number, of a dataset; the latest if not given.
        shown: Most failing rows of each rule to hand back; all are counted.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If a check cannot be evaluated, or a frame comes without a schema.
        UserCodeError: If a function that a check names raises.
    """
    if isinstance(rows, str):
        service = current_workspace().data
        found = service.find(_ref(rows, version, ""))
        report: QualityReport = service.check(found.dataset, contract, found.number, rows=shown)
        return report
    if not isinstance(contract, Schema):
        raise InvalidInput("a frame is held against an ev.Schema: give one")
    from everloop.data.judge import judge_frame  # Polars, which reading a dataset does not need

    return judge_frame(rows, contract, show=shown)


def profile(rows: Any, version: int | None = None) -> Profile:
    """What a dataset or a frame holds, column by column; a notebook shows it as a table.

    Args:
        rows: The name of a dataset, as for :func:`check`, or anything that :meth:`Table.of` takes.
        version: Number, of a dataset; the latest if not given.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If a column of a frame has no field type.
    """
    if isinstance(rows, str):
        service = current_workspace().data
        found = service.find(_ref(rows, version, ""))
        made: Profile = service.profile(found.dataset, found.number)
        return made
    from everloop.data.arrow import conform, from_arrow_schema
    from everloop.data.profile import profile_of

    table = Table.of(rows).to_arrow()
    schema = from_arrow_schema(table.schema)
    return profile_of(Table(conform(table, schema)).to_polars(), schema)


def commit(
    name: str,
    rows: Any,
    *,
    schema: Schema | None = None,
    mode: Literal["append", "replace"] = "replace",
    owner: str = "",
    note: str = "",
    expect: int | None = None,
    sources: Sequence[str] = (),
    on_duplicate: Literal["error", "last"] = "error",
    **terms: str,
) -> DatasetVersion:
    """Store `rows` as a version of a dataset; content that equals the latest version makes none.

    With a key, a replacement stores only the rows that differ, in whichever order they come; see
    ``DataService.commit``. What ``drop_where`` and ``set_where`` of a table dropped or changed goes
    to the row ledger, as of this version, unless a step of a run recorded it already.

    Args:
        name: Of the dataset, or ``flights@fix-weather``: that branch of it.
        rows: Anything that :meth:`Table.of` takes; or the ``Path`` of a directory or a file, which
            is stored as it is, with the names of its files.
        schema: What must hold; the latest version's if not given.
        mode: ``replace`` stores the rows as the whole table, ``append`` adds them to it.
        owner: Who answers for the dataset.
        note: For people.
        expect: Number that the latest version must have, such as that of the rows which were read
            and changed; None replaces whatever was committed since.
        sources: Where the rows come from outside, as URIs such as ``s3://lake/flights``.
        on_duplicate: Of rows with the same key, refuse all (``error``) or keep the ``last`` one.
        terms: What holds of the dataset: ``purpose``, ``licence``, ``description``, ``source``,
            ``sensitivity``, ``retention``, as ``DataService.describe`` takes them.

    Raises:
        TypeError: If something else is stated of it.
        InvalidInput: With every fault, by column and row or by path; no version is made then.
        Conflict: If the latest version is another than `expect`, or came just now; or if the
            dataset is of another kind.
    """
    if unknown := [term for term in terms if term not in TERMS]:
        raise TypeError(f"commit() has no argument {unknown[0]!r}; terms are {', '.join(TERMS)}")
    service = current_workspace().data
    known = fixed("commit", name)
    if known is not None:  # the repetition of a run changes nothing
        done: DatasetVersion = service.version(name, int(known))
        return done
    made: DatasetVersion
    dataset, _, branch = name.partition("@")
    if isinstance(rows, Path):
        if schema is not None or mode != "replace" or expect is not None:
            raise InvalidInput(
                "files have no schema, a version is all of them, and none is in the way of another"
            )
        made = add(
            current_workspace(),
            dataset,
            rows,
            owner=owner,
            note=note,
            sources=sources,
            branch=branch or MAIN,
        )
    else:
        table = Table.of(rows)
        made = service.commit(
            dataset,
            table.to_arrow(),
            schema=schema,
            mode=mode,
            owner=owner,
            note=note,
            expect=expect,
            sources=list(sources),
            branch=branch or MAIN,
            on_duplicate=on_duplicate,
        )
        _record(made, table)
    note_read("commit", name, str(made.number))
    if terms:
        service.describe(dataset, **terms)
    return made


def _record(made: DatasetVersion, table: Table) -> None:
    """Put what rules dropped or changed on the way into the ledger, as of this version."""
    service = current_workspace().data
    for change in table.changes:
        service.record_changes(
            f"dataset:{made.ref}",
            change.dataset or made.dataset,
            change.rule,
            change.action,
            change.reason,
            change.owner,
            change.rows,
        )


def import_table(path: str | Path, name: str, **options: Any) -> DatasetVersion:
    """Commit a Parquet, Delta, Iceberg or Lance table as a version of the dataset `name`.

    Args:
        path: Its folder.
        name: Of the dataset; ``flights@fix-weather`` is a branch of it.
        options: ``format``, ``schema``, ``at``, ``note``: see ``everloop.data.foreign``.

    Raises:
        NotFound: If there is no such table, or files of it are missing.
        InvalidInput: If a column has no field type, or files lie outside of the folder.
    """
    from everloop.data.foreign import import_table as take_in

    dataset, _, branch = name.partition("@")
    return take_in(current_workspace(), path, dataset, branch=branch or MAIN, **options)
