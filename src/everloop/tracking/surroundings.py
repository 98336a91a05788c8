"""What a run is recorded with: repository, environment and the snapshot of its code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from everloop.core.schema import canonical_json
from everloop.ports.blobs import BlobStore

__all__ = [
    "diff_of",
    "environment_of",
    "git_of",
    "ignored_by_git",
    "snapshot_code",
    "top_of_git",
    "unknown_to_git",
]

_MAX_DIFF = 16 << 20


def git_of(folder: Path) -> dict[str, str]:
    """``commit``, ``branch`` and ``dirty`` of the repository around `folder`; empty without one."""
    told = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if not told:
        return {}
    facts, dirty = {}, False
    for line in told.decode(errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["#"] and len(words) > 2:
            facts[words[1]] = words[2]
        else:
            dirty = True
    return {
        "commit": facts.get("branch.oid", ""),
        "branch": facts.get("branch.head", ""),
        "dirty": "yes" if dirty else "no",
    }


def diff_of(folder: Path, blobs: BlobStore) -> str:
    """Store what differs from the last commit in tracked files; digest, or empty.

    Empty too where the difference is above 16 MiB, or there is no repository.
    """
    diff = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    return blobs.put(diff)[0] if diff and len(diff) <= _MAX_DIFF else ""


def top_of_git(folder: Path) -> Path | None:
    """The folder of the repository around `folder`; None without one."""
    told = _git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(told).rstrip("\n")) if told else None


def ignored_by_git(folder: Path, files: Iterable[str]) -> set[str]:
    """Which of these files the repository around `folder` ignores; none without one."""
    real = {str(Path(file).resolve()): file for file in files}
    names = b"".join(os.fsencode(p) + b"\0" for p in real if Path(p).is_relative_to(folder))
    told = _git(folder, "check-ignore", "-z", "--stdin", given=names) if names else b""
    return {real[os.fsdecode(path)] for path in told.split(b"\0") if path}


def unknown_to_git(folder: Path, files: Iterable[str]) -> bool:
    """Whether the repository around `folder` does not know one of these files; no without one."""
    real = [str(Path(file).resolve()) for file in files]
    within = [file for file in real if Path(file).is_relative_to(folder)]
    return bool(within and _git(folder, "ls-files", "-z", "--others", "--", *within))


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            input=given,
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return b"" if done.returncode else done.stdout


def environment_of(distributions: Mapping[str, str]) -> dict[str, str]:
    """Python, platform, and the versions of `distributions`."""
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        **distributions,
    }


class TakesBytes(Protocol):
    """What takes the files of a snapshot: an object store, or what only wants their digests."""

    def put(self, data: bytes) -> tuple[str, int]:
        """The digest and the size of an object."""
        ...


def snapshot_code(
    files: Mapping[str, str], blobs: TakesBytes, *, data: Mapping[str, str] | None = None
) -> str:
    """Store project files; digest of the tree (JSON, path -> digest).

    Uncommitted changes are thus kept with the run.

    Args:
        files: Module name -> file.
        blobs: Where to.
        data: Other files, by their names in the tree.
    """
    tree = {}
    for name, beside in (data or {}).items():
        try:
            tree[name] = blobs.put(Path(beside).read_bytes())[0]
        except OSError:
            continue
    for module, file in sorted(files.items()):
        path = Path(file)
        try:
            text = path.read_bytes()
        except OSError:
            continue  # deleted since it was imported
        # Named as it is imported, so that the tree can be put on the path and run again.
        base = module.replace(".", "/")
        is_package = path.name == "__init__.py"
        name = f"{base}/__init__.py" if is_package else f"{base}{path.suffix or '.py'}"
        tree[name] = blobs.put(text)[0]
    return blobs.put(canonical_json(tree))[0] if tree else ""
