"""Throttle: slows down who tries passwords, without shutting out who knows theirs."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

__all__ = ["Throttle"]

#: Wrong tries that cost no wait: of one name from one address, and of all names from one address.
FREE_OF_NAME, FREE_OF_ADDRESS = 5, 100
#: Longest wait, and after how long without a try all is forgotten, seconds.
LONGEST_S, FORGOTTEN_S = 60.0, 900.0
_MOST = 20_000


class _Tries(NamedTuple):
    wrong: int
    until_s: float
    last_s: float


class Throttle:
    """Counts tries per (name, address) and per address; times are monotonic seconds.

    A try counts as wrong when it begins, so that many at once are no way around. Wrong names count
    as wrong passwords do: nobody learns which names there are.
    """

    def __init__(self) -> None:
        self._tries: OrderedDict[tuple[str, str], _Tries] = OrderedDict()

    def begin(self, name: str, address: str, now_s: float) -> float:
        """Count a try; 0, or the seconds to wait if it is not taken."""
        keys = (((name, address), FREE_OF_NAME), (("", address), FREE_OF_ADDRESS))
        wait_s = max(self._of(key, now_s).until_s - now_s for key, _ in keys)
        if wait_s > 0:
            return wait_s
        for key, free in keys:
            count = self._of(key, now_s).wrong + 1
            over = count - free
            until_s = now_s + min(2.0 ** min(over, 16), LONGEST_S) if over >= 0 else 0.0
            self._tries[key] = _Tries(count, until_s, now_s)
            self._tries.move_to_end(key)
        while len(self._tries) > _MOST:
            self._tries.popitem(last=False)
        return 0.0

    def succeed(self, name: str, address: str) -> None:
        """The try was right: its name starts afresh, and it does not count for its address."""
        self._tries.pop((name, address), None)
        of_address = self._tries.get(("", address))
        if of_address is not None:
            count = max(of_address.wrong - 1, 0)
            until_s = of_address.until_s if count >= FREE_OF_ADDRESS else 0.0
            self._tries["", address] = _Tries(count, until_s, of_address.last_s)

    def _of(self, key: tuple[str, str], now_s: float) -> _Tries:
        found = self._tries.get(key)
        if found is None or now_s - found.last_s > FORGOTTEN_S:
            return _Tries(0, 0.0, now_s)
        return found
