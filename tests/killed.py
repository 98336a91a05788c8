"""Work that is broken off at each step of writing, in forked processes: by a kill or a full disk.

A step is a file that is opened for writing, written, synced, renamed, linked, touched or removed, a
folder that is made, and both sides of a commit of the catalog. Which one it is that fails is a
number, so that every one of them can be tried, and the same one again.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import shutil
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from everloop.catalog.engine import Catalog

__all__ = ["Case", "Steps", "child", "preload", "tried", "watch"]

#: What changes a folder, as Python tells of it before it is done.
_CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.utime", "os.rmdir")
#: Of these, what a disk that is full still does.
_SHRINKS = ("os.rename", "os.remove", "os.utime", "os.rmdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """Counts steps, and fails at one of them.

    Attributes:
        count: Steps so far.
        fails_at: The step that fails; below 0 none.
        is_full: Whether it fails as on a full disk, and so does all that takes room from then on;
            else the process dies.
    """

    def __init__(self) -> None:
        self.count = 0
        self.fails_at = -1
        self.is_full = False
        self._lock = threading.Lock()

    def begin(self, fails_at: int, *, is_full: bool = False) -> None:
        """Count from here on."""
        self.count, self.fails_at, self.is_full = 0, fails_at, is_full

    def end(self) -> None:
        """Let everything pass."""
        self.fails_at = -1

    def step(self, *, takes_room: bool = True) -> None:
        """One step of writing; here the process may die.

        Raises:
            OSError: If the disk is full.
        """
        with self._lock:
            self.count += 1
            if self.fails_at < 0 or self.count <= self.fails_at:
                return
        if not self.is_full:
            os._exit(9)
        if takes_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def watch(steps: Steps, folder: Path) -> None:
    """Count what is written in `folder` from here on; it cannot be ended, so do it in a fork."""
    inside = os.fsencode(folder)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            # A catalog is written by SQLite, which tells nothing of it: see below.
            if isinstance(path, str | bytes) and flags & _WRITES:
                path = os.fsencode(path)
                if path.startswith(inside) and b"catalog" not in path and b"lock" not in path:
                    steps.step()
        elif event in _CHANGES and _path(given[0]).startswith(inside):
            steps.step(takes_room=event not in _SHRINKS)

    sys.addaudithook(hook)
    for name in ("fsync", "writev"):
        setattr(os, name, _counted(getattr(os, name), steps))
    write = Catalog.write

    @contextmanager
    def counted(self: Catalog, **given: Any) -> Iterator[Any]:
        with write(self, **given) as tx:
            yield tx
            try:
                steps.step()
            except OSError:
                raise sqlite3.OperationalError("database or disk is full") from None
        steps.step(takes_room=False)

    Catalog.write = counted  # type: ignore[method-assign]


def _path(given: Any) -> bytes:
    return os.fsencode(given) if isinstance(given, str | bytes | os.PathLike) else b""


def _counted(work: Any, steps: Steps) -> Any:
    def counted(*given: Any) -> Any:
        steps.step()
        return work(*given)

    return counted


def child(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 (told, and never two processes)
            traceback.print_exception(error)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def preload(place: Path, work: Callable[[], object]) -> None:
    """Import here, once, what `work` imports in a fork; to do it here would start threads."""
    names = place / "modules"

    def tell() -> None:
        work()
        names.write_text("\n".join(sorted(sys.modules)))

    assert child(tell) == 0
    for name in names.read_text().split():
        if name.partition(".")[0] in ("everloop", "sqlalchemy", "alembic", "polars", "duckdb"):
            with suppress(ImportError):
                importlib.import_module(name)
    gc.freeze()  # what is here stays, and no fork has to copy it to look
    atexit.register(gc.unfreeze)


class Case(NamedTuple):
    """Something that is broken off.

    Attributes:
        name: What it is called.
        work: What is broken off, in a process that has opened nothing yet. It is told the steps,
            and says with ``begin`` where they count from.
        check: Looks at what is left, by the text ``before`` or ``after`` that it returns.
    """

    name: str
    work: Callable[[Path, Steps, int, bool], object]
    check: Callable[[Path], str]


def tried(folder: Path, case: Case, how: str, step: int) -> tuple[int, str]:
    """Break `case` off at a step in a copy of the workspace ``first`` beside `folder`.

    Args:
        folder: Where the copy is made, and removed.
        how: ``killed`` or ``full``.
        step: Which one; below 0 none.

    Returns:
        How many steps it had, and what was left.
    """
    told, where = folder.with_name("told"), f"{case.name}, {how} at step {step}"

    def work() -> None:
        steps = Steps()
        watch(steps, folder)
        case.work(folder, steps, step, how == "full")
        told.write_text(str(steps.count))

    shutil.copytree(folder.with_name("first"), folder, symlinks=True)
    told.write_text(str(step))
    status = child(work)
    assert status == (9 if how == "killed" and step >= 0 else 0), f"{where}: ended with {status}"
    count = int(told.read_text())
    assert child(lambda: told.write_text(case.check(folder))) == 0, where
    shutil.rmtree(folder)
    return count, told.read_text()
