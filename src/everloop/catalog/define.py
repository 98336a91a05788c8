"""What every declaration of a table uses."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, Table

__all__ = ["Serial", "metadata", "table"]

metadata = MetaData()

# SQLite gives an alias of the row id only to INTEGER PRIMARY KEY, never to BIGINT.
Serial = BigInteger().with_variant(Integer, "sqlite")


def table(name: str, *parts: Any, **options: Any) -> Table:
    """Declare a table of the catalog."""
    return Table(name, metadata, *parts, **options)
