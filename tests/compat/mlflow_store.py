"""Makes a store with MLflow's own client, and tells what that client sees in stores.

Run by test_import_mlflow.py: ``see URI...`` prints a JSON list with what is in each store, and
``make FOLDER=URI...`` fills them before, each from within a folder, where some stores keep files.
In one process for several stores, as importing the client takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentSource,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)

ODD = "a\nb: 'c' \"d\" # å {x} [y] | > % @ `"


def make(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    client.create_experiment("first", tags={"team": "growth", "note": ODD})
    mlflow.set_experiment("first")
    with mlflow.start_run(run_name="r1: 'odd' name", description=ODD) as run:
        mlflow.log_params({"lr": 0.1, "empty": "", "odd": ODD, "long": "x" * 5900})
        for step in range(30):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric("many", i / 3, 1_700_000_000_000 + i, i - 5) for i in range(900)],
            params=[Param("batch", "64")],
            tags=[RunTag("stage", "test")],
        )
        mlflow.log_metric("odd", float("nan"))
        mlflow.log_metric("folder/sub key", 3.5)
        mlflow.log_text("hello å", "notes/read me.txt")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "big.bin").write_bytes(bytes(range(256)) * 8192)
            Path(folder, "empty").write_bytes(b"")
            mlflow.log_artifacts(folder, "raw")
        rows = mlflow.data.from_pandas(pd.DataFrame({"x": [1, 2, 3]}), name="rows of x")
        mlflow.log_input(rows, context="train", tags={"k": "v"})
        model = mlflow.initialize_logged_model(name="lm", params={"p": "1"}, tags={"t": ODD})
        mlflow.log_metric("acc", 0.9, model_id=model.model_id)
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 3)])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "MLmodel").write_text("flavors: {}\n")
            client.log_model_artifacts(model.model_id, folder)
            mlflow.log_artifacts(folder, "m")
        mlflow.finalize_logged_model(model.model_id, "READY")
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(model.model_id)])
        with mlflow.start_run(run_name="child", nested=True):
            mlflow.log_metric("auc", 0.7)
    client.set_terminated(client.create_run("0", run_name="broke").info.run_id, "FAILED")
    _register(client, run, model.model_id)
    _trace(client, run.info.run_id)
    gone = client.create_experiment("gone")
    client.create_run(gone, run_name="of gone")
    client.delete_experiment(gone)
    client.delete_run(client.create_run("0", run_name="deleted").info.run_id)
    client.create_run("0", run_name="still running")


def _trace(client: MlflowClient, run_id: str) -> None:
    @mlflow.trace(span_type="TOOL")
    def look(x: float) -> dict[str, Any]:
        odd = {"a": [1, 2.5, None, True, float("nan"), 2**62], "text": ODD, "none": {}}
        mlflow.get_current_active_span().set_attribute("odd", odd)
        return {"y": [x]}

    @mlflow.trace
    def answer(question: str) -> str:
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        mlflow.get_current_active_span().set_attribute("mlflow.chat.tokenUsage", usage)
        mlflow.update_current_trace(
            tags={"team": ODD}, client_request_id="call-1", session_id="talk 1"
        )
        return f"{question} {look(0.5)}"

    @mlflow.trace(name="breaks")
    def breaks() -> None:
        raise ValueError(ODD)

    with mlflow.start_run(run_id=run_id):
        answer("what å?")
    traced = str(mlflow.get_last_active_trace_id())
    with contextlib.suppress(ValueError):
        breaks()
    broke = str(mlflow.get_last_active_trace_id())
    mlflow.flush_trace_async_logging()
    person = AssessmentSource(source_type="HUMAN", source_id="ann")
    first = mlflow.log_feedback(
        trace_id=traced, name="good", value=0.25, rationale=ODD, source=person, metadata={"k": "v"}
    )
    wanted = {"a": [1, {"b": [True, None]}], "c": ODD, "d": []}
    mlflow.log_expectation(trace_id=traced, name="wanted", value=wanted, source=person)
    mlflow.log_expectation(trace_id=traced, name="short", value="x: y", source=person)
    mlflow.override_feedback(
        trace_id=traced, assessment_id=first.assessment_id, value=["a", {"b": 1.5}, [1, [2]]]
    )
    program = AssessmentSource(source_type="CODE", source_id="check")
    mlflow.log_feedback(trace_id=broke, name="good", error=ValueError(ODD), source=program)
    made = mlflow.genai.register_prompt(name="greeting", template=f"Hi {{{{name}}}} {ODD}")
    mlflow.genai.set_prompt_alias("greeting", "live", made.version)


def _register(client: MlflowClient, run: Any, model_id: str) -> None:
    client.create_registered_model("reg", tags={"k": "v"}, description=ODD)
    root = run.info.artifact_uri
    id_ = run.info.run_id
    for index, source in enumerate([f"runs:/{id_}/m", f"{root}/m", f"{root}/m", f"{root}/m"]):
        client.create_model_version("reg", source, id_, tags={"n": str(index)}, description="v")
    client.create_model_version("reg", f"models:/{model_id}", id_, model_id=model_id)
    client.create_model_version("reg", f"{root}/m", id_)
    client.delete_model_version("reg", "2")
    client.delete_model_version("reg", "6")
    client.set_registered_model_alias("reg", "champion", "3")
    client.transition_model_version_stage("reg", "1", "Production")
    client.create_registered_model("empty model")


def see(uri: str) -> dict[str, Any]:
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiments = {e.name: e for e in client.search_experiments(view_type=ViewType.ALL)}
    ids = [e.experiment_id for e in experiments.values()]
    models = client.search_logged_models(ids)
    return {
        "experiments": {
            name: {"id": e.experiment_id, "stage": e.lifecycle_stage, "tags": e.tags}
            for name, e in experiments.items()
        },
        "runs": {
            run.info.run_id: _run(client, run)
            for run in client.search_runs(ids, run_view_type=ViewType.ALL)
        },
        "models": {model.model_id: _model(client, model) for model in models},
        "traces": [_traced(trace) for trace in client.search_traces(ids)],
        "prompt": mlflow.genai.load_prompt("prompts:/greeting@live").template,
        "registered": {
            found.name: {
                "description": found.description or "",
                "tags": found.tags,
                "aliases": {alias: str(version) for alias, version in found.aliases.items()},
                "versions": {
                    str(version.version): _version(client, version)
                    for version in client.search_model_versions(f"name = '{found.name}'")
                },
            }
            for found in client.search_registered_models()
        },
    }


def _run(client: MlflowClient, run: Any) -> dict[str, Any]:
    info, data, id_ = run.info, run.data, run.info.run_id
    return {
        "name": info.run_name,
        "status": info.status,
        "times": [info.start_time, info.end_time],
        "stage": info.lifecycle_stage,
        "user": info.user_id,
        "experiment": client.get_experiment(info.experiment_id).name,
        "params": data.params,
        "tags": data.tags,
        "latest": {key: repr(value) for key, value in data.metrics.items()},
        "points": {
            key: sorted(
                [p.timestamp, p.step, repr(p.value)] for p in client.get_metric_history(id_, key)
            )
            for key in data.metrics
        },
        "read": [item.model_id for item in run.inputs.model_inputs],
        "inputs": [
            {**dict(item.dataset), "tags": {tag.key: tag.value for tag in item.tags}}
            for item in run.inputs.dataset_inputs
        ],
        "outputs": [[item.model_id, item.step] for item in run.outputs.model_outputs],
        "files": _files(f"runs:/{id_}/") if info.lifecycle_stage == "active" else {},
    }


def _traced(trace: Any) -> dict[str, Any]:
    """A trace without what says where it is kept, its assessments in the order of their ids."""
    found = json.loads(json.dumps(trace.to_dict()))
    for place in ("artifactLocation", "trace.spansLocation"):
        found["info"]["tags"].pop(f"mlflow.{place}", None)
    for told in found["info"].get("assessments", ()):
        told.setdefault("valid", True)  # one store leaves it out, the other does not
    found["info"]["assessments"].sort(key=lambda told: told["assessment_id"])
    found["data"]["spans"].sort(key=lambda span: span["span_id"])
    return found  # type: ignore[no-any-return]


def _model(client: MlflowClient, model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "status": str(model.status),
        "times": [model.creation_timestamp, model.last_updated_timestamp],
        "params": model.params,
        "tags": {key: text for key, text in model.tags.items() if key != "mlflow.modelVersions"},
        "run": model.source_run_id,
        "metrics": [[m.key, m.value, m.step, m.timestamp] for m in model.metrics or ()],
        "files": _files(f"models:/{model.model_id}"),
    }


def _version(client: MlflowClient, version: Any) -> dict[str, Any]:
    return {
        "stage": version.current_stage,
        "tags": version.tags,
        "description": version.description or "",
        "run": version.run_id,
        "times": [version.creation_timestamp, version.last_updated_timestamp],
        "files": _files(f"models:/{version.name}/{version.version}"),
    }


def _files(uri: str) -> dict[str, str]:
    """Every file below a URI by its path, as a digest of its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        got = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        return {
            path.relative_to(got).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(got.rglob("*"))
            # Written by the client that downloads a registered version.
            if path.is_file() and path.name != "registered_model_meta"
        }


if __name__ == "__main__":
    what, *uris = sys.argv[1:]
    if what == "make":
        places = [argument.partition("=") for argument in uris]
        uris = [uri for _, _, uri in places]
        for folder, _, uri in places:
            os.chdir(folder)
            make(uri)
    json.dump([see(uri) for uri in uris], sys.stdout)
