"""Takes the folder of another workspace into this one: by name, by id, by content.

Nothing that is here is overwritten, and doing it again changes nothing. What is alive in a
workspace stays its own: deployments, monitors, loops, predictions, stored results of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Table, func, select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog, Transaction
from everloop.core.run import Metric
from everloop.errors import EverloopError
from everloop.ports.blobs import BlobStore
from everloop.tracking.intake import advance_counter
from everloop.tracking.points import MetricWriter, point_of
from everloop.tracking.store import chunks
from everloop.transfer.numbers import Merging, Numbers, merge_datasets, merge_models
from everloop.transfer.report import Findings, TransferReport
from everloop.transfer.source import CHUNK

__all__ = ["MERGED", "Merger"]

#: Kinds in the order of the report.
MERGED = (
    "experiment", "object", "dataset version", "run", "points", "files", "logged model",
    "model version", "alias", "verdict", "event",
)  # fmt: skip
_BATCH = 200
_ENDED = ("finished", "failed", "killed")
_PATH = re.compile(r"(\d+)/(.*)", re.DOTALL)
#: Facts that stay true here; what happened to names and aliases there did not happen here.
_TOLD = (
    "run.Started", "run.Finished", "run.Failed", "run.Resumed", "run.Lost", "run.Deleted",
    "run.Restored", "run.Imported", "dataset.VersionCommitted", "dataset.RowsChanged",
    "logged_model.Created", "logged_model.Ready", "logged_model.Failed", "logged_model.Deleted",
    "logged_model.Imported", "model.Registered", "model.VersionImported", "model.CardWritten",
    "model.ReferenceSet", "verdict.Given",
)  # fmt: skip
_LEFT = ("deployments", "loops", "monitors", "prediction_segments", "label_batches")


class Merger:
    """One merge of the catalog `there` into the catalog `here`.

    Args:
        origin: Where it comes from, for notes and events.
        there: The other catalog, which nothing writes to meanwhile.
        there_blobs: Its objects.
        here: The catalog that takes it in.
        here_blobs: Its objects.
        findings: What happened.
    """

    def __init__(
        self,
        origin: str,
        there: Catalog,
        there_blobs: BlobStore,
        here: Catalog,
        here_blobs: BlobStore,
        findings: Findings,
    ) -> None:
        self._origin = origin
        self._source = there
        self._there_blobs = there_blobs
        self._here = here
        self._here_blobs = here_blobs
        self._findings = findings
        self._metrics = MetricWriter()
        self._missing: set[str] = set()
        self._experiments: dict[int, int] = {}
        self._numbers = Numbers()

    def run(self, tell: Callable[[str], None]) -> TransferReport:
        """Merge everything; what fails is told by name and does not stop the rest."""
        with self._source.read() as there:
            self._merge_objects(there)
            tell("objects are here")
            with self._here.write() as here:
                self._merge_experiments(there, here)
                merge_datasets(self._merging(there, here))
                self._merge_features(there, here)
            self._merge_runs(there, tell)
            with self._here.write() as here:
                self._merge_logged_models(there, here)
                self._merge_files(there, here)
                merge_models(self._merging(there, here))
                self._merge_verdicts(there, here)
                self._merge_ledger(there, here)
                self._merge_edges(there, here)
                self._merge_events(there, here)
            self._note_left(there)
        return self._findings.report(self._origin)

    def _merging(self, there: Transaction, here: Transaction) -> Merging:
        return Merging(there, here, self._numbers, self._missing, self._findings, self._origin)

    # Objects

    def _merge_objects(self, there: Transaction) -> None:
        """Copy the bytes; those of the prediction log stay with it."""
        logs = (tables.prediction_segments, tables.label_batches)
        apart = {row.digest for log in logs for row in there.all(select(log.c.digest))}
        listed = there.all(select(tables.objects).order_by(tables.objects.c.digest))
        for batch in chunks([row for row in listed if row.digest not in apart], _BATCH):
            self._findings.add("object", found=len(batch))
            digests = [row.digest for row in batch]
            table = tables.objects
            with self._here.read() as here:
                query = select(table.c.digest).where(table.c.digest.in_(digests))
                known = {row.digest for row in here.all(query)}
            fresh = [row for row in batch if not self._is_here(row.digest, row.digest in known)]
            taken = [row for row in fresh if self._take_object(row.digest, row.size)]
            named = [row for row in taken if row.digest not in known]
            if named:
                with self._here.write(ordered=False) as here:
                    here.insert_missing(table, [dict(row._mapping) for row in named])
            self._findings.add("object", imported=len(taken), there=len(batch) - len(fresh))

    def _is_here(self, digest: str, is_named: bool) -> bool:
        return is_named and self._here_blobs.keep(digest)

    def _take_object(self, digest: str, size: int) -> bool:
        """Copy one object, whose bytes are held against its name on both sides."""
        try:
            found, length = self._here_blobs.put(self._there_blobs.stream(digest))
        except EverloopError as error:
            if self._there_blobs.exists(digest) and "damaged" not in error.message:
                raise  # this side failed: a full disk stops the merge
            self._missing.add(digest)
            self._findings.fail("object", digest, error.message)
            return False
        if (found, length) != (digest, size):
            self._missing.add(digest)
            self._findings.fail("object", digest, f"{length} bytes came, {size} were said")
            return False
        self._findings.bytes += length
        return True

    # Small tables

    def _merge_experiments(self, there: Transaction, here: Transaction) -> None:
        table = tables.experiments
        known = {row.name: row.pk for row in here.all(select(table.c.name, table.c.pk))}
        taken = set(known.values())
        for row in there.all(select(table).order_by(table.c.pk)):
            is_new = row.name not in known
            if is_new:
                values = dict(row._mapping)
                if row.pk in taken:
                    del values["pk"]
                statement = table.insert().values(values).returning(table.c.pk)
                known[row.name] = int(here.scalar(statement))
                advance_counter(here)
                taken.add(known[row.name])
            self._experiments[row.pk] = known[row.name]
            if known[row.name] != row.pk:
                text = f"experiment {row.name!r}: id {row.pk} is {known[row.name]} here"
                self._findings.note(text)
            self._findings.add("experiment", found=1, imported=is_new, there=not is_new)

    def _merge_features(self, there: Transaction, here: Transaction) -> None:
        definitions, names = tables.feature_definitions, tables.feature_names
        _copy(here, definitions, _dicts(there, select(definitions)))
        known = {(row.kind, row.name): row.digest for row in here.all(select(names))}
        for row in there.all(select(names)):
            digest = known.get((row.kind, row.name))
            if digest is None:
                here.execute(names.insert().values(dict(row._mapping)))
            elif digest != row.digest:
                text = f"{row.kind} {row.name!r} is defined otherwise here; that stays"
                self._findings.note(text)

    def _merge_verdicts(self, there: Transaction, here: Transaction) -> None:
        rows = []
        for row in _dicts(there, select(tables.verdicts)):
            candidate = self._numbers.models.get((row["model"], row["candidate"]))
            if candidate is not None:
                champion = self._numbers.models.get((row["model"], row["champion"]), 0)
                rows.append(row | {"candidate": candidate, "champion": champion})
        fresh = _fresh(here, tables.verdicts, rows)
        _copy(here, tables.verdicts, fresh)
        self._count("verdict", len(rows), len(fresh))

    def _merge_ledger(self, there: Transaction, here: Transaction) -> None:
        table = tables.row_changes
        names = [column.name for column in table.columns if column.name != "pk"]
        wanted = ("scope", "dataset", "rule", "action", "detail")
        known = {tuple(row) for row in here.all(select(*[table.c[name] for name in wanted]))}
        for row in _dicts(there, select(*[table.c[name] for name in names]).order_by(table.c.pk)):
            scope = self._numbers.subject(row["scope"])
            fresh = row | {"scope": scope}
            is_told = tuple(fresh[name] for name in wanted) in known
            if scope and not is_told and row["detail"] not in self._missing:
                here.execute(table.insert().values(fresh))

    def _merge_edges(self, there: Transaction, here: Transaction) -> None:
        rows = []
        for row in _dicts(there, select(tables.lineage_edges)):
            source = self._numbers.subject(row["source"])
            target = self._numbers.subject(row["target"])
            if source and target and not target.startswith("deployment:"):
                rows.append(row | {"source": source, "target": target})
        _copy(here, tables.lineage_edges, rows)

    def _merge_events(self, there: Transaction, here: Transaction) -> None:
        table = tables.events
        query = select(table).where(table.c.kind.in_(_TOLD)).order_by(table.c.seq)
        for batch in chunks(_dicts(there, query), 1000):
            rows = []
            for row in batch:
                subject = self._numbers.subject(row["subject"])
                if subject:
                    body = self._numbers.body(row["kind"], row["subject"], subject, row["body"])
                    rows.append({**row, "subject": subject, "body": body})
            fresh = _fresh(here, table, rows)
            for row in fresh:
                del row["seq"]  # its place in the log is its own here
            if fresh:
                here.execute(table.insert(), fresh)
            self._count("event", len(rows), len(fresh))

    # Runs

    def _merge_runs(self, there: Transaction, tell: Callable[[str], None]) -> None:
        table, last = tables.runs, 0
        while batch := _dicts(
            there, select(table).where(table.c.pk > last).order_by(table.c.pk).limit(_BATCH)
        ):
            last = batch[-1]["pk"]
            with self._here.write() as here:
                pks = self._merge_heads(here, batch)
                self._merge_details(there, here, pks, batch)
                self._merge_points(there, here, pks, {row["pk"]: row["id"] for row in batch})
            tell(f"{batch[-1]['id']}: {len(batch)} runs")

    def _merge_heads(self, here: Transaction, batch: list[dict[str, Any]]) -> dict[int, int]:
        """Write the rows of runs; by the key there the key here."""
        table = tables.runs
        ids = [row["id"] for row in batch]
        query = select(table.c.id, table.c.pk, table.c.state).where(table.c.id.in_(ids))
        known = {row.id: row for row in here.all(query)}
        fresh = []
        for row in batch:
            found = known.get(row["id"])
            if found is None:
                pk = self._experiments[row["experiment_pk"]]
                fresh.append({k: v for k, v in row.items() if k != "pk"} | {"experiment_pk": pk})
            elif found.state not in _ENDED and row["state"] in _ENDED:
                names = ("state", "ended_at", "error", "arguments", "fence", "lease_until")
                ended = {name: row[name] for name in names}
                here.execute(table.update().where(table.c.pk == found.pk).values(ended))
        if fresh:
            here.execute(table.insert(), fresh)
        self._count("run", len(batch), len(fresh))
        pks = {row.id: row.pk for row in here.all(query)}
        return {row["pk"]: pks[row["id"]] for row in batch}

    def _merge_details(
        self,
        there: Transaction,
        here: Transaction,
        pks: dict[int, int],
        batch: list[dict[str, Any]],
    ) -> None:
        for table in (tables.run_params, tables.run_tags, tables.run_outputs, tables.run_inputs):
            rows = [
                row | {"run_pk": pks[row["run_pk"]]}
                for row in _dicts(there, select(table).where(table.c.run_pk.in_(list(pks))))
            ]
            if table is tables.run_inputs:
                rows = [self._numbers.read(row) for row in rows]
            _copy(here, table, rows)
            if table is tables.run_params:
                self._refuse_changed(here, rows, {pks[row["pk"]]: row["id"] for row in batch})
        steps = tables.step_runs
        ids = [row["id"] for row in batch]
        _copy(here, steps, _dicts(there, select(steps).where(steps.c.run_id.in_(ids))))

    def _refuse_changed(
        self, here: Transaction, rows: list[dict[str, Any]], ids: dict[int, str]
    ) -> None:
        table = tables.run_params
        query = select(table).where(table.c.run_pk.in_(list(ids)))
        stored = {(row.run_pk, row.key): row.value for row in here.all(query)}
        for row in rows:
            value = stored[row["run_pk"], row["key"]]
            if value != row["value"]:
                reason = f"param {row['key']!r} is {value[:80]!r} here, {row['value'][:80]!r} there"
                self._findings.fail("run", ids[row["run_pk"]], reason)

    def _merge_points(
        self, there: Transaction, here: Transaction, pks: dict[int, int], ids: dict[int, str]
    ) -> None:
        table = tables.metric_points
        counts, known = _counts(there, table, list(pks)), _counts(here, table, list(pks.values()))
        names = {row.pk: row.name for row in there.all(select(tables.metric_keys))}
        for pk, count in counts.items():
            target = pks[pk]
            if known.get(target, 0) != count:
                self._copy_points(there, here, pk, target, names)
        now = _counts(here, table, list(pks.values()))
        for pk, count in counts.items():
            before, after = known.get(pks[pk], 0), now.get(pks[pk], 0)
            self._findings.add("points", found=count, imported=after - before)
            self._findings.add("points", there=min(before, count))
            if after < count:
                self._findings.fail("points", ids[pk], f"{count} are there, {after} came")

    def _copy_points(
        self,
        there: Transaction,
        here: Transaction,
        source: int,
        target: int,
        names: dict[int, str],
    ) -> None:
        table = tables.metric_points
        rows = there.execute(select(table).where(table.c.run_pk == source))
        cursor = here.connection.connection.cursor()
        for part in rows.partitions(CHUNK):
            points: list[Metric] = [point_of(names[row.key_pk], row) for row in part]
            # Not remembered: the transaction that makes a key may yet be rolled back.
            keys = self._metrics.make_keys(here, points)
            self._metrics.write(cursor, here.dialect, target, points, keys)

    def _merge_logged_models(self, there: Transaction, here: Transaction) -> None:
        table = tables.logged_models
        rows = [
            row | {"experiment_pk": self._experiments[row["experiment_pk"]]}
            for row in _dicts(there, select(table))
        ]
        fresh = _fresh(here, table, rows)
        _copy(here, table, fresh)
        self._count("logged model", len(rows), len(fresh))
        known = {row.id: row.status for row in here.all(select(table.c.id, table.c.status))}
        for row in rows:
            if known[row["id"]] == "pending" and row["status"] != "pending":
                names = ("status", "params", "tags", "updated_at")
                done = {name: row[name] for name in names}
                here.execute(table.update().where(table.c.id == row["id"]).values(done))
        metrics = tables.logged_model_metrics
        _copy(here, metrics, _dicts(there, select(metrics)))

    def _merge_files(self, there: Transaction, here: Transaction) -> None:
        """Paths of files: of two at one path the later one counts, whichever is merged first."""
        table = tables.artifacts
        for batch in chunks(_dicts(there, select(table).order_by(table.c.path)), 1000):
            rows = [row | {"path": self._path(row["path"])} for row in batch]
            query = select(table).where(table.c.path.in_([row["path"] for row in rows]))
            known = {row.path: row for row in here.all(query)}
            lost = [row for row in rows if row["digest"] in self._missing]
            for row in lost:
                self._findings.fail("files", row["path"], f"its object {row['digest']} is missing")
            fresh = [
                row
                for row in rows
                if row["digest"] not in self._missing
                and (
                    row["path"] not in known
                    or (known[row["path"]].created_at, known[row["path"]].digest)
                    < (row["created_at"], row["digest"])
                )
            ]
            here.upsert(table, fresh, ["path"])
            self._findings.add("files", found=len(rows), imported=len(fresh))
            self._findings.add("files", there=len(rows) - len(fresh) - len(lost))

    def _path(self, path: str) -> str:
        match = _PATH.fullmatch(path)
        if match is None or int(match[1]) not in self._experiments:
            return path
        return f"{self._experiments[int(match[1])]}/{match[2]}"

    def _note_left(self, there: Transaction) -> None:
        for name in _LEFT:
            table = tables.metadata.tables[name]
            count = there.scalar(select(func.count()).select_from(table))
            if count:
                what = name.replace("_", " ")
                self._findings.note(
                    f"{count} {what} are not merged: they stay with their workspace"
                )

    def _count(self, kind: str, found: int, imported: int) -> None:
        self._findings.add(kind, found=found, imported=imported, there=found - imported)


def _dicts(tx: Transaction, query: Any) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row._mapping.items()} for row in tx.all(query)]


def _copy(here: Transaction, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose keys are free."""
    for part in chunks(rows, 1000):
        here.insert_missing(table, list(part))


def _fresh(here: Transaction, table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose ``id`` is not here."""
    known: set[str] = set()
    for part in chunks([row["id"] for row in rows]):
        known |= {row.id for row in here.all(select(table.c.id).where(table.c.id.in_(part)))}
    return [row for row in rows if row["id"] not in known]


def _counts(tx: Transaction, table: Table, pks: list[int]) -> dict[int, int]:
    query = select(table.c.run_pk, func.count().label("rows")).where(table.c.run_pk.in_(pks))
    return {row.run_pk: row.rows for row in tx.all(query.group_by(table.c.run_pk))}
