"""How far a replay has come: one small file, replaced whole, so a kill leaves the old or the new.

It is written before anything else, so a folder that holds other things than a replay is known.
"""

from __future__ import annotations

import os
import resource
from datetime import datetime
from pathlib import Path

import msgspec

from everloop.errors import Conflict, InvalidInput

__all__ = ["Counts", "Mark", "mark_of", "peak_memory_mb"]

_NAME = "replay.json"


class Counts(msgspec.Struct):
    """How the answers were got."""

    http: int = 0
    batch: int = 0
    compared: int = 0
    different: int = 0
    http_errors: int = 0
    swaps_under_traffic: int = 0


class Mark(msgspec.Struct, forbid_unknown_fields=True):
    """Where a replay stands.

    Attributes:
        http_every: Every so-manieth flight is asked about over HTTP; fixed when it begins.
        next: First day that is not replayed yet; None while the first model is not there.
        seconds: Spent on it so far, over all sittings.
        peak_memory_mb: Most that was used, in any sitting.
        counts: How the answers of the days before `next` were got.
    """

    http_every: int
    next: datetime | None = None
    seconds: float = 0.0
    peak_memory_mb: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)

    def save(self, folder: Path) -> None:
        """Replace the file in `folder`."""
        temporary = folder / f"{_NAME}.new"
        temporary.write_bytes(msgspec.json.encode(self))
        os.replace(temporary, folder / _NAME)


def mark_of(folder: Path, http_every: int) -> Mark:
    """The mark of the replay in `folder`; an empty folder gets a new one.

    Raises:
        Conflict: If the folder holds something else.
        InvalidInput: If the replay in it was begun with another `http_every`.
    """
    file = folder / _NAME
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Mark)
    except FileNotFoundError:
        if any(entry.name != f"{_NAME}.new" for entry in folder.iterdir()):
            raise _not_a_replay(folder) from None
        found = Mark(http_every)
        found.save(folder)
    except msgspec.DecodeError:
        raise _not_a_replay(folder) from None
    if found.http_every != http_every:
        raise InvalidInput(
            f"the replay in {folder} was begun with --http-every {found.http_every}",
            hint="give the same again to go on, or choose another folder with --dir",
        )
    return found


def _not_a_replay(folder: Path) -> Conflict:
    return Conflict(
        f"{folder} holds something else than a replay of the flights; nothing in it was touched",
        hint="choose a new or an empty folder with --dir",
    )


def peak_memory_mb() -> int:
    """Most memory that this process and those below it have held so far, each at its own peak."""
    tree = [os.getpid()]
    for pid in tree:
        tree += _children(pid)
    held = [found for pid in tree if (found := _peak_bytes(pid)) is not None]
    if not held:  # no /proc; in bytes on macOS
        held = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    return round(sum(held) / 2**20)


def _children(pid: int) -> list[int]:
    # The resource usage of children does not do: a child counts with the memory of its parent until
    # it runs its own program.
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for t in threads for child in (t / "children").read_text().split()]
    except OSError:
        return []


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = dict(line.partition(":")[::2] for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 if "VmHWM" in lines else None
