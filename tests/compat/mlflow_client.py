"""What people do with MLflow's client, in one process, as importing it takes seconds.

Run by test_mlflow.py with MLFLOW_TRACKING_URI set. Prints one JSON object: by section what the
client saw, or the traceback.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression

RNG = np.random.default_rng(7)
X = pd.DataFrame(RNG.normal(size=(60, 3)), columns=["a", "b", "c"])
Y = (X["a"] + 0.3 * X["b"] > 0).astype(int)

SECTIONS: list[Callable[[], dict[str, Any]]] = []


def section(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    SECTIONS.append(function)
    return function


@section
def autolog() -> dict[str, Any]:
    mlflow.set_experiment("autologged")
    mlflow.sklearn.autolog()
    with mlflow.start_run() as run:
        LogisticRegression(C=0.5).fit(X, Y)
    mlflow.sklearn.autolog(disable=True)
    found = mlflow.get_run(run.info.run_id)
    files = MlflowClient().list_artifacts(run.info.run_id)
    return {
        "run_id": run.info.run_id,
        "status": found.info.status,
        "params": found.data.params,
        "metrics": found.data.metrics,
        "tags": found.data.tags,
        "inputs": [item.dataset.name for item in found.inputs.dataset_inputs],
        "outputs": [item.model_id for item in found.outputs.model_outputs],
        "files": sorted(file.path for file in files),
    }


@section
def by_hand() -> dict[str, Any]:
    mlflow.set_experiment("by hand")
    client = MlflowClient()
    with mlflow.start_run(run_name="parent", tags={"team": "growth"}) as parent:
        mlflow.log_param("lr", 0.1)
        mlflow.log_params({"depth": 3, "empty": ""})
        for step in range(5):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.log_metric("odd", float("nan"))
        mlflow.log_metric("large", float("inf"))
        client.log_batch(
            parent.info.run_id,
            metrics=[Metric("auc", 0.5 + i / 100, 1_700_000_000_000 + i, i) for i in range(40)],
            params=[Param("batch", "64")],
            tags=[RunTag("stage", "test")],
        )
        mlflow.log_text("hello å", "notes/read me.txt")
        mlflow.log_dict({"k": [1, 2]}, "notes/data.json")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "big.bin").write_bytes(bytes(range(256)) * 8192)
            mlflow.log_artifacts(folder, "raw")
        with mlflow.start_run(run_name="child", nested=True) as child:
            mlflow.log_metric("auc", 0.9)
    mlflow.set_experiment_tag("owner", "ops")
    with tempfile.TemporaryDirectory() as folder:
        got = mlflow.artifacts.download_artifacts(
            run_id=parent.info.run_id, artifact_path="raw", dst_path=folder
        )
        size = Path(got, "big.bin").stat().st_size
    history = client.get_metric_history(parent.info.run_id, "loss")
    found = client.get_run(parent.info.run_id).data
    return {
        "parent": parent.info.run_id,
        "child": child.info.run_id,
        "loss": [point.value for point in history],
        "text": mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/notes/read me.txt"),
        "listed": [f.path for f in client.list_artifacts(parent.info.run_id, "notes")],
        "size": size,
        "odd": str(found.metrics["odd"]),
        "large": found.metrics["large"],
        "params": found.params,
    }


@section
def searches() -> dict[str, Any]:
    def names(filter_string: str, **options: Any) -> list[str]:
        found = mlflow.search_runs(
            experiment_names=["by hand"],
            filter_string=filter_string,
            output_format="list",
            **options,
        )
        return [run.info.run_name for run in found]

    frame = mlflow.search_runs(experiment_names=["by hand"])
    return {
        "metric": names("metrics.auc > 0.88"),
        "param": names("params.lr = '0.1' and tags.team = 'growth'"),
        "nested": names("tags.`mlflow.parentRunId` LIKE '%'"),
        "none": names("metrics.auc > 2"),
        "ordered": names("", order_by=["metrics.auc ASC"]),
        "first": names("", order_by=["metrics.auc DESC"], max_results=1),
        "columns": sorted(column for column in frame.columns if column.startswith("metrics.")),
        "experiments": sorted(e.name for e in mlflow.search_experiments()),
        "tagged": [e.name for e in mlflow.search_experiments(filter_string="tags.owner = 'ops'")],
    }


@section
def registry() -> dict[str, Any]:
    mlflow.set_experiment("registered")
    client = MlflowClient()
    model = LogisticRegression().fit(X, Y)
    with mlflow.start_run() as run:
        info = mlflow.sklearn.log_model(model, name="clf", pip_requirements=["scikit-learn"])
    version = mlflow.register_model(info.model_uri, "churn")
    client.set_registered_model_alias("churn", "champion", version.version)
    client.set_model_version_tag("churn", version.version, "checked", "yes")
    client.update_model_version("churn", version.version, "the first one")
    loaded = mlflow.pyfunc.load_model("models:/churn@champion")
    by_run = mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/clf")
    again = mlflow.register_model(info.model_uri, "churn")
    got = client.get_model_version_by_alias("churn", "champion")
    return {
        "run_id": run.info.run_id,
        "version": int(version.version),
        "again": int(again.version),
        "equal": bool((loaded.predict(X) == model.predict(X)).all()),
        "equal_by_run": bool((by_run.predict(X) == model.predict(X)).all()),
        "aliases": client.get_registered_model("churn").aliases,
        "description": got.description,
        "tags": got.tags,
        "models": [found.name for found in client.search_registered_models("name LIKE 'ch%'")],
        "versions": [
            int(found.version) for found in client.search_model_versions("name = 'churn'")
        ],
        "of_run": len(client.search_model_versions(f"run_id = '{run.info.run_id}'")),
        "logged": [m.name for m in mlflow.search_logged_models(output_format="list")],
    }


@section
def refusals() -> dict[str, Any]:
    client = MlflowClient()
    run = client.create_run("0")

    def refused(call: Callable[[], Any]) -> list[str]:
        try:
            call()
        except MlflowException as error:
            return [error.error_code, error.message]
        return ["", ""]

    client.log_param(run.info.run_id, "lr", "1")
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    return {
        "param": refused(lambda: client.log_param(run.info.run_id, "lr", "2")),
        "run": refused(lambda: client.get_run("0" * 32)),
        "experiment": refused(lambda: client.create_experiment("gone")),
        "model": refused(lambda: client.get_registered_model("none")),
        "alias": refused(lambda: client.get_model_version_by_alias("churn", "none")),
        "filter": refused(lambda: client.search_runs(["0"], "metrics.a > 1 OR metrics.b > 1")),
        "restored": [client.restore_experiment(gone), client.get_experiment(gone).lifecycle_stage],
    }


def run_sections(sections: list[Callable[[], dict[str, Any]]]) -> None:
    """Run each section and print what it saw."""
    told: dict[str, Any] = {}
    for function in sections:
        try:
            told[function.__name__] = function()
        except Exception:  # noqa: BLE001 (the test shows it)
            told[function.__name__] = {"traceback": traceback.format_exc()}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    run_sections(SECTIONS)
