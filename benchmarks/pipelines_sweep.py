"""What a trial of a sweep costs over its own training, beside Optuna alone with its own storage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Context, Row, in_turns
from everloop.core.context import using
from everloop.pipelines import api as ev
from everloop.pipelines.space import loguniform
from everloop.workspace import open_workspace

__all__ = ["sweep_rows"]


def _loss(rate: float) -> float:
    return (rate - 0.1) ** 2


fit = ev.step(_loss)


@ev.pipeline
def train(rate: float) -> float:
    return fit(rate)


def sweep_rows(context: Context) -> Iterator[Row]:
    """One trial, by a sweep and by Optuna with a study of its own in SQLite."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, repeats = context.size(100, 30), context.repeats(5)
    with tempfile.TemporaryDirectory() as name, open_workspace(name) as workspace, using(workspace):
        seeds = iter(range(1_000_000))
        best: dict[str, float] = {}

        def ours() -> float:
            began = time.perf_counter()
            found = train.sweep(
                {"rate": loguniform(1e-3, 1)}, trials=trials, minimize="loss", seed=next(seeds)
            )
            best["everloop"] = found.best.value or 0.0
            return (time.perf_counter() - began) / trials

        def bare() -> float:
            sampler = optuna.samplers.TPESampler(seed=next(seeds))
            study = optuna.create_study(sampler=sampler)
            return _optimized(study, trials, best, "limit")

        def stored() -> float:
            sampler = optuna.samplers.TPESampler(seed=next(seeds))
            url = f"sqlite:///{Path(name) / f'{next(seeds)}.sqlite'}"
            study = optuna.create_study(sampler=sampler, storage=url)
            return _optimized(study, trials, best, "optuna")

        seconds = in_turns({"everloop": ours, "limit": bare, "optuna": stored}, repeats=repeats)
    yield Row(
        area="pipelines",
        work=f"one trial of a sweep of {trials}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name="Optuna's study in memory, nothing stored",
        peers={f"optuna {optuna.__version__}, SQLite": seconds["optuna"]},
        answers_equal=all(value < 1e-3 for value in best.values()),
        repeats=repeats,
    )


def _optimized(study: Any, trials: int, best: dict[str, float], who: str) -> float:
    began = time.perf_counter()
    study.optimize(
        lambda trial: _loss(trial.suggest_float("rate", 1e-3, 1, log=True)), n_trials=trials
    )
    best[who] = study.best_value
    return (time.perf_counter() - began) / trials
