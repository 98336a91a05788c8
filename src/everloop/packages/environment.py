"""The environment of a package: what it was built with, and what is otherwise here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from everloop.core.package import Manifest
from everloop.core.pipeline import PartChange
from everloop.errors import InvalidInput

__all__ = ["differences", "find_lock", "pins", "python_version", "unpinned", "versions"]

#: Lock files that are known, the most exact first.
_LOCKS = (
    "pylock.toml", "uv.lock", "poetry.lock", "pdm.lock", "requirements.lock", "requirements.txt",
)  # fmt: skip
#: Ours is noted, and what it requires is its own business: it is installed by that.
_OURS = "everloop"
_PIN = re.compile(r"^\s*([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*===?\s*([^\s;#,\\]+)", re.M)
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def python_version() -> str:
    """Major and minor, such as ``3.11``."""
    return ".".join(platform.python_version_tuple()[:2])


def versions(reached: Iterable[str]) -> dict[str, str]:
    """Versions of these distributions and of all that they require, as installed here."""
    found: dict[str, str] = {}
    todo = [_OURS, *map(_normal, reached)]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # asked for on another platform, or an extra that nobody chose
        found[name] = installed.version
        if name != _OURS:
            needs = [need.partition(";") for need in installed.requires or ()]
            todo += [_normal(_name(need)) for need, _, when in needs if "extra" not in when]
    return dict(sorted(found.items()))


def _name(requirement: str) -> str:
    return re.split(r"[\s\[(<>=!~@;]", requirement.strip(), maxsplit=1)[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_lock(folder: Path, top: Path) -> Path | None:
    """The lock file of a project: in `folder`, or in the nearest one above it up to `top`."""
    above = [folder, *folder.parents]
    within = above[: above.index(top) + 1] if top in above else [folder]
    return next((one / name for one in within for name in _LOCKS if (one / name).is_file()), None)


def pins(file: str, data: bytes) -> dict[str, set[str]]:
    """What a lock file pins: name -> versions, of which there may be several by platform.

    Raises:
        InvalidInput: If it cannot be read.
    """
    found: dict[str, set[str]] = {}
    try:
        text = data.decode()
        if file.endswith(".txt") or file == "requirements.lock":
            pairs = [match.groups() for match in _PIN.finditer(text)]
        else:
            known = tomllib.loads(text)
            listed = known.get("package") or known.get("packages") or []
            pairs = [(one["name"], one["version"]) for one in listed if "version" in one]
        for name, version in pairs:
            found.setdefault(_normal(name), set()).add(str(version))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"the lock file {file} cannot be read: {error}") from None
    return found


def unpinned(
    distributions: Mapping[str, str], pinned: Mapping[str, set[str]]
) -> tuple[PartChange, ...]:
    """What is installed here in another version than a lock file says."""
    return tuple(
        PartChange(part=name, before=" or ".join(sorted(pinned[name])), now=version)
        for name, version in distributions.items()
        if name in pinned and version not in pinned[name]
    )


def differences(manifest: Manifest) -> tuple[PartChange, ...]:
    """What a package needs and is not so here: Python, distributions, memory, disk."""
    needed = {"python": manifest.python, **manifest.distributions}
    here = {"python": python_version()}
    here |= {name: _installed(name) for name in manifest.distributions}
    found = [
        PartChange(part=part, before=version, now=here[part])
        for part, version in needed.items()
        if here[part] != version
    ]
    for part, wanted, there in (
        ("memory", manifest.memory, _memory()),
        ("disk", manifest.size, shutil.disk_usage(tempfile.gettempdir()).free),
    ):
        if wanted > there:
            found.append(PartChange(part=part, before=_megabytes(wanted), now=_megabytes(there)))
    return tuple(found)


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _memory() -> int:
    """Bytes that this machine or container has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total


def _megabytes(size: int) -> str:
    return f"{size / 10**6:.0f} MB"
