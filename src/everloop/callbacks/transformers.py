"""Hugging Face Trainer: what it logs becomes metrics, its arguments a file of the run."""

from __future__ import annotations

from numbers import Real
from typing import Any

from transformers import TrainerCallback

from everloop.experiments.run import ActiveRun
from everloop.tracking.current import LogTarget, target_of

__all__ = ["TransformersCallback"]


class TransformersCallback(TrainerCallback):  # type: ignore[misc]
    """``Trainer(..., callbacks=[TransformersCallback()])``; of several processes the first logs.

    Args:
        run: Where to; the current run if not given.
    """

    def __init__(self, run: LogTarget | None = None) -> None:
        self._run = target_of(run)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the arguments; the library leaves the tokens out."""
        if state.is_world_process_zero and isinstance(self._run, ActiveRun):
            self._run.log_text(args.to_json_string(), "training_arguments.json")

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the numbers among what the trainer reports."""
        if state.is_world_process_zero:
            found = {key: value for key, value in (logs or {}).items() if isinstance(value, Real)}
            self._run.log(found, step=state.global_step)
