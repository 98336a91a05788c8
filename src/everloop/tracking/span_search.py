"""Conditions on spans: what a search asks of one span of a trace."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, exists, not_

from everloop.catalog.tables import trace_spans, traces
from everloop.errors import InvalidInput
from everloop.tracking.compare import Condition, compare
from everloop.tracking.search import Clause

__all__ = ["spans_that"]

_COLUMNS = {
    "name": trace_spans.c.name,
    "type": trace_spans.c.type,
    "status": trace_spans.c.status,
    "content": trace_spans.c.content,
}
_OF_ATTRIBUTE = "attributes."
_NULLS = ("IS NULL", "IS NOT NULL")
#: A letter within a text of JSON, and any number of them.
_LETTER = r'(?:[^"\\]|\\u[0-9a-f]{4}|\\.)'
_LETTERS = r'(?:[^"\\]|\\.)*'


def spans_that(clauses: Sequence[Clause], dialect: str) -> Condition:
    """Traces with one span that meets all `clauses`.

    Raises:
        InvalidInput: If a clause names what no span has.
    """
    mine = trace_spans.c.trace_pk == traces.c.pk
    held = [_holds(clause, dialect) for clause in clauses if clause.op not in _NULLS]
    conditions: list[Condition] = [exists().where(mine, *held)] if held else []
    for clause in clauses:
        if clause.op in _NULLS:
            found = exists().where(mine, _there(clause.key, dialect))
            conditions.append(found if clause.op == "IS NOT NULL" else ~found)
    return and_(*conditions)


def _column(key: str) -> Any:
    if key not in _COLUMNS:
        raise InvalidInput(
            f"Invalid clause(s) in filter string: 'span.{key[:80]}'",
            [("filter", f"wanted one of span.{', span.'.join([*_COLUMNS, 'attributes.<key>'])}")],
        )
    return _COLUMNS[key]


def _there(key: str, dialect: str) -> Condition:
    if key.startswith(_OF_ATTRIBUTE):
        return compare(trace_spans.c.content, "RLIKE", _before(key), dialect)
    return _column(key) != ""  # type: ignore[no-any-return]


def _holds(clause: Clause, dialect: str) -> Condition:
    """Whether a span meets a clause; one without the attribute does not."""
    if not clause.key.startswith(_OF_ATTRIBUTE):
        return compare(_column(clause.key), clause.op, clause.value, dialect)
    op = {"!=": "=", "NOT IN": "IN"}.get(clause.op, clause.op)
    values = clause.value if op == "IN" else (clause.value,)
    texts = "|".join(_value(op, value) for value in values)
    ignoring = "(?i)" if op == "ILIKE" else ""
    pattern = rf"{ignoring}{_before(clause.key)}(?:{texts})\}}"
    found = compare(trace_spans.c.content, "RLIKE", pattern, dialect)
    return found if op == clause.op else and_(_there(clause.key, dialect), not_(found))


def _before(key: str) -> str:
    """What stands before the value of an attribute; within a text its quotes would be escaped."""
    name = _within(key.removeprefix(_OF_ATTRIBUTE))
    return rf'"key":{re.escape(chr(34) + name + chr(34))},"value":\{{"[a-z]+_value":'


def _within(text: str) -> str:
    """A text as it stands in JSON, without the quotes around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _value(op: str, value: str) -> str:
    """A value as JSON: a text, a text that is JSON itself as MLflow writes it, or a bare one."""
    if op == "RLIKE":
        start = "" if value.startswith("^") else _LETTERS
        end = "" if value.endswith("$") and not value.endswith("\\$") else _LETTERS
        inner = f"{start}(?:{value.removeprefix('^')[: -1 if not end else None]}){end}"
        return rf'"(?:\\")?{inner}(?:\\")?"|{inner}'
    if op in ("LIKE", "ILIKE"):
        signs = {"%": _LETTERS, "_": _LETTER}
        inner = "".join(signs.get(letter) or re.escape(_within(letter)) for letter in value)
        return rf'"(?:\\")?{inner}(?:\\")?"|{inner}'
    texts = (json.dumps(value, ensure_ascii=False), json.dumps(json.dumps(value)), value)
    return "|".join(re.escape(text) for text in texts)
