"""Finding: a set of rows of a table, with the reason; what it can become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.check import Check, OnFail
from everloop.core.dataset import Value
from everloop.core.finding import FindingKind, FindingReport, FoundRow
from everloop.core.quality import MASKED, SHOWN_ROWS
from everloop.data.frame import Table
from everloop.data.ledger import plain
from everloop.data.match import match
from everloop.data.rowhash import kind_of
from everloop.errors import Fault, InvalidInput
from everloop.evaluation.findings.literals import literal, quoted
from everloop.evaluation.findings.looked import Looked, hashes_of, plain_type, without_views

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Finding", "Findings"]

#: Rows whose keys a check may list; more belong to work items or a new version.
MOST_KEYS = 10_000


class Finding:
    """A set of rows that something is wrong with, worst first.

    It becomes a rule (``as_check``), work for whoever must correct it (``work_items``) or a new
    version (``drop_from``, ``relabelled``). Values of columns with ``pii`` are masked in all that
    it shows.

    Attributes:
        numbers: Row numbers in `table`, worst first. Shape (rows,).
        scores: How bad each is, shape (rows,).
        of_rows: What was measured of each, by name.
    """

    __slots__ = ("_looked", "_masked", "_row_reason", "_told", "numbers", "of_rows", "scores")

    def __init__(
        self,
        looked: Looked,
        told: FindingReport,
        numbers: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float64] | None = None,
        of_rows: Mapping[str, pa.Array] | None = None,
        *,
        row_reason: str = "",
        masked: Sequence[str] = (),
    ) -> None:
        self._looked = looked
        self._told = msgspec.structs.replace(told, ref=looked.ref, count=len(numbers))
        self.numbers = np.asarray(numbers, np.int64)
        self.scores = np.zeros(len(numbers)) if scores is None else np.asarray(scores, np.float64)
        self.of_rows = dict(of_rows or {})
        self._row_reason = row_reason
        self._masked = frozenset(masked)

    @property
    def table(self) -> Table:
        """The table looked at."""
        return self._looked.table

    @property
    def kind(self) -> FindingKind:
        return self._told.kind

    @property
    def name(self) -> str:
        return self._told.name

    @property
    def reason(self) -> str:
        return self._told.reason

    @property
    def side(self) -> str:
        """Which of two tables the rows are of; empty where there is one."""
        return self._told.side

    @property
    def score(self) -> float:
        return self._told.score

    @property
    def condition(self) -> str:
        """SQL that exactly these rows meet, for ``Table.filter``; or empty."""
        return self._told.condition

    @property
    def figures(self) -> dict[str, Any]:
        return self._told.figures

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def rows(self) -> list[FoundRow]:
        """The first 1000, with key, score and reason."""
        return self._rows(SHOWN_ROWS)

    def report(self, rows: int = SHOWN_ROWS) -> FindingReport:
        """As plain data, with the first `rows`."""
        return msgspec.structs.replace(self._told, rows=tuple(self._rows(rows)))

    def top(self, rows: int) -> Finding:
        """The worst `rows` of it."""
        told = msgspec.structs.replace(self._told, condition="") if rows < len(self) else self._told
        return Finding(
            self._looked, told, self.numbers[:rows], self.scores[:rows],
            {name: values[:rows] for name, values in self.of_rows.items()},
            row_reason=self._row_reason, masked=tuple(self._masked),
        )  # fmt: skip

    def to_frame(self) -> pl.DataFrame:
        """All rows: number, key, score, what was measured, reason."""
        import polars as pl

        keys = self.table.select(self._looked.key).to_arrow().take(pa.array(self.numbers))
        columns: dict[str, Any] = {"row": self.numbers}
        for name in self._looked.key:
            columns[name] = self._hidden(name, pl.Series(keys.column(name)))
        columns["score"] = self.scores
        for name, values in self.of_rows.items():
            columns[name] = self._hidden(name, pl.Series(values))
        return pl.DataFrame(columns).with_columns(reason=pl.lit(self.reason))

    def summary(self) -> str:
        """What was found, in a few lines."""
        where = f" of {self.side}" if self.side else ""
        of = len(self.table)
        share = f" ({len(self) / of:.2%})" if of else ""
        lines = [f"{self.name}: {len(self)} of {of} rows{where}{share}", f"  {self.reason}"]
        shown = {k: v for k, v in self.figures.items() if isinstance(v, int | float | str)}
        if shown:
            lines.append("  " + ", ".join(f"{k} {_text(v)}" for k, v in shown.items()))
        lines += [f"  {_line(row)}" for row in self._rows(3)]
        return "\n".join(lines)

    def as_check(
        self, name: str = "", *, on_fail: OnFail = "quarantine", reason: str = "", owner: str = ""
    ) -> Check:
        """A rule that exactly these rows break: by condition where there is one, else by key.

        Raises:
            InvalidInput: If there is neither, the keys are personal data or too many to list.
        """
        condition, columns = self._told.condition, self._told.columns
        if not condition:
            condition, columns = self._key_list(), self._looked.key
        return Check(
            name or self.name, f"({condition}) IS NOT TRUE", on_fail=on_fail, columns=columns,
            reason=reason or self.reason, owner=owner,
        )  # fmt: skip

    def work_items(self, owner: str = "", *, rule: str = "") -> list[dict[str, Any]]:
        """One for each row, as ``ws.data.add_work`` takes them.

        The key columns (``row``, its number, where there is no key), ``rule``, ``reason``,
        ``owner`` and ``suggestion``.

        Args:
            owner: Who must correct them; without one, the owner of the column in the schema.
            rule: Name for the ledger.
        """
        if not owner:
            fields = (self._looked.fields.get(name) for name in self._told.columns)
            owner = next((field.owner for field in fields if field and field.owner), "")
        return [
            {
                **(row.key or {"row": row.row}),
                "rule": rule or self.name,
                "reason": row.reason,
                "owner": owner,
                "suggestion": self._suggestion(row),
            }
            for row in self._rows(len(self))
        ]

    def drop_from(self, table: Table | None = None, *, rule: str = "", owner: str = "") -> Table:
        """The table without these rows; they are remembered for the row ledger.

        Args:
            table: Where to leave them out: rows are found there by key, or by number if it has no
                key and these rows stand at the same numbers. The table looked at without one.
            rule: Name for the ledger.
            owner: Who answers for the rule.

        Raises:
            InvalidInput: If the rows cannot be found there.
        """
        target, numbers, _ = self._within(table)
        return target.drop_rows(rule or self.name, numbers, reason=self.reason, owner=owner)

    def relabelled(self, table: Table | None = None, *, rule: str = "", owner: str = "") -> Table:
        """The table with the suggested labels; the old ones are remembered for the row ledger.

        Raises:
            InvalidInput: If nothing was suggested, or the rows cannot be found in `table`.
        """
        if "suggested" not in self.of_rows:
            raise InvalidInput(f"{self.kind} suggests no label", hint="use drop_from or work_items")
        target, numbers, places = self._within(table)
        values = self.of_rows["suggested"].take(pa.array(places))
        [label] = self._told.columns
        return target.set_rows(
            rule or self.name, label, numbers, values, reason=self.reason, owner=owner
        )

    def __repr__(self) -> str:
        return f"<Finding {self.name}: {len(self)} rows>"

    def _repr_html_(self) -> str:
        """A table of the first rows, for notebooks."""
        rows = self._rows(20)
        keys = list(self._looked.key)
        head = ["row", *keys, "score", "reason"]
        body = [
            [str(row.row), *(str(row.key[k]) for k in keys), f"{row.score:.4g}", row.reason]
            for row in rows
        ]
        title = f"{self.name}: {len(self)} of {len(self.table)} rows. {self.reason}"
        return html_table(title, head, body)

    def _rows(self, most: int) -> list[FoundRow]:
        numbers = self.numbers[:most]
        keys = list(plain(self.table.select(self._looked.key).to_arrow().take(pa.array(numbers))))
        shown = pa.table({name: values[:most] for name, values in self.of_rows.items()})
        figures = list(plain(shown)) if self.of_rows else [{} for _ in numbers]
        found = []
        for n, row in enumerate(numbers.tolist()):
            key = {k: self._seen(k, v) for k, v in keys[n].items()} if self._looked.key else {}
            of = {name: self._seen(name, value) for name, value in figures[n].items()}
            reason = self._row_reason.format(**of) if self._row_reason else self.reason
            found.append(FoundRow(row, key, float(self.scores[n]), reason, of))
        return found

    def _seen(self, name: str, value: Value) -> Value:
        hidden = name in self._masked or name in self._looked.personal
        return MASKED if hidden and value is not None else value

    def _hidden(self, name: str, values: pl.Series) -> Any:
        if name not in self._masked and name not in self._looked.personal:
            return values
        return [None if missing else MASKED for missing in values.is_null()]

    def _suggestion(self, row: FoundRow) -> str:
        if "suggested" not in self.of_rows:
            return ""
        return f"{self._told.columns[0]} = {_text(row.figures['suggested'])}"

    def _key_list(self) -> str:
        key = self._looked.key
        if not key:
            raise InvalidInput(
                "these rows have no key that a rule could name them by",
                hint="give the dataset a schema with a key, or use drop_from",
            )
        personal = sorted(self._looked.personal & set(key))
        if personal:
            faults = [Fault(name, "is personal data") for name in personal]
            raise InvalidInput("a rule would hold the keys for all to read", faults)
        if not 0 < len(self) <= MOST_KEYS:
            raise InvalidInput(
                f"a rule lists 1 to {MOST_KEYS} keys, and these are {len(self)} rows",
                hint="take finding.top(n), or use drop_from or work_items",
            )
        rows = self.table.select(key).to_arrow().take(pa.array(self.numbers)).to_pylist()
        if len(key) == 1:
            listed = ", ".join(literal(row[key[0]]) for row in rows)
            return f"{quoted(key[0])} IN ({listed})"
        one = (f"({', '.join(literal(row[name]) for name in key)})" for row in rows)
        return f"({', '.join(map(quoted, key))}) IN ({', '.join(one)})"

    def _within(
        self, table: Table | None
    ) -> tuple[Table, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The table, the row numbers there, and which of ours each is."""
        mine, every = self.table, np.arange(len(self))
        if table is None or table is mine:
            return mine, self.numbers, every
        table, key = without_views(table), self._looked.key
        if key and set(key) <= set(table.column_names):
            for name in key:
                ours, theirs = (side.column(name).type for side in (mine, table))
                if kind_of(plain_type(ours)) != kind_of(plain_type(theirs)):
                    raise InvalidInput(
                        "rows cannot be found by keys of two types",
                        [Fault(name, f"is {ours} where it was looked at, and {theirs} here")],
                    )
            places = match(hashes_of(mine.take(self.numbers), key), hashes_of(table, key))
            return table, places[places >= 0], every[places >= 0]
        shared = [name for name in mine.column_names if name in table.column_names]
        if shared and len(table) == len(mine):
            one, other = (rows.take(self.numbers).select(shared) for rows in (mine, table))
            if one.equals(other):
                return table, self.numbers, every
        raise InvalidInput(
            "the rows are not found in this table: it has no key, and others at their numbers",
            hint="give the table that was looked at, or one with its key columns",
        )


