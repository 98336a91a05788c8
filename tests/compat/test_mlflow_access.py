"""The real MLflow client at a server with users: right, wrong, missing and revoked credentials."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.workspace import Workspace

pytestmark = pytest.mark.timeout(300)

PASSWORD = "correct horse battery"

SCRIPT = Path(__file__).with_name("mlflow_access_client.py")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with ev.open(tmp_path_factory.mktemp("access") / ".everloop", actor="server") as opened:
        opened.access.create_user("ann", "admin", password=PASSWORD)
        opened.access.create_user("bob", "contributor", password=PASSWORD)
        opened.access.create_user("vic", "viewer", password=PASSWORD)
        yield opened


class Client:
    """MLflow's client in a process that does the same with each login that it is given."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def __call__(self, more: dict[str, str] | None = None, **login: str) -> dict[str, str]:
        """What it saw, with the variables of `login`, named without their prefix."""
        variables = {f"MLFLOW_TRACKING_{key.upper()}": value for key, value in login.items()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(variables | (more or {})), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        seen: dict[str, str] = json.loads(line)
        return seen


@pytest.fixture(scope="module")
def client(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("client")
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        yield Client(process, folder / "log")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def test_name_and_password_log_in(client: Client, workspace: Workspace) -> None:
    seen = client(username="bob", password=PASSWORD)
    assert seen["text"] == "some text"
    run = workspace.tracking.run(seen["run"])
    assert (run.actor, run.metrics) == ("bob", {"auc": 0.9})


def test_a_token_logs_in_until_it_is_revoked(client: Client, workspace: Workspace) -> None:
    made = workspace.access.create_token("bob")
    seen = client(token=made.secret)
    assert workspace.tracking.run(seen["run"]).actor == "bob"
    workspace.access.revoke_token(made.token.id)
    assert client(token=made.secret)["error"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("login", [{}, {"username": "bob", "password": "wrong password"}])
def test_without_credentials_and_with_wrong_ones_it_is_refused(
    client: Client, login: dict[str, str]
) -> None:
    seen = client(**login)
    assert seen["error"] == "UNAUTHENTICATED"
    assert "log in" in seen["message"] or "wrong" in seen["message"]


def test_who_may_not_is_told_what_it_takes(client: Client) -> None:
    seen = client(username="vic", password=PASSWORD)
    assert seen["error"] == "PERMISSION_DENIED"
    assert "contributor" in seen["message"]


def test_an_upload_in_parts_needs_no_more(client: Client, workspace: Workspace) -> None:
    """The client sends the parts without credentials."""
    parts = {
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(6 << 20),
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(5 << 20),
    }
    seen = client(parts, username="bob", password=PASSWORD)
    run = workspace.tracking.run(seen["run"])
    [stored] = workspace.tracking.list_artifacts(f"{run.experiment}/{run.id}/artifacts")
    assert (stored.path.rpartition("/")[2], stored.size) == ("big.bin", 12 << 20)
