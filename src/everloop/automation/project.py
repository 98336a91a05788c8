"""ProjectFiles: an edit of the user's files counts for the next run of a long-lived supervisor."""

from __future__ import annotations

import glob
import itertools
import linecache
import os
import sys
from pathlib import Path

__all__ = ["MOST_FILES", "ProjectFiles", "matching_files"]

#: Files of one pattern that are looked at; a folder with more needs a trigger of another kind.
MOST_FILES = 10_000

_State = tuple[int, int]


class ProjectFiles:
    """The modules of this process that lie in the project's folder.

    Old code under a new file would be worse than stale: a step's key is taken from the file, so
    that the old code's result would be stored under the new code's key.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[str, _State] = {}

    def note(self) -> None:
        """Remember the files as they are now."""
        self._seen = self._states()

    def drop_edited(self) -> None:
        """Forget all modules of the project if one of their files has changed.

        All, because the others hold what they imported of it.
        """
        now = self._states()
        if any(now.get(name) != state for name, state in self._seen.items() if name in sys.modules):
            for name in now.keys() | self._seen.keys():
                sys.modules.pop(name, None)
            linecache.checkcache()

    def _states(self) -> dict[str, _State]:
        found = {}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not file or name == "__main__" or name.partition(".")[0] == "everloop":
                continue
            path = Path(file)
            if "site-packages" in path.parts or not path.is_relative_to(self._root):
                continue
            try:
                status = path.stat()
            except OSError:
                found[name] = (0, 0)
            else:
                found[name] = (status.st_mtime_ns, status.st_size)
        return found


def matching_files(root: Path, pattern: str) -> dict[str, str]:
    """The files that match a pattern below `root`, with what changes when one is written."""
    found = {}
    matches = glob.iglob(pattern, root_dir=root, recursive=True)
    for name in itertools.islice(matches, MOST_FILES):
        path = root / name
        try:
            status = path.stat()
        except OSError:  # gone meanwhile
            continue
        if os.path.isfile(path):
            found[name] = f"{status.st_size} {status.st_mtime_ns}"
    return found
