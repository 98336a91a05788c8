"""Fixed bins: what turns values into counts that merge by addition.

A feature's bins belong to one reference (quantile edges or levels); the bins of scores belong to
nobody, so that windows of different versions can be merged and ranked exactly alike.
"""

from __future__ import annotations

import zlib
from base64 import b85decode, b85encode
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop.errors import InvalidInput

__all__ = [
    "BINS",
    "HIGH",
    "LOW",
    "NULL",
    "SCORE_BINS",
    "SLOTS",
    "UNSEEN",
    "Counts",
    "FeatureBins",
    "Floats",
    "fit_feature",
    "pack",
    "score_bins",
    "unpack",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]

BINS = 64
SCORE_BINS = 512
# What is counted beside the bins: missing, below and above the reference's range, unknown levels.
NULL, LOW, HIGH, UNSEEN = range(BINS, BINS + 4)
SLOTS = BINS + 4

# Levels that a hashed feature remembers to tell unseen ones; beyond that it cannot know.
_KNOWN_LEVELS = 5000
_LOGIT_REACH = 12.0


class FeatureBins(msgspec.Struct, frozen=True, kw_only=True):
    """The bins of one feature, taken from a reference.

    Attributes:
        kind: ``numeric`` (bins between quantiles), ``levels`` (one bin for each level, at most 64)
            or ``hashed`` (more levels than that: 64 buckets. Levels must not be chosen on the data
            that they are then tested with, so the top 64 would raise false alarms).
        edges: Ascending upper edges of all numeric bins but the last; bin i is (edge i-1, edge i].
        low, high: Range of the reference's finite values.
        levels: Known levels as text, in the order of their bins; empty for a hashed feature with
            more than 5000.
        mean, sd: Of the reference's finite values; 0 for levels.
    """

    name: str
    kind: Literal["numeric", "levels", "hashed"]
    edges: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 0.0

    def count(self, values: pa.Array | pa.ChunkedArray) -> Counts:
        """Count `values` into the slots. Shape (SLOTS,); a value of another type is unseen."""
        if self.kind != "numeric":
            return self._count_levels(values)
        numbers = _numbers(values)
        counts = np.zeros(SLOTS, dtype=np.int64)
        if numbers is None:
            nulls = values.null_count
            counts[NULL], counts[UNSEEN] = nulls, len(values) - nulls
            return counts
        finite = numbers[np.isfinite(numbers)]
        # A sort and 63 look-ups beat a look-up for each value by far (vectorised sort).
        finite.sort()
        below = np.searchsorted(finite, np.asarray(self.edges), side="right")
        counts[: len(self.edges) + 1] = np.diff(below, prepend=0, append=len(finite))
        counts[NULL] = np.count_nonzero(np.isnan(numbers))
        counts[LOW] = np.searchsorted(finite, self.low, side="left")
        counts[LOW] += np.count_nonzero(np.isneginf(numbers))
        counts[HIGH] = len(finite) - np.searchsorted(finite, self.high, side="right")
        counts[HIGH] += np.count_nonzero(np.isposinf(numbers))
        return counts

    def _count_levels(self, values: pa.Array | pa.ChunkedArray) -> Counts:
        counts = np.zeros(SLOTS, dtype=np.int64)
        place = {level: index for index, level in enumerate(self.levels)}
        for level, number in _level_counts(values).items():
            if level is None:
                counts[NULL] += number
            elif self.kind == "hashed":
                counts[_bucket(level)] += number
                counts[UNSEEN] += number if place and level not in place else 0
            else:
                counts[place.get(level, UNSEEN)] += number
        return counts


def fit_feature(name: str, values: pa.Array, *, categorical: bool = False) -> FeatureBins:
    """Take bins from the reference's own `values`.

    Args:
        name: Of the feature.
        values: Numbers, booleans or text; nulls, NaN and infinities are left out.
        categorical: Treat numbers as codes of levels.

    Raises:
        InvalidInput: If the values are neither numbers, booleans nor text.
    """
    numbers = None if categorical or pa.types.is_boolean(values.type) else _numbers(values)
    if numbers is not None:
        finite = np.sort(numbers[np.isfinite(numbers)])
        if not len(finite):
            return FeatureBins(name=name, kind="numeric")
        at = np.arange(1, BINS) * len(finite) // BINS
        edges = np.unique(finite[at])
        return FeatureBins(
            name=name,
            kind="numeric",
            # The largest value as an edge would leave an empty last bin.
            edges=tuple(edges[edges < finite[-1]].tolist()),
            low=float(finite[0]),
            high=float(finite[-1]),
            mean=float(finite.mean()),
            sd=float(finite.std()),
        )
    if not _has_levels(values.type):
        raise InvalidInput(
            f"cannot watch a column of type {values.type}",
            [(f"features.{name}", "must hold numbers, booleans or text")],
        )
    levels = sorted(level for level in _level_counts(values) if level is not None)
    kind: Literal["levels", "hashed"] = "levels" if len(levels) <= BINS else "hashed"
    return FeatureBins(
        name=name, kind=kind, levels=tuple(levels) if len(levels) <= _KNOWN_LEVELS else ()
    )


def score_bins(scores: Floats) -> Counts:
    """The bin of each probability. Shape (n,), 0 to SCORE_BINS - 1, monotone in the score.

    Half of the resolution is spread evenly over [0, 1] and half over the log odds from -12 to 12,
    so that the ranking holds for rare events (scores near 0) as for balanced ones.
    """
    with np.errstate(divide="ignore"):
        odds = np.log(scores) - np.log1p(-scores)
    share = (np.clip(odds, -_LOGIT_REACH, _LOGIT_REACH) / _LOGIT_REACH + 1) / 2
    place = ((scores + share) / 2 * SCORE_BINS).astype(np.int64)
    return np.asarray(np.minimum(place, SCORE_BINS - 1))


def pack(counts: Counts) -> str:
    """Counts as short text; :func:`unpack` gives them back exactly."""
    return b85encode(zlib.compress(counts.astype("<i8").tobytes(), 1)).decode()


def unpack(text: str, *shape: int) -> Counts:
    """Counts of `shape` from the text of :func:`pack`."""
    raw = zlib.decompress(b85decode(text))
    return np.frombuffer(raw, dtype="<i8").astype(np.int64).reshape(shape)


def _numbers(values: pa.Array | pa.ChunkedArray) -> Floats | None:
    # A copy of its own: the caller sorts it.
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    cast = values.cast(pa.float64(), safe=False)
    return np.array(cast.to_numpy(zero_copy_only=False), dtype=np.float64)


def _has_levels(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(text or number or pa.types.is_boolean(kind) or pa.types.is_dictionary(kind))


def _level_counts(values: pa.Array | pa.ChunkedArray) -> dict[str | None, int]:
    counted: dict[str | None, int] = {}
    pairs = pc.value_counts(values)
    for value, number in zip(
        pairs.field("values").to_pylist(), pairs.field("counts").to_pylist(), strict=True
    ):
        level = _level(value)
        counted[level] = counted.get(level, 0) + number
    return counted


def _level(value: object) -> str | None:
    # 3 and 3.0 are the same level: what was trained on as an integer is logged as a float.
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _bucket(level: str) -> int:
    return zlib.crc32(level.encode()) % BINS
