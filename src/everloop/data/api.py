"""``ev.read`` and ``ev.commit``: datasets of the current workspace, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from everloop.core.context import current_workspace
from everloop.core.dataset import DatasetVersion
from everloop.core.profile import Profile
from everloop.core.quality import SHOWN_ROWS, QualityReport
from everloop.core.reads import fixed
from everloop.core.reads import note as note_read
from everloop.core.schema import Check, Schema
from everloop.core.time import parse_instant, utc
from everloop.data.files import add, open_files
from everloop.data.frame import Table
from everloop.errors import InvalidInput

__all__ = ["check", "commit", "profile", "read"]


def read(
    name: str,
    version: int | None = None,
    *,
    at: str | datetime = "",
    columns: list[str] | None = None,
) -> Any:
    """Read a dataset: a :class:`Table`, or :class:`Files` of a directory or file.

    What is returned remembers the version that it came from. No annotation says which of the two
    it is, for that lies in the data.

    Args:
        name: Of the dataset; a version or tag may stand behind it: ``loans@3``, ``loans@2025q1``.
        version: Number; the latest if not given.
        at: A time: the version that was the latest then. ISO 8601 text or a ``datetime``; a date is
            its first instant, and what has no zone is in UTC.
        columns: Only these, of a table.

    Raises:
        NotFound: If there is no such dataset, version, tag or column; with the nearest names.
        InvalidInput: If the version is stated twice, or `at` is no time.
    """
    ref = _ref(name, version, at)
    name, _, which = ref.partition("@")
    service = current_workspace().data
    if which.isdecimal():
        found: DatasetVersion = service.version(name, int(which))
    else:
        known = fixed("dataset", ref)
        found = service.version(name, int(known)) if known else service.find(ref)
        note_read("dataset", ref, str(found.number))
    if found.kind != "table":
        if columns is not None:
            raise InvalidInput(f"{found.ref} is a {found.kind} and has no columns")
        return open_files(current_workspace(), found)
    rows = service.read(name, found.number, columns=columns)
    return Table(rows, sources=[(name, found.number, found.digest)], key=found.schema.key)


def _ref(name: str, version: int | None, at: str | datetime) -> str:
    stated = [part for part in (name.partition("@")[2], version, at) if part not in (None, "")]
    if len(stated) > 1:
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
) -> DatasetVersion:
    """Store `rows` as a version of a dataset; content that equals the latest version makes none.

    With a key, a replacement stores only the rows that differ, in whichever order they come; see
    ``DataService.commit``.

    Args:
        name: Of the dataset.
        rows: Anything that :meth:`Table.of` takes; or the ``Path`` of a directory or a file, which
            is stored as it is, with the names of its files.
        schema: What must hold; the latest version's if not given.
        mode: ``replace`` stores the rows as the whole table, ``append`` adds them to it.
        owner: Who answers for the dataset.
        note: For people.
        expect: Number that the latest version must have, such as that of the rows which were read
            and changed; None replaces whatever was committed since.
        sources: Where the rows come from outside, as URIs such as ``s3://lake/flights``.

    Raises:
        InvalidInput: With every fault, by column and row or by path; no version is made then.
        Conflict: If the latest version is another than `expect`, or came just now; or if the
            dataset is of another kind.
    """
    service = current_workspace().data
    known = fixed("commit", name)
    if known is not None:  # the repetition of a run changes nothing
        done: DatasetVersion = service.version(name, int(known))
        return done
    made: DatasetVersion
    if isinstance(rows, Path):
        if schema is not None or mode != "replace" or expect is not None:
            raise InvalidInput(
                "files have no schema, a version is all of them, and none is in the way of another"
            )
        made = add(current_workspace(), name, rows, owner=owner, note=note, sources=sources)
    else:
        made = service.commit(
            name,
            Table.of(rows).to_arrow(),
            schema=schema,
            mode=mode,
            owner=owner,
            note=note,
            expect=expect,
            sources=list(sources),
        )
    note_read("commit", name, str(made.number))
    return made
