"""What a run is recorded with: repository, environment and the snapshot of its code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from everloop.core.schema import canonical_json
from everloop.pipelines.code import CodePrint
from everloop.ports.blobs import BlobStore

__all__ = ["environment_of", "git_of", "snapshot_code"]


def git_of(folder: Path) -> dict[str, str]:
    """``commit``, ``branch`` and ``dirty`` of the repository around `folder`; empty without one."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    surroundings = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode:
        return {}
    facts, dirty = {}, False
    for line in done.stdout.splitlines():
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


def environment_of(code: CodePrint) -> dict[str, str]:
    """Python, platform, and the version of every distribution that the code reaches."""
    distributions = {
        part.removeprefix("dist:"): version
        for part, version in code.parts.items()
        if part.startswith("dist:")
    }
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        **distributions,
    }


def snapshot_code(code: CodePrint, blobs: BlobStore) -> str:
    """Store the project files that the code reaches; digest of the tree (JSON, path -> digest).

    Uncommitted changes are thus kept with the run.
    """
    tree = {}
    for module, file in sorted(code.files.items()):
        path = Path(file)
        try:
            data = path.read_bytes()
        except OSError:
            continue  # deleted since it was imported
        # Named as it is imported, so that the tree can be put on the path and run again.
        base = module.replace(".", "/")
        is_package = path.name == "__init__.py"
        name = f"{base}/__init__.py" if is_package else f"{base}{path.suffix or '.py'}"
        tree[name] = blobs.put(data)[0]
    return blobs.put(canonical_json(tree))[0] if tree else ""
