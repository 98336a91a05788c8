"""The project's modules as they were when the run began, for processes that import them later.

A file may be edited while a run is on. The run's keys were made from what its own process had
imported, so a worker that starts after the edit must execute that, and not what the file says now.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

__all__ = ["KeptModule", "import_as_kept", "kept_modules"]


class KeptModule(NamedTuple):
    """A module: its file, and what stood in it."""

    file: str
    text: bytes


def kept_modules(files: Mapping[str, str]) -> dict[str, KeptModule]:
    """What stands in these files now.

    Args:
        files: Module name -> file; those that are no Python source are left out.
    """
    found = {}
    for name, file in files.items():
        if file.endswith(".py"):
            try:
                found[name] = KeptModule(os.path.abspath(file), Path(file).read_bytes())
            except OSError:
                continue  # deleted since it was imported
    return found


def import_as_kept(modules: Mapping[str, KeptModule]) -> None:
    """From now on this process imports these modules as they were kept."""
    if modules:
        sys.meta_path.insert(0, _Finder(modules))


class _Finder(MetaPathFinder):
    def __init__(self, modules: Mapping[str, KeptModule]) -> None:
        self._modules = modules

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        kept = self._modules.get(name)
        if kept is None or _stands(kept):
            return None  # imported as ever, by its bytecode if there is some
        folder = os.path.dirname(kept.file)
        is_package = os.path.basename(kept.file) == "__init__.py"
        return spec_from_file_location(
            name,
            kept.file,
            loader=_Loader(name, kept),
            submodule_search_locations=[folder] if is_package else None,
        )


class _Loader(SourceFileLoader):
    def __init__(self, name: str, kept: KeptModule) -> None:
        super().__init__(name, kept.file)
        self._kept = kept

    def get_code(self, fullname: str) -> CodeType:
        # Never by the bytecode beside the file, nor to it: that is of the edited one.
        code: CodeType = self.source_to_code(self._kept.text, self._kept.file)
        return code

    def get_data(self, path: str | bytes) -> bytes:
        return self._kept.text if path == self._kept.file else super().get_data(path)  # type: ignore[arg-type]


def _stands(kept: KeptModule) -> bool:
    try:
        return Path(kept.file).read_bytes() == kept.text
    except OSError:
        return False
