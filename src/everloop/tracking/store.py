"""Statements on experiments, runs and metrics. Functions here act within a given transaction.

They are written out as text, as each process that runs something needs them.

``pipelines`` uses them too, so that a run of a pipeline and a run of a client are one thing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from everloop.catalog.direct import Direct, from_json, instant, marks, to_json
from everloop.catalog.edges import link, link_all
from everloop.core.context import current_actor
from everloop.core.lineage import external_ref
from everloop.core.run import Experiment, Run, RunInput, RunOutput
from everloop.core.time import to_micros
from everloop.errors import InvalidInput, NotFound, StateError
from everloop.tracking.limits import MAX_NAME, MAX_PARAM, MAX_TAG, cut, refuse, text_faults

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = [
    "CUT_TAG",
    "RunRow",
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


class RunRow(NamedTuple):
    """A row of the table ``runs``, its columns in their order."""

    pk: int
    id: str
    experiment_pk: int
    name: str
    pipeline: str
    state: Any
    code: str
    git: dict[str, str]
    environment: dict[str, str]
    arguments: dict[str, Any]
    actor: str
    trigger: str
    error: str
    owner: str
    fence: int
    lease_until: datetime | None
    lifecycle: Any
    started_at: datetime
    ended_at: datetime | None
    deleted_at: datetime | None


_COLUMNS = [f'"{name}"' if name == "trigger" else name for name in RunRow._fields]
_BY_ID = f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE id = ?"
# Without the key, which the catalog gives, and the time of a deletion.
_INSERT = (
    f"INSERT INTO runs ({', '.join(_COLUMNS[1:-1])}) VALUES ({marks(len(_COLUMNS) - 2)}) "
    "ON CONFLICT DO NOTHING RETURNING pk"
)
_BY_NAME = "SELECT pk, lifecycle FROM experiments WHERE name = ?"
_INSERT_EXPERIMENT = (
    "INSERT INTO experiments (name, lifecycle, tags, created_at, updated_at) "
    "VALUES (?, 'active', ?, ?, ?) ON CONFLICT DO NOTHING"
)
_INSERT_PARAM = (
    "INSERT INTO run_params (run_pk, key, value) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
)
_PARAMS = "SELECT key, value FROM run_params WHERE run_pk = ?"
_PUT_TAG = (
    "INSERT INTO run_tags (run_pk, key, value) VALUES (?, ?, ?) "
    "ON CONFLICT (run_pk, key) DO UPDATE SET value = excluded.value"
)
_INSERT_INPUT = (
    "INSERT INTO run_inputs (run_pk, dataset, version, role, digest, source) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)

# Details of found runs: a search reads thousands of these rows.
_TEXTS = (
    "SELECT 0, run_pk, key, value FROM run_params WHERE run_pk IN ({keys}) "
    "UNION ALL SELECT 1, run_pk, key, value FROM run_tags WHERE run_pk IN ({keys})"
)
_LATEST = (
    "SELECT run_pk, name, value, is_nan FROM metric_latest "
    "JOIN metric_keys ON metric_keys.pk = key_pk WHERE run_pk IN ({keys})"
)
_OUTPUTS = "SELECT run_pk, model_id, step FROM run_outputs WHERE run_pk IN ({keys})"
_INPUTS = (
    "SELECT run_pk, dataset, version, role, digest, source FROM run_inputs WHERE run_pk IN ({keys})"
)
_MODEL_INPUTS = (
    "SELECT run_pk, model_id FROM run_model_inputs WHERE run_pk IN ({keys}) ORDER BY model_id"
)
#: A run that has just begun.
_FRESH: dict[str, Any] = {
    "pk": 0,
    "name": "",
    "pipeline": "",
    "state": "running",
    "code": "",
    "git": {},
    "environment": {},
    "arguments": {},
    "trigger": "",
    "error": "",
    "owner": "",
    "fence": 0,
    "lease_until": None,
    "lifecycle": "active",
    "ended_at": None,
    "deleted_at": None,
}
# What a row of a run says of it.
_SAID = [name for name in RunRow._fields if name in (*Run.__struct_fields__, "experiment_pk")]
# By place: in a row that SQLAlchemy read, a look-up by name takes several times as long.
_said = itemgetter(*map(RunRow._fields.index, _SAID))


def chunks(items: Sequence[_T], size: int = _CHUNK) -> Iterator[Sequence[_T]]:
    """`items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def experiment_of(row: Row[Any]) -> Experiment:
    """An experiment from its row."""
    values = row._asdict()
    return Experiment(id=str(values.pop("pk")), **values)


def open_experiment(tx: Direct, name: str, tags: dict[str, str] | None = None) -> int:
    """The key of the active experiment called `name`, made if there is none.

    Raises:
        StateError: If it is deleted.
    """
    refuse(
        "Invalid value for parameter 'name' supplied",
        text_faults("name", name, longest=MAX_NAME, empty=False),
    )
    row = tx.run(_BY_NAME, (name,)).fetchone()
    if row is None:
        now = to_micros(tx.now)
        tx.run(_INSERT_EXPERIMENT, (name, to_json(tags or {}), now, now))
        row = tx.run(_BY_NAME, (name,)).fetchone()
    if row is None or row[1] != "active":
        raise StateError(
            f"The experiment {name!r} must be in the 'active' state",
            hint="restore it, or choose another name",
        )
    return int(row[0])


def insert_run(
    tx: Direct,
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
    known: dict[str, Any] = {
        "id": id_,
        "experiment_pk": experiment_pk,
        "actor": current_actor() or tx.actor,
        "started_at": tx.now,
    }
    row = RunRow(**(_FRESH | known | values))
    stored = tx.run(_INSERT, [_plain(value) for value in row[1:-1]]).fetchone()
    if stored is None:
        raise InvalidInput(f"the run {id_} exists already", [("run_id", id_)])
    pk = int(stored[0])
    if row.trigger:
        link(tx, f"firing:{row.trigger}", f"run:{id_}", "started")
    kept = _insert_params(tx, pk, params), put_tags(tx, pk, tags)
    if kept != (params, tags):
        return read_run(tx, id_)  # with the tag that says what was cut
    return _run(row, params=params, tags=tags)


def _plain(value: Any) -> Any:
    """A value of a row as the driver takes it."""
    if isinstance(value, dict):
        return to_json(value)
    return to_micros(value) if isinstance(value, datetime) else value


def run_row(tx: Direct, id_: str) -> RunRow:
    """The row of a run.

    Raises:
        NotFound: If there is none.
    """
    found = tx.run(_BY_ID, (id_,)).fetchone()
    if found is None:
        raise NotFound(
            f"Run with id={id_} not found",
            hint="everloop run list shows the runs",
            details={"kind": "run", "name": id_},
        )
    row = dict(zip(RunRow._fields, found, strict=True))
    for name in ("git", "environment", "arguments"):
        row[name] = from_json(row[name])
    for name in ("lease_until", "started_at", "ended_at", "deleted_at"):
        row[name] = instant(row[name])
    return RunRow(**row)


def active_run(tx: Direct, id_: str) -> RunRow:
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


def put_params(tx: Direct, run_pk: int, run_id: str, params: dict[str, str]) -> None:
    """Write parameters, which never change once written.

    Raises:
        InvalidInput: Naming every parameter that has another value already.
    """
    values = _insert_params(tx, run_pk, params)
    stored: dict[str, str] = {}
    for keys in chunks(sorted(values)):
        query = (
            f"SELECT key, value FROM run_params WHERE run_pk = ? AND key IN ({marks(len(keys))})"
        )
        stored.update(tx.run(query, (run_pk, *keys)).fetchall())
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


def _insert_params(tx: Direct, run_pk: int, params: dict[str, str]) -> dict[str, str]:
    """Write those parameters that the run does not have; all of them as they are kept."""
    values = {key: cut(value, MAX_PARAM) for key, value in params.items()}
    tx.run_all(_INSERT_PARAM, [(run_pk, key, value) for key, value in sorted(values.items())])
    _note_cut(tx, run_pk, params, values)
    return values


def put_tags(tx: Direct, run_pk: int, tags: dict[str, str]) -> dict[str, str]:
    """Write tags over what they were; all of them as they are kept."""
    values = {key: cut(value, MAX_TAG) for key, value in sorted(tags.items())}
    tx.run_all(_PUT_TAG, [(run_pk, key, value) for key, value in values.items()])
    _note_cut(tx, run_pk, tags, values)
    return values


def _note_cut(tx: Direct, run_pk: int, given: dict[str, str], kept: dict[str, str]) -> None:
    """Say in a tag which values are not all that was given: nobody else would know."""
    names = [key for key, value in kept.items() if value != given[key]]
    if not names:
        return
    query = "SELECT value FROM run_tags WHERE run_pk = ? AND key = ?"
    row = tx.run(query, (run_pk, CUT_TAG)).fetchone()
    told = row[0].split(", ") if row else []
    text = ", ".join(dict.fromkeys([*filter(None, told), *names]))
    tx.run(_PUT_TAG, (run_pk, CUT_TAG, cut(text, MAX_TAG)))


def add_inputs(tx: Direct, run: RunRow, inputs: Iterable[RunInput]) -> None:
    """Note what a run read; saying it twice changes nothing.

    A dataset that is not ours is noted once, as whatever it was first said to be.
    """
    inputs = list(inputs)
    if not inputs:
        return
    query = "SELECT dataset, digest FROM run_inputs WHERE run_pk = ? AND version = 0"
    known = set(map(tuple, tx.run(query, (run.pk,)).fetchall()))
    fresh: list[RunInput] = []
    for item in inputs:
        name = (item.dataset, item.digest)
        if item.version or name not in known:
            fresh.append(item)
        if not item.version:
            known.add(name)
    rows = [
        (run.pk, one.dataset, one.version, one.role, one.digest, to_json(one.source))
        for one in fresh
    ]
    if rows:
        tx.run_all(_INSERT_INPUT, rows)
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


def read_run(tx: Direct, id_: str) -> Run:
    """One run with its parameters, tags, latest metrics, inputs and outputs.

    Raises:
        NotFound: If there is none.
    """
    return read_runs(tx, [run_row(tx, id_)])[0]


def read_runs(tx: Direct, rows: Sequence[RunRow | Row[Any]]) -> list[Run]:
    """Runs from their rows, in the same order; one statement for each kind of detail."""
    params: dict[int, dict[str, str]] = defaultdict(dict)
    tags: dict[int, dict[str, str]] = defaultdict(dict)
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    inputs: dict[int, list[RunInput]] = defaultdict(list)
    model_inputs: dict[int, list[str]] = defaultdict(list)
    outputs: dict[int, list[RunOutput]] = defaultdict(list)
    for part in chunks([int(row.pk) for row in rows]):
        keys = ",".join(map(str, part))
        for of_tag, pk, key, text in _fetch(tx, _TEXTS, keys):
            (tags if of_tag else params)[pk][key] = text
        for pk, key, value, is_nan in _fetch(tx, _LATEST, keys):
            metrics[pk][key] = math.nan if is_nan else value
        for pk, model_id, step in _fetch(tx, _OUTPUTS, keys):
            outputs[pk].append(RunOutput(model_id=model_id, step=step))
        for pk, dataset, version, role, digest, source in _fetch(tx, _INPUTS, keys):
            told = from_json(source) if source else {}
            item = RunInput(dataset=dataset, version=version, role=role, digest=digest, source=told)
            inputs[pk].append(item)
        for pk, model_id in _fetch(tx, _MODEL_INPUTS, keys):
            model_inputs[pk].append(model_id)
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


def _fetch(tx: Direct, query: str, keys: str) -> list[tuple[Any, ...]]:
    # The keys are numbers of ours, never a text of anybody. As the text is another each time, it
    # is not kept.
    tx.cursor.execute(query.format(keys=keys))
    found: list[tuple[Any, ...]] = tx.cursor.fetchall()
    return found


def _run(row: RunRow | Row[Any], **details: Any) -> Run:
    said = dict(zip(_SAID, _said(row), strict=True))
    return Run(experiment=str(said.pop("experiment_pk")), **said, **details)
