"""What came of a replay: the figures by month, and of each promotion the month that followed.

All models are scored on the very feature values that were served.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import world
from replay import BEGIN, END, NAME

import everloop as ev
from everloop.evaluation.bootstrap import difference
from everloop.evaluation.metrics import metric, parse_metric
from everloop.registry.flavors import load_predictor

__all__ = ["month_table"]

#: The figures, and whether more is better.
_FIGURES = {"auc": True, "brier": False}
_AFTER = timedelta(days=30)


def month_table(workspace: ev.Workspace, until: datetime = END) -> dict[str, Any]:
    """By month: AUC and Brier of the frozen model, version 1, and of the loop, and what it did."""
    months = []
    for start in (m for m in world.months() if BEGIN <= m < until):
        end = min(until, END if start.month == 12 else start.replace(month=start.month + 1))
        rows = _answered(workspace, start, end)
        y = rows["label"].to_numpy()
        months.append(
            {
                "month": f"{start:%Y-%m}",
                "frozen": _figures(y, _scored(workspace, 1, rows)),
                "loop": _figures(y, rows["value"].to_numpy()),
                "flights": rows.height,
                **_acts(workspace, start, end),
            }
        )
    mean = {
        who: {k: float(np.mean([m[who][k] for m in months])) for k in _FIGURES}
        for who in ("frozen", "loop")
    }
    return {"months": months, "mean": mean, "promotions": _promotions(workspace, until)}


def _promotions(workspace: ev.Workspace, until: datetime) -> list[dict[str, Any]]:
    """Each promoted model against the one that it replaced, on the 30 days that followed.

    Differences are given so that more is better, with 95 % intervals by whole days.
    """
    rollouts = workspace.deployment.rollouts(NAME)
    found = []
    for rollout in sorted(rollouts, key=lambda r: r.updated_at):
        if rollout.state.stage != "promoted":
            continue
        at = rollout.updated_at
        rows = _answered(workspace, at, min(at + _AFTER, until))
        y, when = rows["label"].to_numpy(), rows["at"].dt.epoch("us").to_numpy()
        new = _scored(workspace, rollout.candidate, rows)
        old = _scored(workspace, rollout.champion, rows)
        told: dict[str, Any] = {"at": at.isoformat(), "version": rollout.candidate}
        told |= {"replaced": rollout.champion, "flights": rows.height}
        for name, more_is_better in _FIGURES.items():
            pair = (new, old) if more_is_better else (old, new)
            bounds = difference(parse_metric(name), y, *pair, when, level=0.025)
            told[name] = {"better_by": bounds.estimate, "low": bounds.low, "high": bounds.high}
        found.append(told)
    return found


def _answered(workspace: ev.Workspace, start: datetime, end: datetime) -> pl.DataFrame:
    rows = pl.from_arrow(workspace.predictions.read(NAME, since=start, until=end, labelled=True))
    assert isinstance(rows, pl.DataFrame)
    return rows.filter((pl.col("arm") != "shadow") & pl.col("label").is_not_null())


def _scored(workspace: ev.Workspace, version: int, rows: pl.DataFrame) -> np.ndarray:
    registered = workspace.registry.version(NAME, version)
    predictor = load_predictor(registered, workspace.registry.files(NAME, version))
    names = [f"f.{name}" for name in predictor.names]
    return predictor.predict(rows.select(names).cast(pl.Float64).to_numpy())


def _figures(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return {name: metric(name, y, p) for name in _FIGURES}


def _acts(workspace: ev.Workspace, start: datetime, end: datetime) -> dict[str, int]:
    def within(kind: str, **match: Any) -> int:
        events = workspace.lineage.events(kind=kind, limit=10_000)
        return sum(
            start <= e.at < end and all(e.body.get(k) == v for k, v in match.items())
            for e in events
        )

    return {
        "alerts": within("alert.Fired"),
        "retrained": within("trigger.Fired"),
        "refused": within("verdict.Given", passed=False),
        "promoted": within("rollout.Promoted"),
    }
