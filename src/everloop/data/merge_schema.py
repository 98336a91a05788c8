"""The schema of a merged table: what one line changed of it, and what both did alike."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from everloop.core.dataset import MergeConflict
from everloop.core.schema import Field, Schema

__all__ = ["merged_schema"]


def merged_schema(
    base: Schema, ours: Schema, theirs: Schema, strategy: str
) -> tuple[Schema, list[MergeConflict]]:
    """The schema that three with the same key make, and what both changed to different ends.

    Columns stand as in `ours`, then those that only `theirs` brought. Of a conflict the side of the
    strategy is taken, `ours` where it says ``refuse``.
    """
    conflicts: list[MergeConflict] = []
    had, mine, yours = (
        {field.name: field for field in schema.fields} for schema in (base, ours, theirs)
    )
    fields = []
    for name in dict.fromkeys([*mine, *yours]):
        was, one, two = had.get(name), mine.get(name), yours.get(name)
        if one == two or two == was:
            taken = one
        elif one == was:
            taken = two
        else:
            conflicts.append(_conflict("column", name, was, one, two))
            taken = two if strategy == "theirs" else one
        if taken is not None:
            fields.append(taken)
    parts: dict[str, Any] = {}
    for part in ("time", "checks", "extra"):
        was, one, two = (getattr(schema, part) for schema in (base, ours, theirs))
        parts[part] = two if one == was else one
        if one not in (was, two) and two != was:
            conflicts.append(_conflict("schema", part, was, one, two))
            parts[part] = two if strategy == "theirs" else one
    if parts["time"] not in {field.name for field in fields}:
        parts["time"] = ""
    return Schema(tuple(fields), key=ours.key, **parts), conflicts


def _conflict(kind: Literal["column", "schema"], name: str, *sides: Any) -> MergeConflict:
    base, ours, theirs = map(_said, sides)
    return MergeConflict(kind=kind, column=name, base=base, ours=ours, theirs=theirs)


def _said(part: Field | tuple[Any, ...] | str | None) -> str:
    """A part of a schema for people."""
    if part is None:
        return "no such column"
    if isinstance(part, Field):
        rules = {
            name: value
            for name, value in msgspec.to_builtins(part).items()
            if name not in ("name", "type")
        }
        more = "".join(f", {name} {value}" for name, value in rules.items())
        return f"{part.type}{more}"
    return part if isinstance(part, str) else str(msgspec.to_builtins(part))
