"""Lightning: a logger, the place where Lightning sends all that ``self.log`` was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from everloop.experiments.run import ActiveRun
from everloop.tracking.current import LogTarget, target_of

__all__ = ["LightningLogger"]


class LightningLogger(Logger):  # type: ignore[misc]
    """``Trainer(logger=LightningLogger())``; of several processes the first one logs.

    Args:
        run: Where to; the current run if not given.
    """

    def __init__(self, run: LogTarget | None = None) -> None:
        super().__init__()
        self._run = target_of(run)

    @property
    def name(self) -> str:
        """The experiment's id."""
        return self._run.run.experiment

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run.run.id

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        self._run.log(metrics, step=step or 0)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep hyper-parameters as parameters, where the run is one of ``ev.run``."""
        if isinstance(self._run, ActiveRun):
            self._run.log_params(params if isinstance(params, Mapping) else vars(params))
