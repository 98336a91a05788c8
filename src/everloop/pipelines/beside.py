"""What code reads beside code: files that its constants name, package data, the environment.

A text or a path that names a file stands for the file's content; one that names a folder, for the
folder's. Which texts are meant as paths cannot be told, so every one that names something counts:
that may run a step once too often, never once too seldom.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from blake3 import blake3

from everloop.core.project import is_project
from everloop.pipelines.paths import content_of_path

__all__ = ["Beside", "content_beside", "environment_digest", "named_place"]

Check = Callable[[], bool]

_LONGEST = 1024
_GLOB = frozenset("*?[")
#: What makes a folder a workspace.
CATALOG = "catalog.sqlite"
_NOT_DATA = frozenset({"__pycache__", "node_modules", "mlruns"})
#: Folders up to so many files and bytes count by content, larger ones by names, sizes and times.
_BY_CONTENT_FILES, _BY_CONTENT_BYTES = 1_000, 1 << 30
_MOST_FILES = 100_000


@functools.lru_cache(maxsize=65_536)
def named_place(text: str) -> str:
    """The path that a text may mean; empty if it can mean none."""
    if not text or len(text) > _LONGEST or "\n" in text or "\0" in text:
        return ""
    if not text.strip("./\\ ") or "://" in text:
        return ""
    if not _GLOB.isdisjoint(text):  # a pattern stands for the folder that it looks into
        cut = min(text.index(sign) for sign in _GLOB if sign in text)
        text = text[:cut].rpartition("/")[0]
        if not text.strip("./\\ "):
            return ""
    parts = text.split("/")
    if ".everloop" in parts or ".git" in parts:
        return ""
    return os.path.expanduser(text)


def content_beside(path: str, *, with_code: bool = False) -> str:
    """Digest of what is at `path`: ``absent`` if nothing, empty if it is too much to look at.

    Args:
        path: Of a file or folder; relative to the current folder.
        with_code: Whether Python files in a folder count; imported ones are followed by themselves.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    if stat.S_ISREG(found.st_mode):
        return content_of_path(Path(path))
    if stat.S_ISDIR(found.st_mode):
        if os.path.realpath(path) == "/proc":  # another one with each process; seconds to walk
            return ""
        return folder_content(path, with_code=with_code)
    return "absent"  # a device or a pipe has no content to go by


def folder_content(path: str, *, with_code: bool = False) -> str:
    """Digest of the files in a folder, without hidden ones; empty if they are too many."""
    files: list[tuple[str, str, os.stat_result]] = []
    total = 0
    for folder, folders, names in os.walk(path):
        if CATALOG in names:
            # A workspace is no data beside code. And whoever closes a file that SQLite has open
            # drops this process's locks on it: others would take the catalog for closed.
            folders[:] = []
            continue
        folders[:] = sorted(n for n in folders if n not in _NOT_DATA and not n.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name.endswith((".pyc", ".pyo")):
                continue
            if name.endswith(".py") and not with_code:
                continue
            full = os.path.join(folder, name)
            try:
                found = os.stat(full)
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                files.append((full[len(path) :], full, found))
                total += found.st_size
        if len(files) > _MOST_FILES:
            return ""
    by_content = len(files) <= _BY_CONTENT_FILES and total <= _BY_CONTENT_BYTES
    hasher = blake3()
    for name, full, found in files:
        stamp = f"{found.st_size}:{found.st_mtime_ns}"
        seen = content_of_path(Path(full)) if by_content else stamp
        hasher.update(f"{len(name)}:{name}:{seen}".encode("utf-8", "surrogatepass"))
    return f"folder:{hasher.hexdigest()[:32]}"


class Beside:
    """What one walk over code found beside code, to become parts of a key when it ends.

    Attributes:
        with_code: Whether Python files in folders count: something executes text.
        package_data: Whether something reads the data files of packages.
    """

    def __init__(self) -> None:
        self.with_code = False
        self.package_data = False
        self._words: set[str] = set()
        self._places: set[str] = set()
        self._variables: set[str] = set()

    def texts(self, found: Iterable[str]) -> None:
        """Constant texts of code, each of which may name a file or folder."""
        for text in found:
            self.place(text)

    def place(self, value: Any) -> None:
        """A constant text or path."""
        text = named_place(str(value))
        if text and (isinstance(value, PurePath) or "/" in text or "." in text):
            self._places.add(text)
        elif text:
            self._words.add(text)

    def own_folder(self, module: Any, up: int) -> None:
        """Code asks for the file of a module: what lies in the folder `up` from there counts."""
        file = getattr(module, "__file__", None)
        if file:
            folder = Path(os.path.abspath(file)).parent
            above = (folder, *folder.parents)
            self._places.add(str(above[min(max(up - 1, 0), len(above) - 1)]))

    def variable(self, name: str) -> None:
        """Code reads an environment variable."""
        self._variables.add(name)

    def installed(self, name: str) -> str:
        """What stands for the version of an installed module that says none: its files."""
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if not file:
            return "unknown"
        place = os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file
        return content_beside(place, with_code=True) or "unknown"

    def parts(self, files: Mapping[str, str]) -> tuple[dict[str, str], list[Check], list[str]]:
        """The parts of the key, how to see each change, and the folders that are too large.

        Args:
            files: Project modules that were reached, with their files.
        """
        with_code = self.with_code
        found: dict[str, str] = {}
        checks: list[Check] = []
        places = set(self._places)
        if self.package_data:
            places |= _packages_of(files, self._words | places)
        if self._words:
            here = _names_here()
            words = frozenset(self._words)
            among = here & words
            checks.append(lambda: _names_here() & words == among)
            places |= among
        too_much = []
        for place in sorted(places):
            look = functools.partial(content_beside, place, with_code=with_code)
            content = look()
            if not content:
                too_much.append(place)
            elif content != "absent":
                found[f"file:{place}"] = content[:32]
            checks.append(_still(look, content))
        for name in sorted(self._variables):
            digest = environment_digest(name)
            found[f"env:{name}"] = digest
            checks.append(_still(functools.partial(environment_digest, name), digest))
        return found, checks, too_much


def environment_digest(name: str) -> str:
    """Digest of an environment variable, never its value; ``unset`` without one."""
    value = os.environ.get(name)
    return "unset" if value is None else blake3(value.encode()).hexdigest()[:16]


def _still(ask: Callable[[], str], answer: str) -> Check:
    return lambda: ask() == answer


def _names_here() -> frozenset[str]:
    try:
        return frozenset(os.listdir("."))
    except OSError:  # the current folder is gone
        return frozenset()


def _packages_of(files: Mapping[str, str], texts: Iterable[str]) -> set[str]:
    """Folders of the packages whose data files code may read by their names."""
    tops = {name.partition(".")[0] for name in files}
    tops |= {text.partition(".")[0] for text in texts if text.partition(".")[0].isidentifier()}
    found: set[str] = set()
    for top in tops:
        module = sys.modules.get(top)
        if module is not None and is_project(top):
            found.update(os.path.abspath(folder) for folder in getattr(module, "__path__", ()))
    return found
