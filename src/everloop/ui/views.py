"""What the pages show, as data: the HTML page and its ``.json`` twin render the same struct."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.catalog.loops import OPEN, WORKED
from everloop.core.approval import RunApproval
from everloop.core.deploy import Deployment, Rollout
from everloop.core.model import Model
from everloop.core.monitor import Alert, Window
from everloop.core.policy import Automation, Firing, LoopSpec
from everloop.core.run import Run
from everloop.workspace import Workspace

__all__ = ["LoopPage", "LoopRow", "Mark", "Overview", "Series", "loop_page", "overview"]


class LoopRow(msgspec.Struct, frozen=True, kw_only=True):
    """One loop on the overview."""

    name: str
    owner: str
    state: str
    champion: int
    problem: str
    open_alerts: int
    firings: int
    last_firing: Firing | None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The first page."""

    loops: list[LoopRow]
    runs: list[Run]
    models: list[Model]
    deployments: list[Deployment]
    alerts: list[Alert]
    waiting: list[RunApproval]
    automations: list[Automation]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a chart: seconds since 1970 (UTC) and values, None where undefined.

    Attributes:
        name: The monitor.
        label: What its values are, with the unit.
        better: Which way is better: ``higher`` or ``lower``.
        window_s: Length of a window, seconds.
        bounds: Beyond which a value counts as a breach.
    """

    name: str
    label: str
    better: str
    window_s: int
    at: list[float]
    values: list[float | None]
    bounds: list[float | None]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, on the time axis of a chart.

    Attributes:
        at: Seconds since 1970 (UTC).
        until: End of what lasts (an alert that has cleared); None for a moment, or if it lasts.
        monitor: Whose chart it belongs to; empty for all.
    """

    at: float
    until: float | None = None
    kind: Literal["alert", "passed", "refused", "promoted", "aborted"]
    label: str
    monitor: str = ""


#: Metric -> its label with the unit, and which way is better.
_METRICS = {
    "auc": ("area under the ROC curve", "higher"),
    "brier": ("Brier score", "lower"),
    "brier_skill": ("Brier skill score", "higher"),
    "log_loss": ("log loss, nats", "lower"),
    "distance": ("distance from the reference", "lower"),
    "any": ("share of rows with a fault", "lower"),
}


class LoopPage(msgspec.Struct, frozen=True, kw_only=True):
    """One loop with its time line and its performance."""

    spec: LoopSpec
    state: str
    now: float
    deployment: Deployment | None
    rollouts: list[Rollout]
    service_levels: list[Any]
    series: list[Series]
    marks: list[Mark]
    story: list[Any]
    alerts: list[Alert]


def overview(workspace: Workspace) -> Overview:
    """The state of everything, newest first."""
    deployments = workspace.deployment.deployments()
    alerts = workspace.monitoring.alerts()
    loops = [
        _loop_row(workspace, spec, deployments, alerts) for spec in workspace.automation.loops()
    ]
    return Overview(
        loops=loops,
        runs=list(workspace.tracking.runs(limit=15).runs),
        models=workspace.registry.models(),
        deployments=deployments,
        alerts=sorted(alerts, key=lambda alert: alert.opened_at, reverse=True)[:15],
        waiting=workspace.approvals.approvals(state="asked"),
        automations=workspace.automation.automations(),
    )


def _loop_row(
    workspace: Workspace, spec: LoopSpec, deployments: list[Deployment], alerts: list[Alert]
) -> LoopRow:
    firings = workspace.automation.firings(spec.name)
    mine = [alert for alert in alerts if alert.deployment == spec.name and alert.state == "firing"]
    deployment = next((d for d in deployments if d.name == spec.name), None)
    acted = [f for f in firings if f.outcome in WORKED]
    return LoopRow(
        name=spec.name,
        owner=spec.owner,
        state=_state(spec, deployment, mine, firings),
        champion=_champion(deployment),
        problem=spec.charter.problem,
        open_alerts=len(mine),
        firings=len(acted),
        last_firing=max(acted, key=lambda f: f.created_at, default=None),
    )


def loop_page(workspace: Workspace, name: str) -> LoopPage:
    """Everything about one loop.

    Raises:
        NotFound: If there is no such loop.
    """
    spec = workspace.automation.loop(name)
    deployment = next((d for d in workspace.deployment.deployments() if d.name == name), None)
    alerts = workspace.monitoring.alerts(name)
    firings = workspace.automation.firings(name)
    windows = workspace.monitoring.windows(name)
    rollouts = workspace.deployment.rollouts(name) if deployment else []
    return LoopPage(
        spec=spec,
        now=_seconds(workspace.clock.now()),
        state=_state(spec, deployment, [a for a in alerts if a.state == "firing"], firings),
        deployment=deployment,
        rollouts=rollouts,
        service_levels=list(workspace.governance.service_levels(name)),
        series=_series(spec, windows),
        marks=_marks(workspace, deployment, alerts, rollouts),
        story=list(workspace.governance.story(name)),
        alerts=alerts[::-1],
    )


def _state(
    spec: LoopSpec, deployment: Deployment | None, firing: list[Alert], firings: list[Firing]
) -> str:
    if spec.paused:
        return "paused"
    if any(f.outcome in OPEN for f in firings):
        return "retraining"
    if deployment is None:
        return "not deployed"
    if len(deployment.arms) > 1:
        return "rolling out"
    return "alert" if firing else "healthy"


def _champion(deployment: Deployment | None) -> int:
    arm = deployment.arm("champion") if deployment else None
    return arm.version if arm else 0


def _series(spec: LoopSpec, windows: Iterable[Window]) -> list[Series]:
    by_monitor: dict[str, list[Window]] = {monitor.name: [] for monitor in spec.monitors}
    for window in windows:
        if window.mature and window.monitor in by_monitor:
            by_monitor[window.monitor].append(window)
    found = []
    for monitor in spec.monitors:
        mine = by_monitor[monitor.name]
        label, better = _METRICS.get(monitor.metric, (monitor.metric, "lower"))
        if mine:
            found.append(
                Series(
                    name=monitor.name,
                    label=label,
                    better=better,
                    window_s=monitor.window_s,
                    at=[_seconds(w.start) for w in mine],
                    values=[w.value for w in mine],
                    bounds=[w.bound for w in mine],
                )
            )
    return found


def _marks(
    workspace: Workspace,
    deployment: Deployment | None,
    alerts: list[Alert],
    rollouts: list[Rollout],
) -> list[Mark]:
    marks = [
        Mark(
            at=_seconds(alert.opened_at),
            until=_seconds(alert.cleared_at) if alert.cleared_at else None,
            kind="alert",
            label=f"{alert.monitor} alerts",
            monitor=alert.monitor,
        )
        for alert in alerts
    ]
    for verdict in workspace.evaluation.verdicts(deployment.model) if deployment else ():
        if verdict.champion:  # the first version has nobody to pass against
            kind: Literal["passed", "refused"] = "passed" if verdict.passed else "refused"
            label = f"version {verdict.candidate} {kind}"
            marks.append(Mark(at=_seconds(verdict.at), kind=kind, label=label))
    for rollout in rollouts:
        stage = rollout.state.stage
        if stage == "promoted" or stage == "aborted":
            label = f"version {rollout.candidate} {stage}"
            marks.append(Mark(at=_seconds(rollout.updated_at), kind=stage, label=label))
    return sorted(marks, key=lambda mark: mark.at)


def _seconds(at: datetime) -> float:
    return at.timestamp()
