"""OnlineStore: the newest feature state per (view, entity), read at serving time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

__all__ = ["OnlineStore"]


class OnlineStore(Protocol):
    """Keeps one value of bytes per (view, key).

    What the bytes mean belongs to ``everloop.features``. Several processes read at once; one
    writes. A reader sees a whole ``write`` or nothing of it.
    """

    def write(self, values: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Store values by view and key, all or none. Raises BackendError."""
        ...

    def read(self, view: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in order; None where there is none."""
        ...

    def clear(self, view: str) -> None:
        """Forget a view."""
        ...

    def close(self) -> None:
        """Release what is held; safe to call twice."""
        ...
