"""Fairness by group, with "too small to tell" as an answer of its own.

Each group is compared with everybody outside it, by what the criterion asks to be equal:

===================  ==================================================================
demographic_parity   the share that is given the positive answer
equal_opportunity    the true positive rate: of those who deserve it, how many get it
equalised_odds       the true and the false positive rate
calibration          the mean score less the rate of positives: whether scores mean the
                     same in every group
===================  ==================================================================

A group is unfairly treated if its whole interval lies beyond the margin, fairly if all of it lies
within; otherwise the rows do not tell. The intervals allow for the number of groups. No group can
be fair by all criteria at once unless the base rates are equal (Chouldechova, Big Data 5, 2017), so
the criterion is the user's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.bootstrap import MIN_DAYS, day_blocks
from everloop.evaluation.contrast import contrasts, student_value
from everloop.evaluation.order import Floats

__all__ = ["CRITERIA", "Criterion", "Fairness", "GroupAnswer", "GroupGap", "fairness"]

Criterion = Literal["demographic_parity", "equal_opportunity", "equalised_odds", "calibration"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
GroupAnswer = Literal["fair", "unfair", "too small to tell"]

_Columns = Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]


def _ones(hit: Floats, y: Floats, p: Floats) -> tuple[Floats, Floats]:
    return hit, np.ones(len(y))


def _of_positives(hit: Floats, y: Floats, p: Floats) -> tuple[Floats, Floats]:
    return hit * y, y


def _of_negatives(hit: Floats, y: Floats, p: Floats) -> tuple[Floats, Floats]:
    return hit * (1 - y), 1 - y


def _offset(hit: Floats, y: Floats, p: Floats) -> tuple[Floats, Floats]:
    return p - y, np.ones(len(y))


_ASKED: dict[str, dict[str, _Columns]] = {
    "demographic_parity": {"positive_rate": _ones},
    "equal_opportunity": {"tpr": _of_positives},
    "equalised_odds": {"tpr": _of_positives, "fpr": _of_negatives},
    "calibration": {"score - rate": _offset},
}


class GroupGap(NamedTuple):
    """One group by one rate.

    Attributes:
        inside: The rate of the group; `outside` that of everybody else.
        gap: Inside minus outside with its interval, NaN where it is not defined.
    """

    group: str
    rate: str
    rows: int
    inside: float
    outside: float
    gap: float
    low: float
    high: float
    answer: GroupAnswer


class Fairness(NamedTuple):
    """What was found.

    Attributes:
        gaps: Of each group and rate, the largest first.
        answer: ``unfair`` if any group is; ``fair`` if all are; else ``too small to tell``.
        unlabelled: Rows without a label, which count for nothing.
    """

    criterion: str
    by: float
    gaps: tuple[GroupGap, ...]
    answer: GroupAnswer
    unlabelled: int

    def groups(self, answer: GroupAnswer) -> list[str]:
        """The groups with this answer by any rate; ``fair`` only by all of them."""
        names = {gap.group for gap in self.gaps if gap.answer == answer}
        if answer == "fair":
            names -= {gap.group for gap in self.gaps if gap.answer != "fair"}
        if answer == "too small to tell":
            names -= {gap.group for gap in self.gaps if gap.answer == "unfair"}
        return sorted(names)


def fairness(
    criterion: str,
    labels: Floats,
    scores: Floats,
    groups: npt.NDArray[Any],
    at_us: npt.NDArray[np.int64],
    *,
    by: float,
    threshold: float = 0.5,
    min_rows: int = 200,
    level: float = 0.05,
) -> Fairness:
    """Compare each group with everybody else.

    Args:
        criterion: One of ``CRITERIA``.
        labels: 0 or 1; NaN where it is not known.
        scores: Of the positive class.
        groups: The group of each row.
        at_us: Time of each row, microseconds since 1970, UTC.
        by: How far apart the rates may lie, above 0.
        threshold: Scores from here on get the positive answer.
        min_rows: Smaller groups are too small to tell.
        level: Error probability on each side, for all groups together.

    Raises:
        InvalidInput: If `by` is not above 0.
        NotFound: If there is no such criterion.
    """
    if criterion not in _ASKED:
        raise NotFound.named("criterion of fairness", criterion, CRITERIA)
    if not (math.isfinite(by) and by > 0):
        raise InvalidInput(f"the margin must be above 0, got {by}", hint="by=0.05")
    known = np.isfinite(labels)
    unlabelled = int(np.count_nonzero(~known))
    labels, scores, at_us = labels[known], scores[known], at_us[known]
    names, codes = np.unique(np.asarray(groups)[known].astype(str), return_inverse=True)
    days = day_blocks(at_us)
    hit = (scores >= threshold).astype(np.float64)
    gaps: list[GroupGap] = []
    asked = _ASKED[criterion]
    for rate, columns in asked.items() if len(names) > 1 else ():
        found = contrasts(*columns(hit, labels, scores), codes.astype(np.intp), days)
        for index, name in enumerate(names):
            rows, seen = int(found.rows[index]), int(found.days[index])
            gap, spread = float(found.effect[index]), float(found.spread[index])
            half = math.nan
            if rows >= min_rows and seen >= MIN_DAYS and math.isfinite(spread):
                half = student_value(level / len(names) / len(asked), seen - 1) * spread
            gaps.append(
                GroupGap(
                    str(name), rate, rows, float(found.inside[index]), float(found.outside[index]),
                    gap, gap - half, gap + half, _answer(gap - half, gap + half, by),
                )
            )  # fmt: skip
    gaps.sort(key=lambda one: (-abs(one.gap) if math.isfinite(one.gap) else 0.0, one.group))
    answers = {one.answer for one in gaps}
    answer: GroupAnswer = "too small to tell"
    if "unfair" in answers:
        answer = "unfair"
    elif answers == {"fair"}:
        answer = "fair"
    return Fairness(criterion, by, tuple(gaps), answer, unlabelled)


def _answer(low: float, high: float, by: float) -> GroupAnswer:
    if low > by or high < -by:
        return "unfair"
    return "fair" if -by <= low and high <= by else "too small to tell"
