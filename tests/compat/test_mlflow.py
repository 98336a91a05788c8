"""The real MLflow client against this server: nothing of the user's script is changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest

from everloop.workspace import Workspace

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def seen(run_client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_client("mlflow_client.py")


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
