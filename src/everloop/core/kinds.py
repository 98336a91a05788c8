"""The types that a column can have."""

from __future__ import annotations

from typing import Literal

__all__ = ["FIELD_TYPES", "FieldType"]

FieldType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float32", "float64", "string", "binary", "timestamp", "date",
]  # fmt: skip
FIELD_TYPES: tuple[str, ...] = FieldType.__args__  # type: ignore[attr-defined]
