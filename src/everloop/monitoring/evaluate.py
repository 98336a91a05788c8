"""What a monitor finds in one window. Pure: tallies and a reference in, a finding out.

The order of trust is fixed: realised performance first; drift of predictions, then of features,
is for diagnosis. A drift counts only where three things hold together: its p-value, corrected for
all that was looked at; an effect above the floor; and more than the reference's own windows moved.
Rows of one day hang together, so a p-value over rows alone says nothing about days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from everloop.core.monitor import Monitor
from everloop.data.bins import BINS, HIGH, LOW, NULL, UNSEEN, Counts, FeatureBins
from everloop.data.statistics import (
    chi2_p,
    holm,
    ks_distance,
    ks_p,
    share_p,
    total_variation,
)
from everloop.monitoring.reference import Band, Reference
from everloop.monitoring.tally import Tally, metric_value, worse_if_above

__all__ = ["FAMILY_ERROR", "FEWEST_BLOCKS", "QUALITY_METRICS", "Finding", "evaluate"]

# Chance of any false alarm among everything that one monitor looks at in one window.
FAMILY_ERROR = 0.05
# With fewer days than this a reference cannot tell how much its days differ.
FEWEST_BLOCKS = 8
# How many features a finding names.
_SHOWN = 5

QUALITY_METRICS = ("any", "nulls", "unseen", "range", "scores")
_QUALITY = {"nulls": (NULL,), "unseen": (UNSEEN,), "range": (LOW, HIGH)}


class Finding(NamedTuple):
    """Value, bound and whether it is beyond; value None where nothing can be told, with why."""

    value: float | None
    bound: float | None
    breach: bool
    detail: dict[str, Any]


class _Effect(NamedTuple):
    what: str
    effect: float
    p: float
    bound: float


def evaluate(monitor: Monitor, served: Tally, own: Tally, reference: Reference | None) -> Finding:
    """Judge one window.

    Args:
        monitor: What to look at.
        served: All answers of the window, of every version that served traffic.
        own: Those of the version that was champion; its features have that version's bins.
        reference: That version's, or None where it was registered without one.
    """
    if monitor.kind == "performance":
        return _performance(monitor, served, reference)
    if own.rows < monitor.min_rows:
        return _untold(f"{own.rows} rows of the {monitor.min_rows} needed")
    if reference is None:
        return _untold("the version was registered without a reference")
    if monitor.kind == "quality":
        return _quality(monitor, own, reference)
    if len(reference.days) < FEWEST_BLOCKS and monitor.bound is None:
        days = len(reference.days)
        return _untold(f"too few blocks to tell: {days} days of the {FEWEST_BLOCKS} needed")
    if monitor.kind == "prediction_drift":
        return _worst(monitor, [_score_drift(monitor, own, reference)])
    return _worst(monitor, list(_feature_drift(monitor, own, reference)))


def _untold(why: str) -> Finding:
    return Finding(None, None, False, {"why": why})


def _performance(monitor: Monitor, served: Tally, reference: Reference | None) -> Finding:
    value = metric_value(monitor.metric, served)
    detail: dict[str, Any] = {"label_share": _share(served.positives, served.labels)}
    bound = monitor.bound
    if bound is None and reference is not None:
        band = reference.performance_band(monitor.metric, monitor.window_s)
        bound = None if band is None else _band_bound(monitor, band)
        detail["days"] = 0 if band is None else band.blocks
    if served.labels < monitor.min_rows:
        detail["why"] = f"{served.labels} labelled rows of the {monitor.min_rows} needed"
        return Finding(None, bound, False, detail)
    if value is None:
        detail["why"] = "undefined: the labels are all alike"
        return Finding(None, bound, False, detail)
    if bound is None:
        detail["why"] = "no bound: none was given and the reference has fewer than two days"
        return Finding(value, None, False, detail)
    beyond = value > bound if worse_if_above(monitor.metric) else value < bound
    return Finding(value, bound, beyond, detail)


def _band_bound(monitor: Monitor, band: Band) -> float:
    """One-sided: only worse than the band is a breach."""
    reach = max(monitor.width * band.sd, monitor.floor)
    if worse_if_above(monitor.metric):
        return band.mean + reach
    # A hold-out that holds a break of its own gives a band so wide that it would be blind; ranking
    # no better than a coin is a breach whatever the band says.
    return max(band.mean - reach, 0.5) if monitor.metric == "auc" else band.mean - reach


def _score_drift(monitor: Monitor, own: Tally, reference: Reference) -> _Effect:
    now, was = _all_scores(own), _all_scores(reference.total)
    effect = float(ks_distance(now, was))
    bound = _drift_bound(
        monitor,
        reference,
        "scores",
        lambda w, r: float(ks_distance(_all_scores(w), _all_scores(r))),
    )
    return _Effect("score", effect, ks_p(effect, int(now.sum()), int(was.sum())), bound)


def _feature_drift(monitor: Monitor, own: Tally, reference: Reference) -> Iterator[_Effect]:
    for bins in reference.bins:
        if bins.name not in own.features:
            continue
        now, was = own.features[bins.name], reference.total.features[bins.name]
        bound = _drift_bound(monitor, reference, f"drift:{bins.name}", _mover(bins))
        yield _Effect(bins.name, _moved(bins, now, was), _moved_p(bins, now, was), bound)


def _mover(bins: FeatureBins) -> Callable[[Tally, Tally], float | None]:
    def moved(window: Tally, rest: Tally) -> float | None:
        return _moved(bins, window.features[bins.name], rest.features[bins.name])

    return moved


def _moved(bins: FeatureBins, now: Counts, was: Counts) -> float:
    distance = ks_distance if bins.kind == "numeric" else total_variation
    return float(distance(now[:BINS], was[:BINS]))


def _moved_p(bins: FeatureBins, now: Counts, was: Counts) -> float:
    left, right = now[:BINS], was[:BINS]
    if bins.kind == "numeric":
        return ks_p(_moved(bins, now, was), int(left.sum()), int(right.sum()))
    return chi2_p(left, right)


def _drift_bound(
    monitor: Monitor,
    reference: Reference,
    name: str,
    of: Callable[[Tally, Tally], float | None],
) -> float:
    if monitor.bound is not None:
        return monitor.bound
    band = reference.band(name, monitor.window_s, of)
    if band is None:
        return monitor.floor
    return max(band.mean + monitor.width * band.sd, band.worst, monitor.floor)


def _quality(monitor: Monitor, own: Tally, reference: Reference) -> Finding:
    effects = list(_faulty(monitor, own, reference))
    if monitor.metric in ("any", "scores"):
        answered = own.rows - own.errors
        effects.append(
            _Effect(
                "invalid score",
                _share(own.invalid, answered),
                share_p(own.invalid, answered, reference.total.invalid, reference.total.rows),
                monitor.floor if monitor.bound is None else monitor.bound,
            )
        )
    return _worst(monitor, effects)


def _faulty(monitor: Monitor, own: Tally, reference: Reference) -> Iterator[_Effect]:
    for bins in reference.bins:
        now, was = own.features.get(bins.name), reference.total.features[bins.name]
        if now is None:
            yield _Effect(f"{bins.name} missing", 1.0, 0.0, monitor.floor)
            continue
        for kind, slots in _QUALITY.items():
            if monitor.metric not in ("any", kind):
                continue
            hits, before = int(now[list(slots)].sum()), int(was[list(slots)].sum())
            excess = _share(hits, own.rows) - _share(before, reference.total.rows)
            p = share_p(hits, own.rows, before, reference.total.rows)
            bound = _drift_bound(monitor, reference, f"{kind}:{bins.name}", _excess(bins, slots))
            yield _Effect(f"{bins.name} {kind}", excess, p, bound)


def _excess(bins: FeatureBins, slots: tuple[int, ...]) -> Callable[[Tally, Tally], float | None]:
    def excess(window: Tally, rest: Tally) -> float | None:
        now, was = window.features[bins.name], rest.features[bins.name]
        return _share(int(now[list(slots)].sum()), window.rows) - _share(
            int(was[list(slots)].sum()), rest.rows
        )

    return excess


def _worst(monitor: Monitor, effects: list[_Effect]) -> Finding:
    """Value and bound of what lies farthest out; a breach if anything is beyond all three."""
    if not effects:
        return _untold("the answers hold none of the reference's features")
    corrected = holm([effect.p for effect in effects])
    beyond = [
        p <= FAMILY_ERROR and e.effect > max(e.bound, monitor.floor)
        for e, p in zip(effects, corrected, strict=True)
    ]
    order = sorted(
        range(len(effects)),
        key=lambda i: (not beyond[i], effects[i].bound - effects[i].effect),
    )
    first = effects[order[0]]
    shown = [
        {
            "name": effects[i].what,
            "effect": round(effects[i].effect, 6),
            "bound": round(effects[i].bound, 6),
            "p": corrected[i],
            "breach": beyond[i],
        }
        for i in order[:_SHOWN]
    ]
    detail = {"looked_at": len(effects), "beyond": int(np.sum(beyond)), "worst": shown}
    return Finding(first.effect, first.bound, any(beyond), detail)


def _all_scores(of: Tally) -> Counts:
    return np.asarray(of.scores.sum(axis=0))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
