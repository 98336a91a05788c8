"""Check: a rule over rows, over columns as a whole, or over the figures of a table.

What one column alone must be (its type, nulls, bounds, values, pattern, length) is a matter of its
:class:`~everloop.core.schema.Field`. All else is a Check, and is judged in ``everloop.data``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop.core.canonical import canonical_json
from everloop.core.expr import Node, columns_of, infer, kind_of
from everloop.core.regex import regex_fault
from everloop.errors import Fault, InvalidInput, NotFound

if TYPE_CHECKING:
    from everloop.core.kinds import FieldType

__all__ = ["AGGREGATES", "ORDERS", "OVER_TIME", "PATTERNS", "Check", "CheckKind", "OnFail", "Stays"]

OnFail = Literal["fail", "drop", "warn", "quarantine", "repair"]
CheckKind = Literal[
    "rows", "expression", "unique", "references", "function", "matches", "not_matches",
    "increasing", "strictly_increasing", "decreasing", "strictly_decreasing",
    "row_count", "null_share", "distinct", "distinct_share",
    "mean", "median", "std", "min", "max", "sum",
    "freshness", "volume", "drift", "anomaly",
]  # fmt: skip
#: Which of the rows with the same values may stay.
Stays = Literal["first", "last", "none"]
ORDERS = ("increasing", "strictly_increasing", "decreasing", "strictly_decreasing")
#: Figures of a table or of one of its columns.
AGGREGATES = (
    "row_count", "null_share", "distinct", "distinct_share",
    "mean", "median", "std", "min", "max", "sum",
)  # fmt: skip
#: Kinds over one text, whose `rule` is a pattern.
PATTERNS = ("matches", "not_matches")
#: Kinds that hold a version against time or against other versions.
OVER_TIME = ("freshness", "volume", "drift", "anomaly")
_OF_NUMBERS = ("mean", "median", "std", "min", "max", "sum")
_SINGLE = (*ORDERS, *PATTERNS, *(name for name in AGGREGATES if name != "row_count"), "drift")
_WITHOUT_ROWS = (*AGGREGATES, *OVER_TIME)


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule beyond what a field says.

    ==================== ===========================================================================
    kind                 what must hold
    ==================== ===========================================================================
    rows                 `rule`, an SQL condition over the columns; null counts as broken
    expression           `rule`, given as an expression (``col.arrival > col.departure``); the same
    unique               no two rows have the same values in `columns`; one may stay, see `stays`
    matches, not_matches the pattern `rule` is found somewhere in the text of the column; or nowhere
                         (``^`` and ``$`` are its ends); a missing text breaks neither
    increasing, ...      each value of the column beside the one before it that is not missing
    references           the values of the column stand in the dataset `to` (``planes``, or
                         ``planes/tailnum`` where the column has another name there)
    function             the function registered as `to` (``ev.check_function``) says so
    row_count            number of rows within `ge` and `le`
    null_share           share of missing values of the column within `ge` and `le`, 0 to 1
    distinct             number of distinct values of the column within `ge` and `le`
    distinct_share       the same as share of the values that are not missing, 0 to 1
    mean, median, ...    that figure of the column within `ge` and `le`; broken if there is none
    freshness            age of the latest value of the column (the commit, without one) against the
                         clock, in seconds, at most `le`
    volume               rows, as share of those of the version before, within `ge` and `le`
    drift                distance of the column's distribution from that of the version `to` (a
                         number or tag; empty is the one before), at most `le`, 0 to 1
    anomaly              rows, or the mean and null share of `columns`, beside all versions before
    ==================== ===========================================================================

    Attributes:
        name: For people and for the ledger.
        rule: SQL, or an expression, which is kept as its canonical JSON.
        on_fail: ``fail`` (no version is made), ``drop`` (the row is left out and recorded),
            ``warn`` (kept, recorded), ``quarantine`` (set aside in ``<dataset>.quarantine`` until
            somebody corrects and releases it) or ``repair``. What is of no single row fails or
            warns.
        reason: Why, for people.
        owner: Who must correct it.
        columns: What it looks at, where `rule` does not say it.
        ge, le: Inclusive bounds of a figure.
        to: The other side; see above.
        repair: Name of the function (``ev.repair``) that corrects rows; with ``on_fail="repair"``.
        where: An expression, kept as its canonical JSON: only the rows of which it is true are
            judged, as though there were no others.
        mostly: Least share, 0 to 1, of the rows judged that must hold it. Where it is reached the
            check is not broken, and nothing follows for the others.
        stays: Of rows with the same values (kind ``unique``) the one that is not named.
        nulls_equal: Whether a null is the same value as another one (kind ``unique``), and not
            left out as missing; so with NaN.
    """

    name: str
    rule: str = ""
    on_fail: OnFail = "fail"
    reason: str = ""
    owner: str = ""
    kind: CheckKind = "rows"
    columns: tuple[str, ...] = ()
    ge: float | None = None
    le: float | None = None
    to: str = ""
    repair: str = ""
    where: str = ""
    mostly: float = 1.0
    stays: Stays = "first"
    nulls_equal: bool = False

    def __post_init__(self) -> None:
        given: Any = self.where
        if isinstance(given, msgspec.Struct):
            msgspec.structs.force_setattr(self, "where", canonical_json(given).decode())
        given = self.rule
        if isinstance(given, msgspec.Struct):
            msgspec.structs.force_setattr(self, "rule", canonical_json(given).decode())
            msgspec.structs.force_setattr(self, "kind", "expression")
        columns: Any = self.columns
        if isinstance(columns, str):
            columns = (columns,)
        msgspec.structs.force_setattr(self, "columns", tuple(columns))
        for name in ("ge", "le", "mostly"):
            if isinstance(bound := getattr(self, name), int):
                msgspec.structs.force_setattr(self, name, float(bound))

    @property
    def node(self) -> Node:
        """The expression of a check of that kind.

        Raises:
            InvalidInput: If it is none that this Everloop knows.
        """
        return self._decoded(self.rule)

    @property
    def condition(self) -> Node | None:
        """The expression of `where`, or None if all rows are judged.

        Raises:
            InvalidInput: If it is none that this Everloop knows.
        """
        return self._decoded(self.where) if self.where else None

    def _decoded(self, text: str) -> Node:
        try:
            node: Node = msgspec.json.decode(text, type=Node)
            return node
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"check {self.name!r} holds no expression: {error}") from error

    @property
    def is_of_rows(self) -> bool:
        """Whether single rows break it, and not a table as a whole."""
        return self.kind not in _WITHOUT_ROWS

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that it is known to look at; those of `where` last."""
        own = columns_of(self.node) if self.kind == "expression" else self.columns
        chosen = () if self.condition is None else columns_of(self.condition)
        return tuple(dict.fromkeys((*own, *chosen)))

    def faults(self, types: Mapping[str, FieldType], *, is_open: bool) -> Iterator[Fault]:
        """What is wrong with the definition, over columns of `types`; others too if `is_open`."""
        path = f"checks.{self.name}"
        yield from self._rule_faults(path)
        yield from self._columns_faults(path, types, is_open=is_open)
        yield from self._bounds_faults(path)
        yield from self._share_faults(path, types, is_open=is_open)
        if self.kind in ("references", "function") and not self.to:
            what = "dataset" if self.kind == "references" else "function"
            yield Fault(path, f"needs to=, the name of the {what}")
        if not self.is_of_rows and self.on_fail not in ("fail", "warn"):
            yield Fault(path, f"{self.kind} is of no single row: on_fail is 'fail' or 'warn'")
        if (self.on_fail == "repair") != bool(self.repair):
            yield Fault(path, "on_fail='repair' and repair=NAME go together")

    def _rule_faults(self, path: str) -> Iterator[Fault]:
        if self.kind in ("rows", "expression"):
            if not self.rule.strip():
                yield Fault(path, "needs a rule: an SQL condition or an expression")
        elif self.kind in PATTERNS:
            if reason := regex_fault(self.rule) if self.rule else "needs a rule: the pattern":
                yield Fault(path, reason)
        elif self.rule:
            yield Fault(path, f"a check of kind {self.kind} takes no rule")

    def _share_faults(
        self, path: str, types: Mapping[str, FieldType], *, is_open: bool
    ) -> Iterator[Fault]:
        if not 0 <= self.mostly <= 1:
            yield Fault(path, f"mostly is a share from 0 to 1, not {self.mostly:g}")
        elif self.mostly != 1 and not self.is_of_rows:
            yield Fault(path, f"{self.kind} is of no single row: it takes no mostly=")
        if self.kind != "unique" and (self.stays != "first" or self.nulls_equal):
            yield Fault(path, f"stays= and nulls_equal= are of kind unique, not {self.kind}")
        if self.where and self.kind in OVER_TIME:
            yield Fault(path, f"{self.kind} is over versions: it takes no where=")
        elif self.where:
            yield from self._true_or_false(f"{path}.where", self.where, types, is_open=is_open)

    def _columns_faults(
        self, path: str, types: Mapping[str, FieldType], *, is_open: bool
    ) -> Iterator[Fault]:
        if self.kind == "expression":
            yield from self._true_or_false(path, self.rule, types, is_open=is_open)
            return
        wanted = 1 if self.kind in (*_SINGLE, "references") else None
        if wanted and len(self.columns) != wanted:
            yield Fault(path, f"{self.kind} looks at one column, not {len(self.columns)}")
        if self.kind == "unique" and not self.columns:
            yield Fault(path, "needs columns=")
        for column in self.columns:
            if column not in types:
                if not is_open:
                    yield Fault(path, unknown(column, types))
            elif self.kind in PATTERNS and types[column] != "string":
                yield Fault(path, f"{self.kind} needs text, and {column} is {types[column]}")
            elif self.kind in _OF_NUMBERS and not types[column].startswith(
                ("int", "uint", "float")
            ):
                yield Fault(path, f"{self.kind} needs numbers, and {column} is {types[column]}")

    def _true_or_false(
        self, path: str, text: str, types: Mapping[str, FieldType], *, is_open: bool
    ) -> Iterator[Fault]:
        try:
            node = self._decoded(text)
            if not columns_of(node):
                yield Fault(path, "the expression looks at no column")
            missing = [name for name in columns_of(node) if name not in types]
            if missing:
                if not is_open:
                    for name in missing:
                        yield Fault(path, unknown(name, types))
                return
            kinds = {name: kind_of(types[name]) for name in columns_of(node)}
            if (kind := infer(node, kinds)) != "bool":
                yield Fault(path, f"the expression gives {kind}, and must be true or false")
        except InvalidInput as error:
            yield Fault(path, error.message)

    def _bounds_faults(self, path: str) -> Iterator[Fault]:
        bounds = [bound for bound in (self.ge, self.le) if bound is not None]
        if any(not math.isfinite(bound) for bound in bounds):
            yield Fault(path, "a bound must be finite; leave it out for none")
        elif len(bounds) == 2 and bounds[0] > bounds[1]:
            yield Fault(path, f"ge {self.ge} is above le {self.le}")
        if self.kind in (*AGGREGATES, "volume") and not bounds:
            yield Fault(path, f"{self.kind} needs a bound: ge= or le=")
        if self.kind in ("freshness", "drift") and self.le is None:
            yield Fault(path, f"{self.kind} needs le=")


def unknown(column: str, names: Mapping[str, Any]) -> str:
    """That there is no such column, with the nearest ones."""
    hint = NotFound.named("column", column, names).hint
    return f"no column {column!r}" + (f"; {hint}" if hint else "")
