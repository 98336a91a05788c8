"""Models of other libraries from ``ev.register`` to an answer over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import httpx
import keras
import numpy as np
import onnxruntime
import pytest
import xgboost
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

import everloop as ev
from everloop.core.context import using
from tests.servers import serve

ROWS = np.random.default_rng(3).normal(size=(50, 2))
LATE = (ROWS[:, 0] > 0).astype(int)
NAMES = ["a", "b"]


def _xgboost() -> tuple[Any, Any]:
    model = xgboost.XGBClassifier(n_estimators=4, n_jobs=1).fit(ROWS, LATE)
    return model, model.predict_proba(ROWS)[:, 1]


def _catboost() -> tuple[Any, Any]:
    model = catboost.CatBoostClassifier(iterations=4, verbose=0, allow_writing_files=False)
    return model.fit(ROWS, LATE), model.predict_proba(ROWS)[:, 1]


def _onnx() -> tuple[Any, Any]:
    single = ROWS.astype(np.float32)
    fitted = LogisticRegression().fit(single, LATE)
    model = to_onnx(fitted, single[:1], options={"zipmap": False})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return model, session.run(None, {"X": single})[1][:, 1]


def _keras() -> tuple[Any, Any]:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((2,)), layers.Dense(3, activation="tanh"), layers.Dense(1)]
    )
    return model, keras.ops.convert_to_numpy(model(ROWS.astype(np.float32))).reshape(-1)


@pytest.mark.parametrize("make", [_xgboost, _catboost, _onnx, _keras])
def test_a_registered_model_answers_over_http_as_in_the_notebook(
    make: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    model, expected = make()
    workspace = ev.open(tmp_path / ".everloop", actor="tester")
    with using(workspace):
        version = ev.register("delay", ev.model(model, names=NAMES))
    assert version.tier == "safe"
    assert version.environment[version.flavor] != ""
    workspace.deployment.create("delay", model="delay", version=version.version)
    tensors = [
        {"name": name, "shape": [50], "datatype": "FP64", "data": ROWS[:, place].tolist()}
        for place, name in enumerate(NAMES)
    ]
    frame = {"dataframe_split": {"columns": NAMES, "data": ROWS.tolist()}}
    with serve(workspace) as url, httpx.Client(base_url=url, timeout=60) as client:
        infer = client.post("/v2/models/delay/infer", json={"inputs": tensors})
        invoked = client.post("/invocations", json=frame)
        told = client.get("/v2/models/delay").json()
    assert infer.status_code == invoked.status_code == 200, infer.text
    assert told["platform"] == f"everloop_{version.flavor}"
    scores = np.asarray(expected, dtype=np.float64)
    np.testing.assert_array_equal(infer.json()["outputs"][0]["data"], scores)
    np.testing.assert_array_equal(invoked.json()["predictions"], scores)
