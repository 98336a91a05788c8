"""The part of DataService that forgets: erasures, their receipts, and legal holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.access.service import action
from everloop.access.signing import SigningKey
from everloop.catalog import erasures as records
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.scrub import scrub
from everloop.catalog.sources import all_sources
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.erase import Erasure, Hold, Receipt, Verification
from everloop.core.ids import new_id
from everloop.core.schema import canonical_json
from everloop.core.seal import SCHEME, key_id, mac_of
from everloop.data.versions import version_of
from everloop.errors import BackendError, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore, CanErase

if TYPE_CHECKING:
    from everloop.data.erase import Change, Eraser
    from everloop.data.seek import Sought

__all__ = ["EraseMethods"]

#: So often others may change the catalog between seeking and writing; then they wait.
_ROUNDS = 5
#: Objects that one transaction removes.
_AT_ONCE = 200
#: Where copies may be that nothing here can know of.
_ELSEWHERE = (
    "copies of the workspace's folder or database, and mirrors of it in other workspaces",
    "what was read and exported: frames in memory, files, tables of other systems",
    "what other machines keep of versions and objects to read them, in their folders `cache`",
    "logs of engines, of proxies and of the system",
)


class EraseMethods:
    """Erases subjects, and says what must not be erased."""

    _catalog: Catalog
    _blobs: BlobStore
    _signing: SigningKey
    #: Where versions were written to as plain files for other engines; None where nobody does.
    _copies: Path | None

    @action("dataset:erase", on="dataset")
    def erase(
        self,
        where: dict[str, Any],
        *,
        dataset: str = "",
        reason: str = "",
        dry_run: bool = False,
    ) -> Receipt:
        """Take a subject out of every version of every dataset; the versions stay and open.

        The rows of the subject go, with the hashes and statistics that were made of them, out of
        all versions, the ledger of rows, the logs of predictions and labels, stored results of
        steps, files of runs and values in the catalog. Their bytes are removed at once. Killed at
        any point, nothing is changed, or the next call finishes what was begun.

        A commit that replaces a table and began before the erasure is refused with a Conflict.
        What is committed after it is new: there is no list of subjects that may not come back.

        Args:
            where: Columns and values; a row that has a value of each column is the subject's.
                A list is several values. A number and its text are one value.
            dataset: Only the versions and the ledger of this one; all if empty. Everything else is
                looked through either way.
            reason: Why; stands in the receipt.
            dry_run: Only say what it would do.

        Returns:
            The receipt, signed; of a dry run, and where nothing was found, it says so.

        Raises:
            NotFound: If there is no such dataset, or nothing anywhere has such a column.
            InvalidInput: If the subject cannot be sought like this.
            StateError: If a legal hold is on what would be erased; its name is told.
            BackendError: If bytes could not be written or removed; the next call goes on.
        """
        from everloop.data.erase import Eraser
        from everloop.data.seek import Sought

        sought = Sought(where)
        self.finish_erasures()
        eraser = Eraser(self._catalog, self._blobs, sought, dataset, dry_run=dry_run)
        self._check_columns(sought, dataset)
        key = self._signing.get()
        whole, each = sought.hashes(key)
        asked = Receipt(
            id="" if dry_run else new_id(),
            dataset=dataset,
            columns=sought.columns,
            values=sought.count,
            subject=whole,
            subjects=each,
            reason=reason,
            actor=current_actor() or self._catalog.actor,
            asked_at=self._catalog.clock.now(),
            dry_run=dry_run,
            erased=Erasure(),
        )
        if dry_run:
            change = eraser.dry(eraser.look())
            with self._catalog.read() as tx:
                return _told(asked, change, tx)
        return self._erase(eraser, asked, dataset)

    def _erase(self, eraser: Eraser, asked: Receipt, dataset: str) -> Receipt:
        from everloop.data.erase_catalog import looked

        for turn in range(_ROUNDS + 1):
            seen = eraser.look()
            unnamed = eraser.unnamed()
            with self._catalog.write() as tx:
                now = looked(tx, dataset)
                if now != seen:
                    if turn < _ROUNDS:
                        continue
                    eraser.prepare(now)
                change = eraser.apply(tx, now, unnamed)
                receipt = _told(asked, change, tx)
                if receipt.erased.holds:
                    raise _held(receipt)
                work = {"objects": change.objects, "tables": sorted(change.tables)}
                records.add_erasure(tx, receipt, work)
                told = {
                    "dataset": dataset,
                    "versions": len(receipt.erased.versions),
                    "rows": receipt.erased.rows,
                    "reason": receipt.reason,
                }
                tx.append("dataset.SubjectErased", f"erasure:{receipt.id}", told)
            break
        self.finish_erasures()
        with self._catalog.read() as tx:
            found = records.find_erasure(tx, receipt.id)
        assert found is not None
        return found

    @action("dataset:erase")
    def finish_erasures(self) -> list[str]:
        """Finish erasures that were broken off; ids of those that were. Safe to call at any time.

        Raises:
            BackendError: If bytes could not be removed; call it again.
        """
        with self._catalog.read() as tx:
            begun = records.open_erasures(tx)
        for receipt, work in begun:
            self._remove(work["objects"])
            self._remove_copies()
            left = scrub(self._catalog, work["tables"])
            unreached = (*receipt.erased.unreached, *([left] if left else []))
            erased = msgspec.structs.replace(receipt.erased, unreached=unreached)
            key = self._signing.get()
            with self._catalog.write() as tx:
                done = msgspec.structs.replace(receipt, erased=erased, done_at=tx.now)
                if records.end_erasure(tx, signed(done, key)):
                    tx.append("dataset.ErasureFinished", f"erasure:{done.id}", {})
        return [receipt.id for receipt, _ in begun]

    def _remove(self, digests: list[str]) -> None:
        """Remove objects that nobody has stored and named again meanwhile."""
        for start in range(0, len(digests), _AT_ONCE):
            # Whoever names an object does so in a transaction that waits for this one.
            with self._catalog.write() as tx:
                gone = records.still_erased(tx, digests[start : start + _AT_ONCE])
                if isinstance(self._blobs, CanErase):
                    self._blobs.erase(gone)
                else:
                    for digest in gone:
                        self._blobs.delete(digest)
                tx.execute(tables.objects.delete().where(tables.objects.c.digest.in_(gone)))

    def _remove_copies(self) -> None:
        if self._copies is None or not self._copies.exists():
            return
        try:
            shutil.rmtree(self._copies)
        except OSError as error:
            raise BackendError(
                f"copies of versions in {self._copies} could not be removed: {error}",
                hint="remove the folder, then `everloop gc` finishes the erasure",
            ) from error

    def _check_columns(self, sought: Sought, dataset: str) -> None:
        from everloop.data.erase_catalog import looked

        with self._catalog.read() as tx:
            if dataset:
                version_of(tx, dataset)
            look = looked(tx, dataset)
            known = {name for version in look.versions for name in version.schema.names}
            # What else has columns is not worth opening for their names alone.
            has_more = not dataset and (look.memos or any(look.logs.values()))
        lacking = [name for name in sought.columns if name not in known]
        if lacking and not has_more:
            raise NotFound.named("column", lacking[0], known)

    @action("dataset:read")
    def receipts(self) -> list[Receipt]:
        """The receipts of all erasures, newest first."""
        with self._catalog.read() as tx:
            return records.receipts(tx)

    @action("dataset:read")
    def verify_receipt(
        self, receipt: Receipt | str, *, where: dict[str, Any] | None = None
    ) -> Verification:
        """Hold a receipt against the key of this workspace, and against the store.

        Args:
            receipt: It, or its id.
            where: The subject that it is said to be of, as it was asked; or one value of those.

        Raises:
            NotFound: If there is no receipt of this id.
        """
        if isinstance(receipt, str):
            with self._catalog.read() as tx:
                found = records.find_erasure(tx, receipt)
                ids = [known.id for known in records.receipts(tx)]
            if found is None or found.done_at is None:
                raise NotFound.named("receipt", receipt, ids)
            receipt = found
        key = self._signing.get()
        present = tuple(o.before for o in receipt.erased.objects if self._blobs.exists(o.before))
        matches = None
        if where is not None:
            from everloop.data.seek import Sought

            whole, each = Sought(where).hashes(key)
            matches = whole == receipt.subject or bool(each and {*each} <= {*receipt.subjects})
        if receipt.key != key_id(key):
            return Verification(signature="unknown key", present=present, matches=matches)
        is_valid = bool(receipt.mac) and signed(receipt, key).mac == receipt.mac
        return Verification(
            signature="valid" if is_valid else "invalid", present=present, matches=matches
        )

    # Legal holds

    @action("dataset:hold", on="dataset")
    def hold(self, name: str, reason: str, *, dataset: str = "") -> Hold:
        """Let nothing be erased or expire, of one dataset or of all, until it is released.

        Args:
            name: Of the hold, such as the number of the case.
            reason: Why.
            dataset: Its name; empty is all datasets.

        Raises:
            InvalidInput: If name or reason is empty.
            NotFound: If there is no such dataset.
        """
        faults = [(n, "is empty") for n, v in (("name", name), ("reason", reason)) if not v.strip()]
        if faults:
            raise InvalidInput("the hold cannot be kept", faults)
        with self._catalog.write() as tx:
            if dataset:
                version_of(tx, dataset)
            made = Hold(
                name=name,
                dataset=dataset,
                reason=reason,
                actor=current_actor() or tx.actor,
                created_at=tx.now,
            )
            records.add_hold(tx, made)
            tx.append("dataset.Held", f"hold:{name}", {"dataset": dataset, "reason": reason})
        return made

    @action("dataset:hold")
    def release(self, name: str) -> None:
        """End a hold.

        Raises:
            NotFound: If there is none of this name.
        """
        with self._catalog.write() as tx:
            names = [hold.name for hold in records.all_holds(tx)]
            if not records.drop_hold(tx, name):
                raise NotFound.named("hold", name, names)
            tx.append("dataset.Released", f"hold:{name}", {})

    @action("dataset:read")
    def holds(self) -> list[Hold]:
        """The legal holds, by name."""
        with self._catalog.read() as tx:
            return records.all_holds(tx)


def signed(receipt: Receipt, key: str) -> Receipt:
    """The receipt with a signature over all of it."""
    bare = msgspec.structs.replace(receipt, key=key_id(key), scheme=SCHEME, mac="")
    return msgspec.structs.replace(bare, mac=mac_of(canonical_json(bare), key))


def _told(asked: Receipt, change: Change, tx: Transaction) -> Receipt:
    """The receipt with what was found, what is out of reach, and what is in the way."""
    erasure = change.erasure
    touched = {version.ref.rpartition("@")[0] for version in erasure.versions}
    asked_again = [
        f"{', '.join(source.locations)}, which the next pull of {source.dataset} may bring back"
        for source in all_sources(tx)
        if source.dataset in touched
    ]
    copies = records.known_copies(tx)
    unreached = (*erasure.unreached, *asked_again, *copies, *_ELSEWHERE)
    holds = _holds(tx, touched) if not erasure.is_empty else ()
    erasure = msgspec.structs.replace(erasure, unreached=unreached, holds=tuple(holds))
    return msgspec.structs.replace(asked, erased=erasure)


def _holds(tx: Transaction, datasets: Iterable[str]) -> list[str]:
    found = {hold.name for hold in records.all_holds(tx) if not hold.dataset}
    for name in datasets:
        found |= {hold.name for hold in records.holds_of(tx, name)}
    return sorted(found)


def _held(receipt: Receipt) -> StateError:
    names = ", ".join(receipt.erased.holds)
    return StateError(
        f"nothing was erased: there is a legal hold on it ({names})",
        hint=f"everloop data release {receipt.erased.holds[0]} ends it, if it is over",
        details={"holds": list(receipt.erased.holds)},
    )
