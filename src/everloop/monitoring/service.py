"""MonitoringService: monitors, their windows and alerts. ``updater`` does the work of an update."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.engine import Catalog
from everloop.core.monitor import Alert, Monitor, Window
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.monitoring import ledger
from everloop.monitoring.evaluate import QUALITY_METRICS
from everloop.monitoring.promises import Promises
from everloop.monitoring.reference import DAY_S
from everloop.monitoring.tally import METRICS, merge, metric_value
from everloop.monitoring.updater import (
    DeploymentReader,
    PredictionReader,
    Updater,
    VersionReader,
    unit_of,
)
from everloop.ports.blobs import BlobStore

__all__ = ["MonitoringService", "monitor_faults"]

_SHORTEST_S = 60
_DRIFT_METRICS = ("distance",)
_METRICS = {
    "performance": METRICS,
    "quality": QUALITY_METRICS,
    "feature_drift": _DRIFT_METRICS,
    "prediction_drift": _DRIFT_METRICS,
}


class MonitoringService(Service):
    """Watches deployments: realised performance, data quality, drift."""

    area = "monitoring"

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        authorizer: Authorizer,
        predictions: PredictionReader,
        registry: VersionReader,
        deployment: DeploymentReader,
    ) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._updater = Updater(catalog, blobs, predictions, registry, deployment)
        self._promises = Promises(catalog, predictions)

    @action("monitor:write")
    def watch(self, monitors: list[Monitor]) -> list[Monitor]:
        """Define monitors; one that is there under the same name is replaced.

        The windows of a monitor that changed are judged anew at the next update.

        Raises:
            InvalidInput: If a definition makes no sense; all faults of all of them are listed.
        """
        faults = [fault for monitor in monitors for fault in monitor_faults(monitor)]
        if faults:
            raise InvalidInput("the monitors are wrong", faults)
        with self._catalog.write() as tx:
            for monitor in monitors:
                if ledger.put_monitor(tx, monitor):
                    body = {"monitor": monitor.name, "kind": monitor.kind, "metric": monitor.metric}
                    tx.append("monitor.Declared", f"deployment:{monitor.deployment}", body)
        return monitors

    @action("monitor:write", on="deployment")
    def unwatch(self, deployment: str, monitor: str) -> None:
        """Remove a monitor with its windows; its open alert clears, its past alerts stay.

        Raises:
            NotFound: If there is none of that name.
        """
        with self._catalog.write() as tx:
            if not ledger.drop_monitor(tx, deployment, monitor):
                known = [found.name for found in ledger.monitors(tx, deployment)]
                raise NotFound.named("monitor", monitor, known)

    @action("monitor:read", on="deployment")
    def monitors(self, deployment: str) -> list[Monitor]:
        """The monitors of a deployment, by name."""
        with self._catalog.read() as tx:
            return ledger.monitors(tx, deployment)

    @action("monitor:read", on="deployment")
    def windows(
        self, deployment: str, monitor: str = "", since: datetime | None = None
    ) -> list[Window]:
        """Windows that end after `since`, oldest first."""
        with self._catalog.read() as tx:
            return ledger.windows(tx, deployment, monitor=monitor, since=since)

    @action("monitor:read", on="deployment")
    def alerts(self, deployment: str = "", open_only: bool = False) -> list[Alert]:
        """Alerts, oldest first."""
        with self._catalog.read() as tx:
            return ledger.alerts(tx, deployment, open_only=open_only)

    @action("monitor:read", on="deployment")
    def measure(self, deployment: str, since: datetime, until: datetime) -> dict[str, float | None]:
        """Realised performance of what was served, from the summaries alone.

        Args:
            deployment: Its name.
            since: Units (days, or shorter where a monitor has shorter windows) that start here or
                later count whole.
            until: Units that start before this count.

        Returns:
            ``rows``, ``labels`` and each metric, None where it is undefined. Labels that came after
            the last ``update`` are not in it.
        """
        with self._catalog.read() as tx:
            unit_s = unit_of(ledger.monitors(tx, deployment))
            units = ledger.tallies(tx, deployment, unit_s, since, until)
        total = merge(part for parts in units.values() for part in parts.values())
        found = {metric: metric_value(metric, total) for metric in METRICS}
        return found | {"rows": total.rows, "labels": total.labels}

    @action("monitor:update", on="deployment")
    def update(self, deployment: str) -> list[Alert]:
        """Bring summaries, windows and alerts up to the clock's now.

        Labels that become known later than that are not used yet. With nothing new it does
        nothing, so it may be called as often as one likes.

        Returns:
            The alerts that fired or cleared, as they are now.

        Raises:
            NotFound: If there is no such deployment.
        """
        return self._updater.run(deployment)

    @action("monitor:update", on="loop")
    def judge(self, loop: str) -> list[Alert]:
        """Hold the promises of a loop's charter against what is, at the clock's now.

        One that is broken alerts as ``sla:NAME``, once, with the value, what was promised and what
        it was measured on; the alert clears when it is kept again with a tenth to spare. With
        nothing new and no time come it does nothing, so it may be called as often as one likes.

        Returns:
            The alerts that fired or cleared, as they are now.

        Raises:
            NotFound: If there is no such loop.
        """
        return self._promises.judge(loop)


def monitor_faults(monitor: Monitor) -> Iterable[Fault]:
    """What makes no sense in the definition of a monitor."""
    where = monitor.name or "monitor"
    if not monitor.name or not monitor.deployment:
        yield Fault(where, "a monitor needs a name and a deployment")
    if monitor.name.partition(":")[0] == "sla":
        yield Fault(where, "'sla' is what the promises of the charter are called")
    if monitor.kind not in _METRICS:
        yield Fault(f"{where}.kind", f"{monitor.kind!r} is none of {', '.join(_METRICS)}")
    elif monitor.metric not in _METRICS[monitor.kind]:
        known = ", ".join(_METRICS[monitor.kind])
        yield Fault(f"{where}.metric", f"{monitor.metric!r} is none of {known}")
    length = monitor.window_s
    if length < _SHORTEST_S or (DAY_S % length if length < DAY_S else length % DAY_S):
        yield Fault(
            f"{where}.window_s",
            f"{length} s is no whole number of days and no day has a whole number of it",
        )
    if monitor.label_delay_s < 0:
        yield Fault(f"{where}.label_delay_s", "must be 0 or more")
    for name, (k, m) in (("fire", monitor.fire), ("clear", monitor.clear)):
        if m < 1 or not 0 <= k <= m or (name == "fire" and k < 1):
            yield Fault(f"{where}.{name}", f"{k} of {m} windows is no rule")
    if monitor.fire[1] == monitor.clear[1] and monitor.clear[0] >= monitor.fire[0]:
        yield Fault(f"{where}.clear", "must be lower than fire, or the alert would flap")
    if monitor.width < 0 or monitor.floor < 0 or monitor.min_rows < 1:
        yield Fault(where, "width and floor must be 0 or more, min_rows 1 or more")
