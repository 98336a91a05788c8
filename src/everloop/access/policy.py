"""The one decision point: may `principal` do `action` on `object`?"""

from __future__ import annotations

from typing import Protocol

from everloop.core.access import Principal

__all__ = ["Authorizer", "EmbeddedAuthorizer"]


class Authorizer(Protocol):
    """Decides; called before every service method."""

    def authorize(self, principal: Principal | None, action: str, object_: str) -> None:
        """Return if allowed; a principal of None is the process that holds the catalog.

        Raises:
            NotAllowed: If not; names the action and the object.
        """
        ...


class EmbeddedAuthorizer:
    """Alone on a machine: whoever can read the folder may do everything."""

    def authorize(self, principal: Principal | None, action: str, object_: str) -> None:
        """Allow."""
