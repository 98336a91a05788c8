"""The real MLflow client at a server with users: right, wrong, missing and revoked credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import everloop as ev
from everloop.workspace import Workspace
from tests.servers import serve

pytestmark = pytest.mark.timeout(300)

PASSWORD = "correct horse battery"

SCRIPT = """
import json, sys, mlflow
from mlflow.exceptions import MlflowException
seen = {}
try:
    mlflow.set_experiment(sys.argv[1])
    with mlflow.start_run() as run:
        mlflow.log_metric("auc", 0.9)
        mlflow.log_params({"lr": 1, "depth": 2})
        mlflow.log_text("some text", "notes/text.txt")
    read = mlflow.artifacts.load_text(run.info.artifact_uri + "/notes/text.txt")
    seen = {"run": run.info.run_id, "text": read}
except MlflowException as error:
    seen = {"error": error.error_code, "message": str(error)}
print(json.dumps(seen, default=str))
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with ev.open(tmp_path_factory.mktemp("access") / ".everloop", actor="server") as opened:
        opened.access.create_user("ann", "admin", password=PASSWORD)
        opened.access.create_user("bob", "contributor", password=PASSWORD)
        opened.access.create_user("vic", "viewer", password=PASSWORD)
        yield opened


@pytest.fixture(scope="module")
def url(workspace: Workspace) -> Iterator[str]:
    with serve(workspace) as address:
        yield address


def run_client(
    url: str, folder: Path, script: str = SCRIPT, more: dict[str, str] | None = None, **login: str
) -> dict[str, str]:
    """What the script saw, with the variables of `login`, named without their prefix."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", script, "of clients"],
        env={
            **known,
            "HOME": str(folder),
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "GIT_PYTHON_REFRESH": "quiet",
            **(more or {}),
            **{f"MLFLOW_TRACKING_{key.upper()}": value for key, value in login.items()},
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_name_and_password_log_in(url: str, tmp_path: Path, workspace: Workspace) -> None:
    seen = run_client(url, tmp_path, username="bob", password=PASSWORD)
    assert seen["text"] == "some text"
    run = workspace.tracking.run(seen["run"])
    assert (run.actor, run.metrics) == ("bob", {"auc": 0.9})


def test_a_token_logs_in_until_it_is_revoked(
    url: str, tmp_path: Path, workspace: Workspace
) -> None:
    made = workspace.access.create_token("bob")
    seen = run_client(url, tmp_path, token=made.secret)
    assert workspace.tracking.run(seen["run"]).actor == "bob"
    workspace.access.revoke_token(made.token.id)
    assert run_client(url, tmp_path, token=made.secret)["error"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("login", [{}, {"username": "bob", "password": "wrong password"}])
def test_without_credentials_and_with_wrong_ones_it_is_refused(
    url: str, tmp_path: Path, login: dict[str, str]
) -> None:
    seen = run_client(url, tmp_path, **login)
    assert seen["error"] == "UNAUTHENTICATED"
    assert "log in" in seen["message"] or "wrong" in seen["message"]


def test_who_may_not_is_told_what_it_takes(url: str, tmp_path: Path) -> None:
    seen = run_client(url, tmp_path, username="vic", password=PASSWORD)
    assert seen["error"] == "PERMISSION_DENIED"
    assert "contributor" in seen["message"]


def test_an_upload_in_parts_needs_no_more(url: str, tmp_path: Path, workspace: Workspace) -> None:
    """The client sends the parts without credentials."""
    (tmp_path / "big.bin").write_bytes(b"x" * (12 << 20))
    script = SCRIPT.replace('log_text("some text", "notes/text.txt")', 'log_artifact("big.bin")')
    script = script.replace(
        "load_text(run.info.artifact_uri", "list_artifacts(run.info.artifact_uri"
    )
    parts = {
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(6 << 20),
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(5 << 20),
    }
    login = {"username": "bob", "password": PASSWORD}
    seen = run_client(url, tmp_path, script.replace(' + "/notes/text.txt"', ""), parts, **login)
    run = workspace.tracking.run(seen["run"])
    [stored] = workspace.tracking.list_artifacts(f"{run.experiment}/{run.id}/artifacts")
    assert (stored.path.rpartition("/")[2], stored.size) == ("big.bin", 12 << 20)
