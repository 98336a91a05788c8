"""Notifier: tells people."""

from __future__ import annotations

from typing import Protocol

from everloop.core.events import Event

__all__ = ["Notifier"]


class Notifier(Protocol):
    """Delivers an event to somebody; best effort, never blocks a decision."""

    def notify(self, event: Event) -> None:
        """Deliver; raises BackendError when it could not."""
        ...
