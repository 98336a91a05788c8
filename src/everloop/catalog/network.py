"""Whether a folder lies on a network file system, where SQLite's log shared in memory is unsafe."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["network_type"]

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    (
        "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs",
        "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "pvfs2", "smb2", "smb3",
        "smbfs", "wekafs",
    )
)  # fmt: skip


def network_type(folder: str | os.PathLike[str], mounts: Path = _MOUNTS) -> str:
    """The kind of the network file system that a folder lies on; empty if it is local.

    Where the system does not tell (it has no `mounts`), it is taken for local.
    """
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    path = os.path.realpath(folder)
    best, kind = "", ""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        names, kinds = fields.split(" "), rest.split(" ")
        if len(names) < 5 or not kinds[0]:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), names[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of two at one point the later one lies above.
        if inside and len(point) >= len(best):
            best, kind = point, kinds[0]
    return kind if kind in _NETWORK else ""
