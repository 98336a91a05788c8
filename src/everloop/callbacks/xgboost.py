"""XGBoost: each round's evaluation results become metrics."""

from __future__ import annotations

from typing import Any

from xgboost.callback import TrainingCallback

from everloop.tracking.current import LogTarget, target_of

__all__ = ["XGBoostCallback"]


class XGBoostCallback(TrainingCallback):
    """``xgboost.train(..., callbacks=[XGBoostCallback()])``; metrics are called ``train-rmse``.

    Args:
        run: Where to; the current run if not given.
    """

    def __init__(self, run: LogTarget | None = None) -> None:
        self._run = target_of(run)

    def after_iteration(self, model: Any, epoch: int, evals_log: dict[str, Any]) -> bool:
        """Log one round; never asks to stop (a rule of the run raises)."""
        found = {}
        for data, metrics in evals_log.items():
            for name, history in metrics.items():
                last = history[-1]
                # Cross-validation gives (mean, standard deviation).
                found[f"{data}-{name}"] = last[0] if isinstance(last, tuple) else last
        self._run.log(found, step=epoch)
        return False
