"""``ev.schema_from``: what Pandera and Great Expectations say, as a schema of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from everloop.core.context import current_workspace
from everloop.core.kinds import FieldType
from everloop.core.schema import Schema
from everloop.data.arrow import field_type
from everloop.data.frame import Table
from everloop.data.from_gx import from_gx, is_suite
from everloop.data.from_pandera import from_pandera, is_pandera
from everloop.data.translation import Translation
from everloop.errors import InvalidInput

__all__ = ["schema_from", "translated"]

_HINT = 'unsupported="warn" leaves them out, and says so; everloop data import-checks writes code'


def schema_from(
    rules: Any, *, like: Any = None, unsupported: Literal["raise", "warn"] = "raise"
) -> Schema:
    """The schema that says what the rules of another product say.

    The same rows break it. Checks of the user's own in a Pandera schema become check functions of
    this process, and must be registered by the same call wherever the schema is judged.

    Args:
        rules: A ``DataFrameSchema`` or ``DataFrameModel`` of Pandera (pandas or Polars); a suite of
            Great Expectations: the object, its dict, or the path of its JSON (0.18 and 1.x).
        like: The columns there are, where the rules do not tell their types: a frame, a schema, or
            the name of a dataset.
        unsupported: What to do about rules that cannot be said here: refuse all, or leave them out
            with a warning that names each.

    Raises:
        InvalidInput: With each rule that cannot be said, and its path; or if `rules` is neither.
    """
    if unsupported not in ("raise", "warn"):
        raise InvalidInput(f"unsupported is {unsupported!r}", hint="'raise' or 'warn'")
    found = translated(rules, like)
    if not found.untranslated:
        return found.schema
    count = len(found.untranslated)
    message = f"{count} rule{'s' if count > 1 else ''} cannot be said in a schema"
    if unsupported == "raise":
        raise InvalidInput(message, list(found.untranslated), hint=_HINT)
    told = "\n".join(f"  {fault.path}: {fault.message}" for fault in found.untranslated)
    warnings.warn(f"{message} and are left out:\n{told}", stacklevel=2)
    return found.schema


def translated(rules: Any, like: Any = None) -> Translation:
    """As :func:`schema_from`, with what was left out as data.

    Raises:
        InvalidInput: If `rules` are of no product that is known here.
    """
    columns = None if like is None else _columns(like)
    if is_pandera(rules):
        return from_pandera(rules, columns)
    if is_suite(rules):
        return from_gx(rules, columns)
    raise InvalidInput(
        f"rules cannot be read from a {type(rules).__name__}",
        hint="a schema or model of Pandera; a suite of Great Expectations, or the path of its JSON",
    )


def _columns(like: Any) -> Mapping[str, FieldType]:
    if isinstance(like, str) and not Path(like).suffix:
        like = current_workspace().data.find(like).schema
    if isinstance(like, Schema):
        return {field.name: field.type for field in like.fields}
    table = Table.of(like).to_arrow()
    found = {column.name: field_type(column.type) for column in table.schema}
    return {name: kind for name, kind in found.items() if kind is not None}
