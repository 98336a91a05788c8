"""Pandera's schemas as ours: of its pandas and its Polars back end.

The same rows fail, with two differences that are on purpose: a column of a narrower type is taken
where no value changes, and text is never read as a number (``coerce`` does nothing here). What a
check of the user's own means is asked of Pandera, which runs it: it becomes a check function of
this process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from everloop.core.check import Check, OnFail, Stays
from everloop.core.expr import Column, Expr
from everloop.core.kinds import FieldType
from everloop.core.schema import Field
from everloop.data.frame import Table, heed_zones
from everloop.data.functions import check_function
from everloop.data.translation import (
    Draft,
    Translation,
    all_of,
    any_of,
    field_type_named,
    present,
)
from everloop.errors import InvalidInput

__all__ = ["from_pandera", "is_pandera"]

_STAYS: dict[str, Stays] = {"all": "none", "exclude_first": "first", "exclude_last": "last"}
_TEXTS = ("str_matches", "str_contains", "str_startswith", "str_endswith", "str_length")
#: What Pandera runs of each check function, by the name it is registered under.
_RUNS: dict[str, tuple[Any, ...]] = {}


def is_pandera(given: Any) -> bool:
    """Whether it is a schema or a model of Pandera's."""
    kinds = given.__mro__ if isinstance(given, type) else type(given).__mro__
    return any(kind.__module__.partition(".")[0] == "pandera" for kind in kinds)


def from_pandera(given: Any, like: Mapping[str, FieldType] | None) -> Translation:
    """What a ``DataFrameSchema`` or ``DataFrameModel`` says.

    Args:
        given: The schema or model.
        like: The columns there are; ``regex=True`` and ``required=False`` need it.

    Raises:
        InvalidInput: If it is of another back end than pandas and Polars, or no schema of a frame.
    """
    model: Any = given
    schema = model.to_schema() if isinstance(given, type) else given
    kind = f"{type(schema).__module__}.{type(schema).__name__}"
    if not kind.startswith(("pandera.api.pandas.", "pandera.api.polars.")) or not hasattr(
        schema, "columns"
    ):
        raise InvalidInput(
            f"{kind} cannot be translated",
            hint="a DataFrameSchema or DataFrameModel of pandera.pandas or pandera.polars",
        )
    heed_zones()  # whoever has such a schema has imported Pandera
    return _Translator(schema, like, is_polars=kind.startswith("pandera.api.polars.")).translated()


