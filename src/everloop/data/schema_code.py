"""A schema as the Python that makes it, for a person to edit."""

from __future__ import annotations

import ast
import json
import keyword
from collections.abc import Sequence
from typing import Any

import msgspec

from everloop.core.expr import Call, Col, Column, Node
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import from_micros
from everloop.errors import Fault, InvalidInput

__all__ = ["schema_code"]

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
    "gt": ">", "ge": ">=", "and": "&", "or": "|",
}  # fmt: skip
_WIDE = 96


def schema_code(schema: Schema, *, title: str, untranslated: Sequence[Fault] = ()) -> str:
    """A module whose ``SCHEMA`` equals `schema`.

    Args:
        title: First line of its docstring.
        untranslated: Listed in a comment.

    Raises:
        InvalidInput: If an expression holds what cannot be written.
    """
    parts = ["    (\n" + "".join(f"        {_field(one)},\n" for one in schema.fields) + "    ),\n"]
    if schema.checks:
        lines = "".join(_check(one) for one in schema.checks)
        parts.append(f"    checks=(\n{lines}    ),\n")
    parts += [
        f"    {name}={_value(value)},\n"
        for name, value in (("key", schema.key), ("time", schema.time), ("extra", schema.extra))
        if value != Schema.__struct_defaults__[Schema.__struct_fields__.index(name) - 1]
    ]
    body = f"SCHEMA = ev.Schema(\n{''.join(parts)})\n"
    imports = "from datetime import datetime\n\n" if "datetime.fromisoformat(" in body else ""
    left = "".join(f"# - {_line(str(fault))}\n" for fault in untranslated)
    if left:
        left = f"# Not translated; what these say is not judged:\n{left}\n"
    functions = sorted({one.to for one in schema.checks if one.kind == "function"})
    if functions:
        names = "".join(f"# - {_line(name)}\n" for name in functions)
        left += f"# Functions that the process must register (ev.check_function):\n{names}\n"
    column = "col = ev.col\n\n" if "col." in body or "col(" in body else ""
    safe = _line(title).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}"""\n\n{imports}import everloop as ev\n\n{left}{column}{body}'


def _line(text: str) -> str:
    return " ".join(text.split())


def _value(value: Any) -> str:
    """As ruff and black write it."""
    if isinstance(value, str) and '"' not in value and repr(value)[0] == "'":
        return f'"{repr(value)[1:-1]}"'
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(_value, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _changed(value: Field | Check) -> list[tuple[str, Any]]:
    kind = type(value)
    defaults = dict(
        zip(kind.__struct_fields__[-len(kind.__struct_defaults__) :], kind.__struct_defaults__,
            strict=True)
    )  # fmt: skip
    return [
        (name, held)
        for name in kind.__struct_fields__
        if (held := getattr(value, name)) != defaults.get(name, msgspec.NODEFAULT)
    ]


def _field(field: Field) -> str:
    stated = [_value(field.name), _value(field.type)]
    stated += [f"{n}={_value(v)}" for n, v in _changed(field) if n not in ("name", "type")]
    return f"ev.Field({', '.join(stated)})"


def _check(check: Check) -> str:
    stated = [_value(check.name)]
    if check.kind == "expression":
        stated.append(_bare(_node(check.node)))
    for name, value in _changed(check):
        if name == "where":
            condition = check.condition
            assert condition is not None
            stated.append(f"where={_bare(_node(condition))}")
        elif name not in ("name", *(("rule", "kind") if check.kind == "expression" else ())):
            stated.append(f"{name}={_value(value)}")
    line = f"        ev.Check({', '.join(stated)}),\n"
    if len(line) <= _WIDE:
        return line
    return (
        "        ev.Check(\n" + "".join(f"            {one},\n" for one in stated) + "        ),\n"
    )


def _bare(text: str) -> str:
    """Without the outer parentheses, if they belong together."""
    if not text.startswith("("):
        return text
    try:
        ast.parse(text[1:-1], mode="eval")
    except SyntaxError:
        return text
    return text[1:-1]


def _node(node: Node) -> str:
    if isinstance(node, Column):
        plain = node.name.isidentifier() and not keyword.iskeyword(node.name)
        is_free = not node.name.startswith("_") and not hasattr(Col, node.name)
        return f"col.{node.name}" if plain and is_free else f"col({_value(node.name)})"
    if not isinstance(node, Call):
        if node.kind == "timestamp":
            return f"datetime.fromisoformat({_value(from_micros(int(node.python)).isoformat())})"
        value = node.python
        if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
            return f"float({str(value)!r})"
        return _value(value)
    return _call(node)


def _call(node: Call) -> str:
    args = [_node(arg) for arg in node.args]
    function = node.function
    if not isinstance(node.args[0], Column | Call):
        raise InvalidInput(f"an expression begins with a constant: {json.dumps(args)}")
    if function in _INFIX:
        return f"({args[0]} {_INFIX[function]} {args[1]})"
    if function == "not":
        return f"(~{args[0]})"
    if function == "neg":
        return f"(-{args[0]})"
    if function == "where":
        return f"{args[1]}.where({_bare(args[0])}, {_bare(args[2])})"
    if function == "lookup":
        table = dict(zip(node.options["keys"], node.options["values"], strict=True))
        return f"{args[0]}.lookup({table!r}, {node.options['default']!r})"
    given = [*map(_bare, args[1:]), *(f"{n}={_value(v)}" for n, v in node.options.items())]
    return f"{args[0]}.{function}({', '.join(given)})"
