"""``/metrics`` for Prometheus: the state of loops, deployments and the catalog, read when asked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from everloop.workspace import Workspace

__all__ = ["CONTENT_TYPE", "StateCollector", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class StateCollector(Collector):
    """Gauges read from the catalog at each scrape, so that a restart loses nothing."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def collect(self) -> Iterable[Metric]:
        deployments = self._workspace.deployment.deployments()
        yield self._weights(deployments)
        revision = GaugeMetricFamily(
            "everloop_deployment_revision", "Revision of the arms.", labels=["deployment"]
        )
        open_alerts = GaugeMetricFamily(
            "everloop_alerts_open", "Alerts that fire now.", labels=["deployment"]
        )
        for deployment in deployments:
            revision.add_metric([deployment.name], deployment.revision)
            alerts = self._workspace.monitoring.alerts(deployment.name, open_only=True)
            open_alerts.add_metric([deployment.name], len(alerts))
        yield revision
        yield open_alerts
        newest = self._workspace.lineage.events(limit=1, newest=True)
        events = GaugeMetricFamily("everloop_events", "Position of the newest event.")
        events.add_metric([], newest[0].seq if newest else 0)
        yield events

    @staticmethod
    def _weights(deployments: Iterable[object]) -> GaugeMetricFamily:
        weights = GaugeMetricFamily(
            "everloop_arm_weight_percent",
            "Share of the traffic.",
            labels=["deployment", "arm", "version"],
        )
        for deployment in deployments:
            for arm in deployment.arms:  # type: ignore[attr-defined]
                weights.add_metric(
                    [deployment.name, arm.name, str(arm.version)],  # type: ignore[attr-defined]
                    arm.weight,
                )
        return weights


def render(registry: CollectorRegistry) -> bytes:
    """The text form of all metrics of `registry`."""
    return generate_latest(registry)
