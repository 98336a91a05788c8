"""``ev.data_source`` and ``ev.pull``: where a dataset comes from, and getting it from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everloop.core.context import current_workspace
from everloop.core.reads import asking_run, fixed
from everloop.core.reads import note as note_read
from everloop.core.schema import Schema
from everloop.core.source import DataSource, Pull, SourceFormat, SourceMode
from everloop.data.pulling import pull_into
from everloop.data.source_rules import format_of, source_faults
from everloop.errors import InvalidInput, NotFound

__all__ = ["data_source", "pull"]


def data_source(
    dataset: str,
    location: str | Sequence[str],
    *,
    query: str = "",
    watermark: str = "",
    lookback: str | int = "",
    key: str | Sequence[str] = (),
    mode: SourceMode | None = None,
    credentials: str = "",
    schema: Schema | None = None,
    format: SourceFormat | None = None,
    encoding: str = "utf-8",
    delimiter: str = "",
    nulls: Sequence[str] = ("",),
    sheet: str = "",
    owner: str = "",
    most_bytes: int = 10 << 30,
    timeout_s: float = 1800.0,
) -> DataSource:
    """Say where a dataset comes from; nothing is read before :func:`pull`.

    Args:
        dataset: The dataset that it fills.
        location: A path or pattern of paths (``data/*.parquet``, ``**`` for folders in folders),
            ``http(s)://``, ``s3://bucket/key`` or a pattern of keys; or several of these. Of a
            database ``postgresql://user@host:port/name`` or ``sqlite:///path``.
        query: Of a database, one SELECT.
        watermark: Column of the query that grows with every change, such as ``updated_at`` or a
            serial number. A pull reads from the last one's on, this included.
        lookback: How far before that it reads again, for rows that come late: ``"2h"``, or a
            number. Ten minutes if the watermark is a time, else 0.
        key: Columns that name a row: one that comes again takes the place of the earlier one.
        mode: ``append``, ``upsert`` or ``replace``. If not given: ``replace`` for a query without
            a watermark, else ``upsert`` with a key and ``append`` without.
        credentials: Where the password or token is: ``env:NAME``, ``file:PATH`` or
            ``keyring:SERVICE/USER``. Read for each pull where it runs, and never kept.
        schema: What must hold of the rows; with its key, if it has one.
        format: ``parquet``, ``csv``, ``jsonl`` or ``excel``; by the name of the file if not given.
        encoding, delimiter, nulls: Of CSV. A value that is quoted is never null.
        sheet: Of Excel.
        owner: Who answers for the dataset.
        most_bytes: Largest file that is fetched over a network.
        timeout_s: For a query as a whole, and for each step of a download.

    Raises:
        InvalidInput: With everything that is wrong, such as a password in the location.
    """
    locations = (location,) if isinstance(location, str) else tuple(location)
    keys = (key,) if isinstance(key, str) else tuple(key)
    if schema is not None and schema.key and not keys:
        keys = schema.key
    elif schema is not None and keys and not schema.key:
        schema = Schema(
            schema.fields, schema.checks, key=keys, time=schema.time, extra=schema.extra
        )
    kinds: set[str] = {format_of(where) for where in locations}
    found: str = format or (kinds.pop() if len(kinds) == 1 else "")
    if mode is None:
        mode = "replace" if found == "sql" and not watermark else "upsert" if keys else "append"
    is_tabbed = locations and locations[0].lower().removesuffix(".gz").endswith(".tsv")
    made = DataSource(
        dataset=dataset,
        locations=locations,
        format=found,  # type: ignore[arg-type] # told of as a fault if it is none
        mode=mode,
        key=keys,
        query=query,
        watermark=watermark,
        lookback=str(lookback),
        credentials=credentials,
        schema=schema,
        encoding=encoding,
        delimiter=delimiter or ("\t" if is_tabbed else ","),
        nulls=tuple(nulls),
        sheet=sheet,
        owner=owner,
        most_bytes=most_bytes,
        timeout_s=timeout_s,
    )
    faults = source_faults(made)
    if faults:
        raise InvalidInput(f"the source of {dataset!r} is wrong", faults)
    return made


def pull(source: DataSource | str, *, full: bool = False, note: str = "") -> Pull:
    """Read what is new in a source, and make it a version of its dataset.

    It is read by this process, with its files, network and credentials, also where the workspace is
    on a server. Nothing new makes no version. In a run the pull carries the run's id; the
    repetition of a run pulls nothing and gets the version that the first run got.

    Args:
        source: As :func:`data_source` makes it, which is declared here if it is new or changed; or
            the name of a dataset whose source is declared.
        full: Read everything, whatever is known. With a key rows are compared: what the source no
            longer has goes where the mode is ``replace``; otherwise what is there stays.
        note: For people.

    Raises:
        NotFound: If there is no such source, or no file at its location.
        InvalidInput: With every fault of the rows, by file and row; nothing is kept then.
        Conflict: If another pull of it was first.
        BackendError: If the source cannot be read, or not to its end; nothing is kept then.
    """
    workspace = current_workspace()
    name = source if isinstance(source, str) else source.dataset
    known = fixed("pull", name)
    if known is not None:
        done: list[Pull] = workspace.data.pulls(name, number=int(known), limit=1)
        version = workspace.data.version(name, int(known))
        return done[0] if done else _found(version)
    if isinstance(source, DataSource):
        source = _declared(workspace, source)
    made = pull_into(workspace, name, full=full, note=note, run_id=asking_run())
    note_read("pull", name, str(made.number))
    return made


def _declared(workspace: Any, source: DataSource) -> DataSource:
    """Declare a source unless the workspace has the very same: that takes no rights."""
    try:
        there: DataSource = workspace.data.source(source.dataset)
    except NotFound:
        pass
    else:
        import msgspec

        if msgspec.structs.replace(there, guarded=False) == source:
            return there
    declared: DataSource = workspace.data.declare_source(source)
    return declared


def _found(version: Any) -> Pull:
    return Pull(
        dataset=version.dataset,
        number=version.number,
        is_new=False,
        source=(),
        rows=version.rows,
        at=version.created_at,
    )
