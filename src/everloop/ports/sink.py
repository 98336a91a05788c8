"""EventSink: takes events that tell the outside what happened here, one JSON document each."""

from __future__ import annotations

from typing import Protocol

__all__ = ["EventSink"]


class EventSink(Protocol):
    """Where events go."""

    def send(self, event: bytes) -> None:
        """Hand one event over, in bounded time.

        Raises:
            InvalidInput: If it is refused and would be refused again.
            BackendError: If it could not be handed over; it can be tried again.
        """
        ...

    def flush(self) -> None:
        """Return when everything that was sent is safe with the receiver.

        Raises:
            BackendError: If it is not.
        """
        ...
