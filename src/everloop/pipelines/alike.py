"""Whether what a worker elsewhere would execute is what the driver computed the key of.

The key names code, versions and files as they are where the driver runs. A worker that has others
must not compute: its result would be stored under a key that is not its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from everloop.errors import StateError
from everloop.pipelines.beside import content_beside
from everloop.pipelines.paths import content_of_path

__all__ = ["Checks", "refuse_unlike", "version_of"]

_CONTENT = 32


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same on the worker.

    Attributes:
        node: Name of its machine, for messages.
        distributions: Version by name.
        files: Content by place, of files that code names.
        arguments: Content by path, of paths among the arguments.
        code: Parts of the key that are of code and constants; empty if the snapshot surely is what
            runs in the driver.
    """

    node: str = ""
    distributions: dict[str, str] = {}
    files: dict[str, str] = {}
    arguments: dict[str, str] = {}
    code: dict[str, str] = {}


def refuse_unlike(function: Callable[..., Any], name: str, checks: Checks) -> None:
    """Return if all is the same here.

    Raises:
        StateError: With everything that differs.
    """
    hints: dict[str, None] = {}
    differ = []
    for dist, version in checks.distributions.items():
        here = version_of(dist)
        if here is not None and here != version:
            differ.append(
                f"{dist} is {here or 'not there'}, and {version} where the run was started"
            )
            hints["install the same versions on every node"] = None
    for place, content in checks.files.items():
        _compare(place, content_beside(place)[:_CONTENT], content, differ, hints)
    for path, content in checks.arguments.items():
        _compare(path, content_of_path(Path(path)), content, differ, hints)
    if checks.code:
        from everloop.pipelines.code import fingerprint

        parts = fingerprint(function).parts
        odd = [part for part, value in checks.code.items() if parts.get(part, value) != value]
        if odd:
            names = ", ".join(part.partition(":")[2] for part in odd[:5])
            differ.append(f"the code of {names} was edited after it was imported")
            hints["start the run in a new process"] = None
    if differ:
        raise StateError(
            f"step {name} cannot be executed on {checks.node}: {'; '.join(differ)}",
            hint="; ".join(hints),
        )


def _compare(place: str, here: str, there: str, differ: list[str], hints: dict[str, None]) -> None:
    if here == there:
        return
    what = "is not there" if here == "absent" else "has another content"
    differ.append(f"{place} {what}, and the run was started with it")
    hints["give steps tables, arrays or text, or keep files where every node finds them"] = None


def version_of(name: str) -> str | None:
    """The version here; empty if it is not installed, None where nobody can say."""
    import importlib.metadata  # with its parser of mails it takes longer than all of ours

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(name)
        if module is None:
            return ""
        found = getattr(module, "__version__", None)
        return None if found is None else str(found)
