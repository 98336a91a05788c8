"""SecretBox: keeps short secrets so that whoever reads the catalog alone cannot read them."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SecretBox"]


class SecretBox(Protocol):
    """Seals a text and opens it again; a sealed text that was altered does not open."""

    def seal(self, secret: str) -> str:
        """`secret` as text that tells nothing without the key.

        Raises:
            MissingExtra: Without the library that encrypts.
            BackendError: If there is no key and none can be made.
        """
        ...

    def open(self, sealed: str) -> str:
        """The secret. Raises BackendError if it was altered or sealed with another key."""
        ...
