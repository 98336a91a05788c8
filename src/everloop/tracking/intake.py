"""The part of the tracking service that takes in what was tracked elsewhere.

Nothing of it is limited to what one request of a client may hold; what cannot be stored is refused
piece by piece, by name, and the rest is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select, text

from everloop.access.service import action
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import (
    artifacts,
    events,
    experiments,
    logged_models,
    metric_points,
    objects,
    run_inputs,
    run_model_inputs,
    run_outputs,
    run_params,
    run_tags,
    runs,
)
from everloop.catalog.transaction import Transaction
from everloop.core.intake import LoggedModelRecord, Refusal, RunRecord, RunSize
from everloop.core.run import Artifact, Experiment, Metric, Run, RunInput
from everloop.errors import Fault, InvalidInput
from everloop.tracking.limits import (
    MAX_NAME,
    clean_path,
    key_faults,
    metric_faults,
    text_faults,
)
from everloop.tracking.models import insert_points
from everloop.tracking.points import MetricWriter
from everloop.tracking.store import chunks, experiment_of

__all__ = ["IntakeMethods", "advance_counter", "put_artifacts", "sound_files"]

#: Clients of today cut at 6,000; older stores hold longer values, which are kept.
MAX_TEXT = 100_000
#: Ids above this are chosen at random by whoever made them; the counter need not pass them.
_COUNTED = 10**12
_ENDED = ("finished", "failed", "killed")


class IntakeMethods:
    """Taking in experiments, runs and logged models of elsewhere; twice is once."""

    _catalog: Catalog
    _metrics: MetricWriter

    @action("run:import", on="experiment")
    def take_experiment(self, experiment: Experiment) -> Experiment:
        """The experiment of this name, made as given if there is none; its id is kept if free.

        Raises:
            InvalidInput: If it cannot be named so.
        """
        faults = list(text_faults("name", experiment.name, longest=MAX_NAME, empty=False))
        for key, value in experiment.tags.items():
            faults += [*key_faults(f"tags.{key}", key), *text_faults(f"tags.{key}", value)]
        if faults:
            raise InvalidInput(f"the experiment {experiment.name[:80]!r} is wrong", faults)
        by_name = select(experiments).where(experiments.c.name == experiment.name)
        with self._catalog.write() as tx:
            row = tx.first(by_name)
            if row is None:
                values = msgspec.structs.asdict(experiment)
                pk = values.pop("id")
                wanted = int(pk) if pk.isdecimal() and pk.isascii() and len(pk) < 19 else None
                if wanted is None or not tx.insert_new(experiments, {"pk": wanted, **values}):
                    tx.execute(experiments.insert().values(values))
                advance_counter(tx)
                row = tx.first(by_name)
            assert row is not None
            return experiment_of(row)

    @action("run:read")
    def taken_runs(self, ids: list[str]) -> list[str]:
        """Those of these runs that were taken in completely, and had ended by then."""
        with self._catalog.read() as tx:
            told = _imported(tx, ids)
        return [id_ for id_ in ids if any(_is_over(stage) for stage in told.get(id_, ()))]

    @action("run:import")
    def take_runs(self, records: list[RunRecord], *, origin: str) -> list[Refusal]:
        """Take in runs in one transaction; returns what could not be taken, piece by piece.

        A run of which something was refused does not count as taken in completely.

        Args:
            records: Runs, or parts of them; a run that is here gains what it has not.
            origin: Where they come from, for the event log.
        """
        refused: list[Refusal] = []
        sound = [kept for kept in (_sound(record, refused) for record in records) if kept]
        with self._catalog.write() as tx:
            pks = _put_heads(tx, sound, refused)
            here = [record for record in sound if record.run.id in pks]
            _put_details(tx, here, pks, refused)
            keys = self._metrics.make_keys(tx, [p for record in here for p in record.points])
            cursor = tx.connection.connection.cursor()
            for record in here:
                self._metrics.write(cursor, tx.dialect, pks[record.run.id], record.points, keys)
            put_artifacts(tx, [file for record in here for file in record.artifacts])
            told = _imported(tx, list(pks))
            faulty = {refusal.name for refusal in refused if refusal.kind == "run"}
            for record in here:
                read = [{"run_pk": pks[record.run.id], "model_id": x} for x in record.models_read]
                tx.insert_missing(run_model_inputs, read)
                for model_id in record.models_read:
                    link(tx, f"logged_model:{model_id}", f"run:{record.run.id}", "read")
                if record.complete and record.run.id not in faulty:
                    body = {"origin": origin, **_stage_of(record.run)}
                    if _stage_of(record.run) not in told.get(record.run.id, []):
                        tx.append("run.Imported", f"run:{record.run.id}", body)
        self._metrics.remember(keys)
        return refused

    @action("run:read")
    def run_sizes(self, ids: list[str]) -> dict[str, RunSize]:
        """How much is here of each of these runs, for holding against where they came from."""
        found: dict[str, RunSize] = {}
        with self._catalog.read() as tx:
            for part in chunks(ids):
                rows = tx.all(select(runs.c.id, runs.c.pk).where(runs.c.id.in_(part)))
                tables = {"params": run_params, "tags": run_tags, "points": metric_points}
                pks = [row.pk for row in rows]
                counts = {name: _counts(tx, table, pks) for name, table in tables.items()}
                for row in rows:
                    sizes = {name: count.get(row.pk, 0) for name, count in counts.items()}
                    found[row.id] = RunSize(**sizes)
        return found

    @action("artifact:read")
    def find_artifacts(self, paths: list[str]) -> list[Artifact]:
        """The files that are at these paths, in no order; paths without a file are left out."""
        found: list[Artifact] = []
        query = select(artifacts.c.path, artifacts.c.digest, artifacts.c.size)
        with self._catalog.read() as tx:
            for part in chunks(paths):
                rows = tx.all(query.where(artifacts.c.path.in_(part)))
                found += [Artifact(**row._asdict()) for row in rows]
        return found

    @action("logged_model:read")
    def taken_models(self, ids: list[str]) -> list[str]:
        """Those of these logged models that are here and no longer pending."""
        found = set()
        with self._catalog.read() as tx:
            for part in chunks(ids):
                query = select(logged_models.c.id).where(
                    logged_models.c.id.in_(part), logged_models.c.status != "pending"
                )
                found |= {row.id for row in tx.all(query)}
        return [id_ for id_ in ids if id_ in found]

    @action("logged_model:import")
    def take_logged_models(self, records: list[LoggedModelRecord], *, origin: str) -> list[Refusal]:
        """Take in logged models in one transaction; returns what could not be taken."""
        refused: list[Refusal] = []
        with self._catalog.write() as tx:
            for record in records:
                model = record.model
                values = msgspec.structs.asdict(model)
                del values["metrics"]
                values["experiment_pk"] = int(values.pop("experiment"))
                values["params"] = _texts(model.id, "params", model.params, refused)
                values["tags"] = _texts(model.id, "tags", model.tags, refused)
                if record.deleted:
                    values["status"] = "deleted"
                tx.upsert(logged_models, values, ["id"])
                for run_id, points in record.points.items():
                    sound = _sound_points(f"{model.id} {run_id}".strip(), points, refused)
                    insert_points(tx, run_id, sound)
                put_artifacts(tx, sound_files(model.id, record.artifacts, refused))
                body = {"origin": origin, "run": model.source_run_id}
                tx.append("logged_model.Imported", f"logged_model:{model.id}", body)
        return refused

    @action("artifact:write")
    def link_artifacts(self, files: list[Artifact]) -> None:
        """Give objects that are in the store already their paths, over what was there.

        Raises:
            InvalidInput: If a path is not a plain relative one.
        """
        for file in files:
            clean_path(file.path)
        with self._catalog.write(ordered=False) as tx:
            put_artifacts(tx, files)


def _imported(tx: Transaction, ids: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """In which stages each of these runs was when it was taken in completely."""
    found: dict[str, list[dict[str, str]]] = {}
    for part in chunks([f"run:{id_}" for id_ in ids]):
        query = select(events.c.subject, events.c.body).where(
            events.c.kind == "run.Imported", events.c.subject.in_(part)
        )
        for row in tx.all(query):
            stage = {name: row.body[name] for name in ("state", "lifecycle")}
            found.setdefault(row.subject.removeprefix("run:"), []).append(stage)
    return found


def _stage_of(run: Run) -> dict[str, str]:
    return {"state": run.state, "lifecycle": run.lifecycle}


def _is_over(stage: dict[str, str]) -> bool:
    return stage["state"] in _ENDED or stage["lifecycle"] == "deleted"


# --- what can be stored -----------------------------------------------------------------------


def _sound(record: RunRecord, refused: list[Refusal]) -> RunRecord | None:
    """`record` without what cannot be stored; None if that is the run itself."""
    run = record.run
    head = [*text_faults("id", run.id, longest=256, empty=False)]
    head += [*text_faults("name", run.name), *text_faults("actor", run.actor)]
    if head:
        refused.append(Refusal("run", run.id[:80], "; ".join(map(str, head))))
        return None
    kept = msgspec.structs.replace(
        run,
        params=_texts(run.id, "params", run.params, refused),
        tags=_texts(run.id, "tags", run.tags, refused),
        inputs=tuple(item for item in run.inputs if _is_sound_input(run.id, item, refused)),
    )
    return msgspec.structs.replace(
        record,
        run=kept,
        points=_sound_points(run.id, record.points, refused),
        artifacts=tuple(sound_files(run.id, record.artifacts, refused)),
    )


def _texts(owner: str, what: str, values: dict[str, str], refused: list[Refusal]) -> dict[str, str]:
    kept = {}
    for key, value in values.items():
        path = f"{what}[{key[:80]!r}]"
        faults = [*key_faults(path, key), *text_faults(path, value, longest=MAX_TEXT)]
        if faults:
            refused.append(Refusal("run", owner, "; ".join(map(str, faults))))
        else:
            kept[key] = value
    return kept


def _sound_points(owner: str, points: Sequence[Metric], refused: list[Refusal]) -> list[Metric]:
    faulty: dict[str, list[Fault]] = {}
    kept = []
    checked: dict[str, bool] = {}
    for point in points:
        if point.key not in checked:
            found = list(key_faults(f"metrics[{point.key[:80]!r}]", point.key))
            checked[point.key] = not found
            faulty.setdefault(point.key, []).extend(found)
        if checked[point.key]:
            found = list(metric_faults(f"metrics[{point.key[:80]!r}]", point))
            faulty.setdefault(point.key, []).extend(found)
            if not found:
                kept.append(point)
    for faults in faulty.values():
        if faults:
            more = f" (and {len(faults) - 1} more points)" if len(faults) > 1 else ""
            refused.append(Refusal("run", owner, f"{faults[0]}{more}"))
    return kept


def _is_sound_input(owner: str, item: RunInput, refused: list[Refusal]) -> bool:
    texts = (item.dataset, item.digest, item.role, msgspec.json.encode(item.source).decode())
    faults = [fault for text_ in texts for fault in text_faults("inputs", text_)]
    refused.extend(Refusal("run", owner, str(fault)) for fault in faults[:1])
    return not faults


def sound_files(owner: str, files: Iterable[Artifact], refused: list[Refusal]) -> list[Artifact]:
    """The files whose paths can be stored; the others are refused."""
    kept = []
    for file in files:
        try:
            clean_path(file.path)
        except InvalidInput as error:
            refused.append(Refusal("artifact", file.path, f"{error.summary} (of {owner})"))
        else:
            kept.append(file)
    return kept


# --- rows -------------------------------------------------------------------------------------


def _put_heads(tx: Transaction, records: list[RunRecord], refused: list[Refusal]) -> dict[str, int]:
    """Write the rows of runs; the key of each by id. A run of an engine here is left alone."""
    heads = {record.run.id: record.run for record in records}
    ours = set()
    for part in chunks(list(heads)):
        query = select(runs.c.id).where(runs.c.id.in_(part), runs.c.pipeline != "")
        ours |= {row.id for row in tx.all(query)}
    refused.extend(Refusal("run", id_, "is a pipeline's run of this workspace") for id_ in ours)
    wanted = [run for id_, run in heads.items() if id_ not in ours]
    tx.upsert(runs, [_head(run) for run in wanted], ["id"])
    found: dict[str, int] = {}
    for ids in chunks([run.id for run in wanted]):
        query = select(runs.c.id, runs.c.pk).where(runs.c.id.in_(ids))
        found.update((row.id, row.pk) for row in tx.all(query))
    return found


def _head(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "experiment_pk": int(run.experiment),
        "name": run.name,
        "pipeline": "",
        "state": run.state,
        "code": "",
        "git": {},
        "environment": {},
        "arguments": {},
        "actor": run.actor,
        "trigger": "",
        "error": "",
        "owner": "",
        "fence": 0,
        "lease_until": None,
        "lifecycle": run.lifecycle,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }


def _put_details(
    tx: Transaction, records: list[RunRecord], pks: dict[str, int], refused: list[Refusal]
) -> None:
    heads = {pks[record.run.id]: record.run for record in records}
    params = _pairs({pk: run.params for pk, run in heads.items()})
    if params:
        tx.insert_missing(run_params, params)
        refused += _changed(tx, heads)
    tx.upsert(run_tags, _pairs({pk: run.tags for pk, run in heads.items()}), ["run_pk", "key"])
    inputs = [
        {"run_pk": pk, **msgspec.structs.asdict(item)}
        for pk, run in heads.items()
        for item in run.inputs
    ]
    if inputs:
        tx.insert_missing(run_inputs, inputs)
    outputs = [
        {"run_pk": pk, "model_id": item.model_id, "step": item.step}
        for pk, run in heads.items()
        for item in run.outputs
    ]
    tx.upsert(run_outputs, outputs, ["run_pk", "model_id"])


def _pairs(values: dict[int, dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {"run_pk": pk, "key": key, "value": value}
        for pk, texts in values.items()
        for key, value in texts.items()
    ]


def _changed(tx: Transaction, heads: dict[int, Run]) -> list[Refusal]:
    """Parameters that have another value here already; they never change."""
    found = []
    for part in chunks(list(heads)):
        for row in tx.all(select(run_params).where(run_params.c.run_pk.in_(part))):
            run = heads[row.run_pk]
            given = run.params.get(row.key, row.value)
            if given != row.value:
                reason = f"params[{row.key!r}]: is {row.value[:80]!r} here, {given[:80]!r} there"
                found.append(Refusal("run", run.id, reason))
    return found


def put_artifacts(tx: Transaction, files: Sequence[Artifact]) -> None:
    """Give objects that are in the store their paths, over what was there."""
    if not files:
        return
    stored = {file.digest: file.size for file in files}
    tx.insert_missing(
        objects,
        [{"digest": d, "size": size, "created_at": tx.now} for d, size in stored.items()],
    )
    # The last of equal paths counts: PostgreSQL refuses to touch a row twice in a statement.
    linked = {file.path: file for file in files}
    rows = [
        {"path": path, "digest": file.digest, "size": file.size, "created_at": tx.now}
        for path, file in linked.items()
    ]
    tx.upsert(artifacts, rows, ["path"])


def _counts(tx: Transaction, table: Any, pks: Sequence[int]) -> dict[int, int]:
    query = select(table.c.run_pk, func.count().label("rows")).where(table.c.run_pk.in_(pks))
    return {row.run_pk: row.rows for row in tx.all(query.group_by(table.c.run_pk))}


def advance_counter(tx: Transaction) -> None:
    """PostgreSQL counts ids beside the table and must be told of one that was given."""
    if tx.dialect == "sqlite":
        return
    tx.execute(
        text(
            "SELECT setval(pg_get_serial_sequence('experiments', 'pk'), greatest("
            "(SELECT last_value FROM experiments_pk_seq), "
            f"(SELECT coalesce(max(pk), 1) FROM experiments WHERE pk < {_COUNTED})))"
        )
    )
