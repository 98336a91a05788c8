"""Notifier: carries a message to an address outside; used by webhooks."""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["Notifier", "Receipt"]


class Receipt(msgspec.Struct, frozen=True):
    """What the receiver answered.

    Attributes:
        status: HTTP's, or the like of it.
        body: The beginning of the answer.
        retry_after_s: When it wants to be asked again; 0 if it did not say.
    """

    status: int
    body: str = ""
    retry_after_s: float = 0.0


class Notifier(Protocol):
    """Sends messages. Both methods may be called by many threads at once."""

    def check(self, url: str) -> None:
        """Return if messages may be sent to `url`.

        Raises:
            InvalidInput: If they may not, or if it names nothing; says why.
        """
        ...

    def send(self, url: str, body: bytes, headers: dict[str, str]) -> Receipt:
        """Send one message, in bounded time, and return what was answered.

        Raises:
            InvalidInput: If `url` may not be sent to, or no longer.
            BackendError: If the receiver cannot be reached or did not answer; may be tried again.
        """
        ...
