"""The files to keep with a run, so that it can be run again elsewhere.

What its code reached is not enough: a module that is imported again imports what stands at its top,
used or not. So every project module that a kept one imports is kept as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path, PurePosixPath

import msgspec

from everloop.core.project import is_project, module_file, module_name
from everloop.errors import EverloopError, InvalidInput, NotFound
from everloop.pipelines.code import CodePrint
from everloop.ports.blobs import BlobStore

__all__ = ["data_of", "files_of", "unpack"]

#: Data files above this are not kept, nor those beyond this in all, bytes.
LARGEST, MOST = 16 << 20, 64 << 20

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(.+)|import[ \t]+(.+))", re.M
)
_NAME = re.compile(r"[\w.]+")


def files_of(code: CodePrint) -> dict[str, str]:
    """Module name -> file: what the code reached and all of the project that is imported by it."""
    found = dict(code.files)
    todo = list(found.items())
    while todo:
        name, file = todo.pop()
        package = name if os.path.basename(file) == "__init__.py" else name.rpartition(".")[0]
        for candidate in _imported(file, package):
            module = sys.modules.get(candidate)
            path = module_file(module) if module is not None else ""
            known = module_name(candidate)
            if known not in found and path and is_project(candidate):
                found[known] = path
                todo.append((known, path))
    return found


def _imported(file: str, package: str) -> set[str]:
    try:
        text = Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    found = _parents(package) | ({package} if package else set())
    for match in _IMPORT.finditer(text):
        module, names, plain = match.groups()
        if plain is not None:
            for name in _NAME.findall(plain):
                found |= {name, *_parents(name)}
            continue
        if module.startswith("."):
            try:
                module = importlib.util.resolve_name(module, package)
            except ImportError:
                continue
        found |= {module, *_parents(module)}
        # Names in parentheses may go on over lines; any word that follows is tried.
        after = text[match.start(2) : text.find(")", match.end())] if "(" in names else names
        found.update(f"{module}.{name}" for name in _NAME.findall(after))
    return found


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def data_of(code: CodePrint) -> dict[str, str]:
    """Name in the tree -> data file that the code names, where it is small and of the project."""
    roots = {_root(name, file) for name, file in code.files.items()}
    found: dict[str, str] = {}
    total = 0
    for part in code.parts:
        place = part.removeprefix("file:")
        if place == part:
            continue
        for file in _files(Path(place)):
            name = _name(file, place, roots)
            size = file.stat().st_size
            if name and name not in found and size <= LARGEST and total + size <= MOST:
                found[name] = str(file)
                total += size
    return found


def _root(name: str, file: str) -> Path:
    folder = Path(file).resolve().parent
    depth = name.count(".") + (os.path.basename(file) == "__init__.py")
    return folder.parents[depth - 1] if depth else folder


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    hidden = (".", "__pycache__")
    return [
        file
        for file in sorted(place.rglob("*"))
        if file.is_file()
        and not any(part.startswith(hidden) for part in file.relative_to(place).parts)
        and file.suffix not in (".py", ".pyc")
    ]


def _name(file: Path, place: str, roots: set[Path]) -> str:
    """Where a file stands in the tree: as under the current folder, or as beside its modules."""
    if not os.path.isabs(place):
        return "" if ".." in file.parts else file.as_posix()
    for root in sorted(roots, key=lambda r: len(r.parts), reverse=True):
        if file.resolve().is_relative_to(root):
            return file.resolve().relative_to(root).as_posix()
    return ""


def unpack(code: str, of: str, blobs: BlobStore, folder: Path) -> list[str]:
    """Write a code snapshot into `folder`; names of the files.

    Args:
        code: Its digest.
        of: What it is of, for messages.
        blobs: Where it is kept.
        folder: An empty folder.

    Raises:
        NotFound: If objects of it are gone.
        InvalidInput: If a name in it leads out of the folder.
    """
    missing: list[str] = []
    tree: dict[str, str] = {}
    try:
        tree = msgspec.json.decode(blobs.get(code), type=dict[str, str])
    except EverloopError:
        missing.append(f"the list of files ({code[:16]})")
    for name, digest in sorted(tree.items()):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            faults = [(name, "leads out of the folder")]
            raise InvalidInput(f"the code snapshot of {of} is damaged", faults)
        try:
            data = blobs.get(digest)
        except EverloopError:
            missing.append(f"{name} ({digest[:16]})")
            continue
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if missing:
        raise NotFound(
            f"the code snapshot of {of} is not whole: {', '.join(missing)} is gone",
            hint="restore the objects of the workspace from a backup; without them the run "
            "cannot be repeated",
        )
    return sorted(tree)
