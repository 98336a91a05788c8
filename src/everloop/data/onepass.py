"""One pass: every rule over rows that come in parts, with bounded memory.

A part is read once and judged by all rules in one Polars select. What a rule must see as a whole
(values that repeat, an order, figures) is held back as those columns alone and judged at the end,
so that memory is a part, those columns, and the rows that are kept of each rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Thread
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.check import OnFail
from everloop.data import sql
from everloop.data.check_rules import Outside, Plan
from everloop.data.functions import holds
from everloop.data.rules import Rule
from everloop.errors import InvalidInput

__all__ = ["PART_ROWS", "Broken", "FigureFound", "OnePass", "is_broken"]

#: Rows that are judged at once: many enough that calls cost nothing, few enough that the numbers
#: of all rows broken by all rules fit into the cache of a machine.
PART_ROWS = 1 << 20
#: Rows for which a thread is not worth while.
_FEW_ROWS = 100_000


class Broken(NamedTuple):
    """A rule that some rows broke.

    Attributes:
        failed: Rows that broke it, all of them.
        rows: Their numbers from 0, ascending; the first ones where only so many are kept.
        shown: Values of the rule's columns and of the key, of the first of `rows`.
    """

    name: str
    columns: tuple[str, ...]
    reason: str
    on_fail: OnFail
    owner: str
    repair: str
    rule: Rule | None
    failed: int
    rows: np.ndarray
    shown: pl.DataFrame


class FigureFound(NamedTuple):
    """A figure with its value, and how it breaks its check; empty if it does not."""

    name: str
    on_fail: OnFail
    owner: str
    columns: tuple[str, ...]
    value: float | None
    told: str


class _Tally:
    """What was found of one rule so far."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self.count = 0
        self.rows: list[np.ndarray] = []
        self.shown: list[pl.DataFrame] = []
        self._kept = 0
        self._seen = 0

    def add(
        self, found: np.ndarray, frame: pl.DataFrame, start: int, keep: int | None, show: int
    ) -> None:
        self.count += found.size
        if not found.size:
            return
        part = found if keep is None else found[: max(keep - self._kept, 0)]
        if part.size:
            self.rows.append(part.astype(np.int64) + start)
            self._kept += part.size
        few = found[: max(show - self._seen, 0)]
        if few.size and self.columns:
            self.shown.append(frame.select(self.columns)[few.astype(np.int64)])
            self._seen += few.size


