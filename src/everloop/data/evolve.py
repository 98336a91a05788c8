"""Which schema a commit gets: stated or the latest version's, and how it may grow on append."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pyarrow as pa

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Field, Schema
from everloop.data.arrow import field_type, from_arrow_schema
from everloop.errors import Fault, InvalidInput

__all__ = ["schema_for"]


def schema_for(
    rows: pa.Table, stated: Schema | None, base: DatasetVersion | None, *, append: bool
) -> Schema:
    """The schema of the version to make.

    Without a stated one it is the latest version's, and for a first version the frame's own. An
    open schema (``extra="allow"``) takes up the columns that it did not list, as nullable fields.

    Args:
        rows: The frame as given.
        stated: The caller's schema, or None.
        base: The latest version, or None.
        append: Whether the rows of `base` stay; then its columns must stay too, in their types,
            and new ones must be nullable, as earlier rows have none.

    Raises:
        InvalidInput: With every reason why the schema cannot be.
    """
    if stated is None and base is None:
        if not rows.column_names:
            raise InvalidInput("the frame has no columns")
        return from_arrow_schema(rows.schema)
    schema = stated or (base.schema if base else None)
    assert schema is not None
    if schema.extra == "allow":
        schema = _with_extras(schema, rows, base.schema if base and append else None)
    if base and append and base.schema != schema:
        faults = list(_breaks(base, schema))
        if faults:
            raise InvalidInput(
                f"rows of this schema cannot be appended to {base.ref}",
                faults,
                hint='commit all rows anew with mode="replace" to change the schema',
            )
    return schema


def _with_extras(schema: Schema, rows: pa.Table, earlier: Schema | None) -> Schema:
    fields = {field.name: field for field in earlier.fields} if earlier else {}
    faults = []
    for column in rows.schema:
        if column.name not in schema.names:
            kind = field_type(column.type)
            if kind is not None:
                fields.setdefault(column.name, Field(column.name, kind))
            elif column.name not in fields:
                faults.append(Fault(column.name, f"{column.type} has no field type"))
    if faults:
        raise InvalidInput("the frame has columns that no field can hold", faults)
    extra = tuple(field for name, field in fields.items() if name not in schema.names)
    return msgspec.structs.replace(schema, fields=schema.fields + extra)


def _breaks(base: DatasetVersion, schema: Schema) -> Iterator[Fault]:
    new = {field.name: field for field in schema.fields}
    old = {field.name: field for field in base.schema.fields}
    for name, field in old.items():
        if name not in new:
            yield Fault(name, f"is a column of {base.ref}, and the schema lacks it")
        elif new[name].type != field.type:
            yield Fault(name, f"is {field.type} in {base.ref}, {new[name].type} in the schema")
        elif field.nullable and not new[name].nullable:
            yield Fault(name, f"may be null in {base.ref}, not in the schema")
    for name, field in new.items():
        if name not in old and (not field.nullable or name in schema.key):
            yield Fault(name, f"is new, so it must be nullable: the rows of {base.ref} have none")
