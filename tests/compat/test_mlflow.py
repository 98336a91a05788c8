"""The real MLflow client against this server: nothing of the user's script is changed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.workspace import Workspace
from tests.servers import serve

pytestmark = pytest.mark.timeout(300)

SCRIPT = Path(__file__).with_name("mlflow_client.py")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with ev.open(tmp_path_factory.mktemp("mlflow") / ".everloop", actor="tester") as opened:
        yield opened


@pytest.fixture(scope="module")
def url(workspace: Workspace) -> Iterator[str]:
    with serve(workspace) as address:
        yield address


@pytest.fixture(scope="module")
def environment(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")},
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        # It would import everything again in two processes to guess a requirements.txt.
        "MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "1",
    }


@pytest.fixture(scope="module")
def seen(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        cwd=tmp_path_factory.mktemp("cwd"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def of(seen: dict[str, Any], section: str) -> dict[str, Any]:
    told: dict[str, Any] = seen[section]
    assert "traceback" not in told, told["traceback"]
    return told


def test_autolog_is_all_there(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "autolog")
    run = workspace.tracking.run(told["run_id"])
    assert run.state == "finished"
    assert run.params == told["params"]
    assert run.params["C"] == "0.5"
    assert run.metrics == pytest.approx(told["metrics"])
    assert run.metrics["training_accuracy_score"] > 0.8
    assert run.tags == told["tags"]
    assert run.tags["estimator_name"] == "LogisticRegression"
    assert [item.role for item in run.inputs] == ["train"]
    assert told["inputs"] == [item.dataset for item in run.inputs]
    assert told["outputs"] == [item.model_id for item in run.outputs]
    assert "training_confusion_matrix.png" in told["files"]


def test_autologged_model_is_in_the_object_store(
    seen: dict[str, Any], workspace: Workspace
) -> None:
    [model_id] = of(seen, "autolog")["outputs"]
    model = workspace.tracking.logged_model(model_id)
    assert model.status == "ready"
    path = f"{model.experiment}/models/{model_id}/artifacts/MLmodel"
    assert b"sklearn" in workspace.tracking.artifact(path)


def test_what_is_logged_by_hand(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "by_hand")
    run = workspace.tracking.run(told["parent"])
    assert run.params == told["params"] == {"lr": "0.1", "depth": "3", "empty": "", "batch": "64"}
    assert run.name == "parent"
    assert run.tags["stage"] == "test"
    assert told["loss"] == pytest.approx([1 / n for n in range(1, 6)])
    assert told["odd"] == "nan"
    assert told["large"] == sys.float_info.max
    assert math.isnan(run.metrics["odd"])
    assert [p.step for p in workspace.tracking.history(run.id, "auc")] == list(range(40))
    child = workspace.tracking.run(told["child"])
    assert child.tags["mlflow.parentRunId"] == run.id


def test_artifacts_come_back(seen: dict[str, Any]) -> None:
    told = of(seen, "by_hand")
    assert told["text"] == "hello å"
    assert told["listed"] == ["notes/data.json", "notes/read me.txt"]
    assert told["size"] == 256 * 8192


def test_searches(seen: dict[str, Any]) -> None:
    assert of(seen, "searches") == {
        "metric": ["child", "parent"],
        "param": ["parent"],
        "nested": ["child"],
        "none": [],
        "ordered": ["parent", "child"],
        "first": ["child"],
        "columns": ["metrics.auc", "metrics.large", "metrics.loss", "metrics.odd"],
        "experiments": ["Default", "autologged", "by hand"],
        "tagged": ["by hand"],
    }


def test_registered_model_predicts_the_same(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "registry")
    assert told["equal"]
    assert told["equal_by_run"]
    assert (told["version"], told["again"]) == (1, 2)
    assert told["aliases"] == {"champion": "1"}
    assert told["description"] == "the first one"
    assert told["tags"] == {"checked": "yes"}
    assert told["models"] == ["churn"]
    assert told["versions"] == [2, 1]
    assert told["of_run"] == 2
    assert "clf" in told["logged"]
    version = workspace.registry.by_alias("churn", "champion")
    assert (version.version, version.run_id) == (1, told["run_id"])
    moved = workspace.lineage.events(kind="model.AliasMoved")
    assert [event.body["alias"] for event in moved] == ["champion"]


def test_refusals_are_told_at_once_in_its_words(seen: dict[str, Any]) -> None:
    told = of(seen, "refusals")
    code, message = told["param"]
    assert code == "INVALID_PARAMETER_VALUE"
    assert "Changing param values is not allowed" in message
    assert told["run"][0] == "RESOURCE_DOES_NOT_EXIST"
    assert f"Run with id={'0' * 32} not found" in told["run"][1]
    assert told["experiment"][0] == "RESOURCE_ALREADY_EXISTS"
    assert told["model"][0] == "RESOURCE_DOES_NOT_EXIST"
    assert "Registered Model with name=none not found" in told["model"][1]
    assert told["alias"][0] == "INVALID_PARAMETER_VALUE"
    assert told["filter"][0] == "INVALID_PARAMETER_VALUE"
    assert "Invalid clause(s) in filter string" in told["filter"][1]
    assert told["restored"] == [None, "active"]


def test_command_line_lists_experiments(
    seen: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "experiments", "search"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "by hand" in done.stdout
    assert "Default" in done.stdout