class OnePass:
    """Judges parts of a table, in their order.

    Args:
        plan: What to judge.
        key: Columns that name a row; those that are not there are left out.
        keep: How many row numbers of a rule are kept, by what follows from it; None keeps all.
        show: Of how many rows of each rule the values are kept.
    """

    def __init__(
        self,
        plan: Plan,
        key: Sequence[str],
        keep: Callable[[OnFail], int | None],
        show: int,
    ) -> None:
        self._plan, self._key, self._keep, self._show = plan, list(key), keep, show
        self._of_rows = [rule for rule in plan.rules if not rule.is_whole]
        self._whole = [rule for rule in plan.rules if rule.is_whole]
        self._tallies: dict[str, _Tally] = {}
        self._held: list[pl.DataFrame] = []
        self._is_judged = False
        self._ahead: Thread | None = None
        self._found: pl.DataFrame | None = None
        self._judged_rows: Counter[str] = Counter()
        self.rows = 0

    def add(self, part: pl.DataFrame, *, at_once: bool = False, is_all: bool = False) -> None:
        """Judge the next rows.

        Args:
            at_once: Do not cut them, as a condition looks at other rows.
            is_all: There is no other part; all rules are one select then, if it is no large one.

        Raises:
            InvalidInput: If an SQL condition or a function of rows cannot be evaluated.
            UserCodeError: If a function raises.
        """
        rules = self._of_rows
        if is_all and part.height <= _FEW_ROWS:
            rules, self._is_judged = self._plan.rules, True
        elif is_all and self._whole:
            # What repeats is found by one thread: the others judge rows meanwhile.
            self._ahead = Thread(target=self._judge_ahead, args=(part,))
            self._ahead.start()
        for frame in [part] if at_once else _slices(part):
            self._judge(rules, frame, self.rows)
            self._outside(frame, self.rows)
            self.rows += frame.height
        held = self._columns_held(part.columns)
        if held:
            self._held.append(part.select(held))

    def finish(self) -> tuple[list[Broken], list[FigureFound]]:
        """What was broken, in the order of the rules; and every figure."""
        whole = pl.concat(self._held, rechunk=False) if self._held else None
        if self._ahead is not None:
            self._ahead.join()
        if whole is not None and whole.height and not self._is_judged:
            found = self._found if self._found is not None else _broken_rows(self._whole, whole)
            self._add(self._whole, found, whole, 0)
        return list(self._broken()), list(self._figures(whole))

    def _columns_held(self, present: Sequence[str]) -> list[str]:
        needed: set[str] = set()
        for rule in self._whole:
            needed.update(rule.columns or present)
        for figure in self._plan.figures:
            needed.update(figure.check.reads)
        if self._whole:
            needed.update(self._key)
        return [name for name in present if name in needed]

    def _judge_ahead(self, part: pl.DataFrame) -> None:
        with suppress(
            pl.exceptions.PolarsError
        ):  # asked again where it is wanted, it is told there
            self._found = _broken_rows(self._whole, part)

    def _judge(self, rules: list[Rule], frame: pl.DataFrame, start: int) -> None:
        if rules and frame.height:
            self._add(rules, _broken_rows(rules, frame), frame, start)

    def _add(self, rules: list[Rule], found: pl.DataFrame, frame: pl.DataFrame, start: int) -> None:
        for n, rule in enumerate(rules):
            rows = found.to_series(n)[0].to_numpy()
            of = found[f"of {rule.name}"][0] if f"of {rule.name}" in found else frame.height
            self._judged_rows[rule.name] += of
            self._count(rule.name, rule.columns, rule.on_fail, rows, frame, start)

    def _outside(self, frame: pl.DataFrame, start: int) -> None:
        if not self._plan.outside:
            return  # (of no rows, too, a condition must be SQL)
        rows = _arrow(frame)
        conditions = [o for o in self._plan.outside if o.check.kind == "rows" and o.judged is None]
        found = broken_by_sql(rows, conditions)
        for outside in self._plan.outside:
            check, columns = outside.check, outside.columns or ()
            if outside.judged is None:
                broken = found.get(check.name)
                broken = _broken_outside(rows, outside) if broken is None else broken
                self._judged_rows[check.name] += frame.height
            else:
                chosen = frame.select(outside.judged.arg_true()).to_series().to_numpy()
                broken = chosen[_broken_outside(_arrow(frame[chosen]), outside)]
                self._judged_rows[check.name] += chosen.size
            self._count(check.name, columns, check.on_fail, broken, frame, start)

    def _count(
        self,
        name: str,
        columns: Sequence[str],
        on_fail: OnFail,
        rows: np.ndarray,
        frame: pl.DataFrame,
        start: int,
    ) -> None:
        if name not in self._tallies:
            wanted = [*self._key, *(c for c in columns if c not in self._key)]
            self._tallies[name] = _Tally([c for c in wanted if c in frame.columns])
        self._tallies[name].add(rows, frame, start, self._keep(on_fail), self._show)

    def _broken(self) -> Iterator[Broken]:
        for rule in self._plan.rules:
            tally = self._tallies.get(rule.name)
            if tally is not None and self._is_too_many(tally.count, rule.name, rule.mostly):
                yield Broken(
                    rule.name, rule.columns, rule.reason, rule.on_fail, rule.owner, rule.repair,
                    rule, tally.count, _joined(tally.rows), _shown(tally),
                )  # fmt: skip
        for outside in self._plan.outside:
            tally, check = self._tallies.get(outside.check.name), outside.check
            if tally is not None and self._is_too_many(tally.count, check.name, check.mostly):
                yield Broken(
                    check.name, outside.columns, outside.reason, check.on_fail, check.owner,
                    check.repair, None, tally.count, _joined(tally.rows), _shown(tally),
                )  # fmt: skip

    def _is_too_many(self, failed: int, name: str, mostly: float) -> bool:
        return failed > 0 and is_broken(failed, self._judged_rows[name], mostly)

    def _figures(self, whole: pl.DataFrame | None) -> Iterator[FigureFound]:
        figures = self._plan.figures
        wanted = [f.value.alias(str(n)) for n, f in enumerate(figures) if f.check.reads]
        values = whole.lazy().select(wanted).collect() if wanted and whole is not None else None
        for n, figure in enumerate(figures):
            check = figure.check
            value: float | None = float(self.rows)
            if check.reads:
                value = None if values is None else values[str(n)][0]
            told = figure.broken_by(value)
            yield FigureFound(check.name, check.on_fail, check.owner, check.columns, value, told)


def _broken_rows(rules: list[Rule], frame: pl.DataFrame) -> pl.DataFrame:
    """The numbers of the rows that break each rule, and how many rows it was about."""
    wanted = [rule.broken.arg_true().implode().alias(str(n)) for n, rule in enumerate(rules)]
    looked = {r.name: r.judged for r in rules if r.mostly < 1 and r.judged is not None}
    wanted += [judged.sum().alias(f"of {name}") for name, judged in looked.items()]
    return frame.lazy().select(wanted).collect()


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _broken_outside(rows: pa.Table, outside: Outside) -> np.ndarray:
    check = outside.check
    if check.kind == "rows":
        return broken_by_sql(rows, [outside])[check.name]
    seen = rows.select(list(outside.columns)) if outside.columns else rows
    return np.flatnonzero(~holds(check.to, seen, is_hidden=outside.is_hidden))


def is_broken(failed: int, judged: int, mostly: float) -> bool:
    """Whether `failed` of `judged` rows are more than a check tolerates."""
    return failed > 0 and (judged - failed) / judged < mostly


def broken_by_sql(rows: pa.Table, conditions: Sequence[Outside]) -> dict[str, np.ndarray]:
    """The rows that break each SQL condition; what the engine says of a value is not passed on.

    Raises:
        InvalidInput: With each condition that cannot be evaluated.
    """
    try:
        return sql.broken_rows(rows, {one.check.name: one.check.rule for one in conditions})
    except InvalidInput as error:
        if not any(one.is_hidden for one in conditions):
            raise
        faults = [(fault.path, _without_values(fault.message)) for fault in error.faults]
        raise InvalidInput("a rule cannot be evaluated", faults, hint=error.hint) from None


def _without_values(message: str) -> str:
    kind = message.partition(":")[0]
    if kind in ("Parser Error", "Binder Error", "Catalog Error"):
        return message  # of the condition's own words
    return f"{kind}; its words are not shown, as the rows hold personal data"


def _slices(part: pl.DataFrame) -> Iterator[pl.DataFrame]:
    if part.height <= PART_ROWS:
        yield part
        return
    for start in range(0, part.height, PART_ROWS):
        yield part.slice(start, PART_ROWS)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _shown(tally: _Tally) -> pl.DataFrame:
    return pl.concat(tally.shown) if tally.shown else pl.DataFrame()
