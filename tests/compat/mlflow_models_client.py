"""Logs and registers models with MLflow's client as people do; says what each answers there.

Run by test_mlflow_models.py with MLFLOW_TRACKING_URI set. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

X = pd.DataFrame(np.random.default_rng(7).normal(size=(60, 3)), columns=["a", "b", "c"])
Y = (X["a"] + 0.3 * X["b"] > 0).astype(int)
SIGNATURE = infer_signature(X, Y.astype(float))
SINGLE = X.to_numpy(np.float32)


class Doubled(mlflow.pyfunc.PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["a"] * 2 + model_input["c"]


def models() -> dict[str, tuple[Any, dict[str, Any]]]:
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(X, Y), 3
    )
    cat = catboost.CatBoostClassifier(iterations=3, verbose=0, allow_writing_files=False)
    return {
        "xgboost": (mlflow.xgboost, {"xgb_model": xgboost.XGBClassifier(n_estimators=3).fit(X, Y)}),
        "lightgbm": (mlflow.lightgbm, {"lgb_model": booster}),
        "catboost": (mlflow.catboost, {"cb_model": cat.fit(X, Y)}),
        "sklearn": (mlflow.sklearn, {"sk_model": LogisticRegression().fit(X, Y)}),
        "onnx": (
            mlflow.onnx,
            {
                "onnx_model": to_onnx(
                    LogisticRegression().fit(SINGLE, Y), SINGLE[:1], options={"zipmap": False}
                ),
                "signature": infer_signature(SINGLE, Y.to_numpy(np.float64)),
            },
        ),
        "pyfunc": (mlflow.pyfunc, {"python_model": Doubled()}),
    }


def answers(name: str, uri: str) -> list[float]:
    loaded = mlflow.pyfunc.load_model(uri)
    if name == "onnx":
        return [float(value) for value in loaded.predict(SINGLE)["probabilities"][:, 1]]
    return [float(value) for value in np.asarray(loaded.predict(X)).ravel()]


def main() -> None:
    told: dict[str, Any] = {"rows": X.to_numpy().tolist()}
    for name, (flavor, arguments) in models().items():
        with mlflow.start_run():
            info = flavor.log_model(
                name=name, **{"signature": SIGNATURE, "pip_requirements": ["numpy"], **arguments}
            )
        version = mlflow.register_model(info.model_uri, name)
        uri = f"models:/{name}/{version.version}"
        with tempfile.TemporaryDirectory() as folder:
            root = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
            files = {
                file.relative_to(root).as_posix(): file.read_bytes().hex()
                for file in root.rglob("*")
                if file.is_file() and file.name != "registered_model_meta"  # the client adds it
            }
        told[name] = {"predictions": answers(name, uri), "files": files}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
