"""Expressions: one small tree that means the same in SQL, over columns and for a single row.

An expression is plain data with one canonical JSON form. It is written as ``col.delay > 15`` and
compiled in ``everloop.features`` (``compile_sql``, ``compile_vector``, ``compile_row``).

What an expression means, whatever runs it:

- A null is unknown: an operator with a null gives null, and ``and``/``or`` follow SQL's
  three-valued logic. ``where`` takes its second branch when the condition is null.
- NaN is a number, not a null: every comparison with it is false, save ``!=``.
- Arithmetic is IEEE 754 double precision; integers are widened first and a division by zero gives
  an infinity or NaN. Two integers are compared exactly. ``round`` goes to the even neighbour.
- Times are instants in UTC; a date is its midnight. Text is compared by code point.
- ``cast`` to an integer cuts towards zero; what has no integer value becomes null.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeAlias

import msgspec

from everloop.core.canonical import canonical_json
from everloop.core.kinds import FieldType
from everloop.core.time import to_micros
from everloop.errors import InvalidInput

__all__ = [
    "DATE_PARTS",
    "Call",
    "Col",
    "Column",
    "Constant",
    "Expr",
    "Kind",
    "Node",
    "col",
    "columns_of",
    "digest_of",
    "infer",
    "kind_of",
    "lit",
]

Kind = Literal["bool", "int", "float", "string", "timestamp", "null"]

DATE_PARTS = ("year", "month", "day", "hour", "minute", "weekday", "year_day")
_ARITHMETIC = ("add", "sub", "mul", "div")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ROUNDINGS = ("neg", "abs", "log", "exp", "sqrt", "floor", "ceil", "round")
_CASTS = ("bool", "int64", "float64", "string", "timestamp")
_KIND_OF_CAST: dict[str, Kind] = {
    "bool": "bool",
    "int64": "int",
    "float64": "float",
    "string": "string",
    "timestamp": "timestamp",
}


class Expr:
    """What every node can do. Operators build a larger tree and compute nothing."""

    __slots__ = ()

    def __add__(self, other: Any) -> Call:
        return _call("add", self, other)

    def __radd__(self, other: Any) -> Call:
        return _call("add", other, self)

    def __sub__(self, other: Any) -> Call:
        return _call("sub", self, other)

    def __rsub__(self, other: Any) -> Call:
        return _call("sub", other, self)

    def __mul__(self, other: Any) -> Call:
        return _call("mul", self, other)

    def __rmul__(self, other: Any) -> Call:
        return _call("mul", other, self)

    def __truediv__(self, other: Any) -> Call:
        return _call("div", self, other)

    def __rtruediv__(self, other: Any) -> Call:
        return _call("div", other, self)

    def __neg__(self) -> Call:
        return _call("neg", self)

    def __abs__(self) -> Call:
        return _call("abs", self)

    def __eq__(self, other: object) -> Call:  # type: ignore[override]
        return _call("eq", self, other)

    def __ne__(self, other: object) -> Call:  # type: ignore[override]
        return _call("ne", self, other)

    def __lt__(self, other: Any) -> Call:
        return _call("lt", self, other)

    def __le__(self, other: Any) -> Call:
        return _call("le", self, other)

    def __gt__(self, other: Any) -> Call:
        return _call("gt", self, other)

    def __ge__(self, other: Any) -> Call:
        return _call("ge", self, other)

    def __and__(self, other: Any) -> Call:
        return _call("and", self, other)

    def __rand__(self, other: Any) -> Call:
        return _call("and", other, self)

    def __or__(self, other: Any) -> Call:
        return _call("or", self, other)

    def __ror__(self, other: Any) -> Call:
        return _call("or", other, self)

    def __invert__(self) -> Call:
        return _call("not", self)

    def __hash__(self) -> int:
        return hash(digest_of(self))

    def __bool__(self) -> bool:
        raise TypeError("an expression has no truth value: write & | ~ instead of and, or, not")

    def abs(self) -> Call:
        """The absolute value."""
        return _call("abs", self)

    def log(self) -> Call:
        """The natural logarithm; of zero -infinity, of less NaN."""
        return _call("log", self)

    def exp(self) -> Call:
        """E to the power of this; infinity where it is too large."""
        return _call("exp", self)

    def sqrt(self) -> Call:
        """The square root; NaN below zero."""
        return _call("sqrt", self)

    def floor(self) -> Call:
        """The largest whole number that is not above."""
        return _call("floor", self)

    def ceil(self) -> Call:
        """The smallest whole number that is not below."""
        return _call("ceil", self)

    def round(self) -> Call:
        """The nearest whole number, the even one of two equally near."""
        return _call("round", self)

    def clip(self, low: float | None = None, high: float | None = None) -> Call:
        """`low` where it is below, `high` where it is above; NaN stays."""
        # An infinite bound bounds nothing, and JSON has no word for it.
        least = None if low is None or low == -math.inf else float(low)
        most = None if high is None or high == math.inf else float(high)
        if not all(bound is None or math.isfinite(bound) for bound in (least, most)) or (
            least is not None and most is not None and least > most
        ):
            raise InvalidInput(f"clip needs low <= high, got {low} and {high}")
        return Call("clip", (_node(self),), {"low": least, "high": most})

    def fill(self, other: Any) -> Call:
        """`other` where this is null. NaN is kept."""
        return _call("fill", self, other)

    def is_null(self) -> Call:
        """Whether there is no value."""
        return _call("is_null", self)

    def is_nan(self) -> Call:
        """Whether it is a number and yet none."""
        return _call("is_nan", self)

    def where(self, condition: Expr, otherwise: Any = None) -> Call:
        """This where `condition` is true, else `otherwise`."""
        return _call("where", condition, self, otherwise)

    def cast(self, type: FieldType) -> Call:
        """As another type: ``bool``, ``int64``, ``float64``, ``string`` or ``timestamp``.

        Text is never read as a number: what must be parsed belongs into the data, with a check.
        """
        if type not in _CASTS:
            raise InvalidInput(f"cannot cast to {type!r}", hint=f"one of {', '.join(_CASTS)}")
        return Call("cast", (_node(self),), {"type": type})

    def year(self) -> Call:
        """The year, in UTC."""
        return _call("year", self)

    def month(self) -> Call:
        """The month, 1 to 12, in UTC."""
        return _call("month", self)

    def day(self) -> Call:
        """The day of the month, 1 to 31, in UTC."""
        return _call("day", self)

    def hour(self) -> Call:
        """The hour, 0 to 23, in UTC."""
        return _call("hour", self)

    def minute(self) -> Call:
        """The minute, 0 to 59."""
        return _call("minute", self)

    def weekday(self) -> Call:
        """The day of the week, Monday 0 to Sunday 6, in UTC."""
        return _call("weekday", self)

    def year_day(self) -> Call:
        """The day of the year, 1 to 366, in UTC."""
        return _call("year_day", self)

    def seconds_since(self, earlier: Any) -> Call:
        """Seconds from `earlier` to this instant, negative if it is later."""
        return _call("seconds_since", self, earlier)

    def lower(self) -> Call:
        """Text in lower case, letter by letter."""
        return _call("lower", self)

    def length(self) -> Call:
        """Length of the text in code points."""
        return _call("length", self)

    def starts_with(self, prefix: str) -> Call:
        """Whether the text begins with `prefix`."""
        return Call("starts_with", (_node(self),), {"prefix": str(prefix)})

    def is_in(self, values: Sequence[Any]) -> Call:
        """Whether it is one of `values`, all texts or all integers."""
        return Call("is_in", (_node(self),), {"values": _list_of_keys(list(values))})

    def hash_bucket(self, buckets: int) -> Call:
        """A number from 0 to `buckets` - 1 from the MD5 of a text or of an integer's digits."""
        if not 1 <= buckets <= 1 << 31:
            raise InvalidInput(f"buckets must be from 1 to 2**31, got {buckets}")
        return Call("hash_bucket", (_node(self),), {"buckets": int(buckets)})

    def lookup(self, table: Mapping[Any, float], default: float | None = None) -> Call:
        """The number that `table` holds for this text or integer, else `default`."""
        keys = _list_of_keys(list(table))
        values = [float(table[key]) for key in table]
        if not all(math.isfinite(value) for value in [*values, default or 0.0]):
            raise InvalidInput("a lookup holds finite numbers only")
        default = None if default is None else float(default)
        return Call("lookup", (_node(self),), {"keys": keys, "values": values, "default": default})

    def code(self, values: Sequence[Any]) -> Call:
        """The place of this in the list `values`, 0 first; null where it is not in it."""
        listed = _list_of_keys(list(values))
        return self.lookup({value: index for index, value in enumerate(listed)})


