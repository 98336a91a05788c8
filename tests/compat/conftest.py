"""A server for MLflow's real client, and the surroundings that its processes get."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.workspace import Workspace
from tests.servers import serve


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
def run_client(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Runs a script of this folder and returns what it tells in its last line."""

    def run(script: str, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script)), *arguments],
            env=environment,
            cwd=tmp_path_factory.mktemp("cwd"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def command_lines(run_client: Callable[..., Any]) -> Callable[..., list[str]]:
    """Runs MLflow's own command line for each list of arguments; returns what each printed."""

    def run(*lines: list[str]) -> list[str]:
        told: list[str] = run_client("mlflow_command_lines.py", *map(json.dumps, lines))
        return told

    return run
