"""The graph of what led to what, and the readable side of the event log.

The package is also the function ``ev.lineage``: importing a package makes it an attribute of the
one above, in whose place the function of the same name would stand otherwise.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everloop.lineage.api import Lineage


class _Room(ModuleType):
    def __call__(self, thing: object) -> Lineage:
        """As :func:`everloop.lineage.api.lineage`."""
        from everloop.lineage.api import lineage

        return lineage(thing)


sys.modules[__name__].__class__ = _Room
