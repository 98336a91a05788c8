"""PredictionService: the log of what was answered, and the labels that arrive later.

Both are Parquet objects with a row each in the catalog: predictions in segments sorted by id,
labels in batches. A segment is never changed, so a reader needs no lock. The log outlives its
deployment and takes what any server sends.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import ColumnElement, Table, collate, func, select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.edges import link, link_all
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.ids import new_id
from everloop.core.predict import LabelBatch, Prediction, PredictionSegment
from everloop.core.time import utc
from everloop.deployment import segments as files
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import BlobStore, HasPaths

__all__ = ["PredictionService"]

_MIN_PREFIX = 8
_Kept = TypeVar("_Kept", PredictionSegment, LabelBatch)
_TABLES: dict[type, Table] = {
    PredictionSegment: tables.prediction_segments,
    LabelBatch: tables.label_batches,
}
# What `read` adds for the label.
_OF_LABELS = ("label", "label_at")


class PredictionService(Service):
    """Keeps predictions and labels of each deployment and joins them."""

    area = "predictions"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    # --- writing ------------------------------------------------------------------------------

    @action("prediction:write", on="deployment")
    def log(self, deployment: str, rows: pa.Table) -> PredictionSegment:
        """Keep predictions; those whose id is known already are left out, so a retry is safe.

        Args:
            rows: ``id``, ``at`` (timestamp), ``version`` and ``value``; optional ``request_id``,
                ``revision``, ``arm``, ``latency_us`` (of a call of several rows its time divided
                by them: a mean, and not what a row waited), ``error``, ``request`` (JSON text);
                features as ``f.<name>``, when the values of a view had become known as
                ``t.<view>``. A naive timestamp is UTC. A row without value says why in ``error``.

        Returns:
            The segment; where every id was known, the one that holds the first of them.

        Raises:
            InvalidInput: With every fault; nothing is kept then.
        """
        table = files.conform_predictions(rows)
        while True:
            with self._catalog.read() as tx:
                near = self._overlapping(tx, deployment, table)
            fresh, holder = self._without_known(table, near)
            if fresh.num_rows == 0 and holder is not None:
                return holder
            digest, size = self._blobs.put(files.to_parquet(fresh))
            with self._catalog.write() as tx:
                # Somebody may have logged some of these ids while we looked and wrote.
                if self._overlapping(tx, deployment, table) == near:
                    return self._insert_segment(tx, deployment, fresh, digest, size)

    @action("label:write", on="deployment")
    def labels(self, deployment: str, rows: pa.Table) -> LabelBatch:
        """Keep labels; they may come before their predictions, twice, and be revised.

        Args:
            rows: ``request_id`` (or the prediction's id where the request had none), ``label``
                (number) and ``known_at`` (timestamp; naive is UTC): when the truth became known.
                Of several for a request the one known last counts.

        Returns:
            The batch; the one there is if the same rows were sent before.

        Raises:
            InvalidInput: With every fault; nothing is kept then.
        """
        table = files.conform_labels(rows)
        digest, size = self._blobs.put(files.to_parquet(table))
        batches = tables.label_batches
        same = select(batches).where(batches.c.deployment == deployment, batches.c.digest == digest)
        with self._catalog.write() as tx:
            row = tx.first(same)
            if row is not None:
                return LabelBatch(**row._asdict())
            _record_object(tx, digest, size)
            first, last = _range(table, "known_at")
            batch = LabelBatch(
                id=new_id(),
                deployment=deployment,
                digest=digest,
                rows=table.num_rows,
                from_at=first,
                to_at=last,
                created_at=tx.now,
            )
            tx.execute(batches.insert().values(msgspec.structs.asdict(batch)))
            link(tx, f"deployment:{deployment}", f"labels:{batch.id}", "labelled")
            tx.append("labels.Logged", f"labels:{batch.id}", _told(batch))
            return batch

    # --- reading ------------------------------------------------------------------------------

    @action("prediction:read", on="deployment")
    def segments(
        self, deployment: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[PredictionSegment]:
        """The segments that hold predictions for times in [since, until), oldest first."""
        with self._catalog.read() as tx:
            return self._between(tx, PredictionSegment, deployment, since, until)

    @action("prediction:read", on="deployment")
    def label_batches(
        self, deployment: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[LabelBatch]:
        """The batches with labels that became known in [since, until), in order of arrival."""
        with self._catalog.read() as tx:
            return self._batches(tx, deployment, since, until)

    @action("prediction:read", on="deployment")
    def read(
        self,
        deployment: str,
        *,
        since: datetime,
        until: datetime,
        labelled: bool = False,
        columns: list[str] | None = None,
        as_of: datetime | None = None,
        logged_since: datetime | None = None,
    ) -> pa.Table:
        """The predictions for times in [since, until), one row each, by time and id.

        Args:
            labelled: Add ``label`` and ``label_at``, null where no label is known. A label that
                became known more than a day before the time of the prediction is not its label.
            columns: Only these, each once (and the two of the label, which come last).
            as_of: Labels that became known later are not shown: for replaying the past without
                looking ahead. None shows all.
            logged_since: Only segments logged at that time or later, whatever times their
                predictions are for. None is all.

        Raises:
            NotFound: If there is neither such a deployment nor predictions of it, or no such
                column.
            InvalidInput: If `since` is after `until`.
        """
        since, until = utc(since), utc(until)
        if since > until:
            raise InvalidInput(f"since {since.isoformat()} is after until {until.isoformat()}")
        with self._catalog.read() as tx:
            found = self._between(tx, PredictionSegment, deployment, since, until)
            if logged_since is not None:
                found = [one for one in found if one.created_at >= utc(logged_since)]
            batches = self._label_batches_for(tx, deployment, since, as_of) if labelled else []
        if not found:
            return _empty(columns, labelled)
        rows = files.scan(self._sources(found))
        inside = (pl.col("at") >= files.instant(since)) & (pl.col("at") < files.instant(until))
        rows = rows.filter(inside).sort("at", "id")
        names = rows.collect_schema().names()
        if columns is not None:
            names = [n for n in dict.fromkeys(columns) if not (labelled and n in _OF_LABELS)]
            needed = {*names, *(("id", "request_id", "at") if labelled else ("id", "at"))}
            rows = files.pick(rows, sorted(needed))
        if labelled:
            rows = files.join_labels(rows, self._sources(batches), _utc(as_of))
            names += _OF_LABELS
        return files.to_arrow(rows.select(names).collect())

    @action("prediction:read", on="prediction_id")
    def get(self, prediction_id: str) -> Prediction:
        """One prediction with its label, by id or by the first letters of it, at least 8.

        Raises:
            NotFound: If there is no such prediction.
            InvalidInput: If several begin so, or fewer than 8 letters are given.
        """
        if len(prediction_id) < _MIN_PREFIX:
            raise InvalidInput(
                f"{prediction_id!r} is too short to find a prediction by",
                hint=f"give the id, or at least {_MIN_PREFIX} letters of its beginning",
            )
        tries = (prediction_id, prediction_id.upper()) if prediction_id.isprintable() else ()
        for wanted in dict.fromkeys(tries):
            for exact in (True, False):
                found = self._find(wanted, exact)
                if found is not None:
                    return found
        raise NotFound(
            f"no prediction {prediction_id!r}",
            hint="ids come with each answer; a prediction is logged about a second later",
        )

    @action("prediction:read", on="deployment")
    def count(self, deployment: str) -> dict[str, int]:
        """How many predictions in how many segments, labels (revisions too) and batches."""
        with self._catalog.read() as tx:
            self._check_known(tx, deployment)
            counts: dict[str, int] = {}
            for table, rows, objects in (
                (tables.prediction_segments, "predictions", "segments"),
                (tables.label_batches, "labels", "label_batches"),
            ):
                query = select(func.coalesce(func.sum(table.c.rows), 0), func.count())
                total, number = tuple(tx.all(query.where(table.c.deployment == deployment))[0])
                counts |= {rows: int(total), objects: int(number)}
            return counts

    # --- inside -------------------------------------------------------------------------------

    def _overlapping(
        self, tx: Transaction, deployment: str, table: pa.Table
    ) -> list[PredictionSegment]:
        """The segments whose range of ids meets that of `table`, which is sorted by id."""
        ids = table.column("id")
        where = _meets(tx, ids[0].as_py(), ids[-1].as_py())
        segments = tables.prediction_segments
        query = select(segments).where(segments.c.deployment == deployment, *where)
        rows = tx.all(query.order_by(segments.c.id))
        return [PredictionSegment(**row._asdict()) for row in rows]

    def _without_known(
        self, table: pa.Table, near: list[PredictionSegment]
    ) -> tuple[pa.Table, PredictionSegment | None]:
        """The rows whose ids no segment in `near` holds, and one that holds ids of `table`."""
        holder = None
        for segment in near:
            known = files.scan(self._sources([segment])).select("id").collect()
            taken = pc.is_in(
                table.column("id"), value_set=known.to_arrow().column("id").cast("string")
            )
            if pc.any(taken).as_py():
                table, holder = table.filter(pc.invert(taken)), holder or segment
            if table.num_rows == 0:
                break
        return table, holder

    def _insert_segment(
        self, tx: Transaction, deployment: str, table: pa.Table, digest: str, size: int
    ) -> PredictionSegment:
        _record_object(tx, digest, size)
        first, last = _range(table, "at")
        segment = PredictionSegment(
            id=new_id(),
            deployment=deployment,
            digest=digest,
            rows=table.num_rows,
            from_at=first,
            to_at=last,
            first_id=table.column("id")[0].as_py(),
            last_id=table.column("id")[-1].as_py(),
            created_at=tx.now,
        )
        tx.execute(tables.prediction_segments.insert().values(msgspec.structs.asdict(segment)))
        self._link_segment(tx, segment, table)
        tx.append("predictions.Logged", f"segment:{segment.id}", _told(segment))
        return segment

    def _link_segment(self, tx: Transaction, segment: PredictionSegment, table: pa.Table) -> None:
        subject, name = f"segment:{segment.id}", segment.deployment
        link(tx, f"deployment:{name}", subject, "answered")
        model = tx.scalar(
            select(tables.deployments.c.model).where(tables.deployments.c.name == name)
        )
        if model is not None:  # else another server answered, with versions that we do not know
            versions = pc.unique(table.column("version")).to_pylist()
            link_all(tx, [f"model:{model}/{v}" for v in versions if v], subject, "answered")

    def _between(
        self,
        tx: Transaction,
        kind: type[_Kept],
        deployment: str,
        since: datetime | None,
        until: datetime | None,
    ) -> list[_Kept]:
        """The segments or batches that reach into [since, until), oldest first."""
        self._check_known(tx, deployment)
        table = _TABLES[kind]
        query = select(table).where(table.c.deployment == deployment)
        if since is not None:
            query = query.where(table.c.to_at >= utc(since))
        if until is not None:
            query = query.where(table.c.from_at < utc(until))
        rows = tx.all(query.order_by(table.c.from_at, table.c.id))
        return [kind(**row._asdict()) for row in rows]

    def _batches(
        self, tx: Transaction, deployment: str, since: datetime | None, until: datetime | None
    ) -> list[LabelBatch]:
        """The batches in order of arrival."""
        found = self._between(tx, LabelBatch, deployment, since, until)
        return sorted(found, key=lambda batch: batch.id)

    def _label_batches_for(
        self, tx: Transaction, deployment: str, since: datetime, as_of: datetime | None
    ) -> list[LabelBatch]:
        earliest = datetime.min.replace(tzinfo=UTC) + files.LABEL_SLACK
        found = self._batches(tx, deployment, max(since, earliest) - files.LABEL_SLACK, None)
        return [batch for batch in found if as_of is None or batch.from_at <= utc(as_of)]

    def _check_known(self, tx: Transaction, deployment: str) -> None:
        for table in _TABLES.values():
            query = select(table.c.id).where(table.c.deployment == deployment).limit(1)
            if tx.first(query) is not None:
                return
        names = [row.name for row in tx.all(select(tables.deployments.c.name))]
        if deployment not in names:
            raise NotFound.named("deployment", deployment, names)

    def _sources(
        self, found: Sequence[PredictionSegment] | Sequence[LabelBatch]
    ) -> list[files.Source]:
        if isinstance(self._blobs, HasPaths):
            return [self._blobs.path(one.digest) for one in found]
        return [io.BytesIO(self._blobs.get(one.digest)) for one in found]

    def _find(self, wanted: str, exact: bool) -> Prediction | None:
        """The one prediction whose id is, or begins with, `wanted`."""
        segments = tables.prediction_segments
        with self._catalog.read() as tx:
            where = _meets(tx, wanted, wanted, prefix=not exact)
            rows = tx.all(select(segments).where(*where).order_by(segments.c.id))
        name = pl.col("id")
        matches = name == wanted if exact else name.str.starts_with(wanted)
        found = []
        for row in rows:
            segment = PredictionSegment(**row._asdict())
            ids = files.scan(self._sources([segment])).filter(matches).select("id").collect()
            found += [(id_, segment) for id_ in ids["id"].to_list()]
        if len(found) > 1 and not exact:
            shown = ", ".join([*(id_ for id_, _ in found[:3]), *(["..."] if found[3:] else [])])
            raise InvalidInput(
                f"{len(found)} predictions begin with {wanted!r}: {shown}",
                hint="give more letters",
            )
        return self._prediction(*found[0]) if found else None

    def _prediction(self, id_: str, segment: PredictionSegment) -> Prediction:
        rows = files.scan(self._sources([segment])).filter(pl.col("id") == id_)
        at = rows.select("at").collect().item()
        with self._catalog.read() as tx:
            batches = self._label_batches_for(tx, segment.deployment, at, None)
        row = files.join_labels(rows, self._sources(batches), None).collect().row(0, named=True)
        plain = ("id", "request_id", "at", "version", "revision", "arm", "label", "label_at")
        return Prediction(
            **{name: row[name] for name in plain},
            deployment=segment.deployment,
            value=math.nan if row["value"] is None else row["value"],
            request=_request(row["request"]),
            features={name[2:]: _plain(row[name]) for name in row if name.startswith("f.")},
            times={name[2:]: row[name] for name in row if name.startswith("t.")},
        )


def _meets(
    tx: Transaction, first: str, last: str, *, prefix: bool = False
) -> tuple[ColumnElement[bool], ...]:
    """Conditions on segments that may hold ids from `first` to `last` (or that begin so)."""
    table = tables.prediction_segments
    lowest: ColumnElement[str] = table.c.first_id
    highest: ColumnElement[str] = table.c.last_id
    if tx.dialect == "postgresql":
        # By code point, as Arrow sorted them, whatever language the database speaks.
        lowest, highest = collate(lowest, "C"), collate(highest, "C")
    if prefix:
        last += "\U0010ffff"
    return (lowest <= last, highest >= first)


def _record_object(tx: Transaction, digest: str, size: int) -> None:
    row = {"digest": digest, "size": size, "created_at": tx.now}
    tx.insert_new(tables.objects, row)


def _range(table: pa.Table, column: str) -> tuple[datetime, datetime]:
    found = pc.min_max(table.column(column)).as_py()
    return utc(found["min"]), utc(found["max"])


def _told(one: PredictionSegment | LabelBatch) -> dict[str, Any]:
    return {
        "deployment": one.deployment,
        "rows": one.rows,
        "from_at": one.from_at,
        "to_at": one.to_at,
        "digest": one.digest,
    }


def _empty(columns: list[str] | None, labelled: bool) -> pa.Table:
    types: dict[str, pa.DataType] = {}
    for name in columns if columns is not None else files.PREDICTION_COLUMNS:
        kind = files.column_type(name, pa.float64())
        if kind is None:
            raise NotFound.named("column of the predictions", name, files.PREDICTION_COLUMNS)
        types[name] = kind
    if labelled:
        types |= {"label": pa.float64(), "label_at": files.INSTANT}
    return pa.schema(list(types.items())).empty_table()


def _request(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"raw": text}


def _plain(value: Any) -> Any:
    # JSON has no NaN; for a feature it means missing all the same.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else utc(at)