class _Translator:
    def __init__(
        self, schema: Any, like: Mapping[str, FieldType] | None, *, is_polars: bool
    ) -> None:
        self.schema, self.draft, self.is_polars = schema, Draft(like), is_polars

    def translated(self) -> Translation:
        schema, draft = self.schema, self.draft
        self._settings()
        columns = [pair for key, column in schema.columns.items() for pair in self._named(column)]
        for name, column in columns:
            self._field(name, column)
        for name, column in columns:
            if name in draft.fields:
                self._rules_of(name, column)
        if schema.unique:
            named = [schema.unique] if isinstance(schema.unique, str) else list(schema.unique)
            self._unique(named, schema.report_duplicates, "unique", "fail")
        for n, check in enumerate(schema.checks or ()):
            self._function(f"checks[{n}]", (), check)
        drops: OnFail | None = "drop" if schema.drop_invalid_rows else None
        made = draft.schema(refuses_others=schema.strict is True, on_fail=drops)
        return Translation(made, tuple(draft.faults), tuple(draft.functions))

    def _settings(self) -> None:
        schema, refuse = self.schema, self.draft.refuse
        if getattr(schema, "index", None) is not None:
            refuse("index", "an index is no column here: reset_index(), and make it a Column")
        if schema.parsers:
            refuse("parsers", "a schema changes no rows: change them in a step, before the check")
        if schema.strict == "filter":
            refuse("strict", "a schema takes no column away: select them before")
        if schema.ordered:
            refuse("ordered", "columns are found by name; their order is not judged")
        if schema.add_missing_columns:
            refuse("add_missing_columns", "a column that is missing is a fault")
        if getattr(schema, "dtype", None) is not None:
            refuse("dtype", "give each column its type")

    def _named(self, column: Any) -> list[tuple[str, Any]]:
        """The columns that one means: several, if its name is a pattern."""
        if not column.regex:
            return [(column.name, column)]
        if self.draft.like is None:
            self.draft.refuse(f"columns.{column.name}", "a pattern of columns needs like=")
            return []
        pattern = re.compile(column.name)
        found = [name for name in self.draft.like if pattern.match(name)]
        if not found and column.required:
            self.draft.refuse(f"columns.{column.name}", "no column of like= matches the pattern")
        return [(name, column) for name in found]

    def _field(self, name: str, column: Any) -> None:
        draft, path = self.draft, f"columns.{name}"
        named: Any = name  # pandas takes anything
        if not isinstance(named, str):
            return draft.refuse(path, "the name of a column is a text here")
        if not column.required and not column.regex:
            if draft.like is None:
                return draft.refuse(path, "required=False needs like=, which tells if it is there")
            if name not in draft.like:
                return None
        type = self._type(name, column)
        if type is None:
            return draft.refuse(path, f"{column.dtype} has no field type; like= may tell it")
        for what in ("parsers", "default"):
            if getattr(column, what, None) not in (None, []):
                draft.refuse(f"{path}.{what}", "a schema changes no rows")
        told = column.description or column.title or ""
        drops: OnFail = "drop" if column.drop_invalid_rows else "fail"
        draft.fields[name] = Field(
            name, type, nullable=bool(column.nullable), required=True, on_fail=drops,
            description=told,
        )  # fmt: skip
        return None

    def _type(self, name: str, column: Any) -> FieldType | None:
        known = (self.draft.like or {}).get(name)
        if column.dtype is None:
            return known
        dtype = getattr(column.dtype, "type", None) if self.is_polars else column.dtype
        type = field_type_named(str(dtype).rpartition(".")[2] if self.is_polars else str(dtype))
        # What pandas calls object may be anything, and a category is of the type of its values.
        return known or type if str(dtype).lower() in ("object", "category") else type

    def _rules_of(self, name: str, column: Any) -> None:
        path = f"columns.{name}"
        on_fail = self.draft.fields[name].on_fail
        if column.unique:
            self._unique([name], column.report_duplicates, f"{path}.unique", on_fail)
        for n, check in enumerate(column.checks or ()):
            self._check(f"{path}.checks[{n}]", name, check, on_fail)

    def _unique(self, names: Sequence[str], reported: Any, path: str, on_fail: OnFail) -> None:
        gone = [name for name in names if name not in self.draft.fields]
        if gone:
            return self.draft.refuse(path, f"{', '.join(map(repr, gone))} is not translated")
        # Pandera's Polars back end names all of them, whatever is asked for.
        stays = "none" if self.is_polars else _STAYS[str(getattr(reported, "value", reported))]
        self.draft.add(
            path,
            Check(
                f"{', '.join(names)} unique", kind="unique", columns=tuple(names), stays=stays,
                nulls_equal=True, on_fail=on_fail,
            ),
        )  # fmt: skip
        return None

    def _check(self, path: str, name: str, check: Any, on_fail: OnFail) -> None:
        kind = str(check._check_fn)  # a built-in check is a dispatcher that shows its name
        draft = self.draft
        type = draft.type_of(name)
        if kind not in _CONDITIONS and kind not in _TEXTS:
            return self._function(path, (name,), check, on_fail)
        if check.groupby is not None:
            return draft.refuse(path, "groupby= has no counterpart: give each group a where=")
        is_strict = not check.ignore_na and draft.fields[name].nullable
        if is_strict:
            return draft.refuse(path, "ignore_na=False: say nullable=False of the column instead")
        if (kind in _TEXTS) != (type == "string") and kind in _TEXTS:
            return draft.refuse(path, f"{kind} needs text, and {name} is {type}")
        follows: OnFail = "warn" if check.raise_warning else on_fail
        reason = check.error if isinstance(check.error, str) and check.name != kind else ""
        given = {key: _listed(value) for key, value in check._check_kwargs.items()}
        if follows == on_fail and check.name == kind and self._of_field(name, kind, given):
            return None
        shown = ", ".join(str(getattr(one, "pattern", one)) for one in given.values())
        told = check.name if check.name != kind else f"{kind}({shown})"
        try:
            made = self._made(name, kind, given)
        except InvalidInput as error:
            return draft.refuse(path, error.message)
        head = f"{name} {_short(told)}"
        reason = reason or check.description or ""
        return draft.add(path, Check(head, on_fail=follows, reason=reason, **made))

    def _of_field(self, name: str, kind: str, given: Mapping[str, Any]) -> bool:
        """Whether a field says it, and the field was told."""
        draft, type = self.draft, self.draft.type_of(name)
        if type.startswith("float") and self.is_polars:
            return False  # NaN is a number to that back end, and missing to a field
        if kind == "greater_than_or_equal_to":
            return _is_number(given["min_value"]) and draft.amend(name, ge=given["min_value"])
        if kind == "less_than_or_equal_to":
            return _is_number(given["max_value"]) and draft.amend(name, le=given["max_value"])
        if kind == "in_range" and given.get("include_min", True) and given.get("include_max", True):
            low, high = given["min_value"], given["max_value"]
            return _is_number(low) and _is_number(high) and draft.amend(name, ge=low, le=high)
        if kind == "isin" and type != "bool":
            values = list(given["allowed_values"])
            plain = all(isinstance(one, str | int | float) for one in values)
            if not type.startswith("float"):
                plain = plain and not any(isinstance(one, bool | float) for one in values)
            return bool(values) and plain and draft.amend(name, among=tuple(values))
        return False

    def _made(self, name: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        draft, type = self.draft, self.draft.type_of(name)
        if kind in ("str_matches", "str_contains"):
            pattern = getattr(given["pattern"], "pattern", given["pattern"])
            if kind == "str_matches":
                pattern = self._from_start(pattern)
            return {"kind": "matches", "rule": pattern, "columns": (name,)}
        if kind == "str_endswith":
            return {
                "kind": "matches", "rule": f"(?:{re.escape(given['string'])})$", "columns": (name,),
            }  # fmt: skip
        column = Column(name)
        if kind == "str_startswith":
            rule: Expr | None = column.starts_with(given["string"])
        elif kind == "str_length":
            rule = _lengths(column, given)
        else:
            plain = {
                key: [draft.value(name, one) for one in value] if key.endswith("_values")
                else value if key.startswith("include") else draft.value(name, value)
                for key, value in given.items()
            }  # fmt: skip
            rule = _CONDITIONS[kind](name, type, plain, self.is_polars)
        where = present(name, type)
        if self.is_polars and type.startswith("float"):
            where = ~column.is_null()
        return {"rule": rule, "where": where}

    def _from_start(self, pattern: str) -> str:
        if self.is_polars:
            return pattern if pattern.startswith("^") else f"^{pattern}"
        return f"^(?:{pattern})"

    def _function(
        self, path: str, columns: tuple[str, ...], check: Any, on_fail: OnFail = "fail"
    ) -> None:
        if check.groupby is not None:
            return self.draft.refuse(path, "groupby= has no counterpart: give each group a where=")
        where = ".".join((str(self.schema.name or "schema"), *columns))
        name = _registered(f"pandera:{where}:{check.name or 'check'}", self, columns, check)
        self.draft.functions.append(name)
        error = check.error if isinstance(check.error, str) else ""
        return self.draft.add(
            path,
            Check(
                " ".join((*columns, str(check.name or "check"))), kind="function", to=name,
                columns=columns, on_fail="warn" if check.raise_warning else on_fail,
                reason=error or check.description or "",
            ),
        )  # fmt: skip


def _registered(name: str, of: _Translator, columns: tuple[str, ...], check: Any) -> str:
    what = (check._check_fn, columns, of.is_polars, repr(sorted(check._check_kwargs.items())))
    number, free = 2, name
    while _RUNS.get(free, what) != what:
        free, number = f"{name} ({number})", number + 1
    _RUNS[free] = what
    dtypes = {key: column.dtype for key, column in of.schema.columns.items()}

    def run(rows: Table) -> Any:
        if of.is_polars:
            return _run_polars(check, columns, rows)
        return _run_pandas(check, columns, rows, dtypes)

    check_function(free, sees_all=not check.element_wise)(run)
    return free


def _run_pandas(check: Any, columns: tuple[str, ...], rows: Table, dtypes: Any) -> Any:
    import numpy as np

    frame = rows.to_pandas()
    for name, dtype in dtypes.items():
        if name in frame.columns and dtype is not None:
            # As Pandera would be given them; what cannot be is a fault of the column already.
            with contextlib.suppress(ValueError, TypeError):
                frame[name] = dtype.coerce(frame[name])
    output: Any = check(frame[columns[0]] if columns else frame).check_output
    if getattr(output, "ndim", 0) == 2:  # a judgement of each value
        output = output.all(axis=1)
    if getattr(output, "ndim", 0) == 0:  # one judgement of all of them
        return np.full(len(rows), bool(output))
    # What it ignores as missing has no judgement, and is well.
    return output.reindex(frame.index, fill_value=True).fillna(False).to_numpy(dtype=bool)


def _run_polars(check: Any, columns: tuple[str, ...], rows: Table) -> Any:
    frame = rows.to_polars().lazy()
    output = check(frame, columns[0] if columns else None).check_output
    found = output.collect().to_series()
    return pl.repeat(found[0], len(rows), eager=True) if len(found) != len(rows) else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(value: Any) -> Any:
    # Pandera keeps a set, whose order is another one in each process: a digest must not hang on it.
    if not isinstance(value, set | frozenset):
        return value
    return sorted(value, key=lambda one: (type(one).__name__, one))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lengths(column: Column, given: Mapping[str, Any]) -> Expr | None:
    exact = given.get("exact_value")
    low, high = given.get("min_value"), given.get("max_value")
    if exact is not None:
        same: Expr = column.length() == exact
        return same
    return all_of(
        [
            None if low is None else column.length() >= low,
            None if high is None else column.length() <= high,
        ]
    )


def _or_nan(name: str, type: FieldType, rule: Expr, *, is_polars: bool) -> Expr:
    # Polars puts NaN above all numbers; with us it compares false.
    return rule | Column(name).is_nan() if is_polars and type.startswith("float") else rule


def _in_range(name: str, type: FieldType, given: Mapping[str, Any], is_polars: bool) -> Expr:
    column, low, high = Column(name), given["min_value"], given["max_value"]
    above: Expr = column >= low if given.get("include_min", True) else column > low
    below = column <= high if given.get("include_max", True) else column < high
    found: Expr = above & below
    return found


def _isin(name: str, type: FieldType, given: Mapping[str, Any], is_polars: bool) -> Expr:
    if not given["allowed_values"]:
        raise InvalidInput("no value is allowed")
    return any_of(name, type, given["allowed_values"])


def _notin(name: str, type: FieldType, given: Mapping[str, Any], is_polars: bool) -> Expr:
    if not given["forbidden_values"]:
        raise InvalidInput("no value is forbidden")
    return ~any_of(name, type, given["forbidden_values"])


_CONDITIONS: dict[str, Callable[[str, FieldType, Mapping[str, Any], bool], Expr]] = {
    "equal_to": lambda name, type, given, polars: Column(name) == given["value"],
    "not_equal_to": lambda name, type, given, polars: Column(name) != given["value"],
    "greater_than": lambda name, type, given, polars: _or_nan(
        name, type, Column(name) > given["min_value"], is_polars=polars
    ),
    "greater_than_or_equal_to": lambda name, type, given, polars: _or_nan(
        name, type, Column(name) >= given["min_value"], is_polars=polars
    ),
    "less_than": lambda name, type, given, polars: Column(name) < given["max_value"],
    "less_than_or_equal_to": lambda name, type, given, polars: Column(name) <= given["max_value"],
    "in_range": _in_range,
    "isin": _isin,
    "notin": _notin,
}
