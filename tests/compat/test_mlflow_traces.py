"""The real MLflow client's traces and webhooks against this server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.workspace import Workspace
from tests.receivers import Received, Receiver, receiving
from tests.servers import serve

pytestmark = pytest.mark.timeout(300)

SCRIPT = Path(__file__).with_name("mlflow_traces_client.py")
SECRET = "a secret of the receiver"
# 2 examples, then one message for each change of the registry.
MESSAGES = 8


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Workspace]:
    with (
        pytest.MonkeyPatch.context() as patch,
        ev.open(tmp_path_factory.mktemp("traces") / ".everloop", actor="tester") as opened,
    ):
        patch.setenv("EVERLOOP_WEBHOOK_HOSTS", receiver.host)
        yield opened


@pytest.fixture(scope="module")
def seen(
    workspace: Workspace, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    with serve(workspace) as url:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")},
            "HOME": str(tmp_path_factory.mktemp("home")),
            "RECEIVER": receiver.url,
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "GIT_PYTHON_REFRESH": "quiet",
        }
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
        if "traceback" not in told["webhooks"]:
            receiver.wait_for(MESSAGES, "/all")
        yield told


def of(seen: dict[str, Any], section: str) -> dict[str, Any]:
    told: dict[str, Any] = seen[section]
    assert "traceback" not in told, told["traceback"]
    return told


def test_logged_trace_comes_back_whole(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "logged")
    assert told["state"] == ["OK", "ERROR"]
    assert told["spans"] == [
        ["root", "CHAIN", {"q": "hi"}, {"a": "yo å"}],
        ["child", "LLM", {"a": 1}, [1, 2.5, None]],
    ]
    assert told["attribute"] == 0.5
    assert told["parent"]
    assert told["previews"] == ['{"q": "hi"}', '{"a": "yo å"}']
    assert told["event"] == "no"
    # From the spans that came by OTLP, not from the file that clients store beside them.
    assert told["location"] == "TRACKING_STORE"


def test_traces_are_found(seen: dict[str, Any]) -> None:
    told = of(seen, "searched")
    everything = ["root", "fails", "tagged", "in run"]
    assert told["all"] == everything
    assert told["frame"] == 4
    assert told["newest"] == ["in run"]
    assert told["by name"] == sorted(everything, reverse=True)
    assert told["error"] == ["fails"]
    assert told["tag"] == told["request"] == ["tagged"]
    assert told["like"] == told["span"] == told["type"] == told["text"] == ["root"]
    assert told["run"] == ["in run"]
    assert told["late"] == []
    assert told["quick"] == everything
    assert told["pages"] == [3, 1, ""]
    assert told["sessions"] == 1
    assert told["wrong"][0] == "INVALID_PARAMETER_VALUE"
    assert told["absent"][0] == "RESOURCE_DOES_NOT_EXIST"


def test_assessments(seen: dict[str, Any]) -> None:
    told = of(seen, "assessed")
    assert told["made"] == [True, "good", "me", {"m": "1"}]
    assert told["expected"] == {"x": [1]}
    assert told["changed"] == [False, "hm", {"m": "1"}]
    assert told["found"] == [True]
    assert told["left"] == [["ok", False, False], ["bad", None, True], ["ok", "new", True]]
    assert told["error"] == "broken"
    assert told["gone"] == "RESOURCE_DOES_NOT_EXIST"


def test_tags_links_and_deletion(seen: dict[str, Any]) -> None:
    told = of(seen, "changed")
    assert told == {
        "tag": "1",
        "without": False,
        "linked": 2,
        "deleted": 1,
        "rest": 3,
        "oldest": 1,
    }


def test_webhooks_are_kept_and_refused(seen: dict[str, Any], workspace: Workspace) -> None:
    told = of(seen, "webhooks")
    assert told["made"] == ["all", "everything", "ACTIVE", 7]
    assert told["secret"] is False
    assert told["listed"] == [["all"], ["other"]]
    assert told["tried"] == [True, 200, "taken"]
    assert told["tried other"]
    assert told["moved"][:2] == ["moved", "ACTIVE"]
    assert told["deleted"] == [None, "RESOURCE_DOES_NOT_EXIST"]
    assert {code for code, _ in told["refused"].values()} == {"INVALID_PARAMETER_VALUE"}
    assert "wanted https" in told["refused"]["http"][1]
    assert "private or reserved" in told["refused"]["loopback"][1]
    assert "private or reserved" in told["refused"]["metadata"][1]


def test_registry_events_are_delivered_signed(seen: dict[str, Any], receiver: Receiver) -> None:
    of(seen, "webhooks")
    came = receiver.wait_for(MESSAGES, "/all")
    assert len(came) == MESSAGES
    assert all(_is_signed(item) for item in came)
    assert len({item.headers["x-mlflow-delivery-id"] for item in came}) == MESSAGES
    bodies = [json.loads(item.body) for item in came]
    assert [f"{body['entity']}.{body['action']}" for body in bodies] == [
        "registered_model.created",
        "model_version_alias.deleted",
        "registered_model.created",
        "model_version.created",
        "model_version_tag.set",
        "model_version_tag.deleted",
        "model_version_alias.created",
        "model_version_alias.deleted",
    ]
    assert [body["data"] for body in bodies[2:]] == [
        {"name": "hooked", "tags": {"team": "ops"}, "description": "a model"},
        {
            "name": "hooked",
            "version": "1",
            "source": "s3://bucket/model",
            "run_id": None,
            "tags": bodies[3]["data"]["tags"],
            "description": None,
        },
        {"name": "hooked", "version": "1", "key": "checked", "value": "yes"},
        {"name": "hooked", "version": "1", "key": "checked"},
        {"name": "hooked", "alias": "champion", "version": "1"},
        {"name": "hooked", "alias": "champion"},
    ]
    assert receiver.wait_for(0, "/other") == []


def _is_signed(item: Received) -> bool:
    content = b".".join(
        [
            item.headers["x-mlflow-delivery-id"].encode(),
            item.headers["x-mlflow-timestamp"].encode(),
            item.body,
        ]
    )
    wanted = base64.b64encode(hmac.digest(SECRET.encode(), content, hashlib.sha256)).decode()
    return item.headers["x-mlflow-signature"] == f"v1,{wanted}"
