"""The part of DataService that answers for rows: what was done to them, why one is missing."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from everloop.access.service import action
from everloop.access.signing import SigningKey
from everloop.catalog import datasets as statements
from everloop.catalog import ledger
from everloop.catalog.engine import Catalog
from everloop.catalog.erasures import lift, receipts
from everloop.core.dataset import RowAction, RowChange, RowChangeSummary
from everloop.core.work import LedgerTotal, WhyAbsent
from everloop.data.shown import Shown
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LedgerMethods"]

_MOST_PAGE = 100_000


class LedgerMethods(Shown):
    """The row ledger."""

    _catalog: Catalog
    _blobs: BlobStore
    _signing: SigningKey

    @action("dataset:write", on="dataset")
    def record_changes(
        self,
        scope: str,
        dataset: str,
        rule: str,
        act: Literal["dropped", "changed", "warned"],
        reason: str,
        owner: str,
        rows: pa.Table,
    ) -> RowChangeSummary:
        """Record in the ledger what a step did to rows; the same again is recorded once.

        Args:
            scope: ``run:<id>/<step>``.
            dataset: Where the rows come from; may be empty.
            rule: Name of the rule.
            act: What happened to the rows.
            reason: Why.
            owner: Who answers for the rule; empty is who answers for the dataset.
            rows: Key columns and the values that the rows had.
        """
        from everloop.data.ledger import store_entry

        faults = [(n, "is empty") for n, v in (("scope", scope), ("rule", rule)) if not v]
        if faults:
            raise InvalidInput("the change cannot be recorded", faults)
        block = store_entry(self._blobs, rows)
        with self._catalog.write() as tx:
            change = RowChangeSummary(
                scope=scope,
                dataset=dataset,
                rule=rule,
                action=act,
                reason=reason,
                owner=owner or (ledger.beside(tx, dataset).owner if dataset else ""),
                rows=block.rows,
                detail=block.digest,
                at=tx.now,
            )
            if not statements.has_change(tx, change, scope=scope):
                if lift(tx, [block.digest], self._blobs.exists):
                    raise Conflict(
                        "these rows were erased while they were recorded", hint="record them again"
                    )
                statements.add_objects(tx, [(block.digest, block.size)])
                statements.add_change(tx, change)
                tx.append("dataset.RowsChanged", scope, {"rule": rule, "rows": block.rows})
        return change

    @action("dataset:read", on="dataset")
    def changes(
        self,
        *,
        scope: str = "",
        dataset: str = "",
        rule: str = "",
        act: RowAction | Literal[""] = "",
        limit: int = 0,
    ) -> list[RowChangeSummary]:
        """The ledger by commit or step and rule, newest first.

        Args:
            scope: ``dataset:name@number``, ``run:<id>/<step>``, or ``run:<id>`` for all its steps.
                Of a step whose result was taken from the store it is what was done when that was
                made, in the run that made it.
            dataset: Where the rows come from.
            rule: Name of the rule.
            act: What happened to the rows.
            limit: Most entries; 0 is all.
        """
        with self._catalog.read() as tx:
            return ledger.changes(
                tx, scope=scope, dataset=dataset, rule=rule, action=act, limit=limit
            )

    @action("dataset:read", on="dataset")
    def change_totals(
        self,
        *,
        scope: str = "",
        dataset: str = "",
        rule: str = "",
        act: RowAction | Literal[""] = "",
    ) -> list[LedgerTotal]:
        """What each rule did in all, by dataset, rule, action and owner; the most rows first.

        Args:
            scope, dataset, rule, act: As in ``changes``.
        """
        with self._catalog.read() as tx:
            return ledger.totals(tx, scope=scope, dataset=dataset, rule=rule, action=act)

    @action("dataset:read", on="dataset")
    def changed_rows(
        self,
        *,
        dataset: str = "",
        where: dict[str, Any] | None = None,
        rule: str = "",
        scope: str = "",
        act: RowAction | Literal[""] = "",
        limit: int = 100,
    ) -> list[RowChange]:
        """The rows that rules dropped, changed or warned of; personal data is masked.

        Args:
            dataset: Where the rows come from; empty is all.
            where: Values that columns of the row must equal; times may be ISO 8601 text.
            rule: Only what this rule did.
            scope: Only of this commit, run or step; see ``changes``.
            act: Only what this happened to.
            limit: Most rows, those of the newest commit or step first.

        Raises:
            NotFound: If no entry has a column of `where`.
            InvalidInput: If a value of `where` does not fit its column.
        """
        with self._catalog.read() as tx:
            changes = ledger.changes(tx, scope=scope, dataset=dataset, rule=rule, action=act)
            hidden = ledger.personal(tx, changes)
        found: list[RowChange] = []
        columns: set[str] = set()
        for change in changes:
            if len(found) >= limit:
                break
            part = self._of_ledger(change, where or {}, limit - len(found), hidden)
            columns.update(part.columns)
            found += part.rows
        for name in where or {}:
            if changes and name not in columns:
                raise NotFound.named("column", name, columns)
        return found

    @action("dataset:read", on="dataset")
    def changed_page(
        self, dataset: str, detail: str, *, start: int = 0, limit: int = 10_000
    ) -> pa.Table:
        """Rows of one entry of the ledger, by their place in it; personal data is masked.

        Args:
            dataset: Where the rows come from, as the entry says.
            detail: Of the entry.
            start: The first row.
            limit: Most rows, at most 100,000.

        Raises:
            NotFound: If there is no such entry.
            InvalidInput: If `start` or `limit` cannot be.
        """
        from everloop.data.ledger import masked, page_of

        if start < 0 or not 0 < limit <= _MOST_PAGE:
            raise InvalidInput(f"rows from 0 on, 1 to {_MOST_PAGE} of them, not {limit} at {start}")
        with self._catalog.read() as tx:
            change = ledger.find_change(tx, dataset, detail)
            if change is None:
                raise NotFound(
                    f"no entry of the ledger of {dataset or 'no dataset'} has the rows {detail}",
                    hint="everloop data changes --json lists them",
                )
            hidden = ledger.personal(tx, [change])
        rows = page_of(self._blobs, detail, start, limit)
        return masked(rows, hidden | self._hidden_of_entry(change, rows.column_names))

    @action("dataset:read", on="name")
    def why_absent(
        self, name: str, where: dict[str, Any], number: int | None = None, *, run: str = ""
    ) -> WhyAbsent:
        """Follow a row to a version, and through the steps of a run: why is it not there?

        Args:
            name: The dataset that the row comes from.
            where: Values that columns of the row equal, best those of the key; times may be ISO
                8601 text.
            number: The version to seek it in; None is the one that `run` read, else the latest.
            run: Follow it through the steps of this run too.

        Raises:
            NotFound: If there is no such dataset, version, run or column.
            InvalidInput: If nothing is asked, a value does not fit its column, or the dataset is no
                table.
        """
        from everloop.data.whereabouts import Follower

        if not where:
            raise InvalidInput("say which row is meant", [("where", "is empty")])
        with self._catalog.read() as tx:
            has_receipts = bool(receipts(tx))
        key = ""
        if has_receipts:
            with suppress(StateError):  # without the key nobody can say whom a receipt is of
                key = self._signing.get()
        hidden = self._hidden_in([name], where)
        return Follower(self._catalog, self._blobs, name, where, number, run, key, hidden).answer()
