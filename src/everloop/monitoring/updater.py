"""One update of a deployment's summaries, windows and alerts: look, summarise, judge, write.

Only what was logged since the last place in the event log is looked at. The units of time that it
touches are summarised anew from their rows, which makes late labels and late rows the same case;
everything is written with the new place in one transaction, so that of two updaters at the same
time one finds the place moved and does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.deploy import Deployment
from everloop.core.ids import new_id
from everloop.core.machines import AlertState, decide_alert
from everloop.core.model import ModelVersion
from everloop.core.monitor import Alert, Monitor, Window
from everloop.core.time import from_micros, to_micros
from everloop.data.bins import FeatureBins
from everloop.monitoring import ledger
from everloop.monitoring.evaluate import evaluate
from everloop.monitoring.places import Places
from everloop.monitoring.reference import DAY_S, Reference
from everloop.monitoring.tally import Tally, merge, tally
from everloop.ports.blobs import BlobStore

__all__ = [
    "RESTATED_S",
    "DeploymentReader",
    "PredictionReader",
    "Updater",
    "VersionReader",
    "unit_of",
]

# A label restates the windows of predictions at most this much older than the newest ones.
RESTATED_S = 92 * DAY_S
# Weeks begin on Mondays: 1970-01-05 was one. Every midnight is whole days away from it.
_MONDAY_US = 4 * DAY_S * 1_000_000
# Units in memory that labels are looked for in before anything is read.
_RECENT = 4
# Units read at once, when many are new.
_AT_ONCE = 31
# Earlier figures of a window that are kept when labels change it.
_RESTATEMENTS = 20


class PredictionReader(Protocol):
    """What is needed of the prediction log."""

    def read(
        self,
        deployment: str,
        *,
        since: datetime,
        until: datetime,
        labelled: bool = False,
        columns: list[str] | None = None,
        as_of: datetime | None = None,
    ) -> pa.Table:
        """Answers that are for ``[since, until)``, with the labels known at `as_of`."""
        ...


class VersionReader(Protocol):
    """What is needed of the registry."""

    def version(self, name: str, version: int) -> ModelVersion:
        """A version of a model."""
        ...


class DeploymentReader(Protocol):
    """What is needed of deployments."""

    def deployment(self, name: str) -> Deployment:
        """A deployment."""
        ...


class _Champions:
    """Who was champion when. A window belongs to whoever was champion at its middle."""

    def __init__(self, known: list[tuple[datetime, int]]) -> None:
        self._known = known

    @property
    def promoted_at(self) -> datetime | None:
        """When the present champion took over from another; None for the first."""
        return self._known[-1][0] if len(self._known) > 1 else None

    @property
    def version(self) -> int:
        return self._known[-1][1]

    def at(self, start: datetime, end: datetime) -> int:
        middle = start + (end - start) / 2
        held = [version for since, version in self._known if since <= middle]
        return held[-1] if held else self._known[0][1]


class _State(msgspec.Struct):
    """What is known before an update."""

    deployment: Deployment
    now: datetime
    monitors: list[Monitor]
    unit_s: int
    place: int
    known_until: datetime
    news: ledger.News
    units: list[datetime]
    champions: list[tuple[datetime, int]]
    promoted: bool
    waiting: list[Window]
    judged: set[str]

    @property
    def cursor(self) -> str:
        return f"monitoring:{self.deployment.name}:{self.unit_s}"


_Units = dict[datetime, dict[int, Tally]]


class Updater:
    """Updates deployments; keeps references and request ids in memory between calls."""

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        predictions: PredictionReader,
        registry: VersionReader,
        deployment: DeploymentReader,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._predictions = predictions
        self._registry = registry
        self._deployment = deployment
        self._references: dict[tuple[str, int], Reference | None] = {}
        self._places: dict[str, Places] = {}

    def run(self, deployment: str) -> list[Alert]:
        """Bring `deployment` up to the clock's now; returns the alerts that fired or cleared."""
        state = self._look(deployment)
        touched = {
            unit for span in state.news.spans for unit in _units_between(*span, state.unit_s)
        }
        labels = self._new_labels(state)
        # Most labels are for units that were read lately: found in memory, they are read together
        # with what is new, and only what is left is looked for further back.
        touched |= self._units_of(state, labels, touched, in_memory=True)
        fresh = self._summarise(state, touched)
        fresh |= self._summarise(state, self._units_of(state, labels, touched))
        windows = self._judge(state, fresh)
        return self._write(state, fresh, windows)

    def _look(self, name: str) -> _State:
        deployment = self._deployment.deployment(name)
        now = self._catalog.clock.now()
        with self._catalog.read() as tx:
            monitors = ledger.monitors(tx, name)
            unit_s = unit_of(monitors)
            cursor = f"monitoring:{name}:{unit_s}"
            place, known_us = ledger.cursors(tx, cursor, f"{cursor}:known")
            known = from_micros(known_us)
            champions = ledger.champions(tx, name)
            champion = deployment.arm("champion")
            promoted = champion is not None and (
                not champions or champions[-1][1] != champion.version
            )
            if promoted and champion is not None:
                since = deployment.updated_at if champions else deployment.created_at
                champions.append((since, champion.version))
            return _State(
                deployment=deployment,
                now=now,
                monitors=monitors,
                unit_s=unit_s,
                place=place,
                known_until=known,
                news=ledger.news(tx, name, after=place, known_since=known, now=now),
                units=ledger.units(tx, name, unit_s),
                champions=champions,
                promoted=promoted,
                waiting=ledger.immature_windows(tx, name),
                judged=ledger.judged_monitors(tx, name),
            )

    def _new_labels(self, state: _State) -> pa.Array:
        """What the labels are called that became known since the last update."""
        ids = [
            self._label_ids(digest, None if new else state.known_until, state.now)
            for digest, new in state.news.batches
        ]
        return pa.concat_arrays(ids) if ids else pa.array([], pa.string())

    def _units_of(
        self, state: _State, labels: pa.Array, touched: set[datetime], *, in_memory: bool = False
    ) -> set[datetime]:
        """Units beside `touched` with answers that `labels` belong to."""
        places = self._places.setdefault(state.cursor, Places())
        units = sorted({to_micros(unit) for unit in [*state.units, *touched]}, reverse=True)
        if not units or not len(labels):
            return set()
        oldest = units[0] - RESTATED_S * 1_000_000
        places.forget_before(oldest)
        new = {to_micros(unit) for unit in touched}
        if in_memory:
            return _instants(
                places.find(labels, [u for u in places.latest(_RECENT) if u not in new])
            )

        def load(unit: int) -> pa.Array | pa.ChunkedArray:
            since = from_micros(unit)
            until = since + timedelta(seconds=state.unit_s)
            name, columns = state.deployment.name, ["id", "request_id"]
            return _asked(self._predictions.read(name, since=since, until=until, columns=columns))

        # The ones that were just read are looked into too: what they hold need not be looked for.
        order = sorted(units, key=lambda unit: (unit not in new, -unit))
        found = places.find(labels, (unit for unit in order if unit >= oldest), load)
        return _instants(found - new)

    def _label_ids(self, digest: str, after: datetime | None, until: datetime) -> pa.Array:
        raw = pa.BufferReader(self._blobs.get(digest))
        table = pq.read_table(raw, columns=["request_id", "known_at"])
        known = table.column("known_at").cast(pa.int64())
        wanted = pc.less_equal(known, to_micros(until))
        if after is not None:
            wanted = pc.and_(wanted, pc.greater(known, to_micros(after)))
        return table.column("request_id").filter(wanted).combine_chunks().cast(pa.string())

    def _summarise(self, state: _State, units: set[datetime]) -> _Units:
        found: _Units = {}
        for span in _runs(sorted(units), state.unit_s):
            until = span[-1] + timedelta(seconds=state.unit_s)
            found |= self._summarise_span(state, span[0], until)
        return found

    def _summarise_span(self, state: _State, since: datetime, until: datetime) -> _Units:
        name = state.deployment.name
        table = self._predictions.read(
            name, since=since, until=until, labelled=True, as_of=state.now
        )
        table = table.filter(pc.not_equal(table.column("arm"), "shadow"))
        length = state.unit_s * 1_000_000
        at = table.column("at").cast(pa.int64()).to_numpy()
        unit = (at - _MONDAY_US) // length * length + _MONDAY_US
        version = table.column("version").to_numpy()
        places = self._places.setdefault(state.cursor, Places())
        found: _Units = {}
        for start in np.unique(unit).tolist():
            inside = unit == start
            rows = table.filter(pa.array(inside))
            places.keep(start, _asked(rows))
            parts = found.setdefault(from_micros(start), {})
            for number in np.unique(version[inside]).tolist():
                own = rows.filter(pc.equal(rows.column("version"), number))
                parts[number] = _tally_rows(own, self._bins(state.deployment.model, number))
        return found

    def _bins(self, model: str, version: int) -> Sequence[FeatureBins]:
        reference = self._reference(model, version)
        return () if reference is None else reference.bins

    def _reference(self, model: str, version: int) -> Reference | None:
        key = (model, version)
        if key not in self._references:
            digest = self._registry.version(model, version).reference
            self._references[key] = Reference(self._blobs.get(digest)) if digest else None
        return self._references[key]

    def _judge(self, state: _State, fresh: _Units) -> list[Window]:
        keys = _due(state, fresh)
        if not keys:
            return []
        spans = [(start, start + timedelta(seconds=m.window_s)) for m, start in keys]
        needed = {
            unit
            for start, end in spans
            for unit in _units_between(start, end - timedelta(microseconds=1), state.unit_s)
        }
        units = dict(fresh)
        with self._catalog.read() as tx:
            before = ledger.stored_windows(
                tx, state.deployment.name, [(m.name, start) for m, start in keys]
            )
            for run in _runs(sorted(needed - set(fresh)), state.unit_s):
                until = run[-1] + timedelta(seconds=state.unit_s)
                units |= ledger.tallies(tx, state.deployment.name, state.unit_s, run[0], until)
        champions = _Champions(state.champions)
        return [
            self._window(state, champions, m, start, units, before.get((m.name, start)))
            for m, start in keys
        ]

    def _window(
        self,
        state: _State,
        champions: _Champions,
        monitor: Monitor,
        start: datetime,
        units: _Units,
        before: Window | None,
    ) -> Window:
        end = start + timedelta(seconds=monitor.window_s)
        version = champions.at(start, end)
        inside = [
            units[unit]
            for unit in _units_between(start, end - timedelta(microseconds=1), state.unit_s)
            if unit in units
        ]
        served = merge(part for parts in inside for part in parts.values())
        own = merge(parts[version] for parts in inside if version in parts)
        reference = self._reference(state.deployment.model, version)
        finding = evaluate(monitor, served, own, reference)
        detail = finding.detail | {"version": version}
        restated = list(before.detail.get("restated", ())) if before is not None else []
        if before is not None and before.mature and before.value != finding.value:
            earlier = {"at": state.now.isoformat(), "value": before.value, "labels": before.labels}
            restated = [*restated, earlier][-_RESTATEMENTS:]
        if restated:
            detail["restated"] = restated
        return Window(
            deployment=monitor.deployment,
            monitor=monitor.name,
            start=start,
            end=end,
            rows=served.rows,
            labels=served.labels,
            value=finding.value,
            bound=finding.bound,
            breach=finding.breach,
            mature=_mature_at(monitor, end) <= state.now,
            detail=detail,
        )

    def _write(self, state: _State, fresh: _Units, windows: list[Window]) -> list[Alert]:
        name, news = state.deployment.name, state.news
        if not (news.spans or news.batches or state.promoted or windows):
            return []
        with self._catalog.write() as tx:
            if ledger.cursors(tx, state.cursor) != [state.place]:
                return []  # another updater was here meanwhile; it has done this
            known = to_micros(max(state.now, state.known_until))
            ledger.put_cursors(tx, {state.cursor: news.seq, f"{state.cursor}:known": known})
            if state.promoted:
                ledger.put_champion(tx, name, *state.champions[-1])
            ledger.put_tallies(tx, name, state.unit_s, fresh)
            ledger.put_windows(tx, windows)
            return list(self._decide(tx, state))

    def _decide(self, tx: Transaction, state: _State) -> Iterable[Alert]:
        """Fire and clear. The windows of this update are written already."""
        name, champions = state.deployment.name, _Champions(state.champions)
        open_alerts = {alert.monitor: alert for alert in ledger.open_alerts(tx, name)}
        for monitor in state.monitors:
            alert = open_alerts.get(monitor.name)
            since = None
            # What is wrong with the data stays wrong whoever is champion.
            if monitor.kind != "quality" and champions.promoted_at is not None:
                since = champions.promoted_at - timedelta(seconds=monitor.window_s / 2)
                if alert is not None and alert.opened_at <= champions.promoted_at:
                    reason = f"version {champions.version} was promoted"
                    yield ledger.clear_alert(tx, alert, reason)
                    alert = None
            yield from _decide_one(tx, monitor, alert, since)


