"""What a backup copied."""

from __future__ import annotations

import msgspec

__all__ = ["BackedUp"]


class BackedUp(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one backup.

    Attributes:
        place: The folder, which opens as a workspace.
        objects: Objects that the backup has.
        copied, copied_size: Of them those that were new, and their bytes.
        removed: Objects of the earlier backup that nothing names any more.
        missing: Objects that the catalog names and the store has not, or has damaged.
    """

    place: str
    objects: int
    copied: int
    copied_size: int
    removed: int
    missing: tuple[str, ...] = ()
