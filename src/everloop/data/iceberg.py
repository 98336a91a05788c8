"""Iceberg tables in one folder: written to be renamed, read without following a path out of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from everloop.errors import InvalidInput, MissingExtra, NotFound

try:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
    from pyiceberg.table import StaticTable
except ImportError as error:
    raise MissingExtra.of("iceberg", "an Iceberg table") from error

__all__ = ["RootedFileIO", "read", "write"]

_ROOT, _BEGUN = "everloop.root", "everloop.begun"


class RootedFileIO(PyArrowFileIO):
    """Files below one folder, by the paths that they will have when it is renamed."""

    def new_input(self, location: str) -> Any:
        return self._file(location)

    def new_output(self, location: str) -> Any:
        return self._file(location)

    def _file(self, location: str) -> PyArrowFile:
        # Manifests take the location of what was written, so that must be the one to come.
        local = self.fs_by_scheme("file", None)
        return PyArrowFile(location=location, path=self._real(location), fs=local)

    def delete(self, location: Any) -> None:
        super().delete(self._real(getattr(location, "location", location)))

    def _real(self, location: str) -> str:
        root = self.properties[_ROOT]
        inner = within(location, Path(root))
        return str(Path(self.properties.get(_BEGUN) or root) / inner)


def within(location: str, root: Path) -> Path:
    """A location relative to `root`.

    Raises:
        InvalidInput: If it lies outside.
    """
    parts = urlsplit(location)
    path = unquote(parts.path) if parts.scheme == "file" else location
    if parts.scheme not in ("", "file") or parts.netloc:
        path = ""
    real, base = os.path.realpath(path), os.path.realpath(root)
    if not path or os.path.commonpath([real, base]) != base:
        raise InvalidInput(
            f"the table in {root} names {location[:200]}, which lies outside of it",
            hint="an Iceberg table names its files by their places: give the folder that it was "
            "written to and that has all of its files",
        )
    return Path(os.path.relpath(real, base))


def write(rows: pa.Table, begun: Path, target: Path, name: str) -> None:
    """Write a table to the folder `begun`, as it is to be found when that is called `target`."""
    options = {
        "uri": f"sqlite:///{begun}/catalog.sqlite",
        "warehouse": target.as_uri(),
        "py-io-impl": f"{__name__}.RootedFileIO",
        _ROOT: str(target),
        _BEGUN: str(begun),
    }
    catalog = SqlCatalog("everloop", **options)
    try:
        catalog.create_namespace("everloop")
        label = re.sub(r"\W", "_", name)
        made = catalog.create_table(
            f"everloop.{label}", schema=rows.schema, location=target.as_uri()
        )
        if rows.num_rows:
            made.append(rows)
    finally:
        catalog.close()


def read(folder: Path) -> pa.Table:
    """The rows of the table in a folder, as its latest metadata has them.

    Raises:
        NotFound: If there is no table, or one of its files is missing.
        InvalidInput: If it names a file outside of the folder.
    """
    found = sorted((folder / "metadata").glob("*.metadata.json"), key=_number)
    if not found:
        raise NotFound(f"there is no Iceberg table in {folder}", hint="it has a folder metadata")
    root = folder.absolute()
    options = {"py-io-impl": f"{__name__}.RootedFileIO", _ROOT: str(root)}
    table = StaticTable.from_metadata(found[-1].absolute().as_uri(), options)
    lost = []
    for task in table.scan().plan_files():
        every = [task.file, *task.delete_files]
        for file in every:
            inner = within(file.file_path, root)
            if not (root / inner).is_file():
                lost.append(str(inner))
    if lost:
        shown = ", ".join(lost[:5])
        raise NotFound(f"{len(lost)} files of the table in {folder} are missing: {shown}")
    return table.scan().to_arrow()


def _number(path: Path) -> tuple[int, str]:
    found = re.match(r"v?(\d+)", path.name)
    return (int(found[1]) if found else -1, path.name)
