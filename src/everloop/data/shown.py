"""The part of DataService that whatever shows values goes through: as whoever asks may see them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.access.policy import Authorizer
from everloop.catalog import datasets as statements
from everloop.core.context import current_principal
from everloop.core.dataset import (
    DatasetDiff,
    DatasetVersion,
    MergeConflict,
    RowChangeSummary,
    Value,
)
from everloop.core.personal import GOVERN, READ_PERSONAL
from everloop.core.quality import MASKED
from everloop.data.privacy import MARK, Privacy, View
from everloop.data.referring import Referring
from everloop.data.versions import version_of
from everloop.errors import Conflict, InvalidInput, NotAllowed

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from everloop.data.ledger import Found

__all__ = ["Shown"]


class Shown(Referring):
    """Reading, comparing, the ledger, merges and references, with masks where they are due."""

    _privacy: Privacy
    _authorizer: Authorizer

    def _shown(self, version: DatasetVersion, columns: list[str], purpose: str) -> pa.Table:
        """Columns of a version as whoever asks may see them; it is kept in the access log."""
        from everloop.data.rows import read_rows

        view = self._privacy.view(version)
        if not view.personal:
            return read_rows(self._blobs, version, columns)
        rows = self._seen(version, columns, view)
        view.log(columns, "read", purpose)
        return rows

    def _seen(
        self, version: DatasetVersion, columns: list[str], view: View | None = None
    ) -> pa.Table:
        from everloop.data.masking import needed_by
        from everloop.data.rows import read_rows

        view = view or self._privacy.view(version)
        beside = needed_by(view.masks, columns, version.schema.names) if view.masks else []
        rows = read_rows(self._blobs, version, [*columns, *beside])
        return view.mask(rows).select(columns) if beside else view.mask(rows)

    def _values_of(self, dataset: str, column: str) -> pl.Series:
        if current_principal() is not None:
            with self._catalog.read() as tx:
                version = version_of(tx, dataset, None)
            if column in self._privacy.view(version).masks:
                raise self._privacy.refused(dataset, [column], f"the values of {column}")
        return super()._values_of(dataset, column)

    def _refuse_masked(self, name: str, rows: pa.Table) -> None:
        """Refuse to store rows over those that they are a masked copy of."""
        mark = (rows.schema.metadata or {}).get(MARK)
        if mark:
            raise InvalidInput(
                f"these rows were masked when they were read ({mark.decode()}): to commit them to "
                f"{name} would put the masks in place of the values",
                hint="commit without these columns under another name, or read with the right "
                f"{READ_PERSONAL}",
            )

    def _check_owner(self, name: str, owner: str) -> None:
        """Refuse whoever may not govern to name a new owner, who would see personal data."""
        principal = current_principal()
        if principal is None or not owner:
            return
        with self._catalog.direct(write=False) as tx:
            row = tx.run("SELECT owner FROM datasets WHERE name = ?", (name,)).fetchone()
        if row is None or row[0] == owner:
            return
        with self._catalog.read() as tx:
            version = version_of(tx, name)
        if self._privacy.personal(name, version.schema):
            try:
                self._authorizer.authorize(principal, GOVERN, name)
            except NotAllowed as error:
                raise NotAllowed(
                    f"{error.message}: a new owner would see its personal data", hint=error.hint
                ) from None

    def _restored(self, waiting: DatasetVersion | None, rows: pa.Table) -> pa.Table:
        """Rows that were set aside and come back: with the values where their masks came back.

        So whoever may not see a column can correct the others.
        """
        from everloop.data.quarantine import ID

        view = None if waiting is None else self._privacy.view(waiting)
        if waiting is None or view is None or not view.masks or ID not in rows.column_names:
            return rows
        import pyarrow as pa
        import pyarrow.compute as pc

        from everloop.data.rows import read_rows

        kept = read_rows(self._blobs, waiting, waiting.schema.names)
        shown = view.mask(kept)
        try:
            at = pc.index_in(rows.column(ID).cast(pa.string()), kept.column(ID).combine_chunks())
            for n, name in enumerate(rows.column_names):
                if name in view.masks:
                    was, value = shown.column(name).take(at), kept.column(name).take(at)
                    given = rows.column(name).cast(was.type)
                    both_lack = pc.and_(pc.is_null(given), pc.is_null(was))
                    same = pc.or_(pc.fill_null(pc.equal(given, was), False), both_lack)
                    rows = rows.set_column(n, name, pc.if_else(same, value, given))
        except pa.ArrowInvalid:
            return rows  # of another type: the checks that follow say so
        return rows.replace_schema_metadata(None)

    # --- the ledger ------------------------------------------------------------------------------

    def _of_ledger(
        self,
        change: RowChangeSummary,
        where: Mapping[str, Any],
        limit: int,
        tagged: Collection[str] = (),
    ) -> Found:
        """Rows of an entry of the ledger that equal `where`, without values of `tagged` columns."""
        from everloop.data.ledger import Found, rows_of

        view, known = self._ledger_view(change)
        if hidden := [name for name in where if view is not None and name in view.masks]:
            raise self._privacy.refused(change.dataset, hidden, "rows chosen by values")
        found = rows_of(self._blobs, change, where, limit, tagged)
        if view is None or not view.personal:
            return found
        view.log(found.columns, "ledger")
        if not view.masks:
            return found
        if where and not known.issuperset(where):
            raise self._privacy.refused(change.dataset, sorted(set(where) - known), "rows")
        rows = view.mask_rows((row.row for row in found.rows), known)
        shown = [
            msgspec.structs.replace(old, row=row) for old, row in zip(found.rows, rows, strict=True)
        ]
        return Found(found.columns, shown)

    def _ledger_view(self, change: RowChangeSummary) -> tuple[View | None, set[str]]:
        """What the caller sees of the rows of an entry, and the columns that its dataset has."""
        if current_principal() is None and not change.dataset:
            return None, set()
        with self._catalog.read() as tx:
            if change.dataset:
                latest = statements.find_version(tx, change.dataset)
                return (None if latest is None else self._privacy.view(latest)), (
                    set() if latest is None else set(latest.schema.names)
                )
            names = statements.names(tx)
            versions = [v for n in names if (v := statements.find_version(tx, n)) is not None]
        # Rows of several datasets, or of none that was named: personal is what is so in any.
        views = [self._privacy.view(v) for v in versions if v.kind == "table"]
        masks = {name: mask for view in views for name, mask in view.masks.items()}
        personal = {name: column for view in views for name, column in view.personal.items()}
        known = {name for version in versions for name in version.schema.names}
        return View("", 0, personal, masks, self._privacy), known

    def _hidden_of_entry(self, change: RowChangeSummary, columns: Iterable[str]) -> set[str]:
        """Of these columns of an entry of the ledger those that the caller may not see."""
        view, known = self._ledger_view(change)
        if view is None or not view.masks:
            return set()
        plain = known - view.masks.keys()
        return {name for name in columns if name.removesuffix(".new") not in plain}

    def _hidden_in(self, datasets: Iterable[str], where: Iterable[str] = ()) -> set[str]:
        """The columns of datasets that the caller gets masked.

        Raises:
            NotAllowed: If rows are chosen by one of them.
        """
        if current_principal() is None:
            return set()
        found: set[str] = set()
        with self._catalog.read() as tx:
            latest = [statements.find_version(tx, name) for name in datasets]
        for version in latest:
            if version is not None and version.kind == "table":
                masks = self._privacy.view(version).masks
                if hidden := [name for name in where if name in masks]:
                    raise self._privacy.refused(version.dataset, hidden, "rows chosen by values")
                found |= masks.keys()
        return found

    # --- comparing and merging -------------------------------------------------------------------

    def _compared(
        self, found: DatasetDiff, old: DatasetVersion, new: DatasetVersion
    ) -> DatasetDiff:
        """A comparison as whoever asks may see it."""
        before, after = self._privacy.view(old), self._privacy.view(new)
        if not found.rows or not (before.personal or after.personal):
            return found
        after.log((*before.personal, *after.personal), "diff")
        hidden = before.masks.keys() | after.masks.keys()
        rows = tuple(
            msgspec.structs.replace(
                row, key=_hidden(row.key, hidden), old=_hidden(row.old, hidden),
                new=_hidden(row.new, hidden),
            )
            for row in found.rows
        )  # fmt: skip
        return msgspec.structs.replace(found, rows=rows) if hidden else found

    @contextmanager
    def _hiding(self, *versions: DatasetVersion) -> Iterator[None]:
        """Within the block no error repeats a value of these versions that must not be seen."""
        try:
            yield
        except (Conflict, InvalidInput) as error:
            hidden = self._hidden_of(versions)
            if not hidden:
                raise
            total = error.details.get("total")
            told = f"{total} changes are in conflict" if total else "rows break the schema"
            raise type(error)(
                f"{versions[1].ref} and {versions[0].ref} cannot be merged: {told}; values of "
                f"{', '.join(sorted(hidden))} are not told, as they are personal data",
                hint=error.hint,
                details={"total": total} if total else None,
            ) from None

    def _conflicts_shown(
        self, found: Iterable[MergeConflict], *versions: DatasetVersion
    ) -> tuple[MergeConflict, ...]:
        hidden = self._hidden_of(versions)
        return tuple(_conflict(one, hidden) if hidden else one for one in found)

    def _hidden_of(self, versions: Iterable[DatasetVersion]) -> set[str]:
        return {name for v in versions for name in self._privacy.view(v).masks}


def _hidden(row: dict[str, Value], hidden: Iterable[str]) -> dict[str, Value]:
    away = set(hidden)
    return {n: MASKED if n in away and v is not None else v for n, v in row.items()}


def _conflict(found: MergeConflict, hidden: set[str]) -> MergeConflict:
    told = msgspec.structs.replace(found, key=_hidden(found.key, hidden))
    if found.kind == "value" and found.column in hidden:
        told = msgspec.structs.replace(told, base=MASKED, ours=MASKED, theirs=MASKED)
    return told
