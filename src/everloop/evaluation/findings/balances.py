"""``ev.balance``: classes and groups, with "too small to tell" as an answer of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.core.finding import Answer, BalanceRow, FindingReport
from everloop.core.quality import MASKED
from everloop.core.schema import Schema
from everloop.errors import InvalidInput
from everloop.evaluation.contrast import student_value
from everloop.evaluation.findings.found import Finding, Findings, html_table
from everloop.evaluation.findings.literals import literal, quoted, shown
from everloop.evaluation.findings.looked import Classes, Looked, classes_of, look

__all__ = ["Balance", "balance"]

#: Groups of a column that are judged, the largest; identifiers have more than anybody reads.
_MOST_GROUPS = 50
# Degrees of freedom from which Student's t is the normal distribution.
_MANY = 1_000_000


class Balance(Findings):
    """Classes and groups of the rows; the findings are those that are out of balance.

    Attributes:
        classes: Each class, by its share of an even share (1 is even).
        groups: Each group, by how far the share of a class lies from that outside the group.
    """

    def __init__(
        self,
        found: Iterable[Finding],
        figures: dict[str, Any],
        classes: tuple[BalanceRow, ...],
        groups: tuple[BalanceRow, ...],
        reason: str = "",
    ) -> None:
        self.classes = classes
        self.groups = groups
        super().__init__("balance", list(found), figures, reason)

    @property
    def answer(self) -> Answer:
        """``imbalanced`` if anything is; ``balanced`` if all is; else ``too small to tell``."""
        answers = {one.answer for one in (*self.classes, *self.groups)}
        if "imbalanced" in answers:
            return "imbalanced"
        return "balanced" if answers == {"balanced"} else "too small to tell"

    def summary(self) -> str:
        """Every class and group."""
        rows = [
            f"  {one.name}: {one.rows} rows, {one.share:.2%}; {one.gap:.3g} "
            f"({one.low:.3g} to {one.high:.3g}): {one.answer}"
            for one in (*self.classes, *self.groups)
        ]
        return "\n".join([super().summary().splitlines()[0], *rows])

    def _repr_html_(self) -> str:
        head = ["", "rows", "share", "gap", "interval", "answer"]
        body = [
            [one.name, str(one.rows), f"{one.share:.2%}", f"{one.gap:.3g}",
             f"{one.low:.3g} to {one.high:.3g}", one.answer]
            for one in (*self.classes, *self.groups)
        ]  # fmt: skip
        return html_table(f"balance: {self.reason or self.answer}", head, body)


def balance(
    rows: Any,
    *,
    label: str,
    groups: str | Iterable[str] = (),
    least: float = 0.2,
    by: float = 0.1,
    min_rows: int = 50,
    level: float = 0.05,
    schema: Schema | None = None,
) -> Balance:
    """Tell which classes are scarce, and in which groups the classes have other shares.

    Args:
        rows: The name of a dataset, or anything that ``Table.of`` takes.
        label: The column of the labels; rows without one are left out and counted.
        groups: Columns of groups. Of each the 50 largest are judged.
        least: A class is out of balance with less than this share of an even share: 0.2 is a tenth
            of all rows where there are two classes.
        by: A group is out of balance if the share of any class in it is farther than this from that
            of the rows outside.
        min_rows: Smaller groups are too small to tell.
        level: Chance of any wrong answer, of all classes, and of all groups together.
        schema: Names the key and personal columns of a frame.

    Raises:
        NotFound: If there is no such dataset or column.
        InvalidInput: If an option is out of range, or a column cannot hold classes.
    """
    if not (0 < least <= 1 and 0 < by < 1 and 0 < level < 1 and min_rows >= 1):
        raise InvalidInput("least, by and level are shares above 0, and min_rows is 1 or more")
    looked = look(rows, schema)
    names = (groups,) if isinstance(groups, str) else tuple(groups)
    found = classes_of(looked.table, label)
    of_groups = {name: classes_of(looked.table, name) for name in names}
    known = found.codes >= 0
    total = int(known.sum())
    figures: dict[str, Any] = {"rows": total, "unlabelled": len(known) - total}
    if len(found.values) < 2:
        reason = f"{len(found.values)} class among {total} labels: there is nothing to balance"
        return Balance((), figures, (), (), reason)
    judged = _Judged(looked, label, found, known, total, level)
    classes = judged.classes(least)
    in_groups = [
        row for name, one in of_groups.items() for row in judged.groups(name, one, by, min_rows)
    ]
    findings = [finding for _, finding in (*classes, *in_groups) if finding is not None]
    return Balance(
        findings, figures, tuple(row for row, _ in classes), tuple(row for row, _ in in_groups)
    )


class _Judged:
    """The shares of one label."""

    def __init__(
        self,
        looked: Looked,
        label: str,
        found: Classes,
        known: npt.NDArray[np.bool_],
        total: int,
        level: float,
    ) -> None:
        self._looked, self._label, self._found = looked, label, found
        self._known, self._total, self._level = known, total, level

    def classes(self, least: float) -> list[tuple[BalanceRow, Finding | None]]:
        """Each class beside an even share."""
        many = len(self._found.values)
        sizes = np.bincount(self._found.codes[self._known], minlength=many)
        tail = student_value(self._level / 2 / many, _MANY)
        rows: list[tuple[BalanceRow, Finding | None]] = []
        for number, value in enumerate(self._found.values):
            share = int(sizes[number]) / self._total
            low, high = _wilson(int(sizes[number]), self._total, tail)
            row = self._row(
                self._name(self._label, value), int(sizes[number]), self._total,
                (share * many, low * many, high * many),
                "imbalanced" if high * many < least
                else "balanced" if low * many >= least else "too small to tell",
            )  # fmt: skip
            reason = f"{row.gap:.3g} of an even share of the rows"
            score = 1 - row.gap
            rows.append((row, self._finding(row, self._label, value, reason, score)))
        return rows

    def groups(
        self, name: str, groups: Classes, by: float, min_rows: int
    ) -> list[tuple[BalanceRow, Finding | None]]:
        """Each group of a column beside all rows outside it."""
        many = len(self._found.values)
        use = self._known & (groups.codes >= 0)
        cells = groups.codes[use] * many + self._found.codes[use]
        counts = np.bincount(cells, minlength=len(groups.values) * many)
        table = counts.reshape(len(groups.values), many)
        sizes = table.sum(axis=1)
        largest = np.argsort(-sizes, kind="stable")[:_MOST_GROUPS]
        tail = student_value(self._level / 2 / max(len(largest), 1) / many, _MANY)
        every, rows = table.sum(axis=0), []
        for number in sorted(largest.tolist()):
            inside, outside = table[number], every - table[number]
            n, m = int(inside.sum()), int(outside.sum())
            gap = low = high = math.nan
            answer: Answer = "too small to tell"
            if n >= min_rows and m >= min_rows:
                gap, low, high = _widest(inside, outside, tail)
                answer = _answer(low, high, by)
            value = groups.values[number]
            row = self._row(self._name(name, value), n, len(use), (gap, low, high), answer)
            reason = f"the share of a class differs by {gap:.3g} from that outside"
            rows.append((row, self._finding(row, name, value, reason, gap)))
        return rows

    def _row(
        self, name: str, rows: int, of: int, gap: tuple[float, float, float], answer: Answer
    ) -> BalanceRow:
        return BalanceRow(
            name=name, rows=rows, share=rows / of if of else 0.0, gap=gap[0], low=gap[1],
            high=gap[2], answer=answer,
        )  # fmt: skip

    def _name(self, column: str, value: Any) -> str:
        told = MASKED if column in self._looked.personal else shown(value)
        return f"{column} = {told}"

    def _finding(
        self, row: BalanceRow, column: str, value: Any, reason: str, score: float
    ) -> Finding | None:
        if row.answer != "imbalanced":
            return None
        codes = classes_of(self._looked.table, column)
        numbers = np.flatnonzero(codes.codes == codes.values.index(value))
        hidden = column in self._looked.personal
        told = FindingReport(
            kind="imbalance", name=row.name, reason=reason, count=len(numbers), score=score,
            condition="" if hidden else f"{quoted(column)} = {literal(value)}", columns=(column,),
            figures={"share": row.share, "gap": row.gap, "low": row.low, "high": row.high},
        )  # fmt: skip
        return Finding(self._looked, told, numbers)


def _answer(low: float, high: float, by: float) -> Answer:
    if low > by:
        return "imbalanced"
    return "balanced" if high <= by else "too small to tell"


def _wilson(hits: int, rows: int, tail: float) -> tuple[float, float]:
    """Interval of a share.

    Source:
        Wilson, Journal of the American Statistical Association 22 (1927).
    """
    share, z2 = hits / rows, tail * tail
    middle = (share + z2 / 2 / rows) / (1 + z2 / rows)
    half = tail / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / 4 / rows**2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _widest(
    inside: npt.NDArray[np.int64], outside: npt.NDArray[np.int64], tail: float
) -> tuple[float, float, float]:
    """The largest gap of a class share, with an interval of its size; the ends are of all classes.

    Source:
        Newcombe, Statistics in Medicine 17 (1998), method 10, for each class.
    """
    n, m = int(inside.sum()), int(outside.sum())
    gaps, lows, highs = [], [], []
    for a, b in zip(inside.tolist(), outside.tolist(), strict=True):
        p, q = a / n, b / m
        (l1, u1), (l2, u2) = _wilson(a, n, tail), _wilson(b, m, tail)
        low = p - q - math.hypot(p - l1, u2 - q)
        high = p - q + math.hypot(u1 - p, q - l2)
        gaps.append(abs(p - q))
        lows.append(max(low, -high, 0.0))
        highs.append(max(abs(low), abs(high)))
    return max(gaps), max(lows), max(highs)
