"""How long versions stay, and what would go."""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["Expiry", "ExpiryItem", "RetentionRule"]


class RetentionRule(msgspec.Struct, frozen=True, kw_only=True):
    """What stays of a dataset: every version younger than `keep_us`, and the last `keep_last`.

    Attributes:
        keep_us: In microseconds.
        keep_last: At least 1: the latest version always stays.
    """

    dataset: str
    keep_us: int
    keep_last: int
    reason: str = ""
    actor: str
    updated_at: datetime


class ExpiryItem(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is old enough to go.

    Attributes:
        stays: Why it stays nevertheless, as ``tag 2025q1``; empty if it goes.
    """

    ref: str
    created_at: datetime
    rows: int = 0
    stays: tuple[str, ...] = ()


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """The versions that the rules let go, or would: oldest first, by dataset."""

    dry_run: bool
    items: tuple[ExpiryItem, ...] = ()

    @property
    def going(self) -> tuple[str, ...]:
        """References of those that go."""
        return tuple(item.ref for item in self.items if not item.stays)
