"""Back ends that others bring: found by entry point, chosen by the scheme of a URL."""

from __future__ import annotations

from typing import Any

from everloop.errors import InvalidInput

__all__ = ["plugged_in"]

#: What a back end of each group does, and the schemes of ours.
_GROUPS = {"executors": ("executes steps", ("ray",)), "blobs": ("keeps objects", ("s3",))}


def plugged_in(group: str, address: str) -> Any:
    """What the plug-in of ``everloop.<group>`` for the scheme of `address` makes of it.

    Raises:
        InvalidInput: If there is none.
    """
    from importlib.metadata import entry_points

    scheme = address.partition("://")[0]
    found = {point.name: point for point in entry_points(group=f"everloop.{group}")}
    if scheme not in found:
        does, ours = _GROUPS[group]
        known = ", ".join(sorted({*ours, *found}))
        raise InvalidInput(f"nothing {does} at {scheme}://", hint=f"known schemes: {known}")
    return found[scheme].load()(address)
