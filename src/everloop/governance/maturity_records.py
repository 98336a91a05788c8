"""Collects what the grades of a loop rest on, from the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import ColumnElement, func, select

from everloop.catalog import loops, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.deploy import Deployment
from everloop.core.events import (
    CI_FINISHED,
    PACKAGE_BUILT,
    PACKAGE_IMPORTED,
    PACKAGE_PROMOTED,
    Event,
)
from everloop.core.gate import Verdict
from everloop.core.model import ModelVersion
from everloop.core.policy import LoopSpec
from everloop.core.run import Run
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, NotFound
from everloop.governance.maturity import Records, Trained, TrainingData, Watched
from everloop.governance.rows import feature_set_body

if TYPE_CHECKING:
    from everloop.data.service import DataService
    from everloop.deployment.service import DeploymentService
    from everloop.evaluation.service import EvaluationService
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService

__all__ = ["Sources", "collect"]

#: Runs that people started: so many of the latest are looked at.
_MOST_TRIED = 200
_ACTS = ("verdict.Given", "rollout.Started", "rollout.Advanced", "rollout.Promoted")


class Sources(NamedTuple):
    """Where records are read."""

    data: DataService
    tracking: TrackingService
    registry: RegistryService
    evaluation: EvaluationService
    deployment: DeploymentService


def collect(catalog: Catalog, name: str, sources: Sources) -> Records:
    """What is recorded of the loop `name`, or of the only one there is if `name` is empty.

    Raises:
        NotFound: If there is no such loop, or none at all; with near names.
        InvalidInput: If there are several and none is named.
    """
    with catalog.read() as tx:
        spec = loops.loop(tx, name or _only_loop(tx))
    live, deployment = _live(sources, spec.name)
    run = _run_of(sources, live)
    verdicts = _verdicts(sources, spec.name)
    rollouts = sources.deployment.rollouts(spec.name) if deployment is not None else []
    with catalog.read() as tx:
        trained = _trained(tx, spec.name)
        tried = _tried(tx, spec, trained)
        codes = {one.code for one in (*trained, *tried) if one.code}
        tags = run.tags if run is not None else {}
        package = tags.get("everloop.package", "").partition("@")[0]
        return Records(
            spec=spec,
            at=tx.now,
            live=live,
            live_run=run,
            has_features=live is not None and bool(feature_set_body(tx, live.feature_set)),
            steps=_steps(tx, run),
            data=tuple(_data(sources.data, live, run)),
            trainings=trained,
            tried=tried,
            verdicts=tuple(sorted(verdicts, key=lambda verdict: verdict.id)),
            rollouts=tuple(sorted(rollouts, key=lambda rollout: rollout.id)),
            watched=_watched(tx, spec),
            events=_delivered(tx, spec.name, codes, package) | _acts(tx, spec.name),
        )


def _only_loop(tx: Transaction) -> str:
    names = [spec.name for spec in loops.loops(tx)]
    if not names:
        raise NotFound("there is no loop yet", hint="everloop init, then everloop up loop.py")
    if len(names) > 1:
        raise InvalidInput("there are several loops", hint=f"name one of: {', '.join(names)}")
    return names[0]


def _live(sources: Sources, name: str) -> tuple[ModelVersion | None, Deployment | None]:
    try:
        deployment = sources.deployment.deployment(name)
    except NotFound:
        return None, None
    champion = deployment.arm("champion")
    if champion is None:
        return None, deployment
    return sources.registry.version(deployment.model, champion.version), deployment


def _verdicts(sources: Sources, name: str) -> list[Verdict]:
    try:
        return sources.evaluation.verdicts(name)
    except NotFound:  # no model yet, so no verdict either
        return []


def _run_of(sources: Sources, live: ModelVersion | None) -> Run | None:
    try:
        return sources.tracking.run(live.run_id) if live is not None and live.run_id else None
    except NotFound:  # it ran elsewhere
        return None


def _trained(tx: Transaction, name: str) -> tuple[Trained, ...]:
    """The runs that firings of a loop started, oldest first."""
    runs, firings, events = tables.runs, tables.firings, tables.events
    rows = tx.all(
        select(runs.c.id, runs.c.code, runs.c.started_at, runs.c.trigger)
        .join(firings, firings.c.id == runs.c.trigger)
        .where(firings.c.loop == name)
        .order_by(runs.c.pk)
    )
    own = select("firing:" + firings.c.id).where(firings.c.loop == name)
    query = select(events.c.subject, events.c.cause, events.c.body).where(
        events.c.kind == "trigger.Fired", events.c.subject.in_(own)
    )
    fired = {row.subject: row for row in tx.all(query)}
    return tuple(
        Trained(
            run=row.id,
            trigger=str(fired[f"firing:{row.trigger}"].body.get("trigger", "")),
            cause=fired[f"firing:{row.trigger}"].cause,
            code=row.code,
            at=row.started_at,
        )
        for row in rows
        if f"firing:{row.trigger}" in fired
    )


def _tried(tx: Transaction, spec: LoopSpec, trained: tuple[Trained, ...]) -> tuple[Trained, ...]:
    """Finished runs of the loop's pipeline that nothing triggered, oldest first."""
    runs = tables.runs
    newest = trained[-1].run if trained else ""
    name = tx.scalar(select(runs.c.pipeline).where(runs.c.id == newest))
    if name is None:  # nothing has triggered it yet: it is called by its file and function
        path, _, function = spec.pipeline.rpartition(":")
        name = f"{path.rpartition('/')[2].removesuffix('.py')}.{function}"
    query = select(runs.c.id, runs.c.code, runs.c.started_at).where(
        runs.c.pipeline == name,
        runs.c.trigger == "",
        runs.c.state == "finished",
        runs.c.lifecycle == "active",
    )
    rows = tx.all(query.order_by(runs.c.pk.desc()).limit(_MOST_TRIED))
    return tuple(
        Trained(run=row.id, trigger="", code=row.code, at=row.started_at) for row in rows[::-1]
    )


