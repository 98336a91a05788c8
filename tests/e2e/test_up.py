"""`everloop up`: one process tree that serves, stops cleanly, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

import everloop as ev
from tests.e2e.trees import answers, descendants, is_alive, wait_for


class Up(NamedTuple):
    process: subprocess.Popen[str]
    pages: str
    serving: str
    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose loop has run once."""
    folder = tmp_path_factory.mktemp("project")
    for arguments in (["init"], ["run", "loop.py:retrain"]):
        command = [sys.executable, "-m", "everloop", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def up(trained: Path, tmp_path: Path) -> Iterator[Up]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    log = (tmp_path / "up.log").open("w")
    command = [sys.executable, "-m", "everloop", "up", "loop.py"]
    command += ["--port", "0", "--serving-port", "0"]
    env = {**os.environ, "EVERLOOP_OPENLINEAGE": str(tmp_path / "openlineage.ndjson")}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=log, text=True, env=env)
    try:
        text = (tmp_path / "up.log").read_text
        found = wait_for("the addresses", lambda: re.findall(r"http://[\d.:]+", text()))
        wait_for("two addresses", lambda: len(re.findall(r"http://[\d.:]+", text())) == 2)
        pages, serving = re.findall(r"http://[\d.:]+", text())
        assert found
        wait_for("the pages", lambda: answers(f"{pages}/health"))
        wait_for("the model", lambda: answers(f"{serving}/v2/models/my-model/ready"))
        yield Up(process, pages, serving, tmp_path)
    finally:
        children = descendants(process.pid)
        process.kill()
        process.wait()
        wait_for("the end of all", lambda: not any(is_alive(child) for child in children))
        log.close()


REQUEST = {
    "id": "first",
    "inputs": [
        {
            "name": "asked_at",
            "shape": [1],
            "datatype": "BYTES",
            "data": ["2025-03-02T10:00:00+00:00"],
        },
        {"name": "size", "shape": [1], "datatype": "FP64", "data": [20.0]},
        {"name": "price", "shape": [1], "datatype": "FP64", "data": [30.0]},
    ],
}


def test_up_serves_restarts_a_killed_worker_and_stops_on_sigterm(up: Up) -> None:
    infer = f"{up.serving}/v2/models/my-model/infer"
    handed_on = up.folder / "openlineage.ndjson"
    wait_for("the events", lambda: handed_on.exists() and "COMPLETE" in handed_on.read_text())
    first = json.loads(answers(infer, REQUEST))
    assert 0 < first["outputs"][0]["data"][0] < 1
    assert json.loads(answers(f"{up.pages}/v2/models/my-model/infer", REQUEST))["outputs"]
    assert "my-model" in answers(up.pages)
    assert first["model_version"] == "1"
    with ev.open(up.folder / ".everloop") as workspace:
        # What `everloop run` had registered is served; nothing was trained beside it.
        assert [one.version for one in workspace.registry.versions("my-model")] == [1]

    children = descendants(up.process.pid)
    worker = next(pid for pid, line in children.items() if "_serve-worker" in line)
    os.kill(worker, signal.SIGKILL)
    again = wait_for("an answer of the next worker", lambda: answers(infer, REQUEST))
    assert json.loads(again)["outputs"][0]["data"] == first["outputs"][0]["data"]

    children = descendants(up.process.pid)
    assert worker not in children
    up.process.terminate()
    assert up.process.wait(120) == 0
    assert not [pid for pid in children if is_alive(pid)]

    everloop = [sys.executable, "-m", "everloop", "why"]
    identifier = json.loads(again)["parameters"]["prediction_id"]
    done = subprocess.run(
        [*everloop, identifier], cwd=up.folder, capture_output=True, text=True, check=False
    )
    assert "model my-model/" in done.stdout, done.stderr


def test_every_process_asks_from_the_first_user_on_and_heeds_a_revocation(up: Up) -> None:
    infer = f"{up.serving}/v2/models/my-model/infer"
    with ev.open(up.folder / ".everloop") as workspace:
        workspace.access.create_user("ann", "admin")
        made = workspace.access.create_token("ann", role="viewer")
        token = {"Authorization": f"Bearer {made.secret}"}

        def status(url: str, body: object = None, headers: dict[str, str] | None = None) -> int:
            return httpx.request(
                "GET" if body is None else "POST", url, json=body, headers=headers, timeout=30
            ).status_code

        asked = [(infer, REQUEST), (f"{up.serving}/metrics", None), (f"{up.pages}/metrics", None)]
        for url, body in asked:
            wait_for("a refusal", lambda url=url, body=body: status(url, body) == 401)
            assert status(url, body, token) == 200
        for base in (up.serving, up.pages):
            for path in ("/health", "/v2/health/live", "/v2/health/ready"):
                assert status(f"{base}{path}") == 200
        workspace.access.revoke_token(made.token.id)
        for url, body in asked:
            wait_for("the end", lambda url=url, body=body: status(url, body, token) == 401)


def test_up_killed_at_once_leaves_no_orphan_and_starts_again(up: Up) -> None:
    children = descendants(up.process.pid)
    assert len(children) >= 3
    up.process.kill()
    up.process.wait()
    wait_for("the end of the children", lambda: not any(is_alive(child) for child in children))
    done = subprocess.run(
        [sys.executable, "-m", "everloop", "deploy", "status", "--json"],
        cwd=up.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)[0]["deployment"]["state"] == "serving"


def test_up_without_a_loop_says_how_to_make_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "everloop", "up", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert "everloop init" in process.stderr.readline()
        finally:
            process.terminate()
