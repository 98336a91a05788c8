"""Samples that are the same on every machine: rows by the hash of their key."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.schema import Schema
from everloop.data import sql
from everloop.errors import InvalidInput

__all__ = ["Sample", "parse_sample", "sampled"]

#: A share of a small table is no sample of anything: this many rows stay.
FEWEST = 1_000
_HASHES = 1 << 32


class Sample(msgspec.Struct, frozen=True):
    """How much of a table is kept: a share of the rows, or so many of them.

    With a share a row is in or out whatever other rows there are, so tables with a common key keep
    matching rows, and a table that grows keeps what it had. At least 1,000 rows stay.
    """

    share: float = 0.0
    rows: int = 0

    @property
    def name(self) -> str:
        """As people write it: ``10%`` or ``5000``."""
        return str(self.rows) if self.rows else f"{self.share * 100:g}%"


def parse_sample(text: str) -> Sample | None:
    """``10%``, ``5000`` or ``all``; None for ``all``.

    Raises:
        InvalidInput: If it is none of these.
    """
    given = text.strip().lower()
    if given == "all":
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", given):
        share = float(match[1]) / 100
        if 0 < share <= 1:
            return None if share == 1 else Sample(share=share)
    if re.fullmatch(r"0*[1-9]\d{0,11}", given):
        return Sample(rows=int(given))
    raise InvalidInput(f"{text!r} is no sample", hint="write 10%, 5000 (rows) or all")


def sampled(rows: pa.Table, schema: Schema, sample: Sample) -> pa.Table:
    """The rows of a sample, in their order.

    Args:
        rows: Any number.
        schema: Names the key; without one a row is told by all that it holds.
        sample: How many.
    """
    least = sample.rows or FEWEST
    if rows.num_rows <= least:
        return rows
    names = [name for name in schema.key if name in rows.column_names] or rows.column_names
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    parts = ", ".join(f"coalesce(CAST({name} AS VARCHAR), chr(30))" for name in quoted)
    hashed = sql.evaluate(rows.select(names), "sample", f"md5(concat_ws(chr(31), {parts}))")
    hashes = np.array([int(text[:8], 16) for text in hashed.to_pylist()], dtype=np.uint64)
    if sample.share:
        kept = np.flatnonzero(hashes < round(sample.share * _HASHES))
        if kept.size >= least:
            return rows.take(pa.array(kept))
    smallest = np.argsort(hashes, kind="stable")[:least]
    return rows.take(pa.array(np.sort(smallest)))
