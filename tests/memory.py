"""Where tests keep files that need no disk.

A fsync on a disk takes milliseconds in which a test does nothing, and a third of the suite's time
went into them. What tests prove is not lost: a process that is killed leaves the same behind in
memory, and no test can take the power away.
"""

from __future__ import annotations

import os
from pathlib import Path

_MEMORY = Path("/dev/shm")
#: A run needs a tenth of it. Containers often have 64 MB.
_NEEDED_BYTES = 4 << 30


def in_memory(folder: Path = _MEMORY) -> Path | None:
    """A folder in memory with room enough, or None."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    has_room = found.f_bavail * found.f_frsize >= _NEEDED_BYTES
    return folder if has_room and os.access(folder, os.W_OK | os.X_OK) else None
