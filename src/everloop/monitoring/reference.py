"""Reference: what a version's own hold-out looked like, by day. The bands of monitors come from it.

It is kept as one JSON object: the bins of the features and one tally for each UTC day, so that
a band can be taken for windows of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.time import from_micros, to_micros
from everloop.data.bins import FeatureBins, Floats, fit_feature
from everloop.errors import BackendError, Fault, InvalidInput
from everloop.monitoring.tally import Tally, merge, metric_value, tally, without

__all__ = ["DAY_S", "Band", "Reference", "make_reference"]

DAY_S = 86_400
_DAY_US = DAY_S * 1_000_000
_FORMAT = "everloop.reference/1"
# Fewer separate windows than this, and windows that overlap are used instead.
_ENOUGH_WINDOWS = 8


class Band(NamedTuple):
    """How a statistic varied over the reference's own windows.

    Attributes:
        blocks: Days of the reference behind it: the sample size, for rows of one day hang together.
        worst: The largest value seen.
    """

    mean: float
    sd: float
    blocks: int
    worst: float


class Reference:
    """A reference, read from its JSON.

    Raises:
        BackendError: If the bytes are no reference of a format that is known here.
    """

    def __init__(self, data: bytes) -> None:
        try:
            body: dict[str, Any] = msgspec.json.decode(data)
            if body["format"] != _FORMAT:
                raise BackendError(
                    f"a reference of format {body['format']!r} is not known here",
                    hint="it was made by another version of Everloop; train again",
                )
            self.bins = msgspec.convert(body["features"], tuple[FeatureBins, ...])
            self.days = {int(day): Tally.from_json(part) for day, part in body["days"].items()}
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise BackendError(f"the reference of the model cannot be read: {error}") from error
        self._bands: dict[tuple[str, int], Band | None] = {}
        self._pairs: dict[tuple[int, int], list[tuple[Tally, Tally]]] = {}

    @cached_property
    def total(self) -> Tally:
        """All days together."""
        return merge(self.days.values())

    def band(
        self, name: str, window_s: int, of: Callable[[Tally, Tally], float | None]
    ) -> Band | None:
        """How ``of(window, rest)`` varied over the reference's own windows of `window_s` seconds.

        A window is compared with the rest of the reference, never with a whole that contains it.
        Windows shorter than a day are not kept apart: the spread of days is widened for them as for
        independent rows.

        Args:
            name: Of the statistic; answers are remembered by it.
            window_s: Length of a window.
            of: Statistic of a window and of the rest; None where it is undefined.

        Returns:
            The band, or None with fewer than two days.
        """
        key = (name, window_s)
        if key not in self._bands:
            self._bands[key] = self._band(max(1, window_s // DAY_S), window_s, of)
        return self._bands[key]

    def performance_band(self, metric: str, window_s: int) -> Band | None:
        """How a performance metric varied over the reference's own windows."""
        return self.band(metric, window_s, lambda window, _rest: metric_value(metric, window))

    def _band(
        self, length: int, window_s: int, of: Callable[[Tally, Tally], float | None]
    ) -> Band | None:
        daily = self._values(1, 1, of)
        if len(daily) < 2:
            return None
        values = daily
        least = float(np.std(daily, ddof=1))
        if length > 1:
            values = self._values(length, length, of)
            if len(values) < _ENOUGH_WINDOWS:
                values = self._values(length, 1, of) or daily
            # Windows that overlap vary too little; days that were independent would give this.
            least /= math.sqrt(length)
        elif window_s < DAY_S:
            least *= math.sqrt(DAY_S / window_s)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return Band(float(np.mean(values)), max(spread, least), len(daily), float(np.max(values)))

    def _values(
        self, length: int, step: int, of: Callable[[Tally, Tally], float | None]
    ) -> list[float]:
        found = (of(window, rest) for window, rest in self._windows(length, step))
        return [value for value in found if value is not None]

    def _windows(self, length: int, step: int) -> list[tuple[Tally, Tally]]:
        key = (length, step)
        if key not in self._pairs:
            days = sorted(self.days)
            spans = [
                days[begin : begin + length] for begin in range(0, len(days) - length + 1, step)
            ]
            self._pairs[key] = [
                (window, without(self.total, window))
                for span in spans
                # A gap would make the window longer than asked for.
                if span[-1] - span[0] == (length - 1) * _DAY_US
                for window in [merge(self.days[day] for day in span)]
            ]
        return self._pairs[key]


