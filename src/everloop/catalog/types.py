"""Column types shared by both dialects."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from everloop.core.time import from_micros, to_micros

__all__ = ["Instant", "Json"]


class Instant(TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970: exact, zone-free, sorts alike everywhere."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Json(TypeDecorator[Any]):
    """Builtins or structs as JSON text; NaN and infinities become null, as JSON has none."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return msgspec.json.encode(_finite(msgspec.to_builtins(value))).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        # Most are empty, and a search reads hundreds of them.
        return {} if value == "{}" else msgspec.json.decode(value)
