"""The part of DataService that knows where datasets come from, and takes in what was pulled."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog import sources as store
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor, current_principal
from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Schema
from everloop.core.source import DataSource, Pull, PullDraft, SourceState
from everloop.core.time import utc
from everloop.data.shown import Shown
from everloop.data.source_rules import source_faults
from everloop.data.versions import check_names, version_of
from everloop.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SourceMethods"]


class SourceMethods(Shown):
    """Sources of datasets. They are read by whoever pulls, see ``everloop.data.pulling``."""

    @action("source:write")
    def declare_source(self, source: DataSource) -> DataSource:
        """Say where a dataset comes from; the same again changes nothing.

        Where the locations, the query or the watermark change, the next pull reads everything.

        Raises:
            InvalidInput: With everything that is wrong with it.
            Conflict: If the dataset has a version that is no table.
        """
        faults = source_faults(source)
        if faults:
            raise InvalidInput(f"the source of {source.dataset!r} is wrong", faults)
        check_names(source.dataset, ())
        guarded = current_principal() is not None
        source = msgspec.structs.replace(source, guarded=guarded)
        with self._catalog.write() as tx:
            latest = statements.find_version(tx, source.dataset)
            if latest is not None and latest.kind != "table":
                raise Conflict(
                    f"{source.dataset} is a {latest.kind}, which no source fills",
                    hint="give the source another name",
                )
            known = store.find_source(tx, source.dataset)
            if known is not None and known.spec == source:
                return source
            store.put_source(tx, source, current_actor() or tx.actor)
            if known is not None and _reads(known.spec) != _reads(source):
                store.forget(tx, source.dataset)
            body = {"locations": source.locations, "mode": source.mode, "format": source.format}
            tx.append("source.Declared", f"dataset:{source.dataset}", body)
        return source

    @action("source:write", on="name")
    def remove_source(self, name: str) -> None:
        """Forget where a dataset comes from, and how far that was read; its versions stay.

        Raises:
            NotFound: If it has no source.
        """
        with self._catalog.write() as tx:
            _known(tx, name)
            store.drop_source(tx, name)
            tx.append("source.Removed", f"dataset:{name}")

    @action("dataset:read")
    def sources(self) -> list[DataSource]:
        """All sources, by dataset."""
        with self._catalog.read() as tx:
            return store.all_sources(tx)

    @action("dataset:read", on="name")
    def source(self, name: str) -> DataSource:
        """Where a dataset comes from.

        Raises:
            NotFound: If it has no source; with the nearest names.
        """
        with self._catalog.read() as tx:
            return _known(tx, name).spec

    @action("dataset:read", on="name")
    def source_state(self, name: str) -> SourceState:
        """How far the source of a dataset was read.

        Raises:
            NotFound: If it has no source.
        """
        with self._catalog.read() as tx:
            return store.state_of(tx, name, _known(tx, name))

    @action("dataset:read", on="name")
    def pulls(self, name: str, *, number: int | None = None, limit: int = 100) -> list[Pull]:
        """What was pulled into a dataset, newest first.

        Args:
            name: The dataset.
            number: Only what led to this version.
            limit: Most pulls.

        Raises:
            NotFound: If there is no such dataset or version.
        """
        with self._catalog.read() as tx:
            version_of(tx, name, number)
            return store.pulls(tx, name, number, limit)

    @action("dataset:write", on="name")
    def commit_pull(self, name: str, rows: pa.Table | None, draft: PullDraft) -> Pull:
        """Make what was pulled a version, and note how far the source was read: both or neither.

        Args:
            name: The dataset.
            rows: What was read; None if nothing had to be.
            draft: What else was found.

        Raises:
            InvalidInput: With every fault of the rows; nothing changes then.
            Conflict: If another pull was first, or the rows of a replacement were changed
                meanwhile.
            NotFound: If there is no such source, or there are neither rows nor a version.
        """
        from everloop.data.commit import Draft, Since, Told, publish_last

        with self._catalog.read() as tx:
            known = _known(tx, name)
            latest = statements.find_version(tx, name)
        source = known.spec
        if rows is None:
            with self._catalog.write() as tx:
                latest = version_of(tx, name)
                return _settle(tx, source, draft, latest, latest)
        made: list[Pull] = []

        def settle(tx: Transaction, version: DatasetVersion, base: DatasetVersion | None) -> None:
            made.append(_settle(tx, source, draft, version, base))

        schema = _schema(source, latest, rows)
        since = None
        if source.mode == "append" and (source.watermark or draft.full):
            since = Since(*_since(source, draft, latest))
        self._check_owner(name, source.owner)
        told = Told(source.owner, draft.note, draft.run_id, draft.sources)
        prepared = Draft(
            self._blobs, name, rows, schema, mode=source.mode, since=since,
            values_of=self._values_of,
        )  # fmt: skip
        publish_last(self._catalog, prepared, told, settle)
        return made[-1]


def _known(tx: Transaction, name: str) -> store.Known:
    known = store.find_source(tx, name)
    if known is None:
        names = [source.dataset for source in store.all_sources(tx)]
        raise NotFound.named("source of a dataset", name, names)
    return known


def _reads(source: DataSource) -> tuple[object, ...]:
    """What decides which rows a source has."""
    return source.locations, source.format, source.query, source.watermark


def _schema(source: DataSource, latest: DatasetVersion | None, rows: pa.Table) -> Schema | None:
    """What the source states, with its key; None leaves it to the dataset."""
    if source.schema is not None:
        return source.schema
    if latest is None and source.key:
        from everloop.data.arrow import from_arrow_schema

        return from_arrow_schema(rows.schema, key=source.key)
    return None


def _since(source: DataSource, draft: PullDraft, latest: DatasetVersion | None) -> tuple[str, Any]:
    """The column and the value from which on rows are held against those that are there."""
    if not draft.since or latest is None or source.watermark not in latest.schema.names:
        return "", None
    text = draft.since
    if latest.schema.field(source.watermark).type == "string":
        return source.watermark, text
    if text.lstrip("-").isdecimal():
        return source.watermark, int(text)
    if len(text) == 10:
        return source.watermark, date.fromisoformat(text)
    return source.watermark, utc(datetime.fromisoformat(text))


def _settle(
    tx: Transaction,
    source: DataSource,
    draft: PullDraft,
    version: DatasetVersion,
    base: DatasetVersion | None,
) -> Pull:
    name = source.dataset
    now = store.find_source(tx, name)
    if now is None or now.generation != draft.generation or now.spec != source:
        raise Conflict(
            f"another pull of {name} was first, or its source was declared anew",
            hint="nothing of this one was kept; pull again if rows may be missing",
            details={"winner": base.number if base else 0},
        )
    is_new = base is None or version.number != base.number
    pull = Pull(
        dataset=name,
        number=version.number,
        is_new=is_new,
        source=source.locations,
        query=source.query,
        mode=source.mode,
        read=draft.read,
        rows=version.rows,
        since=draft.since,
        watermark=draft.watermark,
        files=draft.files,
        notes=draft.notes,
        full=draft.full,
        run_id=draft.run_id,
        actor=current_actor() or tx.actor,
        at=tx.now,
    )
    is_moved = is_new or draft.watermark != now.watermark or draft.files or draft.gone
    if is_moved or draft.touched:
        store.advance(tx, name, draft.watermark, (*draft.files, *draft.touched), draft.gone)
    if not is_moved:
        return pull
    store.add_pull(tx, pull)
    body = {
        "number": version.number,
        "is_new": is_new,
        "read": draft.read,
        "since": draft.since,
        "watermark": draft.watermark,
        "files": len(draft.files),
        "run_id": draft.run_id,
    }
    tx.append("source.Pulled", f"dataset:{version.ref}", body)
    return pull
