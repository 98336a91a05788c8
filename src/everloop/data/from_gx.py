"""Suites of Great Expectations as schemas of ours, read from their JSON: of 0.18 and of 1.x.

The library itself is not needed. The same rows fail as under its pandas engine; a column of a
narrower type is taken where no value changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from everloop.core.check import Check, OnFail
from everloop.core.expr import Column, Expr
from everloop.core.kinds import FieldType
from everloop.core.schema import Field
from everloop.data.gx_condition import condition_of
from everloop.data.translation import Draft, Translation, all_of, any_of, field_type_named, present
from everloop.errors import InvalidInput

__all__ = ["from_gx", "is_suite", "suite_of"]

#: What says nothing of the rows: how results are shown, and where a condition is written.
_SILENT = frozenset({
    "result_format", "catch_exceptions", "include_config", "auto", "profiler_config", "meta",
    "batch_id", "condition_parser", "row_condition", "mostly", "column", "column_A", "column_B",
    "column_list", "ignore_row_if", "windows", "severity", "id", "notes", "description",
})  # fmt: skip
_FIGURES = {
    "expect_column_mean_to_be_between": "mean",
    "expect_column_median_to_be_between": "median",
    "expect_column_stdev_to_be_between": "std",
    "expect_column_min_to_be_between": "min",
    "expect_column_max_to_be_between": "max",
    "expect_column_sum_to_be_between": "sum",
    "expect_column_unique_value_count_to_be_between": "distinct",
    "expect_column_proportion_of_unique_values_to_be_between": "distinct_share",
}


def suite_of(given: Any) -> dict[str, Any]:
    """The JSON of a suite: of the object, of a dict, or of the file at a path.

    Raises:
        InvalidInput: If it is none.
    """
    if isinstance(given, str | Path):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(f"there is no file {given}") from None
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{given} is no JSON: {error}") from error
    if hasattr(given, "to_json_dict"):
        given = given.to_json_dict()
    expectations = given.get("expectations") if isinstance(given, dict) else None
    if not isinstance(expectations, list) or not all(isinstance(e, dict) for e in expectations):
        raise InvalidInput(
            "this is no suite of Great Expectations",
            hint='an object with a list of "expectations": the JSON file, the dict or the suite',
        )
    return dict(given)


def is_suite(given: Any) -> bool:
    """Whether it may be a suite: an object of the library, a dict, or a path of JSON."""
    if isinstance(given, dict) or hasattr(given, "to_json_dict"):
        return True
    return isinstance(given, str | Path) and str(given).lower().endswith(".json")


def from_gx(given: Any, like: Mapping[str, FieldType] | None) -> Translation:
    """What a suite says.

    Args:
        given: See :func:`suite_of`.
        like: The columns there are. Without it a type is what the expectations of a column imply,
            and a column of which that cannot be told is not translated.

    Raises:
        InvalidInput: If it is no suite.
    """
    return _Translator(suite_of(given)["expectations"], like).translated()


class _Expectation:
    """One expectation, and which of its words were understood."""

    def __init__(self, number: int, given: Mapping[str, Any]) -> None:
        self.kind = str(given.get("type") or given.get("expectation_type") or "")
        self.path = f"expectations[{number}] {self.kind}"
        raw = given.get("kwargs")
        self.given = dict(raw) if isinstance(raw, Mapping) else {}
        self.column = str(self.given.get("column") or "")
        severity = str(given.get("severity") or "critical")
        self.on_fail: OnFail = "fail" if severity == "critical" else "warn"
        self.reason = _note(given)
        self.used: set[str] = set(_SILENT)

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        found = self.given.get(name)
        if isinstance(found, Mapping) and "$PARAMETER" in found:
            raise InvalidInput(f"{name} is the parameter {found['$PARAMETER']!r}, not a value")
        return default if found is None else found

    def insist(self) -> None:
        """Refuse what was not understood."""
        left = sorted(
            n for n, v in self.given.items() if n not in self.used and v not in (None, False)
        )
        if left:
            raise InvalidInput(f"{', '.join(left)} has no counterpart")

    @property
    def mostly(self) -> float:
        return float(self.get("mostly", 1.0))

    def columns(self) -> list[str]:
        found = [self.given.get(n) for n in ("column", "column_A", "column_B")]
        return [str(one) for one in (*found, *(self.given.get("column_list") or ())) if one]


def _note(given: Mapping[str, Any]) -> str:
    meta = given.get("meta")
    notes = given.get("notes") or (meta.get("notes") if isinstance(meta, Mapping) else None)
    if isinstance(notes, Mapping):
        notes = notes.get("content")
    if isinstance(notes, list):
        notes = " ".join(map(str, notes))
    return str(notes or given.get("description") or "")


class _Translator:
    def __init__(
        self, expectations: Sequence[Mapping[str, Any]], like: Mapping[str, FieldType] | None
    ) -> None:
        self.every = [_Expectation(n, one) for n, one in enumerate(expectations)]
        self.draft = Draft(like)
        self.refuses_others = False

    def translated(self) -> Translation:
        for column in dict.fromkeys(self._mentioned()):
            type = self._type(column)
            if type is not None:
                self.draft.fields[column] = Field(column, type, required=True)
        for one in self.every:
            try:
                self._translate(one)
            except InvalidInput as error:
                self.draft.refuse(one.path, error.message)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                # JSON that no version of Great Expectations would write.
                self.draft.refuse(one.path, f"its arguments cannot be read: {error!r}")
        made = self.draft.schema(refuses_others=self.refuses_others)
        return Translation(made, tuple(self.draft.faults))

    def _mentioned(self) -> Iterator[str]:
        for one in self.every:
            yield from one.columns()
            if one.kind in _TABLE_COLUMNS:
                yield from map(
                    str, one.given.get("column_set") or one.given.get("column_list") or ()
                )
        if self.draft.like is not None:  # conditions may look at any of them
            yield from (c for c in self.draft.like if any(_mentions(e, c) for e in self.every))

    def _type(self, column: str) -> FieldType | None:
        like = self.draft.like or {}
        stated = [t for one in self.every if one.column == column for t in _stated(one)]
        if stated:
            known = like.get(column)
            return known if known in stated else stated[0]
        if self.draft.like is not None and column in like:
            return like[column]
        implied = [t for one in self.every if column in one.columns() for t in _implied(one)]
        # Whole numbers in bounds are written for columns of any numbers.
        return implied[0] if implied and len(set(implied)) == 1 else None

    def _translate(self, one: _Expectation) -> None:
        handler = _HANDLERS.get(one.kind)
        if handler is None and one.kind not in _FIGURES:
            return self.draft.refuse(one.path, "this expectation has no counterpart here")
        unknown = [name for name in one.columns() if name not in self.draft.fields]
        if unknown:
            names = ", ".join(map(repr, unknown))
            return self.draft.refuse(one.path, f"the type of {names} cannot be told: give like=")
        if handler is None:
            return self._figure(one)
        return handler(self, one)

    # What all share

    def _where(self, one: _Expectation) -> Expr | None:
        condition = one.given.get("row_condition")
        if condition is None or condition == "":
            return None
        types = {name: field.type for name, field in self.draft.fields.items()}
        return condition_of(condition, types, self.draft.value)

    def _present(self, column: str) -> Expr:
        return present(column, self.draft.type_of(column))

    def _add(self, one: _Expectation, told: str, *wheres: Expr | None, **parts: Any) -> None:
        one.insist()
        where = all_of([self._where(one), *wheres])
        what: dict[str, Any] = {} if where is None else {"where": where}
        if one.mostly != 1:
            what["mostly"] = one.mostly
        self.draft.add(
            one.path, Check(told, on_fail=one.on_fail, reason=one.reason, **what, **parts)
        )

    def _is_plain(self, one: _Expectation) -> bool:
        """Whether a field may say it: of all rows, without tolerance, and failing."""
        return (
            not one.given.get("row_condition")
            and one.mostly == 1
            and one.on_fail == "fail"
            and not one.reason
        )

    def _values(self, one: _Expectation, told: str, rule: Expr) -> None:
        """A rule over the values of a column that are not missing."""
        self._add(one, told, self._present(one.column), rule=rule)

    # Values of a column

    def between(self, one: _Expectation) -> None:
        name, draft = one.column, self.draft
        low, high = one.get("min_value"), one.get("max_value")
        strict = bool(one.get("strict_min")), bool(one.get("strict_max"))
        one.insist()
        if low is None and high is None:
            raise InvalidInput("it has no bound")
        bounds = {n: v for n, v in (("ge", low), ("le", high)) if v is not None}
        numbers = all(isinstance(v, int | float) for v in bounds.values())
        if self._is_plain(one) and not any(strict) and numbers and draft.amend(name, **bounds):
            return
        told, rule = _bounded(Column(name), name, low, high, strict, lambda v: draft.value(name, v))
        self._values(one, told, rule)

    def in_set(self, one: _Expectation) -> None:
        values = self._set(one)
        if values is None:
            return
        fitting = all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values)
        if self._is_plain(one) and fitting and self.draft.amend(one.column, among=tuple(values)):
            return
        self._values(
            one, f"{one.column} in {_short(values)}",
            any_of(one.column, self.draft.type_of(one.column), values),
        )  # fmt: skip

    def not_in_set(self, one: _Expectation) -> None:
        values = self._set(one)
        if values is not None:
            rule = ~any_of(one.column, self.draft.type_of(one.column), values)
            self._values(one, f"{one.column} not in {_short(values)}", rule)

    def _set(self, one: _Expectation) -> list[Any] | None:
        values = one.get("value_set")
        one.insist()
        if values is None:
            return None  # it says nothing
        if not values:
            raise InvalidInput("the set is empty")
        found = [self.draft.value(one.column, v) for v in values]
        if self.draft.type_of(one.column).startswith(("int", "uint")):
            found = [int(v) if isinstance(v, float) and v.is_integer() else v for v in found]
        return list(dict.fromkeys(found))

    def not_null(self, one: _Expectation) -> None:
        one.insist()
        if self._is_plain(one) and self.draft.amend(one.column, nullable=False):
            return
        self._add(one, f"{one.column} has a value", rule=self._present(one.column))

    def null(self, one: _Expectation) -> None:
        self._add(one, f"{one.column} has no value", rule=~self._present(one.column))

    def unique(self, one: _Expectation) -> None:
        chosen = self._present(one.column) if one.mostly != 1 else None
        self._add(
            one, f"{one.column} unique", chosen, kind="unique", columns=(one.column,), stays="none"
        )

    def regex(self, one: _Expectation) -> None:
        self._matches(one, "matches", str(one.get("regex")))

    def not_regex(self, one: _Expectation) -> None:
        self._matches(one, "not_matches", str(one.get("regex")))

    def regexes(self, one: _Expectation) -> None:
        patterns = [str(p) for p in one.get("regex_list", [])]
        if one.get("match_on", "any") == "any" or len(patterns) == 1:
            return self._matches(one, "matches", "|".join(f"(?:{p})" for p in patterns))
        if one.mostly != 1:
            raise InvalidInput("match_on='all' with mostly= has no counterpart")
        for pattern in patterns:
            self._matches(one, "matches", pattern)
        return None

    def not_regexes(self, one: _Expectation) -> None:
        patterns = "|".join(f"(?:{p})" for p in one.get("regex_list", []))
        self._matches(one, "not_matches", patterns)

    def _matches(self, one: _Expectation, kind: str, pattern: str) -> None:
        chosen = self._present(one.column) if one.mostly != 1 else None
        told = f"{one.column} {kind.replace('_', ' ')} {_short(pattern)}"
        self._add(one, told, chosen, kind=kind, rule=pattern, columns=(one.column,))

    def lengths(self, one: _Expectation) -> None:
        low, high = one.get("min_value"), one.get("max_value")
        strict = bool(one.get("strict_min")), bool(one.get("strict_max"))
        if one.kind.endswith("_equal"):
            low = high = one.get("value")
        length, told = Column(one.column).length(), f"length of {one.column}"
        self._values(one, *_bounded(length, told, low, high, strict, int))

    def type_is(self, one: _Expectation) -> None:
        if not list(_stated(one)):
            raise InvalidInput(
                f"{one.given.get('type_') or one.given.get('type_list')!r} has no field type"
            )
        if self._where(one) is not None or one.mostly != 1:
            raise InvalidInput("a type is of the whole column: no row_condition, no mostly")

    def order(self, one: _Expectation) -> None:
        kind = "increasing" if one.kind.endswith("increasing") else "decreasing"
        kind = f"strictly_{kind}" if one.get("strictly") else kind
        chosen = self._present(one.column) if one.mostly != 1 else None
        self._add(one, f"{one.column} {kind}", chosen, kind=kind, columns=(one.column,))

    def not_null_share(self, one: _Expectation) -> None:
        low, high = one.get("min_value"), one.get("max_value")
        # 1 - 0.9 is not 0.1; no share of fewer than a billion rows lies between the two.
        least = None if high is None else round(1 - float(high), 12)
        most = None if low is None else round(1 - float(low), 12)
        told = _span(f"share of values in {one.column}", low, high)
        self._add(one, told, kind="null_share", columns=(one.column,), ge=least, le=most)

    # Several columns

    def pair_greater(self, one: _Expectation) -> None:
        a, b = (str(one.given[name]) for name in ("column_A", "column_B"))
        or_equal = bool(one.get("or_equal"))
        rule = Column(a) >= Column(b) if or_equal else Column(a) > Column(b)
        self._pair(one, a, b, f"{a} {'>=' if or_equal else '>'} {b}", rule)

    def pair_equal(self, one: _Expectation) -> None:
        a, b = (str(one.given[name]) for name in ("column_A", "column_B"))
        self._pair(one, a, b, f"{a} == {b}", Column(a) == Column(b))

    def _pair(self, one: _Expectation, a: str, b: str, told: str, rule: Expr) -> None:
        ignored = one.given.get("ignore_row_if") or "both_values_are_missing"
        first, second = self._present(a), self._present(b)
        chosen = {
            "both_values_are_missing": first | second,
            "either_value_is_missing": first & second,
            "neither": None,
        }
        self._add(one, told, chosen[ignored], rule=rule)

    def compound(self, one: _Expectation) -> None:
        names = [str(name) for name in one.given["column_list"]]
        ignored = one.given.get("ignore_row_if") or "all_values_are_missing"
        every = [self._present(name) for name in names]
        some = every[0]
        for other in every[1:]:
            some = some | other
        chosen = {
            "all_values_are_missing": some,
            "any_value_is_missing": all_of(every),
            "never": None,
        }
        self._add(
            one, f"{', '.join(names)} unique", chosen[ignored], kind="unique",
            columns=tuple(names), stays="none", nulls_equal=True,
        )  # fmt: skip

    # The table

    def row_count(self, one: _Expectation) -> None:
        low, high = one.get("min_value"), one.get("max_value")
        if one.kind.endswith("_equal"):
            low = high = one.get("value")
        low = None if low is None else low + bool(one.get("strict_min"))
        high = None if high is None else high - bool(one.get("strict_max"))
        self._add(one, _span("rows", low, high), kind="row_count", ge=low, le=high)

    def exists(self, one: _Expectation) -> None:
        if one.get("column_index") is not None:
            raise InvalidInput("columns are found by name; their order is not judged")
        one.insist()

    def column_set(self, one: _Expectation) -> None:
        names = [str(n) for n in one.get("column_set") or one.given.get("column_list") or ()]
        unknown = [name for name in names if name not in self.draft.fields]
        if unknown:
            told = ", ".join(map(repr, unknown))
            raise InvalidInput(f"the type of {told} cannot be told: give like=")
        exact = bool(one.get("exact_match", True))
        one.insist()
        others = [name for name in self.draft.fields if name not in names]
        if exact and others:
            raise InvalidInput(f"other expectations look at {', '.join(map(repr, others))}")
        self.refuses_others = self.refuses_others or exact
        if one.kind.endswith("ordered_list"):
            told = "which columns there are is judged, and not their order: they are found by name"
            self.draft.refuse(one.path, told)

    def _figure(self, one: _Expectation) -> None:
        kind = _FIGURES[one.kind]
        low, high = one.get("min_value"), one.get("max_value")
        # A figure is a double: the next one is the least that is above.
        if low is not None and one.get("strict_min"):
            low = math.nextafter(float(low), math.inf)
        if high is not None and one.get("strict_max"):
            high = math.nextafter(float(high), -math.inf)
        told = _span(f"{kind} of {one.column}", one.get("min_value"), one.get("max_value"))
        self._add(one, told, kind=kind, columns=(one.column,), ge=low, le=high)


def _bounded(
    value: Any, told: str, low: Any, high: Any, strict: tuple[bool, bool], plain: Callable[..., Any]
) -> tuple[str, Expr]:
    parts: list[Expr | None] = []
    if low is not None:
        bound = plain(low)
        parts.append(value > bound if strict[0] else value >= bound)
    if high is not None:
        bound = plain(high)
        parts.append(value < bound if strict[1] else value <= bound)
    rule = all_of(parts)
    if rule is None:
        raise InvalidInput("it has no bound")
    return _span(told, low, high), rule


def _span(what: str, low: Any, high: Any) -> str:
    if low is not None and high is not None:
        return f"{what} from {low} to {high}"
    return f"{what} from {low}" if low is not None else f"{what} to {high}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _mentions(one: _Expectation, column: str) -> bool:
    return column in json.dumps(one.given.get("row_condition"), default=str)


def _stated(one: _Expectation) -> Iterator[FieldType]:
    if one.kind == "expect_column_values_to_be_of_type":
        names = [one.get("type_")]
    elif one.kind == "expect_column_values_to_be_in_type_list":
        names = list(one.get("type_list") or ())
    else:
        return
    for name in names:
        if (found := field_type_named(str(name))) is not None:
            yield found


def _implied(one: _Expectation) -> Iterator[FieldType]:
    if "regex" in one.kind or "value_lengths" in one.kind:
        yield "string"
        return
    if one.kind in _FIGURES and _FIGURES[one.kind] in (
        "mean",
        "median",
        "std",
        "sum",
        "min",
        "max",
    ):
        yield "float64"
        return
    values = [one.given.get("min_value"), one.given.get("max_value")]
    if one.kind not in ("expect_column_values_to_be_between", *_SETS):
        return
    for value in values if one.kind not in _SETS else one.given.get("value_set") or ():
        if isinstance(value, bool):
            yield "bool"
        elif isinstance(value, int | float):
            yield "float64"
        elif isinstance(value, str):
            yield "string" if one.kind in _SETS else "timestamp"


_SETS = (
    "expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set",
    "expect_column_distinct_values_to_be_in_set",
)  # fmt: skip
_TABLE_COLUMNS = (
    "expect_table_columns_to_match_set",
    "expect_table_columns_to_match_ordered_list",
)
_HANDLERS: dict[str, Callable[[_Translator, _Expectation], None]] = {
    "expect_column_values_to_be_between": _Translator.between,
    "expect_column_values_to_be_in_set": _Translator.in_set,
    "expect_column_distinct_values_to_be_in_set": _Translator.in_set,
    "expect_column_values_to_not_be_in_set": _Translator.not_in_set,
    "expect_column_values_to_not_be_null": _Translator.not_null,
    "expect_column_values_to_be_null": _Translator.null,
    "expect_column_values_to_be_unique": _Translator.unique,
    "expect_column_values_to_match_regex": _Translator.regex,
    "expect_column_values_to_not_match_regex": _Translator.not_regex,
    "expect_column_values_to_match_regex_list": _Translator.regexes,
    "expect_column_values_to_not_match_regex_list": _Translator.not_regexes,
    "expect_column_value_lengths_to_be_between": _Translator.lengths,
    "expect_column_value_lengths_to_equal": _Translator.lengths,
    "expect_column_values_to_be_of_type": _Translator.type_is,
    "expect_column_values_to_be_in_type_list": _Translator.type_is,
    "expect_column_values_to_be_increasing": _Translator.order,
    "expect_column_values_to_be_decreasing": _Translator.order,
    "expect_column_proportion_of_non_null_values_to_be_between": _Translator.not_null_share,
    "expect_column_pair_values_a_to_be_greater_than_b": _Translator.pair_greater,
    "expect_column_pair_values_A_to_be_greater_than_B": _Translator.pair_greater,
    "expect_column_pair_values_to_be_equal": _Translator.pair_equal,
    "expect_compound_columns_to_be_unique": _Translator.compound,
    "expect_multicolumn_values_to_be_unique": _Translator.compound,
    "expect_table_row_count_to_be_between": _Translator.row_count,
    "expect_table_row_count_to_equal": _Translator.row_count,
    "expect_column_to_exist": _Translator.exists,
    "expect_table_columns_to_match_set": _Translator.column_set,
    "expect_table_columns_to_match_ordered_list": _Translator.column_set,
}
