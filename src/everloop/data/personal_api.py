"""``ev.find_pii`` and ``ev.k_anonymity``: personal data of a dataset or a frame, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everloop.core.context import current_workspace
from everloop.core.pii import SAMPLE, Anonymity, PiiReport
from everloop.core.schema import Schema
from everloop.data.frame import Table
from everloop.errors import InvalidInput

__all__ = ["find_pii", "k_anonymity"]


def find_pii(rows: Any, *, sample: int = SAMPLE) -> PiiReport:
    """Which columns of a dataset or frame hold personal data; no value is told.

    Args:
        rows: The name of a dataset (``people``, ``people@3``, ``people@TAG``), or anything that
            :meth:`Table.of` takes.
        sample: Look at so many rows, evenly spread, the same each time; 0 is all.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If it is no table, or a column of a frame has no field type.
    """
    if isinstance(rows, str):
        service = current_workspace().data
        version = service.find(rows)
        found: PiiReport = service.find_pii(version.dataset, version.number, rows=sample)
        return found
    from everloop.data.find_pii import pii_in, sampled_rows

    frame, schema = _framed(rows)
    if sample < 0:
        raise InvalidInput(f"{sample} rows cannot be looked at", hint="0 looks at all")
    at = sampled_rows(frame.height, sample)
    return pii_in(frame if at is None else frame[at], schema, total=frame.height)


def k_anonymity(
    rows: Any,
    columns: Sequence[str],
    *,
    k: int = 5,
    sensitive: str = "",
    masked: bool = False,
) -> Anonymity:
    """How well rows hide among those that are alike in what others may know of a person.

    Args:
        rows: The name of a dataset, as for :func:`find_pii`, or anything that :meth:`Table.of`
            takes.
        columns: The quasi-identifiers, such as age, sex and postcode.
        k: How many rows a group should have at least.
        sensitive: A column whose values should differ within each group (l-diversity).
        masked: Of a dataset: as whoever may not see personal data gets the rows.

    Raises:
        NotFound: If there is no such dataset, version or column.
        InvalidInput: If no column is named, or one twice, or k is below 1.
    """
    if isinstance(rows, str):
        service = current_workspace().data
        version = service.find(rows)
        found: Anonymity = service.k_anonymity(
            version.dataset, list(columns), version.number, k=k, sensitive=sensitive, masked=masked
        )
        return found
    if masked:
        raise InvalidInput(
            "a frame has no masks",
            hint="name a dataset: ev.k_anonymity('people', masked=True)",
        )
    from everloop.data.anonymity import anonymity_of

    return anonymity_of(_framed(rows)[0], columns, k=k, sensitive=sensitive)


def _framed(rows: Any) -> tuple[Any, Schema]:
    from everloop.data.arrow import conform, from_arrow_schema

    table = Table.of(rows).to_arrow()
    schema = from_arrow_schema(table.schema)
    return Table(conform(table, schema)).to_polars(), schema
