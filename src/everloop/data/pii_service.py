"""The part of DataService that looks for personal data, and at how rows can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from everloop.access.service import action
from everloop.core.pii import SAMPLE, Anonymity, PiiReport
from everloop.data.shown import Shown
from everloop.data.terms import with_tags
from everloop.data.versions import version_of
from everloop.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from everloop.core.dataset import DatasetVersion

__all__ = ["PiiMethods"]

_KEPT = 64
_reports: dict[str, PiiReport] = {}


class PiiMethods(Shown):
    """Recognisers over a version, and its anonymity. Neither tells a value."""

    @action("dataset:read", on="name")
    def find_pii(self, name: str, number: int | None = None, *, rows: int = SAMPLE) -> PiiReport:
        """Which columns of a version hold personal data, by form, check digits and names.

        Args:
            name: The dataset.
            number: The version; None is the latest.
            rows: Look at so many rows, evenly spread, the same each time; 0 is all.

        Raises:
            NotFound: If there is no such dataset or version.
            InvalidInput: If it is no table, or `rows` is below 0.
        """
        from everloop.data.find_pii import pii_in

        if rows < 0:
            raise InvalidInput(f"{rows} rows cannot be looked at", hint="0 looks at all")
        version = self._table(name, number)
        kinds = self._privacy.view(version).kinds
        # The report is of the content, the tags and the sample, and of nothing else.
        known = f"{version.holds} {rows} {sorted(kinds.items())}"
        found = _reports.get(known)
        if found is None:
            schema = with_tags(version.schema, kinds)
            found = pii_in(self._sampled(version, rows), schema, total=version.rows)
            while len(_reports) >= _KEPT:
                _reports.pop(next(iter(_reports)), None)
            _reports[known] = found
        return msgspec.structs.replace(found, ref=version.ref)

    @action("dataset:read", on="name")
    def k_anonymity(
        self,
        name: str,
        columns: list[str],
        number: int | None = None,
        *,
        k: int = 5,
        sensitive: str = "",
        masked: bool = False,
    ) -> Anonymity:
        """How well the rows of a version hide among those alike in `columns`; see ``Anonymity``.

        Args:
            name: The dataset.
            columns: The quasi-identifiers.
            number: The version; None is the latest.
            k: How many rows a group should have at least.
            sensitive: A column whose values should differ within each group.
            masked: As whoever may not see personal data gets the rows.

        Raises:
            NotFound: If there is no such dataset, version or column.
            InvalidInput: If it is no table, or the question is none.
        """
        import polars as pl

        from everloop.data.anonymity import anonymity_of
        from everloop.data.masking import masked_table, needed_by
        from everloop.data.rows import read_rows

        version = self._table(name, number)
        wanted = list(dict.fromkeys([*columns, *([sensitive] if sensitive else [])]))
        for column in wanted:
            version.schema.field(column)
        masks = {}
        if masked:
            personal = self._privacy.personal(name, version.schema)
            masks = {n: column.mask for n, column in personal.items() if n in wanted}
        beside = needed_by(masks, wanted, version.schema.names)
        rows = read_rows(self._blobs, version, [*wanted, *beside])
        if masks:
            rows = masked_table(rows, masks, self._privacy.key)
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        found = anonymity_of(frame, columns, k=k, sensitive=sensitive, ref=version.ref)
        return msgspec.structs.replace(found, masked=tuple(sorted(masks)))

    @action("dataset:read", on="name")
    def preview(self, name: str, number: int | None = None, *, rows: int = 10) -> pa.Table:
        """The first rows of a version as whoever may not see personal data gets them.

        Whoever may see them gets them masked too: it shows what the masks do.

        Args:
            name: The dataset.
            number: The version; None is the latest.
            rows: How many, at most.

        Raises:
            NotFound: If there is no such dataset or version.
            InvalidInput: If it is no table, or `rows` is below 0.
        """
        from everloop.data.masking import masked_table

        if rows < 0:
            raise InvalidInput(f"{rows} rows cannot be shown")
        from everloop.data.rows import read_rows, row_parts

        version = self._table(name, number)
        personal = self._privacy.personal(name, version.schema)
        parts = row_parts(self._blobs, version, version.schema.names)
        first = next(parts, None)
        if first is None:
            first = read_rows(self._blobs, version, version.schema.names)
        masks = {column: found.mask for column, found in personal.items()}
        return masked_table(first.slice(0, rows), masks, self._privacy.key)

    def _table(self, name: str, number: int | None) -> DatasetVersion:
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        if version.kind != "table":
            raise InvalidInput(f"{version.ref} is a {version.kind} and has no columns")
        return version

    def _sampled(self, version: DatasetVersion, most: int) -> pl.DataFrame:
        """The rows that are looked at, with one block in memory at a time."""
        import numpy as np
        import polars as pl

        from everloop.data.find_pii import sampled_rows
        from everloop.data.rows import row_parts
        from everloop.data.rules import POLARS

        wanted, start, frames = sampled_rows(version.rows, most), 0, []
        at = None if wanted is None else np.array(wanted, np.int64)
        for part in row_parts(self._blobs, version, version.schema.names):
            end = start + part.num_rows
            if at is not None:
                inside = at[(at >= start) & (at < end)] - start
                part = part.take(inside)
            frames.append(pl.from_arrow(part))
            start = end
        empty = pl.DataFrame(schema={f.name: POLARS[f.type] for f in version.schema.fields})
        made = pl.concat(frames, how="vertical") if frames else empty  # type: ignore[type-var]
        assert isinstance(made, pl.DataFrame)
        return made
