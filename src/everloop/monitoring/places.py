"""Places: in which summary unit the request lies that a label belongs to.

Labels name a request, not a time. The ids of the latest units are kept in memory, loaded when a
label asks for them; nothing here is a truth, and a fresh process starts with none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Places"]


class Places:
    """Request ids by unit (its start, microseconds since 1970), for one deployment."""

    def __init__(self) -> None:
        self._ids: dict[int, pa.Array] = {}

    def keep(self, unit: int, request_ids: pa.Array | pa.ChunkedArray) -> None:
        """Take the ids of a unit that was just read."""
        self._ids[unit] = _one_array(request_ids)

    def forget_before(self, unit: int) -> None:
        """Let go of the units before `unit`."""
        self._ids = {at: ids for at, ids in self._ids.items() if at >= unit}

    def latest(self, count: int) -> list[int]:
        """The latest units in memory, newest first."""
        return sorted(self._ids, reverse=True)[:count]

    def find(
        self,
        request_ids: pa.Array | pa.ChunkedArray,
        units: Iterable[int],
        load: Callable[[int], pa.Array | pa.ChunkedArray] | None = None,
    ) -> set[int]:
        """The units that hold any of `request_ids`.

        Args:
            request_ids: Of labels.
            units: Where to look, in order of promise: the search ends when every id was found.
            load: Reads the ids of a unit that is not in memory; without it such a unit is passed.
        """
        wanted = pc.unique(_one_array(request_ids))
        found: set[int] = set()
        for unit in units:
            if not len(wanted):
                break
            if unit not in self._ids:
                if load is None:
                    continue
                self.keep(unit, load(unit))
            here = pc.is_in(wanted, value_set=self._ids[unit])
            if pc.any(here).as_py():
                found.add(unit)
                wanted = wanted.filter(pc.invert(here))
        return found


def _one_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return whole.cast(pa.string())
