"""The older and rarer parts of MLflow's client, its command line, and plain curl."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everloop.workspace import Workspace

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def seen(run_client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_client("mlflow_classic.py")


def of(seen: dict[str, Any], section: str) -> dict[str, Any]:
    told: dict[str, Any] = seen[section]
    assert "traceback" not in told, told["traceback"]
    return told


def test_lightgbm_logs_itself(seen: dict[str, Any]) -> None:
    told = of(seen, "boosted")
    assert told["params"]["num_leaves"] == "4"
    assert told["metrics"] == ["held-binary_logloss", "train-binary_logloss"]
    assert told["points"] == 5
    assert {role for _, role in told["inputs"]} == {"eval", "train"}
    names = [name for name, _ in told["inputs"]]
    assert len(names) == len(set(names))
    assert "feature_importance_gain.json" in told["files"]
    assert (told["model"], told["predicts"]) == ("READY", 60)


def test_stages_and_what_is_done_to_models(seen: dict[str, Any]) -> None:
    assert of(seen, "staged") == {
        "latest": {"1": "Archived", "2": "Staging", "3": "Production"},
        "only": ["3"],
        "kept": {"1": "Archived", "3": "Production"},
        "tags": {"k": "v"},
        "description": "changed",
        "uri": "mlflow-artifacts:/0/RUN/artifacts/model",
        "left": [],
    }


def test_pages(seen: dict[str, Any]) -> None:
    assert of(seen, "paged") == {
        "pages": [["r0", "r1", "r2"], ["r3", "r4", "r5"], ["r6"]],
        "experiments": [1, True],
        "frame": [6.0, 5.0, 4.0, 3.0],
        "history": [6.0],
    }


def test_datasets(seen: dict[str, Any]) -> None:
    assert of(seen, "datasets") == {
        "name": "numbers",
        "tags": {"mlflow.data.context": "train", "k": "v"},
        "columns": True,
        "found": 1,
    }


def test_delete_and_restore(seen: dict[str, Any]) -> None:
    assert of(seen, "deleted") == {
        "run": "deleted",
        "write": "INVALID_PARAMETER_VALUE",
        "only": ["deleted"],
        "gone": "deleted",
        "back": "active",
        "tags": {"k": "v"},
        "status": "KILLED",
    }


def test_a_file_sent_in_parts(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "in_parts")
    assert told["equal"]
    run = workspace.tracking.run(told["run_id"])
    path = f"{run.experiment}/{run.id}/artifacts/deep/folder/big.bin"
    assert workspace.tracking.artifact_info(path).size == told["size"]


def test_command_line(
    seen: dict[str, Any],
    command_lines: Callable[..., list[str]],
    workspace: Workspace,
    tmp_path: Path,
) -> None:
    experiment = workspace.tracking.experiment_by_name("paged").id
    run_id = of(seen, "in_parts")["run_id"]
    experiments, runs, files, _ = command_lines(
        ["experiments", "search"],
        ["runs", "list", "--experiment-id", experiment],
        ["artifacts", "list", "--run-id", run_id, "--artifact-path", "deep"],
        ["artifacts", "download", "--run-id", run_id, "--dst-path", str(tmp_path)],
    )
    assert "paged" in experiments
    assert "Default" in experiments
    assert "r6" in runs
    assert '"path": "deep/folder"' in files
    assert (tmp_path / "deep/folder/big.bin").stat().st_size == of(seen, "in_parts")["size"]


def test_plain_curl(url: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("mlflow_walk.sh")
    done = subprocess.run(
        ["sh", str(script), url], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run, history, models, file = done.stdout.splitlines()[-4:]
    assert '"run_name":"by-curl"' in run
    assert '"status":"FINISHED"' in run
    assert '{"key":"lr","value":"0.1"}' in run
    assert history.count('"key":"loss"') == 3
    assert '"description":"from the shell"' in models
    assert file == "hello"
