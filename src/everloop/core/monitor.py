"""Monitors, windows and alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.core.machines import AlertState

__all__ = ["Alert", "Monitor", "MonitorKind", "Window"]

MonitorKind = Literal["performance", "quality", "feature_drift", "prediction_drift"]


class Monitor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is watched of a deployment and when it raises an alert.

    Attributes:
        metric: For ``performance``: ``auc`` or ``brier``; else the statistic.
        window_s: Length of a window, seconds; windows are aligned to UTC midnight.
        label_delay_s: How long after its end a window counts as mature.
        fire, clear: ``(k, m)`` windows, see ``machines.decide_alert``.
        bound: Breach beyond this; None takes the band of the reference's own windows.
        width: Half width of that band, in standard deviations of the reference's windows.
        min_rows: Windows with fewer rows tell nothing and are left out.
        floor: Smallest effect that counts, in units of the metric.
    """

    name: str
    deployment: str
    kind: MonitorKind
    metric: str
    window_s: int = 86_400
    label_delay_s: int = 86_400
    fire: tuple[int, int] = (3, 5)
    clear: tuple[int, int] = (0, 5)
    bound: float | None = None
    width: float = 2.0
    min_rows: int = 200
    floor: float = 0.0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One window of one monitor.

    Attributes:
        value: The statistic, or None where it is undefined (one class only, too few rows).
        breach: Whether it is beyond the bound.
        labels: How many of the rows have their label by now.
    """

    deployment: str
    monitor: str
    start: datetime
    end: datetime
    rows: int
    labels: int
    value: float | None
    bound: float | None
    breach: bool
    mature: bool
    detail: dict[str, Any] = {}


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A monitor that fires: opened, perhaps cleared, with the windows that are the evidence."""

    id: str
    deployment: str
    monitor: str
    state: AlertState
    opened_at: datetime
    cleared_at: datetime | None = None
    evidence: dict[str, Any] = {}
