"""Names, values and steps of metrics, checked where they are logged and not by a thread later."""

from __future__ import annotations

import numbers
import operator
from typing import Any

from everloop.core.run import Metric
from everloop.tracking.limits import check_log, clean_path

__all__ = ["Names", "point_step", "point_value"]

_INT64 = 1 << 63


class Names:
    """Remembers which names are sound, so that each is checked once."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    def check(self, key: Any) -> None:
        """Take a name for sound.

        Raises:
            TypeError: If it is no text.
            InvalidInput: If it cannot be kept.
        """
        if not isinstance(key, str):
            raise TypeError(f"the name of a metric is text, got {key!r}")
        check_log([Metric(key=key, value=0.0)], {}, {}, of_client=False)
        self.known.add(key)

    @staticmethod
    def path(path: str) -> str:
        """A path that is safe to join.

        Raises:
            InvalidInput: If it is not a plain relative one.
        """
        return clean_path(path)


def point_value(key: str, value: Any) -> float:
    """The value of a metric as a float; scalars of NumPy, PyTorch and their like are welcome.

    Raises:
        TypeError: If it is no real number; names the metric.
    """
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    refused = isinstance(value, str | bytes | bytearray | bool) or is_complex
    if not refused and hasattr(value, "__float__"):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            # An array of several, a number beyond all floats, a tensor that is complex.
            raise TypeError(f"metric {key!r} must be one real number: {error}") from None
    if not refused and hasattr(value, "__index__"):
        return float(operator.index(value))
    raise TypeError(f"metric {key!r} must be a real number, got {type(value).__name__}")


def point_step(step: Any) -> int:
    """The step as an integer.

    Raises:
        TypeError: If it is no whole number of 64 bits.
    """
    try:
        whole = operator.index(step)
    except TypeError:
        raise TypeError(f"the step must be a whole number, got {type(step).__name__}") from None
    if not -_INT64 <= whole < _INT64:
        raise TypeError(f"the step must fit 64 bits, got {whole}")
    return whole
