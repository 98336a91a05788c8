"""The one decision point: may `principal` do `action` on `object`?"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Authorizer", "EmbeddedAuthorizer"]


class Authorizer(Protocol):
    """Decides; called before every service method."""

    def authorize(self, principal: str, action: str, object_: str) -> None:
        """Return if allowed.

        Raises:
            NotAllowed: If not; names the action and the object.
        """
        ...


class EmbeddedAuthorizer:
    """Alone on a machine: whoever can read the folder may do everything."""

    def authorize(self, principal: str, action: str, object_: str) -> None:
        """Allow."""
