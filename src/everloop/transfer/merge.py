"""Takes the folder of another workspace into this one: by name, by id, by content.

Nothing that is here is overwritten, and doing it again changes nothing. What is alive in a
workspace stays its own: deployments, monitors, loops, predictions, stored results of steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Table, func, select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.lineage import LASTING
from everloop.core.run import Metric
from everloop.errors import EverloopError
from everloop.lineage.outside import joined
from everloop.ports.blobs import BlobStore
from everloop.tracking.intake import advance_counter
from everloop.tracking.places import OURS, path_within
from everloop.tracking.points import MetricWriter, point_of
from everloop.tracking.store import chunks
from everloop.transfer.merge_models import merge_models
from everloop.transfer.merge_traces import merge_traces
from everloop.transfer.merge_trees import merge_trees
from everloop.transfer.numbers import Merging, Numbers, merge_datasets
from everloop.transfer.report import Findings, TransferReport
from everloop.transfer.rows import copy_missing, counts, dicts, fresh
from everloop.transfer.source import CHUNK

__all__ = ["MERGED", "STAYS", "TOLD", "Merger"]

#: Kinds in the order of the report.
MERGED = (
    "experiment", "object", "dataset version", "dataset tag", "dataset branch", "run", "points",
    "files", "logged model", "model version", "deleted", "alias", "alias move", "protection",
    "approval", "verdict", "package", "trace", "row change", "lineage edge", "outside", "event",
)  # fmt: skip
_BATCH = 200
#: Objects up to this size are copied together.
_SMALL = 256 << 10
_ENDED = ("finished", "failed", "killed")
#: Kinds of events that stay true here. What happened to names there did not happen here; moves of
#: aliases come as moves that were merged.
TOLD = (
    "run.Started", "run.Finished", "run.Failed", "run.Resumed", "run.Lost", "run.Deleted",
    "run.Restored", "run.Imported", "dataset.VersionCommitted", "dataset.RowsChanged",
    "dataset.BranchCommitted", "dataset.RowsReleased", "dataset.WorkAdded", "dataset.WorkClosed",
    "dataset.WorkDismissed", "dataset.Described", "dataset.PersonalTagged", "dataset.MaskSet",
    "logged_model.Created", "logged_model.Ready", "logged_model.Failed", "logged_model.Deleted",
    "logged_model.Imported", "model.Registered", "model.VersionImported", "model.CardWritten",
    "model.ReferenceSet", "model.StageChanged", "model.VersionApproved", "model.ApprovalWithdrawn",
    "verdict.Given", "package.Built", "package.Imported", "trace.Deleted", "feature.Applied",
    "lineage.Reported", "ci.Finished",
)  # fmt: skip
_SERVES = "what is served, and by whom, is a matter of its workspace"
_WATCHES = "what is watched belongs to a deployment, which stays"
#: Tables whose rows are not merged, and why; all others are.
STAYS = {
    "cursors": "how far readers of that event log have come",
    "leases": "who holds what there",
    "object_store": "objects are kept where this workspace keeps its own",
    "principals": "who may do what is decided here",
    "tokens": "what people and programs log in with opens their own workspace alone",
    "memos": "results of steps are found again by running them; they may name what is not here",
    "deployments": _SERVES,
    "deployment_workers": _SERVES,
    "rollouts": _SERVES,
    "prediction_segments": _SERVES,
    "label_batches": _SERVES,
    "monitors": _WATCHES,
    "summaries": _WATCHES,
    "monitor_windows": _WATCHES,
    "alerts": _WATCHES,
    "loops": "a loop that runs there must not run twice",
    "data_sources": "what is pulled, and how far it was read, is a matter of that workspace",
    "source_files": "how far files were read, as for data sources",
    "automations": "what happens by itself there must not happen twice",
    "firings": "what a loop did there",
    "package_environments": "which package is in production is decided here",
    "watched_files": "the files of that machine",
    "run_approvals": "what waits there is answered there",
    "hook_deliveries": "what was delivered there",
    "erasures": "what was erased there was erased there; its receipts are signed by its key",
    "erased_objects": "as erasures",
    "holds": "what must stay is decided here",
    "retention_rules": "how long versions stay is decided here",
    "webhooks": "their secrets are sealed there, and an address can be a secret itself",
    "webhook_deliveries": "what is still to be told is told there",
}
#: Of those, what a person would look for.
_LEFT = ("deployments", "loops", "monitors", "prediction_segments", "label_batches", "webhooks")
_OF_RUNS = (
    tables.run_params, tables.run_tags, tables.run_outputs, tables.run_inputs,
    tables.run_model_inputs,
)  # fmt: skip


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
            merge_trees(there, self._there_blobs, self._here_blobs, self._missing, self._findings)
            tell("objects are here")
            with self._here.write() as here:
                self._merge_experiments(there, here)
                merge_datasets(self._merging(there, here))
                self._merge_features(there, here)
            self._merge_runs(there, tell)
            merge_traces(
                there,
                self._here,
                self._experiments,
                self._numbers,
                self._missing,
                self._findings,
                tell,
            )
            with self._here.write() as here:
                self._merge_logged_models(there, here)
                self._merge_files(there, here)
                merge_models(self._merging(there, here))
                self._merge_verdicts(there, here)
                self._merge_packages(there, here)
                self._merge_ledger(there, here)
                self._merge_edges(there, here)
                self._merge_outside(there, here)
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
        with self._here.read() as here:  # what was erased here does not come back from there
            erased = {row.digest for row in here.all(select(tables.erased_objects.c.digest))}
        self._missing |= erased
        apart |= erased
        listed = there.all(select(tables.objects).order_by(tables.objects.c.digest))
        for batch in chunks([row for row in listed if row.digest not in apart], _BATCH):
            self._findings.add("object", found=len(batch))
            digests = [row.digest for row in batch]
            table = tables.objects
            with self._here.read() as here:
                query = select(table.c.digest).where(table.c.digest.in_(digests))
                known = {row.digest for row in here.all(query)}
            gone = set(self._here_blobs.keep_many(sorted(known)))
            news = [row for row in batch if row.digest not in known or row.digest in gone]
            packed = self._take_small([row for row in news if row.size <= _SMALL])
            rest = [row for row in news if row.digest not in packed]
            taken = [row for row in news if row.digest in packed]
            taken += [row for row in rest if self._take_object(row.digest, row.size)]
            named = [row for row in taken if row.digest not in known]
            if named:
                with self._here.write(ordered=False) as here:
                    here.insert_missing(table, [dict(row._mapping) for row in named])
            self._findings.add("object", imported=len(taken), there=len(batch) - len(news))

    def _take_small(self, rows: Sequence[Any]) -> set[str]:
        """Copy objects together; those that came. What is wrong with one is told one by one."""
        try:
            data = self._there_blobs.get_many([row.digest for row in rows])
        except EverloopError:
            return set()
        stored = self._here_blobs.put_many(data)
        came = {digest for digest, size in stored if (digest, size) in set(map(tuple, rows))}
        self._findings.bytes += sum(size for digest, size in stored if digest in came)
        return came

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
        known = {row["name"]: row for row in dicts(here, select(table))}
        taken = {row["pk"] for row in known.values()}
        rows = dicts(there, select(table).order_by(table.c.pk))
        for row in rows:
            name, found = row["name"], known.get(row["name"])
            if found is None:
                values = dict(row)
                if row["pk"] in taken:
                    del values["pk"]
                pk = int(here.scalar(table.insert().values(values).returning(table.c.pk)))
                advance_counter(here)
                taken.add(pk)
            else:
                pk = found["pk"]
                tags = row["tags"] | found["tags"]
                if tags != found["tags"]:
                    here.execute(table.update().where(table.c.pk == pk).values(tags=tags))
            self._experiments[row["pk"]] = pk
            self._numbers.folders[str(row["pk"])] = str(pk)
            if pk != row["pk"]:
                self._findings.note(f"experiment {name!r}: id {row['pk']} is {pk} here")
            self._findings.count("experiment", 1, found is None)
        for row in rows:
            if row["location"] or known.get(row["name"], row)["location"]:
                self._place(here, row, known.get(row["name"]))

    def _place(self, here: Transaction, row: dict[str, Any], found: dict[str, Any] | None) -> None:
        """Let an experiment's artifacts lie where its clients look for them here."""
        table, pk = tables.experiments, self._experiments[row["pk"]]
        path = path_within(row["location"] or f"{OURS}{row['pk']}")
        if found is None:
            # Its folder may be within one of an experiment that has another id here.
            uri = self._numbers.uri(row["location"])
            if uri != row["location"]:
                here.execute(table.update().where(table.c.pk == pk).values(location=uri))
            return
        target = path_within(found["location"] or f"{OURS}{pk}")
        if path is not None:
            self._numbers.folders[path] = str(pk) if target is None else target
        if row["location"] != found["location"] and (path is None or target is None):
            shown = [item["location"] or "in the workspace" for item in (row, found)]
            self._findings.note(
                f"artifacts of experiment {row['name']!r} are at {shown[0]} there and at {shown[1]}"
                " here; what lies outside of the workspaces is where it was"
            )

    def _merge_features(self, there: Transaction, here: Transaction) -> None:
        definitions, names = tables.feature_definitions, tables.feature_names
        copy_missing(here, definitions, dicts(there, select(definitions)))
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
        for row in dicts(there, select(tables.verdicts)):
            candidate = self._numbers.models.get((row["model"], row["candidate"]))
            if candidate is not None:
                champion = self._numbers.models.get((row["model"], row["champion"]), 0)
                rows.append(row | {"candidate": candidate, "champion": champion})
        news = fresh(here, tables.verdicts, rows)
        copy_missing(here, tables.verdicts, news)
        self._findings.count("verdict", len(rows), len(news))

    def _merge_packages(self, there: Transaction, here: Transaction) -> None:
        table = tables.packages
        rows = dicts(there, select(table))
        for row in rows:
            if self._missing & {row["digest"], row["code"]}:
                self._findings.fail("package", row["digest"], "an object of it is missing")
        whole = [row for row in rows if not self._missing & {row["digest"], row["code"]}]
        known = {row.digest for row in here.all(select(table.c.digest))}
        copy_missing(here, table, whole)
        news = [row for row in whole if row["digest"] not in known]
        self._findings.count("package", len(whole), len(news))

    def _merge_ledger(self, there: Transaction, here: Transaction) -> None:
        table = tables.row_changes
        names = [column.name for column in table.columns if column.name != "pk"]
        wanted = ("scope", "dataset", "rule", "action", "detail")
        known = {tuple(row) for row in here.all(select(*[table.c[name] for name in wanted]))}
        for row in dicts(there, select(*[table.c[name] for name in names]).order_by(table.c.pk)):
            scope = self._numbers.subject(row["scope"])
            told = row | {"scope": scope}
            is_told = tuple(told[name] for name in wanted) in known
            if row["detail"] in self._missing:
                reason = f"its object {row['detail']} is missing"
                self._findings.fail("row change", f"{row['scope']} {row['rule']}", reason)
            elif scope:
                if not is_told:
                    here.execute(table.insert().values(told))
                self._findings.count("row change", 1, not is_told)

    def _merge_edges(self, there: Transaction, here: Transaction) -> None:
        rows = []
        for row in dicts(there, select(tables.lineage_edges)):
            source = self._numbers.subject(row["source"])
            target = self._numbers.subject(row["target"])
            # A deployment of this name here is another one.
            is_ours = source.startswith(LASTING) or target.startswith(LASTING)
            if source and target and not is_ours:
                rows.append(row | {"source": source, "target": target})
        before = here.scalar(select(func.count()).select_from(tables.lineage_edges))
        copy_missing(here, tables.lineage_edges, rows)
        after = here.scalar(select(func.count()).select_from(tables.lineage_edges))
        self._findings.count("lineage edge", len(rows), after - before)

    def _merge_outside(self, there: Transaction, here: Transaction) -> None:
        """What OpenLineage told there of datasets, jobs and runs: of each facet the newer."""
        table, news = tables.externals, 0
        for part in chunks(dicts(there, select(table)), 1000):
            query = select(table).where(table.c.ref.in_([row["ref"] for row in part]))
            known = {row["ref"]: row for row in dicts(here, query)}
            rows = []
            for row in part:
                found = known.get(row["ref"])
                after = row if found is None else joined(found, row)
                if after != found:
                    rows.append(after)
            here.upsert(table, rows, ["ref"])
            news += len(rows)
            self._findings.add("outside", found=len(part))
        self._findings.add("outside", imported=news)

    def _merge_events(self, there: Transaction, here: Transaction) -> None:
        table = tables.events
        query = select(table).where(table.c.kind.in_(TOLD)).order_by(table.c.seq)
        for batch in chunks(dicts(there, query), 1000):
            rows = []
            for row in batch:
                subject = self._numbers.subject(row["subject"])
                if subject:
                    body = self._numbers.body(row["kind"], row["subject"], subject, row["body"])
                    rows.append({**row, "subject": subject, "body": body})
            news = fresh(here, table, rows)
            for row in news:
                del row["seq"]  # its place in the log is its own here
            if news:
                here.execute(table.insert(), news)
            self._findings.count("event", len(rows), len(news))

    # Runs

    def _merge_runs(self, there: Transaction, tell: Callable[[str], None]) -> None:
        table, last = tables.runs, 0
        while batch := dicts(
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
        news = []
        for row in batch:
            found = known.get(row["id"])
            if found is None:
                pk = self._experiments[row["experiment_pk"]]
                news.append({k: v for k, v in row.items() if k != "pk"} | {"experiment_pk": pk})
            elif found.state not in _ENDED and row["state"] in _ENDED:
                names = ("state", "ended_at", "error", "arguments", "fence", "lease_until")
                ended = {name: row[name] for name in names}
                here.execute(table.update().where(table.c.pk == found.pk).values(ended))
        if news:
            here.execute(table.insert(), news)
        self._findings.count("run", len(batch), len(news))
        pks = {row.id: row.pk for row in here.all(query)}
        return {row["pk"]: pks[row["id"]] for row in batch}

    def _merge_details(
        self,
        there: Transaction,
        here: Transaction,
        pks: dict[int, int],
        batch: list[dict[str, Any]],
    ) -> None:
        ids = {pks[row["pk"]]: row["id"] for row in batch}
        for table in _OF_RUNS:
            rows = [
                row | {"run_pk": pks[row["run_pk"]]}
                for row in dicts(there, select(table).where(table.c.run_pk.in_(list(pks))))
            ]
            if table is tables.run_inputs:
                rows = [self._numbers.read(row) for row in rows]
            copy_missing(here, table, rows)
            self._verify(here, table, rows, ids)
            if table is tables.run_params:
                self._refuse_changed(here, rows, ids)
        steps = tables.step_runs
        of_batch = select(steps).where(steps.c.run_id.in_(list(ids.values())))
        copy_missing(here, steps, dicts(there, of_batch))

    def _verify(
        self, here: Transaction, table: Table, rows: list[dict[str, Any]], ids: dict[int, str]
    ) -> None:
        """Count what is here of each run against what was to come."""
        wanted = Counter(row["run_pk"] for row in rows)
        found = counts(here, table, "run_pk", list(wanted))
        for pk, count in wanted.items():
            if found.get(pk, 0) < count:
                reason = f"{count} rows of {table.name} are there, {found.get(pk, 0)} came"
                self._findings.fail("run", ids[pk], reason)

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
        wanted = counts(there, table, "run_pk", list(pks))
        known = counts(here, table, "run_pk", list(pks.values()))
        names = {row.pk: row.name for row in there.all(select(tables.metric_keys))}
        for pk, count in wanted.items():
            target = pks[pk]
            if known.get(target, 0) != count:
                self._copy_points(there, here, pk, target, names)
        now = counts(here, table, "run_pk", list(pks.values()))
        for pk, count in wanted.items():
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
            for row in dicts(there, select(table))
        ]
        news = fresh(here, table, rows)
        copy_missing(here, table, news)
        self._findings.count("logged model", len(rows), len(news))
        known = {row.id: row for row in here.all(select(table.c.id, table.c.status, table.c.tags))}
        for row in rows:
            found = known[row["id"]]
            changes = {}
            if found.status == "pending" and row["status"] != "pending":
                changes = {name: row[name] for name in ("status", "params", "updated_at")}
            if row["tags"] | found.tags != found.tags:
                changes["tags"] = row["tags"] | found.tags
            if changes:
                here.execute(table.update().where(table.c.id == row["id"]).values(changes))
        metrics = tables.logged_model_metrics
        copy_missing(here, metrics, dicts(there, select(metrics)))

    def _merge_files(self, there: Transaction, here: Transaction) -> None:
        """Paths of files: of two at one path the later one counts, whichever is merged first."""
        table = tables.artifacts
        for batch in chunks(dicts(there, select(table).order_by(table.c.path)), 1000):
            rows = [row | {"path": self._numbers.path(row["path"])} for row in batch]
            query = select(table).where(table.c.path.in_([row["path"] for row in rows]))
            known = {row.path: row for row in here.all(query)}
            lost = [row for row in rows if row["digest"] in self._missing]
            for row in lost:
                self._findings.fail("files", row["path"], f"its object {row['digest']} is missing")
            news = [
                row
                for row in rows
                if row["digest"] not in self._missing
                and (
                    row["path"] not in known
                    or (known[row["path"]].created_at, known[row["path"]].digest)
                    < (row["created_at"], row["digest"])
                )
            ]
            here.upsert(table, news, ["path"])
            self._findings.add("files", found=len(rows), imported=len(news))
            self._findings.add("files", there=len(rows) - len(news) - len(lost))

    def _note_left(self, there: Transaction) -> None:
        for name in _LEFT:
            table = tables.metadata.tables[name]
            count = there.scalar(select(func.count()).select_from(table))
            if count:
                what = name.replace("_", " ")
                self._findings.note(f"{count} {what} are not merged: {STAYS[name]}")
        hooks = tables.webhooks
        for row in there.all(select(hooks.c.name).order_by(hooks.c.id)):
            self._findings.note(f"webhook {row.name!r} is to be made here anew, with its secret")
