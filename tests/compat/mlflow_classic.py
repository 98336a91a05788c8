"""What people do with the older and rarer parts of MLflow's client, in one process.

Run by test_mlflow_classic.py with MLFLOW_TRACKING_URI set. Prints one JSON object, as
mlflow_client.py does.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow_client import RNG, X, Y, run_sections

SECTIONS = []


def section(function: Any) -> Any:
    SECTIONS.append(function)
    return function


@section
def boosted() -> dict[str, Any]:
    mlflow.set_experiment("boosted")
    mlflow.lightgbm.autolog()
    train = lightgbm.Dataset(X, Y)
    held = lightgbm.Dataset(X[:20], Y[:20], reference=train)
    with mlflow.start_run() as run:
        lightgbm.train(
            {"objective": "binary", "verbose": -1, "num_leaves": 4, "num_threads": 1},
            train,
            num_boost_round=5,
            valid_sets=[train, held],
            valid_names=["train", "held"],
        )
    mlflow.lightgbm.autolog(disable=True)
    found = mlflow.get_run(run.info.run_id)
    files = MlflowClient().list_artifacts(run.info.run_id)
    [output] = found.outputs.model_outputs
    return {
        "params": found.data.params,
        "metrics": sorted(found.data.metrics),
        "points": len(MlflowClient().get_metric_history(run.info.run_id, "held-binary_logloss")),
        "inputs": [
            (f"{item.dataset.name} {item.dataset.digest}", tag.value)
            for item in found.inputs.dataset_inputs
            for tag in item.tags
        ],
        "files": sorted(file.path for file in files),
        "model": mlflow.get_logged_model(output.model_id).status.name,
        "predicts": len(mlflow.lightgbm.load_model(f"models:/{output.model_id}").predict(X)),
    }


@section
def staged() -> dict[str, Any]:
    client = MlflowClient()
    client.create_registered_model("staged", tags={"team": "ops"}, description="d")
    run = client.create_run("0")
    for _ in range(3):
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version("staged", source, run.info.run_id)
    client.transition_model_version_stage("staged", "1", "Production")
    client.transition_model_version_stage("staged", "2", "Staging")
    client.transition_model_version_stage(
        "staged", "3", "production", archive_existing_versions=True
    )
    latest = client.get_latest_versions("staged")
    only = client.get_latest_versions("staged", stages=["Production"])
    client.rename_registered_model("staged", "staged-2")
    client.set_registered_model_tag("staged-2", "k", "v")
    client.delete_registered_model_tag("staged-2", "team")
    client.update_registered_model("staged-2", "changed")
    client.delete_model_version("staged-2", "2")
    model = client.get_registered_model("staged-2")
    uri = client.get_model_version_download_uri("staged-2", "3")
    client.delete_registered_model("staged-2")
    return {
        "latest": {version.version: version.current_stage for version in latest},
        "only": [version.version for version in only],
        "kept": {version.version: version.current_stage for version in model.latest_versions},
        "tags": model.tags,
        "description": model.description,
        "uri": uri.replace(run.info.run_id, "RUN"),
        "left": [found.name for found in client.search_registered_models("name LIKE 'staged%'")],
    }


@section
def paged() -> dict[str, Any]:
    client = MlflowClient()
    experiment = client.create_experiment("paged", tags={"a": "1"})
    for index in range(7):
        run = client.create_run(experiment, run_name=f"r{index}")
        client.log_metric(run.info.run_id, "m", index)
    names, token = [], None
    while True:
        page = client.search_runs(
            [experiment], order_by=["metrics.m"], max_results=3, page_token=token
        )
        names.append([run.info.run_name for run in page])
        token = page.token
        if not token:
            break
    first = client.search_experiments(max_results=1)
    frame = mlflow.search_runs([experiment], "metrics.m > 2", order_by=["metrics.m DESC"])
    return {
        "pages": names,
        "experiments": [len(first), bool(first.token)],
        "frame": list(frame["metrics.m"]),
        "history": [p.value for p in client.get_metric_history(run.info.run_id, "m")],
    }


@section
def datasets() -> dict[str, Any]:
    mlflow.set_experiment("datasets")
    frame = pd.DataFrame({"x": np.arange(5.0), "y": RNG.normal(size=5)})
    data = mlflow.data.from_pandas(frame, name="numbers", targets="y")
    with mlflow.start_run() as run:
        mlflow.log_input(data, context="train", tags={"k": "v"})
    [item] = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    found = mlflow.search_runs(
        experiment_names=["datasets"], filter_string="dataset.name = 'numbers'"
    )
    return {
        "name": item.dataset.name,
        "tags": {tag.key: tag.value for tag in item.tags},
        "columns": "mlflow_colspec" in item.dataset.schema,
        "found": len(found),
    }


@section
def deleted() -> dict[str, Any]:
    client = MlflowClient()
    experiment = client.create_experiment("deleted")
    run_id = client.create_run(experiment).info.run_id
    client.delete_run(run_id)
    told = {"run": client.get_run(run_id).info.lifecycle_stage}
    try:
        client.log_metric(run_id, "m", 1)
    except MlflowException as error:
        told["write"] = error.error_code
    client.restore_run(run_id)
    client.delete_experiment(experiment)
    only = client.search_experiments(ViewType.DELETED_ONLY)
    told["only"] = [found.name for found in only]
    told["gone"] = client.get_run(run_id).info.lifecycle_stage
    client.restore_experiment(experiment)
    told["back"] = client.get_run(run_id).info.lifecycle_stage
    client.rename_experiment(experiment, "deleted-2")
    client.set_experiment_tag(experiment, "k", "v")
    told["tags"] = client.get_experiment_by_name("deleted-2").tags
    client.set_terminated(run_id, "KILLED")
    told["status"] = client.get_run(run_id).info.status
    client.delete_tag(run_id, "mlflow.runName")
    return told


@section
def in_parts() -> dict[str, Any]:
    os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
    os.environ["MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"] = str(1 << 20)
    os.environ["MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"] = str(5 << 20)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
        data = bytes(range(256)) * (12 << 12)
        file = Path(folder, "big.bin")
        file.write_bytes(data)
        mlflow.log_artifact(str(file), "deep/folder")
        got = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="deep/folder/big.bin", dst_path=folder + "/down"
        )
        equal = Path(got).read_bytes() == data
    return {"equal": equal, "size": len(data), "run_id": run.info.run_id}


if __name__ == "__main__":
    run_sections(SECTIONS)
