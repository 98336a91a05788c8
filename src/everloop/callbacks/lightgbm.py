"""LightGBM: each iteration's evaluation results become metrics. Does not need the library."""

from __future__ import annotations

from typing import Any

from everloop.tracking.current import LogTarget, target_of

__all__ = ["LightGBMCallback"]


class LightGBMCallback:
    """``lightgbm.train(..., callbacks=[LightGBMCallback()])``; metrics are called ``valid-auc``.

    Args:
        run: Where to; the current run if not given.
    """

    #: LightGBM calls its own evaluation printer at 10 and early stopping, which raises, at 30.
    order = 20
    before_iteration = False

    def __init__(self, run: LogTarget | None = None) -> None:
        self._run = target_of(run)

    def __call__(self, env: Any) -> None:
        # Cross-validation adds a standard deviation at the end.
        results = env.evaluation_result_list or ()
        self._run.log({f"{data}-{name}": v for data, name, v, *_ in results}, step=env.iteration)
