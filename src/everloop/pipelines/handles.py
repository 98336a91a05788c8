"""Results that are still being computed."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Generic, TypeVar

__all__ = ["Handle", "resolved"]

R = TypeVar("R")


class Handle(Generic[R]):
    """The result to come of ``step.submit(...)``; steps take it in place of the result itself.

    Args:
        future: Of the call.
    """

    def __init__(self, future: Future[R]) -> None:
        self._future = future
        self.was_read = False

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            Exception: What the step raised.
            TimeoutError: If it takes longer; the step goes on.
        """
        if timeout is None or self._future.done():
            self.was_read = True
        return self._future.result(timeout)

    def done(self) -> bool:
        """Whether the result is there, or the step failed."""
        return self._future.done()

    def error(self) -> BaseException | None:
        """What the step raised, once it has ended; does not count as reading the result."""
        return self._future.exception()


def resolved(value: Any) -> Any:
    """`value` with the results in place of handles, also within lists, tuples and dicts."""
    if isinstance(value, Handle):
        return value.result()
    kind = type(value)
    if kind is dict:
        found = {key: resolved(item) for key, item in value.items()}
        is_same = all(found[key] is item for key, item in value.items())
        return value if is_same else found
    if kind is list or isinstance(value, tuple):
        items = [resolved(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value  # the very object: its digest may be known
        return value._make(items) if hasattr(value, "_make") else kind(items)
    return value
