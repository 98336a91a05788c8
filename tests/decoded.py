"""Searches every byte that a workspace keeps, decoded, for what must not be there any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.backends.blobs.local import LocalBlobs


def holding(folder: Path, objects: Path, words: list[str], key: tuple[str, int]) -> list[str]:
    """Where one of `words` stands, or `key`: a column with a value of it.

    Every file is looked through as it is; every object is decoded: the values of Parquet and Arrow
    files, of Parquet also statistics and dictionaries.
    """
    found = []
    needles = [word.encode() for word in words]
    for root in {folder, objects}:
        for file in sorted(root.rglob("*")):
            if file.is_file() and any(needle in file.read_bytes() for needle in needles):
                found.append(f"bytes of {file}")
    blobs = LocalBlobs(objects)
    for digest in set(blobs.digests()):
        data = blobs.get(digest)
        if any(needle in data for needle in needles):
            found.append(f"bytes of object {digest}")
        for what, text in _values(data, key):
            if any(word in text for word in [*words, f"={key[1]}="]):
                found.append(f"{what} of object {digest}")
    return found


def _values(data: bytes, key: tuple[str, int]) -> Iterator[tuple[str, str]]:
    name, _ = key
    if data.startswith(b"PAR1"):
        file = pq.ParquetFile(pa.BufferReader(data))
        rows = file.read()
        for group in range(file.metadata.num_row_groups):
            for place in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(place)
                if column.statistics is not None and column.statistics.has_min_max:
                    for end in (column.statistics.min, column.statistics.max):
                        mark = f"={end}=" if column.path_in_schema == name else str(end)
                        yield f"statistics of {column.path_in_schema}", mark
        # Whatever a dictionary holds beside the values that are used.
        text = [f.name for f in rows.schema if pa.types.is_string(f.type)]
        for column_name in text:
            read = pq.read_table(
                pa.BufferReader(data), columns=[column_name], read_dictionary=[column_name]
            )
            for chunk in read.column(0).chunks:
                if pa.types.is_dictionary(chunk.type):
                    yield "dictionary", "\n".join(map(str, chunk.dictionary.to_pylist()))
    elif data.startswith(b"ARROW1"):
        rows = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    else:
        return
    for column in rows.column_names:
        values = rows.column(column).to_pylist()
        joined = "\n".join(f"={v}=" if column == name else str(v) for v in values)
        yield f"values of {column}", joined


def online_pages(folder: Path) -> bytes:
    """All pages of the online store, also those that are free."""
    with lmdb.open(str(folder), readonly=True, lock=False):
        return (folder / "data.mdb").read_bytes()
