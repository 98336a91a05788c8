"""Callbacks of training libraries.

LightGBM is the real library. XGBoost, Keras, Lightning, Transformers and Optuna are too heavy for
the lock file: here small stand-ins call the callbacks as those libraries do (the classes of their
documentation, checked by hand against xgboost 3.2 and optuna 5.0).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import everloop as ev
from everloop.callbacks.lightgbm import LightGBMCallback
from everloop.callbacks.optuna import OptunaCallback
from everloop.core.context import using
from everloop.errors import StateError


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path) -> Iterator[Any]:
    with ev.open(tmp_path / "ws") as ws, using(ws):
        yield ws


def points(run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in run.history(metric)]


def with_stand_in(
    monkeypatch: pytest.MonkeyPatch, module: str, stand_ins: dict[str, dict[str, Any]]
) -> Any:
    """Import our `module` with other modules in place of the library's."""
    for name, members in stand_ins.items():
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.delitem(sys.modules, f"everloop.callbacks.{module}", raising=False)
    found = importlib.import_module(f"everloop.callbacks.{module}")
    monkeypatch.delitem(sys.modules, f"everloop.callbacks.{module}")
    return found


def test_callback_without_a_run_says_what_to_do() -> None:
    with pytest.raises(StateError, match=r"ev\.run"):
        LightGBMCallback()


def test_lightgbm_logs_each_iteration() -> None:
    import lightgbm

    random = np.random.default_rng(0)
    features = random.normal(size=(200, 3))
    data = lightgbm.Dataset(features, features[:, 0])
    quiet = {"objective": "l2", "verbosity": -1, "num_threads": 1}
    with ev.run("e") as run:
        held: dict[str, Any] = {}
        lightgbm.train(
            quiet,
            data,
            5,
            valid_sets=[data],
            valid_names=["valid"],
            callbacks=[LightGBMCallback(), lightgbm.record_evaluation(held)],
        )
    assert points(run, "valid-l2") == list(enumerate(held["valid"]["l2"]))
    with ev.run("cv") as run:
        lightgbm.cv(quiet, data, 3, nfold=2, stratified=False, callbacks=[LightGBMCallback()])
    assert [step for step, _ in points(run, "valid-l2")] == [0, 1, 2]


def test_rule_of_the_run_stops_the_training() -> None:
    import lightgbm

    features = np.random.default_rng(0).normal(size=(200, 3))
    data = lightgbm.Dataset(features, features[:, 0])
    run = ev.run("e", stop=[ev.stop_if("train-l2", 0.0, after=2)])
    with pytest.raises(ev.RunStopped), run:
        lightgbm.train(
            {"verbosity": -1, "num_threads": 1},
            data,
            50,
            valid_sets=[data],
            valid_names=["train"],
            callbacks=[LightGBMCallback()],
        )
    assert len(points(run, "train-l2")) == 3


def test_xgboost_logs_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {"xgboost": {}, "xgboost.callback": {"TrainingCallback": object}}
    module = with_stand_in(monkeypatch, "xgboost", stand_ins)
    with ev.run("e") as run:
        callback = module.XGBoostCallback()
        history: dict[str, dict[str, list[Any]]] = {"train": {"rmse": []}, "test": {"rmse": []}}
        for epoch in range(3):
            history["train"]["rmse"].append(1.0 / (epoch + 1))
            history["test"]["rmse"].append((2.0, 0.1))  # as cross-validation has it
            assert callback.after_iteration(None, epoch, history) is False
    assert points(run, "train-rmse") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert points(run, "test-rmse") == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_keras_logs_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = SimpleNamespace(Callback=object)
    module = with_stand_in(monkeypatch, "keras", {"keras": {"callbacks": callbacks}})
    with ev.run("e") as run:
        callback = module.KerasCallback()
        callback.on_epoch_end(0, {"loss": np.float32(0.5)})
        callback.on_epoch_end(1, None)
        callback.on_epoch_end(2, {"loss": 0.25})
    assert points(run, "loss") == [(0, 0.5), (2, 0.25)]


def test_lightning_logs_metrics_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins: dict[str, dict[str, Any]] = {
        "lightning": {},
        "lightning.pytorch": {},
        "lightning.pytorch.loggers": {},
        "lightning.pytorch.loggers.logger": {"Logger": object},
        "lightning.pytorch.utilities": {"rank_zero_only": lambda method: method},
    }
    module = with_stand_in(monkeypatch, "lightning", stand_ins)
    with ev.run("e") as run:
        logger = module.LightningLogger()
        assert (logger.name, logger.version) == (run.record.experiment, run.id)
        logger.log_hyperparams({"lr": 0.1})
        logger.log_hyperparams(SimpleNamespace(depth=3))
        logger.log_metrics({"loss": 0.5}, step=4)
        logger.log_metrics({"loss": 0.6}, None)
    assert run.refresh().params == {"lr": "0.1", "depth": "3"}
    assert points(run, "loss") == [(0, 0.6), (4, 0.5)]


def test_transformers_logs_numbers_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_stand_in(
        monkeypatch, "transformers", {"transformers": {"TrainerCallback": object}}
    )
    args = SimpleNamespace(to_json_string=lambda: '{"lr": 1}')
    first = SimpleNamespace(is_world_process_zero=True, global_step=10)
    other = SimpleNamespace(is_world_process_zero=False, global_step=20)
    with ev.run("e") as run:
        callback = module.TransformersCallback()
        for state in (first, other):
            callback.on_train_begin(args, state, None)
            callback.on_log(args, state, None, logs={"loss": 0.5, "note": "x"}, model=None)
    assert points(run, "loss") == [(10, 0.5)]
    assert run.refresh().metrics == {"loss": 0.5}
    assert run.read_file("training_arguments.json") == b'{"lr": 1}'


def trial(number: int, state: str, values: list[float] | None) -> SimpleNamespace:
    return SimpleNamespace(
        number=number,
        state=SimpleNamespace(name=state),
        params={"x": 0.5},
        values=values,
        intermediate_values={0: 3.0, 1: 2.0},
    )


def test_optuna_trials_are_child_runs() -> None:
    study = SimpleNamespace(study_name="search", directions=["minimize"], best_value=0.25)
    with ev.run("study") as run:
        callback = OptunaCallback()
        callback(study, trial(0, "COMPLETE", [0.25]))
        callback(study, trial(1, "PRUNED", [0.5]))
        callback(study, trial(2, "FAIL", None))
    assert points(run, "best_value") == [(0, 0.25)]
    found = {child.name: child for child in ev.runs("search")}
    assert {name: child.state for name, child in found.items()} == {
        "trial-0": "finished",
        "trial-1": "killed",
        "trial-2": "failed",
    }
    assert found["trial-0"].metrics == {"intermediate_value": 2.0, "value": 0.25}
    assert found["trial-0"].params == {"x": "0.5"}
    assert {child.tags["mlflow.parentRunId"] for child in found.values()} == {run.id}
    several = SimpleNamespace(study_name="two", directions=["minimize", "maximize"])
    with ev.run("study"):
        OptunaCallback()(several, trial(0, "COMPLETE", [1.0, 2.0]))
    [child] = ev.runs("two")
    assert (child.metrics["value_0"], child.metrics["value_1"]) == (1.0, 2.0)
