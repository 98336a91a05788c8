"""The revisions of the catalog, known without anything that could migrate one."""

from __future__ import annotations

__all__ = ["HEAD", "REVISIONS"]

#: Every revision there is, oldest first; a test compares them with the files.
REVISIONS = tuple(f"{number:04}" for number in range(1, 17))
HEAD = REVISIONS[-1]
