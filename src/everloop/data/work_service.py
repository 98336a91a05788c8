"""The part of DataService that keeps work lists: what is wrong, whose it is, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog import ledger
from everloop.catalog.engine import Catalog
from everloop.catalog.erasures import lift
from everloop.core.context import current_actor
from everloop.core.dataset import DatasetVersion, RowChangeSummary
from everloop.core.work import WorkList
from everloop.data.shown import Shown
from everloop.data.versions import version_of
from everloop.errors import Conflict, InvalidInput
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    import pyarrow as pa

    from everloop.data.fixing import State
    from everloop.data.ledger import Entry
    from everloop.data.quarantine import Aside

__all__ = ["WorkMethods"]

# Each lost race means that another commit succeeded, so this is never reached in earnest.
_RACES = 1000
#: Entries of the ledger that are looked through for who closed an item.
_LOOKED = 200


class WorkMethods(Shown):
    """Who must correct what."""

    _catalog: Catalog
    _blobs: BlobStore

    @action("dataset:read", on="dataset")
    def work(
        self,
        *,
        owner: str = "",
        dataset: str = "",
        rule: str = "",
        dismissed: bool = False,
        limit: int = 100,
    ) -> WorkList:
        """What must be corrected: rows in quarantine, rows that a rule warned of, and findings.

        An item is open until its row is right: until a commit, or ``fix_rows``, brings it so.

        Args:
            owner: Only what is theirs.
            dataset: Only of this one.
            rule: Only because of this one.
            dismissed: What was dismissed, instead of what is open.
            limit: Most items to tell one by one; all are counted.

        Raises:
            NotFound: If there is no such dataset.
        """
        from everloop.data import quarantine
        from everloop.data.work import SUFFIX as WORK
        from everloop.data.work_list import Asked, Beside, listed

        with self._catalog.read() as tx:
            if dataset:
                version_of(tx, dataset)
                found = ledger.beside(tx, dataset, dataset + quarantine.SUFFIX, dataset + WORK)
                versions = list(found.found.values())
            else:
                versions = ledger.latest_of(tx, (quarantine.SUFFIX, WORK))
            names = sorted({v.dataset.rpartition(".")[0] for v in versions})
            beside = Beside(
                {one.name: one.owner for one in statements.all_datasets(tx)},
                ledger.beside(tx, "", *names).found,
                ledger.personal_of(tx, names),
            )
        beside = beside._replace(hidden={*beside.hidden, *self._hidden_in(names)})
        asked = Asked(owner, rule, dismissed, limit)
        return listed(self._blobs, versions, beside, asked)

    @action("dataset:read", on="name")
    def work_rows(
        self, name: str, *, owner: str = "", rule: str = "", limit: int = 100_000
    ) -> pa.Table:
        """The rows of open items as they are now, to be corrected and given to ``fix_rows``.

        Before their columns stand ``work_id``, ``work_rule``, ``work_reason``, ``work_owner``,
        ``work_suggestion`` and ``work_row``, by which it is known whether the row changed since.
        Personal data is masked; a value that is handed back masked stays what it was.

        Args:
            name: The dataset.
            owner, rule: Only what is theirs, only because of this one.
            limit: Most rows.

        Raises:
            NotFound: If there is no such dataset.
        """
        from everloop.data.work_list import whole_rows

        state = self._state(name)
        hidden = self._hidden_in([name])
        with self._catalog.read() as tx:
            hidden |= ledger.personal_of(tx, [name])
        return whole_rows(self._blobs, state, hidden, owner=owner, rule=rule, limit=limit)

    @action("dataset:write", on="dataset")
    def add_work(self, dataset: str, rows: list[dict[str, Any]]) -> int:
        """Put rows on the work list of whoever must correct them.

        Args:
            dataset: It must have a key.
            rows: Each the key columns of a row of the latest version, ``rule`` and ``reason``, and
                maybe ``owner`` (else that of the dataset) and ``suggestion``.

        Returns:
            How many were not on it yet; a row under the same rule is one item. One that was
            dismissed comes back if its row changed since.

        Raises:
            InvalidInput: With every fault of the rows.
            NotFound: If there is no such dataset.
        """
        from everloop.data.fixing import added_items

        count = 0

        def change(state: State) -> _Next:
            nonlocal count
            work, entries, count = added_items(self._blobs, state, rows, self._catalog.clock.now())
            return _Next(None, work, entries, "dataset.WorkAdded", {"rows": count})

        self._change_work(dataset, change)
        return count

    @action("dataset:write", on="name")
    def dismiss(self, name: str, ids: list[str], reason: str) -> list[RowChangeSummary]:
        """Say that items are no faults, and why; they leave the list, and the ledger keeps it.

        A row in quarantine stays out of the dataset, and is not set aside again. A row that a rule
        warned of comes back if it changes and still breaks the rule.

        Args:
            name: The dataset.
            ids: Of the items.
            reason: Why; kept with who said so.

        Raises:
            InvalidInput: If there is no reason or no id.
            Conflict: If one of them is not open; it says who closed it.
        """
        from everloop.data.fixing import dismissed

        faults = [(n, "is empty") for n, v in (("ids", ids), ("reason", reason.strip())) if not v]
        if faults:
            raise InvalidInput("items are dismissed one by one, for a reason", faults)
        by = current_actor() or self._catalog.actor

        def change(state: State) -> _Next:
            self._refuse_gone(state, ids)
            waiting, work, entries = dismissed(
                self._blobs, state, ids, reason, by, self._catalog.clock.now()
            )
            body = {"rows": len(ids), "reason": reason[:1000]}
            return _Next(waiting, work, entries, "dataset.WorkDismissed", body)

        return self._change_work(name, change)

    @action("dataset:write", on="name")
    def fix_rows(self, name: str, rows: pa.Table, *, note: str = "") -> DatasetVersion:
        """Take corrected rows back: a new version of `name`, whose ledger says what it closed.

        Rows are held against the schema again. Nothing is taken if one of them still breaks a rule
        that leaves it out, or the rule that it was on the list for. With a key a row takes the
        place of the one that is there; without one it is appended.

        Args:
            name: The dataset, not its quarantine.
            rows: As ``work_rows`` gives them, corrected, with their ``work_id``; or rows of
                ``<name>.quarantine`` with their ``quarantine_id``. Columns that are left out, and
                values that are masked, stay as they are. Text is read as the type of its column.
            note: For people; kept in the ledger.

        Returns:
            The new version.

        Raises:
            Conflict: If an item is not open: it says who closed it; or if the row changed since it
                was handed out.
            InvalidInput: With every fault of the rows.
            NotFound: If there is no such dataset or column.
        """
        from everloop.data.commit import Draft, Told, beside_of, publish_last
        from everloop.data.fixing import Fixing

        for _ in range(_RACES):
            state = self._state(name)
            given = self._restored(state.beside.waiting, rows)
            self._refuse_masked(name, given)
            fixing = Fixing(self._blobs, state, given)
            self._refuse_gone(state, fixing.ids)
            made = fixing.corrected()
            draft = Draft(
                self._blobs, name, made.rows, None,
                mode="upsert" if state.base.schema.key else "append",
                expect=state.base.number, values_of=self._values_of, must=made.must,
                closing=made.closing(note),
            )  # fmt: skip
            told = note or f"{made.rows.num_rows} rows of the work list fixed"
            try:
                return publish_last(self._catalog, draft, Told(note=told))
            except Conflict:
                with self._catalog.read() as tx:
                    now = version_of(tx, name)
                    lying, _ = beside_of(tx, name, "")
                same = (state.base.holds, state.beside.waiting, state.beside.work)
                if (now.holds, lying.waiting, lying.work) == same:
                    raise  # not because somebody else was faster
        raise Conflict(f"others commit to {name} all the time", hint="hand the rows back again")

    # --- inside ----------------------------------------------------------------------------------

    def _state(self, name: str) -> State:
        from everloop.data.commit import beside_of
        from everloop.data.fixing import read_state

        with self._catalog.read() as tx:
            base = version_of(tx, name)
            lying, owner = beside_of(tx, name, "")
        return read_state(self._blobs, base, lying._replace(owner=owner))

    def _refuse_gone(self, state: State, ids: list[str]) -> None:
        gone = sorted(set(ids) - state.open_ids)
        if not gone:
            return
        told, winner = self._who_closed(state.base.dataset, set(gone))
        raise Conflict(
            f"{len(gone)} of {len(ids)} items are not open, such as {gone[0]}{told}",
            hint="read the work list again: everloop data work",
            details={"gone": gone[:100], **({"winner": winner} if winner else {})},
        )

    def _who_closed(self, name: str, ids: set[str]) -> tuple[str, dict[str, str]]:
        from everloop.data.ledger import rows_of
        from everloop.data.work import ID

        with self._catalog.read() as tx:
            changes = ledger.changes(tx, dataset=name, limit=_LOOKED)
        for change in changes:
            if change.action in ("fixed", "dismissed"):
                for one in sorted(ids):
                    if rows_of(self._blobs, change, {ID: one}, 1).rows:
                        what = change.reason.rpartition("; ")[2]
                        at = f"{change.at:%Y-%m-%d %H:%M:%S} UTC"
                        ref = change.scope.removeprefix("dataset:")
                        told = f": {what}, {at}, in {ref}"
                        return told, {"id": one, "what": what, "at": at, "version": ref}
        return "; nobody closed it, so it was never here", {}

    def _change_work(self, name: str, change: Any) -> list[RowChangeSummary]:
        """Change what lies beside a dataset, without a version of it."""
        from everloop.data import quarantine
        from everloop.data.commit import Draft, LostRace, publish
        from everloop.data.work import SUFFIX as WORK

        for _ in range(_RACES):
            state = self._state(name)
            after: _Next = change(state)
            both = (
                (quarantine.SUFFIX, after.waiting, state.beside.waiting),
                (WORK, after.work, state.beside.work),
            )
            drafts = []
            for end, rows, before in both:
                if rows is not None:
                    draft = Draft(self._blobs, name + end, *rows, mode="replace")
                    draft.prepare(before, state.beside.owner)
                    drafts.append((draft, before))
            if not drafts:
                return []
            try:
                with self._catalog.write() as tx:
                    if lift(tx, [e.block.digest for e in after.entries], self._blobs.exists):
                        raise LostRace  # erased meanwhile: it is looked at again
                    for draft, before in drafts:
                        if not publish(
                            tx, draft, before, owner=state.beside.owner, note="", run_id=""
                        ):
                            raise LostRace
                    body = {"dataset": name, **after.body}
                    tx.append(after.event, f"dataset:{state.base.ref}", body)
                    return [_record(tx, state.base, entry) for entry in after.entries]
            except LostRace:
                continue
        raise Conflict(f"others change the work on {name} all the time", hint="try again")


class _Next:
    """What lies beside a dataset next, and what is said of it."""

    def __init__(
        self,
        waiting: Aside | None,
        work: Aside | None,
        entries: list[Entry],
        event: str,
        body: dict[str, Any],
    ) -> None:
        self.waiting = waiting
        self.work = work
        self.entries = entries
        self.event = event
        self.body = body


def _record(tx: Any, base: DatasetVersion, entry: Entry) -> RowChangeSummary:
    change = RowChangeSummary(
        scope=f"dataset:{base.ref}",
        dataset=base.dataset,
        rule=entry.rule,
        action=entry.action,
        reason=entry.reason,
        owner=entry.owner,
        rows=entry.block.rows,
        detail=entry.block.digest,
        at=tx.now,
    )
    statements.add_objects(tx, [(entry.block.digest, entry.block.size)])
    statements.add_change(tx, change)
    return change
