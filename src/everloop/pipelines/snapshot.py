"""The files to keep with a run, so that it can be run again elsewhere.

What its code reached is not enough: a module that is imported again imports what stands at its top,
used or not. So every project module that a kept one imports is kept as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec
from blake3 import blake3

from everloop.core.project import is_project, module_file, module_name
from everloop.errors import BackendError, EverloopError, Fault, InvalidInput, NotFound, TooLarge
from everloop.pipelines.code import CodePrint
from everloop.ports.blobs import BlobStore

__all__ = [
    "check_size",
    "data_of",
    "files_of",
    "imported_names",
    "leads_out",
    "left_out",
    "read_tree",
    "unpack",
    "unpacked",
    "with_imports",
]

#: Data files above this are not kept, nor those beyond this in all, bytes.
LARGEST, MOST = 16 << 20, 64 << 20
#: Bytes of code that may be brought elsewhere, and how many of its files are named above that.
MOST_CODE, _LISTED = 100 * 10**6, 10
#: Bytes of a name in a snapshot that is taken from elsewhere: any part of it fits a file system.
_LONGEST_NAME = 250
#: Unpacked code that nobody used for so long is removed, seconds.
_KEEP_CODE_S = 7 * 86400

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(.+)|import[ \t]+(.+))", re.M
)
_NAME = re.compile(r"[\w.]+")


def files_of(code: CodePrint) -> dict[str, str]:
    """Module name -> file: what the code reached and all of the project that is imported by it."""
    return with_imports(code.files)


def with_imports(files: Mapping[str, str]) -> dict[str, str]:
    """Module name -> file: these modules and all of the project that is imported by them."""
    found = dict(files)
    todo = list(found.items())
    while todo:
        name, file = todo.pop()
        package = name if os.path.basename(file) == "__init__.py" else name.rpartition(".")[0]
        for candidate in imported_names(file, package):
            module = sys.modules.get(candidate)
            path = module_file(module) if module is not None else ""
            known = module_name(candidate)
            if known not in found and path and is_project(candidate):
                found[known] = path
                todo.append((known, path))
    return found


def imported_names(file: str, package: str = "") -> set[str]:
    """Names that may be modules which a file imports, wherever in it; `package` is its own."""
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
    found: dict[str, str] = {}
    total = 0
    for name, file in _data(code):
        size = file.stat().st_size
        if name and name not in found and size <= LARGEST and total + size <= MOST:
            found[name] = str(file)
            total += size
    return found


def left_out(code: CodePrint) -> list[str]:
    """Data files that the code names and :func:`data_of` does not keep."""
    kept = set(data_of(code).values())
    return sorted({str(file) for _, file in _data(code)} - kept)


def _data(code: CodePrint) -> Iterator[tuple[str, Path]]:
    """Data files that the code names, with their names in the tree; empty for one that has none."""
    roots = {_root(name, file) for name, file in code.files.items()}
    for part in code.parts:
        place = part.removeprefix("file:")
        if place != part:
            for file in _files(Path(place)):
                yield _name(file, place, roots), file


def check_size(files: Mapping[str, str], what: str, *, hint: str = "") -> int:
    """Bytes of these files (name -> file).

    Raises:
        TooLarge: If they are more than may be brought elsewhere; names the largest.
    """
    sizes = {}
    for name, file in files.items():
        with contextlib.suppress(OSError):
            sizes[name] = os.stat(file).st_size
    total = sum(sizes.values())
    if total > MOST_CODE:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:_LISTED]
        raise TooLarge(
            f"{what} is {total / 10**6:.0f} MB, above the {MOST_CODE // 10**6} MB that may be "
            "brought elsewhere; the largest files",
            [(name, f"{size / 10**6:.1f} MB") for name, size in largest],
            hint=hint,
        )
    return total


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


def leads_out(name: str) -> bool:
    """Whether a name in a code snapshot is none of a file within its folder."""
    pure = PurePosixPath(name)
    return not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name


def tree_faults(tree: Mapping[str, str]) -> list[Fault]:
    """What keeps a code snapshot of foreign origin from being unpacked."""
    folders = {parent.as_posix() for name in tree for parent in PurePosixPath(name).parents}
    faults = []
    for name in tree:
        if leads_out(name):
            faults.append(Fault(name[:80], "leads out of the folder"))
        elif name in folders:
            faults.append(Fault(name[:80], "is a file and a folder"))
        elif not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            faults.append(Fault(repr(name[:80]), "is no name of a file"))
    return faults


def read_tree(data: bytes) -> dict[str, str]:
    """The files of a code snapshot, name -> digest.

    Raises:
        InvalidInput: If it is none.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"this is no list of the files of a code snapshot: {error}") from None


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
        if leads_out(name):
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


def unpacked(code: str, of: str, blobs: BlobStore) -> Path:
    """The folder with a code snapshot, unpacked once a machine; nobody writes to it.

    Args:
        code: Its digest; empty for an empty folder.
        of: What it is of, for messages.
        blobs: Where it is kept.

    Raises:
        NotFound: If objects of it are gone.
        BackendError: If somebody else could put code there.
    """
    import shutil
    import tempfile

    home = Path(tempfile.gettempdir()) / f"everloop-code-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise BackendError(f"{home} belongs to another user", hint="remove it")
    folder = home / (code or "none")
    if not folder.is_dir():
        _forget_old(home)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
        try:
            if code:
                unpack(code, of, blobs, made)
            with contextlib.suppress(OSError):  # another process was quicker
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    with contextlib.suppress(OSError):  # its age starts anew
        os.utime(folder)
    return folder


def is_whole(folder: Path, tree: Mapping[str, str]) -> bool:
    """Whether the files of a snapshot lie in a folder as they were unpacked.

    Programs that tidy temporary folders take single files, and somebody may have edited one.
    """
    try:
        return all(
            blake3((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in tree.items()
        )
    except OSError:
        return False


def _forget_old(home: Path) -> None:
    import shutil

    limit = time.time() - _KEEP_CODE_S
    for other in home.iterdir():
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < limit:
                shutil.rmtree(other, ignore_errors=True)