def _data(data: DataService, live: ModelVersion | None, run: Run | None) -> Iterable[TrainingData]:
    """The dataset versions of this workspace that the live version was trained on."""
    used = set(live.data.items()) if live is not None else set()
    used |= {(item.dataset, item.version) for item in (run.inputs if run is not None else ())}
    for name, number in sorted(used):
        try:
            version = data.version(name, number)
        except NotFound:  # data of another tracking system is known by name alone
            continue
        rules = _rules(version.schema)
        yield TrainingData(ref=version.ref, rules=rules, dropped=version.dropped)


def _rules(schema: Schema) -> int:
    return len(schema.checks) + bool(schema.key) + sum(map(_field_rules, schema.fields))


def _field_rules(field: Field) -> int:
    bounds = (field.ge is not None, field.le is not None, field.among, field.regex)
    return sum(map(bool, (*bounds, field.max_length, field.unique, not field.nullable)))


def _steps(tx: Transaction, run: Run | None) -> int:
    table = tables.step_runs
    query = select(func.count()).where(table.c.run_id == (run.id if run is not None else ""))
    return int(tx.scalar(query) or 0)


def _watched(tx: Transaction, spec: LoopSpec) -> tuple[Watched, ...]:
    """The monitors of a loop with their windows that could be told."""
    table = tables.monitor_windows
    query = (
        select(table.c.monitor, func.count().label("windows"), func.max(table.c.end).label("last"))
        .where(
            table.c.deployment == spec.name, table.c.mature.is_(True), table.c.value.is_not(None)
        )
        .group_by(table.c.monitor)
    )
    told = {row.monitor: (row.windows, row.last) for row in tx.all(query)}
    return tuple(
        Watched(monitor=monitor.name, kind=monitor.kind, windows=windows, last=last)
        for monitor in spec.monitors
        for windows, last in (told.get(monitor.name, (0, None)),)
    )


def _delivered(
    tx: Transaction, name: str, codes: set[str], package: str
) -> dict[str, tuple[Event, ...]]:
    """Events of CI and packages that are about a loop: by its name, or by code that it ran."""
    packages = {name, package} - {""}
    found: dict[str, tuple[Event, ...]] = {}
    for kind in (CI_FINISHED, PACKAGE_BUILT, PACKAGE_IMPORTED, PACKAGE_PROMOTED):
        mine = []
        for event in _select(tx, tables.events.c.kind == kind):
            noun, _, about = event.subject.partition(":")
            by_name = about in packages if noun == "package" else name in (about, event.subject)
            if by_name or event.body.get("loop") == name or event.body.get("code") in codes:
                packages |= {about} if noun == "package" else set()
                mine.append(event)
        found[kind] = tuple(mine)
    return found


def _acts(tx: Transaction, name: str) -> dict[str, tuple[Event, ...]]:
    """Who judged, rolled out and asked, by kind."""
    rollouts, verdicts, log = tables.rollouts, tables.verdicts, tables.events.c
    own = (
        select("rollout:" + rollouts.c.id).where(rollouts.c.deployment == name),
        select("verdict:" + verdicts.c.id).where(verdicts.c.model == name),
    )
    found = [e for subjects in own for e in _select(tx, log.subject.in_(subjects))]
    found += _select(tx, log.subject.in_([f"loop:{name}", f"deployment:{name}"]))
    kinds = (*_ACTS, "loop.Asked", "deployment.Created")
    return {kind: tuple(event for event in found if event.kind == kind) for kind in kinds}


def _select(tx: Transaction, where: ColumnElement[bool]) -> list[Event]:
    table = tables.events
    rows = tx.all(select(table).where(where).order_by(table.c.seq))
    return [Event(**row._asdict()) for row in rows]
