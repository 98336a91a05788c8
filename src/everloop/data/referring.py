"""What checks see of other datasets than the one that they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.catalog.engine import Catalog
from everloop.data.versions import version_of
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Referring"]


class Referring:
    """The part of DataService by which a check looks into another dataset."""

    _catalog: Catalog
    _blobs: BlobStore

    def _values_of(self, dataset: str, column: str) -> pl.Series:
        import polars as pl

        from everloop.data.rows import read_rows

        with self._catalog.read() as tx:
            version = version_of(tx, dataset, None)
        version.schema.field(column)
        values = read_rows(self._blobs, version, [column]).column(column)
        found = pl.from_arrow(values)
        assert isinstance(found, pl.Series)
        return found
