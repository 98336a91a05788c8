"""Row conditions of Great Expectations as expressions: pandas' query text, its own, and trees."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

from everloop.core.expr import Column, Expr
from everloop.core.kinds import FieldType
from everloop.data.translation import any_of
from everloop.errors import InvalidInput

__all__ = ["condition_of"]

_COMPARED: dict[str, Callable[[Any, Any], Expr]] = {
    "==": lambda a, b: a == b,
    # A missing value is unlike any other to pandas, and unknown to an expression.
    "!=": lambda a, b: (a != b).fill(True),
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_TURNED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SIGNS: dict[type, str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_NULL = {"isnull": True, "isna": True, "notnull": False, "notna": False, "notNull": False}
_WORDS = {"&": "and", "|": "or", "~": "not", "&&": "and", "||": "or"}


def condition_of(
    given: Any, types: Mapping[str, FieldType], value: Callable[[str, Any], Any]
) -> Expr:
    """The rows that a ``row_condition`` chooses.

    Args:
        given: Text (``condition_parser`` pandas or great_expectations), or the tree of GX 1.
        types: Of the columns.
        value: Makes of a column's name and a plain value what an expression can hold.

    Raises:
        InvalidInput: If it says what no expression does; `types` lacks a column.
    """
    reader = _Reader(types, value)
    if hasattr(given, "dict") and not isinstance(given, dict):
        given = given.dict()
    if isinstance(given, Mapping):
        return reader.of_tree(given)
    if not isinstance(given, str) or not given.strip():
        raise InvalidInput(f"row_condition is {given!r}")
    return reader.of_text(given)


class _Reader:
    def __init__(self, types: Mapping[str, FieldType], value: Callable[[str, Any], Any]) -> None:
        self.types, self.value = types, value

    def column(self, name: str) -> Column:
        if name not in self.types:
            raise InvalidInput(f"the condition looks at {name!r}, whose type is not known")
        return Column(name)

    def compared(self, name: str, sign: str, value: Any) -> Expr:
        if isinstance(value, Column):
            return _COMPARED[sign](self.column(name), self.column(value.name))
        return _COMPARED[sign](self.column(name), self.value(name, value))

    def among(self, name: str, values: Any, *, is_in: bool) -> Expr:
        self.column(name)
        listed = [self.value(name, one) for one in values]
        if not listed:
            raise InvalidInput("a set of the condition is empty")
        found = any_of(name, self.types[name], listed)
        return found if is_in else ~found.fill(False)

    def is_null(self, name: str, *, wanted: bool) -> Expr:
        column = self.column(name)
        if self.types[name].startswith("float"):
            found = column.is_null() | column.is_nan()
        else:
            found = column.is_null()
        return found if wanted else ~found

    def of_tree(self, tree: Mapping[str, Any]) -> Expr:
        kind = tree.get("type")
        if kind in ("and", "or"):
            parts = [self.of_tree(one) for one in tree["conditions"]]
            found = parts[0]
            for one in parts[1:]:
                found = found & one if kind == "and" else found | one
            return found
        if kind == "pass_through":
            return self.of_text(tree["pass_through_filter"])
        name = str(tree.get("column", {}).get("name", ""))
        if kind == "nullity":
            return self.is_null(name, wanted=bool(tree["is_null"]))
        sign = str(getattr(tree.get("operator"), "value", tree.get("operator")))
        if kind == "comparison" and sign in ("IN", "NOT_IN"):
            return self.among(name, tree["parameter"], is_in=sign == "IN")
        if kind == "comparison" and sign in _COMPARED:
            return self.compared(name, sign, tree["parameter"])
        raise InvalidInput(f"a condition of type {kind!r} is not known")

    def of_text(self, text: str) -> Expr:
        names: dict[str, str] = {}

        def quoted(found: re.Match[str]) -> str:
            names[stand_in := f"column_{len(names)}__"] = found[1]
            return stand_in

        plain = re.sub(r"`([^`]+)`", quoted, text.strip())
        try:
            tree = ast.parse(_words(plain), mode="eval").body
        except (SyntaxError, tokenize.TokenError) as error:
            raise InvalidInput(f"the condition {text!r} cannot be read") from error
        self.names = names
        return self._node(tree, text)

    def _node(self, node: ast.expr, text: str) -> Expr:
        if isinstance(node, ast.BoolOp):
            found = self._node(node.values[0], text)
            for one in node.values[1:]:
                other = self._node(one, text)
                found = found & other if isinstance(node.op, ast.And) else found | other
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._node(node.operand, text)
            return ~inner.fill(False)
        if isinstance(node, ast.Compare):
            return self._comparison(node, text)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = self._name(node.func.value)
            if name and node.func.attr in _NULL and not node.args:
                return self.is_null(name, wanted=_NULL[node.func.attr])
            if name and node.func.attr == "isin" and len(node.args) == 1:
                return self.among(name, self._plain(node.args[0], text), is_in=True)
        name = self._name(node)
        if name and self.types.get(name) == "bool":
            return self.column(name)
        raise InvalidInput(f"the condition {text!r} says what cannot be translated")

    def _comparison(self, node: ast.Compare, text: str) -> Expr:
        sides = [node.left, *node.comparators]
        found: Expr | None = None
        for left, how, right in zip(sides, node.ops, sides[1:], strict=False):
            one = self._compared(left, how, right, text)
            found = one if found is None else found & one
        assert found is not None
        return found

    def _compared(self, left: ast.expr, how: ast.cmpop, right: ast.expr, text: str) -> Expr:
        first, second = self._name(left), self._name(right)
        if isinstance(how, ast.In | ast.NotIn) and first:
            return self.among(first, self._plain(right, text), is_in=isinstance(how, ast.In))
        sign = _SIGNS.get(type(how), "")
        if first and sign:
            other = self.column(second) if second else self._plain(right, text)
            return self.compared(first, sign, other)
        if second and sign:
            return self.compared(second, _TURNED[sign], self._plain(left, text))
        raise InvalidInput(f"the condition {text!r} says what cannot be translated")

    def _name(self, node: ast.expr) -> str:
        """The column that is meant; empty if none is."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            return ""
        given = node.args
        if node.func.id == "col" and len(given) == 1 and isinstance(given[0], ast.Constant):
            return str(given[0].value)
        return ""

    def _plain(self, node: ast.expr, text: str) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError as error:
            told = f"the condition {text!r} compares with what is no plain value"
            raise InvalidInput(told) from error


def _words(text: str) -> str:
    """`&`, `|` and `~` as the words of Python, as pandas' query reads them."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_sign = token.type == tokenize.OP and token.string in _WORDS
        word = _WORDS[token.string] if is_sign else token.string
        assert is_sign is False or keyword.iskeyword(word)
        found.append(word)
    return " ".join(found).strip()