def _decide_one(
    tx: Transaction, monitor: Monitor, alert: Alert | None, since: datetime | None
) -> Iterable[Alert]:
    limit = max(monitor.fire[1], monitor.clear[1])
    recent = ledger.recent_windows(tx, monitor.deployment, monitor.name, since=since, limit=limit)
    was: AlertState = "ok" if alert is None else "firing"
    breaches = tuple(window.breach for window in recent)
    _, act = decide_alert(was, breaches, fire=monitor.fire, clear=monitor.clear)
    if act == "fire":
        fired = Alert(
            id=new_id(),
            deployment=monitor.deployment,
            monitor=monitor.name,
            state="firing",
            opened_at=tx.now,
            evidence={
                "kind": monitor.kind,
                "metric": monitor.metric,
                "rule": f"{monitor.fire[0]} of {monitor.fire[1]} windows",
                "windows": [_evidence(window) for window in recent[-monitor.fire[1] :]],
            },
        )
        ledger.fire_alert(tx, fired, recent[-monitor.fire[1] :])
        yield fired
    elif act == "clear" and alert is not None:
        k, m = monitor.clear
        yield ledger.clear_alert(tx, alert, f"at most {k} of the last {m} windows beyond the bound")


def _evidence(window: Window) -> dict[str, object]:
    return {
        "start": window.start.isoformat(),
        "value": window.value,
        "bound": window.bound,
        "breach": window.breach,
        "labels": window.labels,
        "version": window.detail.get("version"),
    }