def make_reference(
    scores: Any,
    labels: Any,
    at_us: Any,
    features: Mapping[str, Any] | None = None,
    *,
    categorical: Sequence[str] = (),
    trained_until: datetime | None = None,
) -> bytes:
    """Summarise a hold-out for the monitors that will watch the model; give it to ``ev.model``.

    Use rows that are later than every row the model was trained on: a random hold-out shares its
    days with the training rows and flatters the model, and every later window would look bad.

    Args:
        scores: The model's probabilities on the hold-out, 0 to 1. Shape (n,).
        labels: 0 or 1; NaN where there is none. Shape (n,).
        at_us: When each row was predicted: microseconds since 1970 (UTC) or ``datetime64``.
        features: What the model got, by name without prefix: numbers, booleans or text.
        categorical: Names of features whose numbers are codes of levels.
        trained_until: Last instant of the training rows; rows that are not later are refused.

    Returns:
        JSON; the same input gives the same bytes.

    Raises:
        InvalidInput: If lengths differ, scores are no probabilities, labels are not 0 or 1, rows
            are not later than `trained_until`, or nothing is there; all faults are listed.
    """
    p, y, at = _floats(scores), _floats(labels), _micros(at_us)
    columns = {name: _column(values) for name, values in (features or {}).items()}
    faults = list(_faults(p, y, at, columns, categorical, trained_until))
    if faults:
        raise InvalidInput("no reference can be made of this hold-out", faults)
    bins = tuple(
        fit_feature(name, column, categorical=name in categorical)
        for name, column in columns.items()
    )
    day = at // _DAY_US
    order = np.argsort(day, kind="stable")
    cuts = np.flatnonzero(np.diff(day[order])) + 1
    days = {}
    for rows in np.split(order, cuts):
        part = {name: column.take(pa.array(rows)) for name, column in columns.items()}
        days[str(int(day[rows[0]]) * _DAY_US)] = tally(p[rows], y[rows], part, bins).to_json()
    return msgspec.json.encode({"format": _FORMAT, "features": bins, "days": days})


def _faults(
    p: Floats,
    y: Floats,
    at: Any,
    columns: Mapping[str, pa.Array],
    categorical: Sequence[str],
    trained_until: datetime | None,
) -> Iterable[Fault]:
    if not len(p):
        yield Fault("scores", "there are no rows")
    for name, length in [("labels", len(y)), ("at_us", len(at))] + [
        (f"features.{name}", len(column)) for name, column in columns.items()
    ]:
        if length != len(p):
            yield Fault(name, f"{length} values for {len(p)} scores")
    outside = int(np.count_nonzero(~((p >= 0) & (p <= 1))))
    if outside:
        yield Fault("scores", f"{outside} of {len(p)} are no probability from 0 to 1")
    strange = int(np.count_nonzero(~(np.isnan(y) | (y == 0) | (y == 1))))
    if strange:
        yield Fault("labels", f"{strange} of {len(y)} are neither 0 nor 1")
    for name in sorted(set(categorical) - set(columns)):
        yield Fault("categorical", f"no feature {name!r}")
    if trained_until is not None:
        early = int(np.count_nonzero(at <= to_micros(trained_until)))
        if early:
            last = from_micros(to_micros(trained_until)).isoformat()
            yield Fault("at_us", f"{early} rows are not later than the training rows ({last})")


def _floats(values: Any) -> Floats:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = np.asarray(values)
    try:
        return np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"scores and labels must be numbers: {error}") from error


def _micros(values: Any) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.cast(pa.int64()).to_numpy()
    array = np.asarray(values).reshape(-1)
    if array.dtype.kind == "M":
        return array.astype("datetime64[us]").astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInput(
            "times must be integers or datetime64",
            [("at_us", f"is {array.dtype}")],
            hint="give microseconds since 1970, UTC",
        )
    return array.astype(np.int64)


def _column(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(np.asarray(values).reshape(-1))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in values])
