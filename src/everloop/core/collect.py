"""What a collection of garbage did, or would do."""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["Collected"]


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one collection.

    Attributes:
        dry_run: Nothing was changed; the figures say what would have been.
        before: What was deleted before this is purged.
        purged: How many of each kind of thing went: models, model_versions, runs, experiments,
            logged_models, artifacts, memos, traces.
        kept: Deleted runs and logged models past the window that a model or dataset version names.
        objects: Objects that nothing refers to, removed.
        size: Their bytes.
        leftovers: Half-written files of writers that died, removed.
        leftover_size: Their bytes.
        young: Unreferenced objects left for now: somebody may be about to name them.
    """

    dry_run: bool
    before: datetime
    purged: dict[str, int]
    kept: int = 0
    objects: int = 0
    size: int = 0
    leftovers: int = 0
    leftover_size: int = 0
    young: int = 0
