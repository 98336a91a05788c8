"""Whether what a stored result read from the workspace by a moving name is still what it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from everloop.core.reads import Read
from everloop.errors import NotFound

__all__ = ["moved_on", "read_parts"]

# Written, not read: the result does not depend on them.
_WRITES = frozenset({"commit", "register"})


def moved_on(workspace: Any, reads: Iterable[Sequence[str]]) -> str:
    """What means something else now than when a result was stored; empty if nothing does."""
    for kind, name, value in dict.fromkeys(map(tuple, reads)):
        if kind not in _WRITES and _means(workspace, kind, name) != value:
            return f"{kind} {name or 'of all'} is no longer {value or 'what it was'}"
    return ""


def read_parts(reads: Iterable[Read]) -> dict[str, str]:
    """Parts that show what was read; they are known only when the step has run."""
    return {f"read:{r.kind} {r.name}": r.value for r in reads if r.kind not in _WRITES}


def _means(workspace: Any, kind: str, name: str) -> str:
    try:
        if kind == "dataset":
            return str(workspace.data.find(name).number)
        if kind == "masked":
            version = workspace.data.find(name)
            return ",".join(workspace.data.masked(version.dataset, version.number))
        if kind == "champion":
            return str(workspace.registry.by_alias(name, "champion").version)
    except NotFound:
        return ""
    return "?"  # a search: what it would find now is not known without doing it
