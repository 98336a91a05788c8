"""Keras: what each epoch reports becomes metrics."""

from __future__ import annotations

from typing import Any

import keras

from everloop.tracking.current import LogTarget, target_of

__all__ = ["KerasCallback"]


class KerasCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """``model.fit(..., callbacks=[KerasCallback()])``; the step is the epoch.

    Args:
        run: Where to; the current run if not given.
    """

    def __init__(self, run: LogTarget | None = None) -> None:
        super().__init__()
        self._run = target_of(run)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log one epoch."""
        self._run.log(logs or {}, step=epoch)