class Findings(Sequence[Finding]):
    """What a search found, worst first.

    Attributes:
        figures: What was measured of the whole.
        reason: Why nothing can be told, or empty.
    """

    def __init__(
        self,
        title: str,
        found: Sequence[Finding] = (),
        figures: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        self.title = title
        self.figures = dict(figures or {})
        self.reason = reason
        self._found = tuple(found)

    def __getitem__(self, index: Any) -> Any:
        """A finding by number, or those of a slice; or by its name."""
        if isinstance(index, str):
            named = [one for one in self._found if index in (one.name, one.kind)]
            if not named:
                raise KeyError(index)
            return named[0]
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def to_frame(self) -> pl.DataFrame:
        """One row for each finding."""
        import polars as pl

        every = [
            {"name": f.name, "kind": f.kind, "side": f.side, "rows": len(f), "score": f.score,
             **{k: v for k, v in f.figures.items() if isinstance(v, int | float | str)},
             "condition": f.condition, "reason": f.reason}
            for f in self._found
        ]  # fmt: skip
        return pl.DataFrame(every, infer_schema_length=None)

    def summary(self) -> str:
        """What was found, in lines."""
        shown = {k: v for k, v in self.figures.items() if isinstance(v, int | float | str)}
        told = ", ".join(f"{k} {_text(v)}" for k, v in shown.items())
        lines = [f"{self.title}: {self.reason or self._counted()}" + (f" ({told})" if told else "")]
        for one in self._found:
            side = f" of {one.side}" if one.side else ""
            lines.append(f"  {one.name}: {len(one)} rows{side}; {one.reason}")
        return "\n".join(lines)

    def work_items(self, owner: str = "") -> list[dict[str, Any]]:
        """Those of every finding."""
        return [item for one in self._found for item in one.work_items(owner)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.title}: {self.reason or self._counted()}>"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        body = [[one.name, str(len(one)), f"{one.score:.4g}", one.reason] for one in self._found]
        title = f"{self.title}: {self.reason or self._counted()}"
        return html_table(title, ["finding", "rows", "score", "reason"], body)

    def _counted(self) -> str:
        count = len(self._found)
        return "nothing was found" if not count else f"{count} finding{'s' if count > 1 else ''}"


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table with a caption."""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><caption>{escape(title)}</caption><tr>{names}</tr>{body}</table>"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(row: FoundRow) -> str:
    named = ", ".join(f"{k}={v}" for k, v in row.key.items()) or f"row {row.row}"
    return f"{named}: {row.reason}"
