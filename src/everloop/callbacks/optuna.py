"""Optuna: each trial becomes a child run. Does not need the library.

Pruned trials end as killed, failed ones as failed.
"""

from __future__ import annotations

from typing import Any

from everloop.core.context import current_workspace
from everloop.core.run import PARENT_TAG
from everloop.experiments.run import run
from everloop.tracking.current import LogTarget, target_of
from everloop.tracking.leases import EndState

__all__ = ["OptunaCallback"]

_ENDS: dict[str, EndState] = {"COMPLETE": "finished", "PRUNED": "killed", "FAIL": "failed"}
_REASONS = {"PRUNED": "pruned by the study", "FAIL": "the objective failed; see the study's log"}


class OptunaCallback:
    """``study.optimize(objective, callbacks=[OptunaCallback()])``.

    The run of the study gets ``best_value`` by trial; each trial's run has its parameters, its
    intermediate values as ``intermediate_value`` by step, and its result as ``value`` (``value_0``,
    ``value_1``... where there are several).

    Args:
        parent: The run of the whole study; the current run if not given.
        experiment: Where the trials' runs go; the study's name if not given.
    """

    def __init__(self, parent: LogTarget | None = None, experiment: str = "") -> None:
        self._parent = target_of(parent)
        self._experiment = experiment
        # Trials may end in threads, which do not know the workspace of this one.
        self._workspace = current_workspace()

    def __call__(self, study: Any, trial: Any) -> None:
        child = run(
            self._experiment or study.study_name,
            name=f"trial-{trial.number}",
            params=trial.params,
            tags={PARENT_TAG: self._parent.run.id},
            workspace=self._workspace,
        )
        for step, value in trial.intermediate_values.items():
            child.log(intermediate_value=value, step=step)
        values: list[float] = list(trial.values or ())
        if len(values) == 1:
            child.log(value=values[0])
        else:
            child.log({f"value_{index}": value for index, value in enumerate(values)})
        child.end(_ENDS[trial.state.name], error=_REASONS.get(trial.state.name, ""))
        if len(study.directions) == 1 and trial.state.name == "COMPLETE":
            self._parent.log({"best_value": study.best_value}, step=trial.number)