class Column(Expr, msgspec.Struct, frozen=True, eq=False, tag="col", tag_field="op"):
    """The column `name` of the rows."""

    name: str


class Constant(Expr, msgspec.Struct, frozen=True, eq=False, tag="lit", tag_field="op"):
    """A value. Instants are held in microseconds, NaN and infinities by name, as JSON needs."""

    kind: Kind
    value: bool | int | float | str | None = None

    @property
    def python(self) -> Any:
        """The value as Python has it; an instant as microseconds since 1970."""
        return float(str(self.value)) if self.kind == "float" else self.value


class Call(Expr, msgspec.Struct, frozen=True, eq=False, tag="call", tag_field="op"):
    """An operator over other nodes; `options` are its fixed parameters."""

    function: str
    args: tuple[Node, ...]
    options: dict[str, Any] = {}


Node: TypeAlias = Column | Constant | Call


class Col:
    """Makes columns: ``col.delay``, or ``col("a name with spaces")``."""

    def __getattr__(self, name: str) -> Column:
        if name.startswith("__"):  # so that copy, pickle and inspect see no strange methods
            raise AttributeError(name)
        return Column(name)

    def __call__(self, name: str) -> Column:
        return Column(name)


col = Col()


def lit(value: Any) -> Constant:
    """A constant: None, bool, int, float, str, datetime or date.

    Raises:
        InvalidInput: For another type, or an integer beyond 64 bits.
    """
    if value is None:
        return Constant("null")
    if isinstance(value, bool):
        return Constant("bool", value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidInput(f"{value} does not fit 64 bits")
        return Constant("int", int(value))
    if isinstance(value, float):
        return Constant("float", float(value) if math.isfinite(value) else str(float(value)))
    if isinstance(value, str):
        return Constant("string", str(value))
    if isinstance(value, datetime):
        return Constant("timestamp", to_micros(value))
    if isinstance(value, date):
        midnight = datetime(value.year, value.month, value.day, tzinfo=UTC)
        return Constant("timestamp", to_micros(midnight))
    raise InvalidInput(f"an expression cannot hold a {type(value).__name__}: {value!r}")


def _node(value: Any) -> Node:
    if isinstance(value, Column | Constant | Call):
        return value
    return lit(value)


def _call(function: str, *args: Any) -> Call:
    return Call(function, tuple(_node(arg) for arg in args))


def _list_of_keys(values: list[Any]) -> list[Any]:
    kinds = {str if isinstance(value, str) else type(value) for value in values}
    if not values or (kinds != {str} and kinds != {int}):
        raise InvalidInput("the values must be all texts or all integers, at least one")
    if len(set(values)) != len(values):
        raise InvalidInput("a value stands twice in the list")
    return values


def columns_of(node: Node) -> tuple[str, ...]:
    """The columns that an expression reads, in order of first use."""
    return tuple(dict.fromkeys(_walk(node)))


def _walk(node: Node) -> Iterator[str]:
    if isinstance(node, Column):
        yield node.name
    elif isinstance(node, Call):
        for arg in node.args:
            yield from _walk(arg)


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of an expression or definition, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def kind_of(type: FieldType) -> Kind:
    """The kind under which expressions see a field type.

    Raises:
        InvalidInput: For ``binary``, which expressions do not read.
    """
    if type.startswith(("int", "uint")):
        return "int"
    if type.startswith("float"):
        return "float"
    if type in ("timestamp", "date"):
        return "timestamp"
    if type in ("bool", "string"):
        return type
    raise InvalidInput(f"expressions do not read {type} columns")


def infer(node: Node, kinds: Mapping[str, Kind]) -> Kind:
    """The kind of an expression's values over columns of `kinds`.

    Raises:
        InvalidInput: If a column is not there or an operator does not take what it is given.
    """
    if isinstance(node, Constant):
        return node.kind
    if isinstance(node, Column):
        if node.name not in kinds:
            from everloop.errors import NotFound  # the nearest names are its business

            hint = NotFound.named("column", node.name, kinds).hint
            raise InvalidInput(f"no column {node.name!r}", hint=hint)
        return kinds[node.name]
    return _infer_call(node, [infer(arg, kinds) for arg in node.args])


def _infer_call(call: Call, args: list[Kind]) -> Kind:
    function = call.function
    rule = _RULES.get(function)
    if rule is None:
        raise InvalidInput(f"unknown operator {function!r}", hint="made by a newer Everloop?")
    arity, takes, gives = rule
    if len(args) != arity:
        raise InvalidInput(f"{function} takes {arity} values, got {len(args)}")
    if function == "where":
        _require(function, args[:1], ("bool",))
        return _same(function, args[1:])
    if function == "fill":
        return _same(function, args)
    if function in _COMPARISONS:
        _same(function, args)
        return "bool"
    _require(function, args, takes)
    if function == "cast":
        return _infer_cast(call, args[0])
    if function in ("is_in", "lookup"):
        listed = call.options["values" if function == "is_in" else "keys"]
        _same(function, [args[0], "string" if isinstance(listed[0], str) else "int"], widen=False)
    return gives


def _infer_cast(call: Call, arg: Kind) -> Kind:
    target = _KIND_OF_CAST.get(call.options["type"])
    allowed: dict[Kind, tuple[Kind, ...]] = {
        "bool": ("bool", "int", "float"),
        "int": ("bool", "int", "float", "timestamp"),
        "float": ("bool", "int", "float"),
        "string": ("string", "bool", "int"),
        "timestamp": ("timestamp",),
    }
    if target is None or (arg != "null" and arg not in allowed[target]):
        raise InvalidInput(f"cannot cast {arg} to {call.options['type']}")
    return target


def _require(function: str, args: Sequence[Kind], takes: tuple[Kind, ...]) -> None:
    for arg in args:
        if arg != "null" and arg not in takes:
            raise InvalidInput(f"{function} takes {' or '.join(takes)}, got {arg}")


def _same(function: str, args: Sequence[Kind], *, widen: bool = True) -> Kind:
    kinds = {arg for arg in args if arg != "null"}
    if widen and kinds == {"int", "float"}:
        return "float"
    if len(kinds) > 1:
        raise InvalidInput(f"{function} needs values of one kind, got {' and '.join(args)}")
    return kinds.pop() if kinds else "null"


_NUMBERS: tuple[Kind, ...] = ("int", "float")
_ANY: tuple[Kind, ...] = ("bool", "int", "float", "string", "timestamp")
# operator: (number of arguments, kinds it takes, kind it gives)
_RULES: dict[str, tuple[int, tuple[Kind, ...], Kind]] = {
    **dict.fromkeys(_ARITHMETIC, (2, _NUMBERS, "float")),
    **dict.fromkeys((*_ROUNDINGS, "clip"), (1, _NUMBERS, "float")),
    **dict.fromkeys(_COMPARISONS, (2, _ANY, "bool")),
    **dict.fromkeys(DATE_PARTS, (1, ("timestamp",), "int")),
    "and": (2, ("bool",), "bool"),
    "or": (2, ("bool",), "bool"),
    "not": (1, ("bool",), "bool"),
    "where": (3, _ANY, "null"),
    "fill": (2, _ANY, "null"),
    "cast": (1, _ANY, "null"),
    "is_null": (1, _ANY, "bool"),
    "is_nan": (1, _NUMBERS, "bool"),
    "seconds_since": (2, ("timestamp",), "float"),
    "lower": (1, ("string",), "string"),
    "length": (1, ("string",), "int"),
    "starts_with": (1, ("string",), "bool"),
    "is_in": (1, ("string", "int"), "bool"),
    "hash_bucket": (1, ("string", "int"), "int"),
    "lookup": (1, ("string", "int"), "float"),
}
