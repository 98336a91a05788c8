"""How a user writes gates: plain functions that make each a ``core.gate.Gate``.

``on`` reads as people say it: ``"latest 21 days"``. Whatever does not fit together is refused when
the loop is declared, all faults together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from everloop.automation.texts import days_of
from everloop.core.gate import Gate, GateCase
from everloop.errors import InvalidInput

__all__ = [
    "answers",
    "beats_champion",
    "calibrated",
    "directional",
    "fair",
    "invariant",
    "max_latency_ms",
    "max_size_mb",
    "no_group_worse",
    "no_weak_slice",
    "not_worse",
    "threshold",
]


# --- against the champion -----------------------------------------------------------------------


def beats_champion(
    metric: str,
    *,
    on: str = "latest 21 days",
    margin: float = 0.0,
    level: float = 0.05,
    spend: bool = False,
    min_rows: int = 200,
) -> Gate:
    """Require a candidate to be better than the champion by `margin`, by more than chance.

    Args:
        metric: Such as ``brier``, ``auc``, ``tpr@0.3``, ``rmse``.
        on: The hold-out: the latest days of labelled answers that neither model was trained on.
        margin: What it must be better by, in units of the metric.
        level: The chance that a candidate which is no better passes one test.
        spend: Share `level` out over all uses of a hold-out, so that it holds for all attempts
            together; each use then has less power than the one before.
        min_rows: With fewer rows nothing is judged, and the candidate does not pass.
    """
    return Gate(
        kind="beats_champion", metric=metric, by=margin, days=days_of(on), level=level,
        spend=spend, min_rows=min_rows,
    )  # fmt: skip


def not_worse(
    metric: str,
    *,
    by: float,
    group: str = "",
    margins: Mapping[str, float] | None = None,
    on: str = "latest 21 days",
    level: float = 0.05,
    spend: bool = False,
    min_rows: int = 200,
) -> Gate:
    """Require that the candidate is shown to lose no more than `by` against the champion.

    The burden of proof is the candidate's: rows that do not tell are no pass.

    Args:
        metric: What it may lose in.
        by: The margin of non-inferiority, in units of the metric.
        group: Ask it of each group of this column that has `min_rows` rows.
        margins: Margins of single groups that differ from `by`.
        on, level, spend, min_rows: As for :func:`beats_champion`.
    """
    return Gate(
        kind="not_worse", metric=metric, by=by, group=group, margins=dict(margins or {}),
        days=days_of(on), level=level, spend=spend, min_rows=min_rows,
    )  # fmt: skip


def no_group_worse(
    group: str,
    metric: str,
    *,
    by: float,
    margins: Mapping[str, float] | None = None,
    on: str = "latest 21 days",
    level: float = 0.05,
    min_rows: int = 200,
) -> Gate:
    """Require that no group (by the values of column `group`) is shown to lose more than `by`.

    Groups that the rows can neither clear nor condemn are named as too small to tell; with
    ``ev.not_worse(metric, by=..., group=...)`` they refuse. ``docs/adr/0010`` says why.
    """
    return Gate(
        kind="no_group_worse", metric=metric, group=group, by=by, margins=dict(margins or {}),
        days=days_of(on), level=level, min_rows=min_rows,
    )  # fmt: skip


# --- of the candidate alone ---------------------------------------------------------------------


def threshold(
    metric: str, limit: float, *, on: str = "latest 21 days", min_rows: int = 200
) -> Gate:
    """Require the metric itself to be at least as good as `limit`."""
    return Gate(kind="threshold", metric=metric, by=limit, days=days_of(on), min_rows=min_rows)


def no_weak_slice(
    metric: str,
    *,
    by: float,
    fields: Sequence[str] = (),
    on: str = "latest 21 days",
    level: float = 0.05,
    min_rows: int = 200,
) -> Gate:
    """Require that in no slice of the data the metric is worse by more than `by` than elsewhere.

    Searched are the values of each field and pairs of two, corrected for how many were tried.

    Args:
        metric: One that is a mean over rows, such as ``brier``, ``accuracy``, ``tpr``, ``mae``.
        by: How much worse a slice may be.
        fields: Features and group columns to search; all there are if not given.
        on, level, min_rows: As for :func:`beats_champion`; `min_rows` of a slice.
    """
    return Gate(
        kind="no_weak_slice", metric=metric, by=by, fields=tuple(fields), days=days_of(on),
        level=level, min_rows=min_rows,
    )  # fmt: skip


def calibrated(
    *, within: float, on: str = "latest 21 days", level: float = 0.05, min_rows: int = 200
) -> Gate:
    """Require probabilities to be shown to lie `within` so much of what came, such as 0.05.

    Measured is the root mean square distance of mean score and rate over ten bins, with what
    chance adds taken off; the far end of its interval counts.
    """
    return Gate(kind="calibrated", by=within, days=days_of(on), level=level, min_rows=min_rows)


def fair(
    group: str,
    criterion: str,
    *,
    by: float,
    on: str = "latest 21 days",
    level: float = 0.05,
    min_rows: int = 200,
) -> Gate:
    """Require groups to be treated alike, each within `by` of everybody else.

    Args:
        group: Column that tells the groups apart.
        criterion: ``demographic_parity``, ``equal_opportunity``, ``equalised_odds`` or
            ``calibration``; at a threshold other than 0.5 as in ``equal_opportunity@0.3``.
        by: How far apart the rates may lie.
        on, level, min_rows: As for :func:`beats_champion`; smaller groups are too small to tell.
    """
    return Gate(
        kind="fair", metric=criterion, group=group, by=by, days=days_of(on), level=level,
        min_rows=min_rows,
    )  # fmt: skip


# --- behaviour and running ----------------------------------------------------------------------


def invariant(
    field: str, *, by: float = 1e-9, values: Sequence[float] = (), share: float = 0.0
) -> Gate:
    """Require that changing a feature that must not matter moves no score by more than `by`.

    Args:
        field: The feature.
        by: How far a score may move.
        values: What to put in its place; values that occur if not given.
        share: Share of rows that may break it.
    """
    return Gate(
        kind="invariant", field=field, by=by, values=tuple(float(v) for v in values), share=share
    )


def directional(
    field: str,
    change: float,
    effect: Literal["up", "down"],
    *,
    by: float = 0.0,
    share: float = 0.0,
) -> Gate:
    """Require that adding `change` to a feature lets no score go the wrong way.

    ``ev.directional("previous_delay", +30, "up")``: a plane that is later does not make the flight
    more punctual.

    Args:
        field: The feature.
        change: What is added to it.
        effect: Which way the score must go, or stay.
        by: How far the wrong way is let pass.
        share: Share of rows that may break it.
    """
    return Gate(kind="directional", field=field, change=change, effect=effect, by=by, share=share)


def answers(name: str, features: Mapping[str, float], score: str) -> Gate:
    """Require a known answer: with these features the score is ``"> 0.5"`` or ``"0.2 to 0.4"``.

    Args:
        name: Of the case, for people.
        features: By name; those left out are missing.
        score: ``"> 0.5"``, ``"< 0.1"``, or ``"0.2 to 0.4"``; the ends count.
    """
    low, high = _limits(score)
    case = GateCase(name, {key: float(value) for key, value in features.items()}, low, high)
    return Gate(kind="functionality", field=name, cases=(case,))


def max_latency_ms(limit: float) -> Gate:
    """Require the model to answer one row within `limit` milliseconds, 99 times of 100.

    It is timed alone and where the gate is judged, so leave room for a machine that is busy.
    """
    return Gate(kind="max_latency_ms", by=limit)


def max_size_mb(limit: float) -> Gate:
    """Require the model's files together to have at most `limit` megabytes (of 10**6 bytes)."""
    return Gate(kind="max_size_mb", by=limit)


_NUMBER = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"


def _limits(text: str) -> tuple[float, float]:
    # Ends are large numbers, not infinities: a gate is kept as JSON, which has none.
    if match := re.fullmatch(rf"\s*>=?\s*{_NUMBER}\s*", text):
        return float(match[1]), 1e300
    if match := re.fullmatch(rf"\s*<=?\s*{_NUMBER}\s*", text):
        return -1e300, float(match[1])
    if match := re.fullmatch(rf"\s*{_NUMBER}\s+to\s+{_NUMBER}\s*", text):
        return float(match[1]), float(match[2])
    raise InvalidInput(f"{text!r} is no range of scores", hint='write "> 0.5" or "0.2 to 0.4"')
