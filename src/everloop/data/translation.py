"""Rules of other products become a schema of ours: what both translators build with.

What cannot be said here is never dropped in silence: it is collected with its path, and refused or
told of by :func:`everloop.data.schema_from.schema_from`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

import msgspec

from everloop.core.check import Check, OnFail
from everloop.core.expr import Call, Column, Expr, lit
from everloop.core.kinds import FieldType
from everloop.core.schema import Field, Schema
from everloop.core.time import parse_instant
from everloop.errors import Fault, InvalidInput

__all__ = ["Draft", "Translation", "all_of", "any_of", "field_type_named", "present"]

#: Dtypes by the names that pandas, NumPy, Polars, Arrow and databases give them.
_NAMED: dict[str, FieldType] = {
    "bool": "bool", "boolean": "bool", "bool_": "bool",
    "str": "string", "string": "string", "utf8": "string", "varchar": "string", "text": "string",
    "object": "string", "object_": "string", "category": "string", "categorical": "string",
    "int": "int64", "integer": "int64", "bigint": "int64", "float": "float64", "double": "float64",
    "date": "date", "binary": "binary", "bytes": "binary", "timestamp": "timestamp",
}  # fmt: skip
_WIDTHS = re.compile(r"(u?int(?:8|16|32|64)|float(?:32|64))_?")


def field_type_named(dtype: str) -> FieldType | None:
    """The field type that holds a dtype of that name, or None."""
    text = dtype.strip().lower()
    if text.startswith(("datetime", "timestamp")):
        return "timestamp"
    text = re.sub(r"\[.*\]$|\(.*\)$", "", text)
    if found := _WIDTHS.fullmatch(text):
        return found[1]  # type: ignore[return-value]  # the pattern lists field types
    return _NAMED.get(text)


class Translation(NamedTuple):
    """A schema, and what of its source it does not say.

    Attributes:
        untranslated: Each with its path in the source, and why.
        functions: Names of check functions that were registered in this process for it.
    """

    schema: Schema
    untranslated: tuple[Fault, ...]
    functions: tuple[str, ...] = ()


def present(column: str, type: FieldType) -> Expr:
    """That a column has a value: no null, and no NaN in floats."""
    value = Column(column)
    if type.startswith("float"):
        return ~(value.is_null() | value.is_nan())
    return ~value.is_null()


def all_of(conditions: Iterable[Expr | None]) -> Expr | None:
    """All of them that there are; None if there is none."""
    found: Expr | None = None
    for one in conditions:
        if one is not None:
            found = one if found is None else found & one
    return found


def any_of(column: str, type: FieldType, values: Sequence[Any]) -> Expr:
    """That the column is one of `values`, at least one, all of which can stand in it."""
    value = Column(column)
    listed = list(dict.fromkeys(values))
    if type == "string" or (
        type.startswith(("int", "uint"))
        and all(isinstance(one, int) and not isinstance(one, bool) for one in listed)
    ):
        return value.is_in(listed)
    found: Call = value == listed[0]
    for one in listed[1:]:
        found = found | (value == one)
    return found


class Draft:
    """Fields and checks as they are gathered.

    Args:
        like: Types of the columns there are, if they are known.
    """

    def __init__(self, like: Mapping[str, FieldType] | None) -> None:
        self.like = like
        self.fields: dict[str, Field] = {}
        self.checks: list[Check] = []
        self.faults: list[Fault] = []
        self.functions: list[str] = []

    def refuse(self, path: str, why: str) -> None:
        """Note that something cannot be said."""
        self.faults.append(Fault(path, why))

    def type_of(self, column: str) -> FieldType:
        return self.fields[column].type

    def amend(self, column: str, **changes: Any) -> bool:
        """Give a field a rule; False if it has another of that kind, or cannot hold this one."""
        field = self.fields[column]
        blank = Field(column, field.type)
        if any(getattr(field, name) != getattr(blank, name) for name in changes):
            return False
        changed = msgspec.structs.replace(field, **changes)
        if any(changed.faults()):
            return False
        self.fields[column] = changed
        return True

    def add(self, path: str, check: Check) -> None:
        """Take a check, under a name of its own; note it as not translated if it cannot be."""
        types = {name: field.type for name, field in self.fields.items()}
        try:
            faults = list(check.faults(types, is_open=False))
        except InvalidInput as error:
            faults = [Fault(path, error.message)]
        if faults:
            self.refuse(path, "; ".join(fault.message for fault in faults))
            return
        taken, name, number = {one.name for one in self.checks}, check.name, 2
        while name in taken:
            name, number = f"{check.name} ({number})", number + 1
        self.checks.append(msgspec.structs.replace(check, name=name))

    def value(self, column: str, given: Any) -> Any:
        """`given` as an expression over the column holds it: text of a time is read as one.

        Raises:
            InvalidInput: If no expression holds such a value.
        """
        if hasattr(given, "to_pydatetime"):  # of pandas
            given = given.to_pydatetime()
        elif hasattr(given, "item"):  # of NumPy
            given = given.item()
        if self.type_of(column) in ("timestamp", "date") and isinstance(given, str):
            return parse_instant(given)
        if not isinstance(given, bool | int | float | str | datetime | date):
            raise InvalidInput(f"a value is {given!r}")
        lit(given)
        return given

    def schema(self, *, refuses_others: bool, on_fail: OnFail | None = None) -> Schema:
        """The schema of all that was gathered.

        Args:
            on_fail: What follows from every rule over rows, whatever they say; None leaves them.
        """
        fields, checks = list(self.fields.values()), list(self.checks)
        if on_fail is not None:
            fields = [msgspec.structs.replace(one, on_fail=on_fail) for one in fields]
            checks = [
                msgspec.structs.replace(one, on_fail=on_fail) if one.is_of_rows else one
                for one in checks
            ]
        extra: Any = "refuse" if refuses_others else "allow"
        return Schema(tuple(fields), tuple(checks), extra=extra)
