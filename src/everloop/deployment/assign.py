"""Which arm answers a key: by hash, so sticky, reproducible from the log, and without state.

A key's place in [0, 1) depends on the salt and the key alone. The champion owns the upper end, so
that a canary which grows keeps every key it had and takes further ones from the champion.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from everloop.core.deploy import Arm
from everloop.errors import InvalidInput

__all__ = ["Splitter"]

_MASK = (1 << 64) - 1
# The finalizer of splitmix64. CRC-32 alone is affine: keys would split alike under every salt.
# Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014).
_FIRST, _SECOND, _ODD = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
_UNIT = 2.0**-53


class Splitter:
    """The split of one revision of a deployment: made once, asked for each request.

    Args:
        salt: Of the deployment.
        arms: With their weights; any total above 0 is taken as the whole, a shadow has weight 0.

    Raises:
        InvalidInput: If a weight is negative or not finite, or all are 0.
    """

    __slots__ = ("_bounds", "_order", "_seed")

    def __init__(self, salt: str, arms: Sequence[Arm]) -> None:
        total = sum(arm.weight for arm in arms)
        if not 0 < total < float("inf") or any(not arm.weight >= 0 for arm in arms):
            given = ", ".join(f"{arm.name} {arm.weight}" for arm in arms) or "none"
            raise InvalidInput(f"the weights of the arms cannot split traffic: {given}")
        # The champion last: the others keep their place when they grow into it.
        places = [index for index, arm in enumerate(arms) if arm.weight > 0]
        self._order = sorted(places, key=lambda index: arms[index].name == "champion")
        shares = np.cumsum([arms[index].weight / total for index in self._order])
        self._bounds: list[float] = shares[:-1].tolist()
        self._seed = int.from_bytes(blake2b(salt.encode(), digest_size=8).digest())

    def one(self, key: str) -> int:
        """The index of the arm that answers `key`."""
        if not self._bounds:
            return self._order[0]
        mixed = (zlib.crc32(key.encode("utf-8", "surrogatepass")) * _ODD + self._seed) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
        place = ((mixed ^ (mixed >> 31)) >> 11) * _UNIT
        for index, bound in zip(self._order, self._bounds, strict=False):
            if place < bound:
                return index
        return self._order[-1]

    def many(self, keys: Sequence[str]) -> npt.NDArray[np.intp]:
        """The indices of the arms that answer `keys`, shape (n,); the same as :meth:`one` each."""
        order = np.asarray(self._order, dtype=np.intp)
        return order[np.searchsorted(self._bounds, self.places(keys), side="right")]

    def places(self, keys: Sequence[str]) -> npt.NDArray[np.float64]:
        """The places of `keys` in [0, 1), shape (n,)."""
        try:
            crcs = [zlib.crc32(key.encode("utf-8", "surrogatepass")) for key in keys]
        except AttributeError:
            raise InvalidInput("a key that decides the arm must be text") from None
        mixed = np.array(crcs, dtype=np.uint64) * np.uint64(_ODD) + np.uint64(self._seed)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        mixed ^= mixed >> np.uint64(31)
        return (mixed >> np.uint64(11)).astype(np.float64) * _UNIT
