"""What tables are made of: one collection of them, and keys that both dialects count up."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, Table

__all__ = ["Serial", "metadata", "new_table"]

metadata = MetaData()

#: SQLite gives an alias of the row id only to INTEGER PRIMARY KEY, never to BIGINT.
Serial = BigInteger().with_variant(Integer, "sqlite")


def new_table(name: str, *parts: Any, **options: Any) -> Table:
    """Declare a table."""
    return Table(name, metadata, *parts, **options)