def _instants(units: set[int]) -> set[datetime]:
    return {from_micros(unit) for unit in units}


def unit_of(monitors: Sequence[Monitor]) -> int:
    """Seconds of the stretches that are summarised: every window is made of whole ones."""
    return math.gcd(DAY_S, *(monitor.window_s for monitor in monitors))


def _due(state: _State, fresh: _Units) -> list[tuple[Monitor, datetime]]:
    """The windows to judge: touched ones, ones that became mature, all of a new monitor."""
    due: set[tuple[str, datetime]] = set()
    by_name = {monitor.name: monitor for monitor in state.monitors}
    for monitor in state.monitors:
        known = monitor.name in state.judged
        units = fresh if known else [*state.units, *fresh]
        due |= {(monitor.name, _floor(unit, monitor.window_s)) for unit in units}
    for window in state.waiting:
        monitor_ = by_name.get(window.monitor)
        if monitor_ is not None and _mature_at(monitor_, window.end) <= state.now:
            due.add((window.monitor, window.start))
    return [(by_name[name], start) for name, start in sorted(due)]


def _mature_at(monitor: Monitor, end: datetime) -> datetime:
    return end + timedelta(seconds=monitor.label_delay_s)


def _floor(at: datetime, length_s: int) -> datetime:
    length = length_s * 1_000_000
    return from_micros((to_micros(at) - _MONDAY_US) // length * length + _MONDAY_US)


def _units_between(first: datetime, last: datetime, unit_s: int) -> Iterable[datetime]:
    unit = _floor(first, unit_s)
    while unit <= last:
        yield unit
        unit += timedelta(seconds=unit_s)


def _runs(units: list[datetime], unit_s: int) -> Iterable[list[datetime]]:
    """Neighbouring units together, to be read at once."""
    run: list[datetime] = []
    for unit in units:
        if run and (unit - run[-1] != timedelta(seconds=unit_s) or len(run) == _AT_ONCE):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _asked(rows: pa.Table) -> pa.ChunkedArray:
    """What labels call the answers: the request's id, or the answer's own where it had none."""
    requests = pc.fill_null(rows.column("request_id"), "")
    return pc.if_else(pc.equal(requests, ""), rows.column("id"), requests)


def _tally_rows(rows: pa.Table, bins: Sequence[FeatureBins]) -> Tally:
    errors = pc.not_equal(pc.fill_null(rows.column("error"), ""), "")
    answered = rows.filter(pc.invert(errors))
    features = {
        b.name: answered.column(f"f.{b.name}") for b in bins if f"f.{b.name}" in rows.column_names
    }
    return tally(
        answered.column("value").cast(pa.float64()).to_numpy(),
        answered.column("label").cast(pa.float64()).to_numpy(),
        features,
        bins,
        errors=rows.num_rows - answered.num_rows,
    )
