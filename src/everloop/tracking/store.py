"""Statements on experiments, runs and metrics. Functions here act within a given transaction.

``pipelines`` uses them too, so that a run of a pipeline and a run of a client are one thing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row, bindparam, select

from everloop.catalog.engine import Transaction
from everloop.catalog.lineage import link, link_all
from everloop.catalog.tables import (
    experiments,
    run_inputs,
    run_model_inputs,
    run_params,
    run_tags,
    runs,
)
from everloop.core.context import current_actor
from everloop.core.lineage import external_ref
from everloop.core.run import Experiment, Run, RunInput, RunOutput
from everloop.errors import InvalidInput, NotFound, StateError
from everloop.tracking.limits import MAX_NAME, MAX_PARAM, MAX_TAG, cut, refuse, text_faults

__all__ = [
    "CUT_TAG",
    "active_run",
    "add_inputs",
    "chunks",
    "experiment_of",
    "insert_run",
    "not_active",
    "open_experiment",
    "put_params",
    "put_tags",
    "read_run",
    "read_runs",
    "run_row",
]

#: Names the parameters and tags of a run whose values were too long and cut.
CUT_TAG = "everloop.truncated"

_T = TypeVar("_T")
#: Keys in one IN list; both dialects allow more, and a longer list gains nothing.
_CHUNK = 2000

# Details of found runs, on the driver's cursor: a search reads thousands of these rows.
_TEXTS = (
    "SELECT 0, run_pk, key, value FROM run_params WHERE run_pk IN ({keys}) "
    "UNION ALL SELECT 1, run_pk, key, value FROM run_tags WHERE run_pk IN ({keys})"
)
_LATEST = (
    "SELECT run_pk, name, value, is_nan FROM metric_latest "
    "JOIN metric_keys ON metric_keys.pk = key_pk WHERE run_pk IN ({keys})"
)
_OUTPUTS = "SELECT run_pk, model_id, step FROM run_outputs WHERE run_pk IN ({keys})"
# What a row of a run says of it, by place: a look-up by name takes several times as long.
_NAMES = [column.name for column in runs.c]
_SAID = [name for name in _NAMES if name in (*Run.__struct_fields__, "experiment_pk")]
_said = itemgetter(*map(_NAMES.index, _SAID))
_BY_ID = select(runs).where(runs.c.id == bindparam("id"))
_BY_NAME = select(experiments.c.pk, experiments.c.lifecycle).where(
    experiments.c.name == bindparam("name")
)


def chunks(items: Sequence[_T], size: int = _CHUNK) -> Iterator[Sequence[_T]]:
    """`items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def experiment_of(row: Row[Any]) -> Experiment:
    """An experiment from its row."""
    values = row._asdict()
    return Experiment(id=str(values.pop("pk")), **values)


def open_experiment(tx: Transaction, name: str, tags: dict[str, str] | None = None) -> int:
    """The key of the active experiment called `name`, made if there is none.

    Raises:
        StateError: If it is deleted.
    """
    refuse(
        "Invalid value for parameter 'name' supplied",
        text_faults("name", name, longest=MAX_NAME, empty=False),
    )
    wanted = _BY_NAME.params(name=name)
    row = tx.first(wanted)
    if row is None:
        fresh = {
            "name": name,
            "lifecycle": "active",
            "tags": tags or {},
            "created_at": tx.now,
            "updated_at": tx.now,
        }
        tx.insert_new(experiments, fresh)
        row = tx.first(wanted)
    if row is None or row.lifecycle != "active":
        raise StateError(
            f"The experiment {name!r} must be in the 'active' state",
            hint="restore it, or choose another name",
        )
    return int(row.pk)


def insert_run(
    tx: Transaction,
    id_: str,
    experiment_pk: int,
    *,
    params: dict[str, str],
    tags: dict[str, str],
    **values: Any,
) -> Run:
    """Insert a run with its parameters and tags.

    Raises:
        InvalidInput: If the id is taken.
    """
    row: dict[str, Any] = {
        "id": id_,
        "experiment_pk": experiment_pk,
        "name": "",
        "pipeline": "",
        "state": "running",
        "code": "",
        "git": {},
        "environment": {},
        "arguments": {},
        "actor": current_actor() or tx.actor,
        "trigger": "",
        "error": "",
        "owner": "",
        "fence": 0,
        "lease_until": None,
        "lifecycle": "active",
        "started_at": tx.now,
        "ended_at": None,
    } | values
    pk = tx.insert_new(runs, row)
    if pk is None:
        raise InvalidInput(f"the run {id_} exists already", [("run_id", id_)])
    if row["trigger"]:
        link(tx, f"firing:{row['trigger']}", f"run:{id_}", "started")
    kept = _insert_params(tx, pk, params), put_tags(tx, pk, tags)
    if kept != (params, tags):
        return read_run(tx, id_)  # with the tag that says what was cut
    said = {name: row[name] for name in _SAID if name != "experiment_pk"}
    return Run(experiment=str(experiment_pk), **said, params=params, tags=tags)


def run_row(tx: Transaction, id_: str) -> Row[Any]:
    """The row of a run.

    Raises:
        NotFound: If there is none.
    """
    row = tx.first(_BY_ID.params(id=id_))
    if row is None:
        raise NotFound(
            f"Run with id={id_} not found",
            hint="everloop run list shows the runs",
            details={"kind": "run", "name": id_},
        )
    return row


def active_run(tx: Transaction, id_: str) -> Row[Any]:
    """The row of a run that is not deleted.

    Raises:
        NotFound: If there is none.
        StateError: If it is deleted.
    """
    row = run_row(tx, id_)
    if row.lifecycle != "active":
        raise not_active("run", id_)
    return row


def not_active(kind: str, id_: str) -> StateError:
    """The error for writing to what is deleted."""
    return StateError(
        f"The {kind} {id_} must be in the 'active' state. Current state is deleted.",
        hint="restore it first",
    )


def put_params(tx: Transaction, run_pk: int, run_id: str, params: dict[str, str]) -> None:
    """Write parameters, which never change once written.

    Raises:
        InvalidInput: Naming every parameter that has another value already.
    """
    values = _insert_params(tx, run_pk, params)
    stored: dict[str, str] = {}
    for keys in chunks(sorted(values)):
        query = select(run_params.c.key, run_params.c.value).where(
            run_params.c.run_pk == run_pk, run_params.c.key.in_(keys)
        )
        stored.update((row.key, row.value) for row in tx.all(query))
    faults = [
        (f"params.{key}", f"was {stored[key]!r}, new value {value!r}")
        for key, value in values.items()
        if stored[key] != value
    ]
    if faults:
        raise InvalidInput(
            f"Changing param values is not allowed. Run {run_id} has logged them already",
            faults,
            hint="log it under another key, or in another run",
        )


def _insert_params(tx: Transaction, run_pk: int, params: dict[str, str]) -> dict[str, str]:
    """Write those parameters that the run does not have; all of them as they are kept."""
    values = {key: cut(value, MAX_PARAM) for key, value in params.items()}
    rows = [{"run_pk": run_pk, "key": k, "value": v} for k, v in sorted(values.items())]
    tx.insert_missing(run_params, rows)
    _note_cut(tx, run_pk, params, values)
    return values


def put_tags(tx: Transaction, run_pk: int, tags: dict[str, str]) -> dict[str, str]:
    """Write tags over what they were; all of them as they are kept."""
    values = {key: cut(value, MAX_TAG) for key, value in sorted(tags.items())}
    rows = [{"run_pk": run_pk, "key": key, "value": value} for key, value in values.items()]
    tx.upsert(run_tags, rows, ["run_pk", "key"])
    _note_cut(tx, run_pk, tags, values)
    return values


def _note_cut(tx: Transaction, run_pk: int, given: dict[str, str], kept: dict[str, str]) -> None:
    """Say in a tag which values are not all that was given: nobody else would know."""
    names = [key for key, value in kept.items() if value != given[key]]
    if not names:
        return
    its = (run_tags.c.run_pk == run_pk, run_tags.c.key == CUT_TAG)
    told = str(tx.scalar(select(run_tags.c.value).where(*its)) or "").split(", ")
    text = ", ".join(dict.fromkeys([*filter(None, told), *names]))
    row = {"run_pk": run_pk, "key": CUT_TAG, "value": cut(text, MAX_TAG)}
    tx.upsert(run_tags, row, ["run_pk", "key"])


def add_inputs(tx: Transaction, run: Row[Any], inputs: Iterable[RunInput]) -> None:
    """Note what a run read; saying it twice changes nothing.

    A dataset that is not ours is noted once, as whatever it was first said to be.
    """
    inputs = list(inputs)
    if not inputs:
        return
    table = run_inputs.c
    query = select(table.dataset, table.digest).where(table.run_pk == run.pk, table.version == 0)
    known = {(row.dataset, row.digest) for row in tx.all(query)}
    fresh: list[RunInput] = []
    for item in inputs:
        name = (item.dataset, item.digest)
        if item.version or name not in known:
            fresh.append(item)
        if not item.version:
            known.add(name)
    rows = [
        {
            "run_pk": run.pk,
            "dataset": item.dataset,
            "version": item.version,
            "role": item.role,
            "digest": item.digest,
            "source": item.source,
        }
        for item in fresh
    ]
    if rows:
        tx.insert_missing(run_inputs, rows)
        link_all(tx, dict.fromkeys(_subject(item) for item in fresh), f"run:{run.id}", "read")


def _subject(item: RunInput) -> str:
    """What an input is in the graph: a version of ours, or what a client says of it."""
    if item.version:
        return f"dataset:{item.dataset}@{item.version}"
    return external_ref(_uri(item.source.get("source")) or item.dataset)


def _uri(source: Any) -> str:
    """Where a client says a dataset lies: a URI, or JSON that holds one."""
    if not isinstance(source, str):
        return ""
    try:
        told = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError):
        told = {"uri": source}
    if not isinstance(told, dict):
        return ""
    found = [told[key] for key in ("uri", "url", "path", "table_name") if key in told]
    texts = [one for one in found if isinstance(one, str) and one.strip() and one.isprintable()]
    return texts[0] if texts else ""


def read_run(tx: Transaction, id_: str) -> Run:
    """One run with its parameters, tags, latest metrics, inputs and outputs.

    Raises:
        NotFound: If there is none.
    """
    return read_runs(tx, [run_row(tx, id_)])[0]


def read_runs(tx: Transaction, rows: Sequence[Row[Any]]) -> list[Run]:
    """Runs from their rows, in the same order; one statement for each kind of detail."""
    params: dict[int, dict[str, str]] = defaultdict(dict)
    tags: dict[int, dict[str, str]] = defaultdict(dict)
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    inputs: dict[int, list[RunInput]] = defaultdict(list)
    model_inputs: dict[int, list[str]] = defaultdict(list)
    outputs: dict[int, list[RunOutput]] = defaultdict(list)
    cursor = tx.connection.connection.cursor()
    for part in chunks([int(row.pk) for row in rows]):
        keys = ",".join(map(str, part))
        for of_tag, pk, key, text in _fetch(cursor, _TEXTS, keys):
            (tags if of_tag else params)[pk][key] = text
        for pk, key, value, is_nan in _fetch(cursor, _LATEST, keys):
            metrics[pk][key] = math.nan if is_nan else value
        for pk, model_id, step in _fetch(cursor, _OUTPUTS, keys):
            outputs[pk].append(RunOutput(model_id=model_id, step=step))
        for row in tx.all(select(run_inputs).where(run_inputs.c.run_pk.in_(part))):
            values = row._asdict()
            pk = values.pop("run_pk")
            inputs[pk].append(RunInput(**values | {"source": values["source"] or {}}))
        read_models = run_model_inputs.c
        query = select(run_model_inputs).where(read_models.run_pk.in_(part))
        for row in tx.all(query.order_by(read_models.model_id)):
            model_inputs[row.run_pk].append(row.model_id)
    return [
        _run(
            row,
            params=params[row.pk],
            tags=tags[row.pk],
            metrics=metrics[row.pk],
            inputs=tuple(inputs[row.pk]),
            model_inputs=tuple(model_inputs[row.pk]),
            outputs=tuple(outputs[row.pk]),
        )
        for row in rows
    ]


def _fetch(cursor: Any, query: str, keys: str) -> list[tuple[Any, ...]]:
    # The keys are numbers of ours, never a text of anybody.
    cursor.execute(query.format(keys=keys))
    found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def _run(row: Row[Any], **details: Any) -> Run:
    said = dict(zip(_SAID, _said(row), strict=True))
    return Run(experiment=str(said.pop("experiment_pk")), **said, **details)
