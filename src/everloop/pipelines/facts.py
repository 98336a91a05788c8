"""What is known of a piece of code by looking at it alone, kept between processes.

Parsing a file and reading bytecode cost half a millisecond a function; a project of a thousand
would pay for it at each start. So the facts lie in ``cache/`` of a local workspace, by file with
its time and size, and by the bytecode that is really there. They are made anew where either
differs, or where the code that makes them is another one. Losing the folder loses time only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path
from types import CodeType

import msgspec
from blake3 import blake3

from everloop import settings
from everloop.core.context import current_workspace, has_workspace
from everloop.errors import EverloopError
from everloop.pipelines.instructions import unknown_instructions
from everloop.pipelines.scan import Reference, names_of, references, texts_of
from everloop.pipelines.source import bytecode_digest, code_digest

__all__ = ["Facts", "facts_of", "keep_facts"]

#: Names that say that code looks at other code in ways of its own.
TELLING = frozenset({"__doc__", "__subclasses__", "__globals__", "f_globals"})
_MADE_BY = ("instructions.py", "scan.py", "source.py", "facts.py")
_LARGEST = 64 << 20


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Of one code object.

    Attributes:
        digest: What it does.
        is_syntax: Whether that is of its syntax tree, else of its bytecode.
        references: Names that it reads.
        texts: Constant texts in it.
        telling: Names in it that say that it looks at other code.
        unknown: Instructions that are not understood; then nothing else counts.
    """

    digest: str
    is_syntax: bool
    references: tuple[Reference, ...]
    texts: tuple[str, ...]
    telling: tuple[str, ...]
    unknown: tuple[str, ...]


class _File(msgspec.Struct, array_like=True):
    stamp: tuple[int, int]
    facts: dict[str, Facts] = {}


class _Store:
    """The facts of all files, in memory and on disk."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[str, _File] | None = None
        self.is_changed = False

    def of(self, filename: str, stamp: tuple[int, int]) -> _File:
        if self.files is None:
            self.files = self._read()
        found = self.files.get(filename)
        if found is None or found.stamp != stamp:
            found = self.files[filename] = _File(stamp)
        return found

    def _read(self) -> dict[str, _File]:
        place = _place()
        if place is not None:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                return msgspec.msgpack.decode(place.read_bytes(), type=dict[str, _File])
        return {}

    def write(self) -> None:
        place = _place()
        with self.lock:
            if not self.is_changed or place is None or self.files is None:
                return
            self.is_changed = False
            try:
                data = msgspec.msgpack.encode(self.files)
            except UnicodeEncodeError:  # code with half a surrogate in a text: costs time only
                return
        if len(data) > _LARGEST:
            return
        beside = place.with_name(f"{place.name}.{os.getpid()}.{threading.get_ident()}")
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time only
            place.parent.mkdir(exist_ok=True)
            for other in place.parent.glob("code-*"):
                if not other.name.startswith(place.name):
                    other.unlink(missing_ok=True)
            beside.write_bytes(data)
            beside.replace(place)


_store = _Store()


def facts_of(code: CodeType) -> Facts:
    """The facts of `code`."""
    try:
        found = os.stat(code.co_filename)
    except (OSError, ValueError):  # a notebook, or code that was made at run time
        return _facts_of(code, code.co_filename, None)
    return _facts_of(code, code.co_filename, (found.st_mtime_ns, found.st_size))


@functools.cache
def _facts_of(code: CodeType, filename: str, stamp: tuple[int, int] | None) -> Facts:
    if stamp is None:
        return _made(code)
    # Equal bytecode may stand there twice, with other annotations.
    key = f"{code.co_qualname}:{code.co_firstlineno}:{bytecode_digest(code)}"
    with _store.lock:
        known = _store.of(filename, stamp)
        facts = known.facts.get(key)
        if facts is None:
            facts = known.facts[key] = _made(code)
            _store.is_changed = True
    return facts


def _made(code: CodeType) -> Facts:
    unknown = tuple(sorted(unknown_instructions(code)))
    digest, is_syntax = code_digest(code)
    return Facts(
        digest=digest,
        is_syntax=is_syntax,
        references=() if unknown else references(code),
        texts=tuple(sorted(texts_of(code))),
        telling=tuple(sorted(TELLING & names_of(code))),
        unknown=unknown,
    )


def keep_facts() -> None:
    """Write what was found out since the last time."""
    if _store.is_changed:
        _store.write()


@functools.cache
def _maker() -> str:
    folder = Path(__file__).parent
    texts = [(folder / name).read_bytes() for name in _MADE_BY]
    return blake3(b"\0".join(texts)).hexdigest()[:16]


def _place() -> Path | None:
    """The file of the facts; None where the workspace is not a folder that is there."""
    folder = getattr(current_workspace(), "folder", None) if has_workspace() else None
    if folder is None:
        try:
            location = settings.load().location
        except EverloopError:
            return None
        folder = None if "://" in location else Path(location)
    if folder is None or not folder.is_dir():
        return None
    return Path(folder) / "cache" / f"code-{_maker()}"


def _forget() -> None:
    """Forget what is in memory, as a new process has; for tests and benchmarks."""
    _facts_of.cache_clear()
    _store.files = None
