"""Who asks a server is told as MLflow's own clients tell it, and never shown."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import everloop as ev
from everloop import settings
from everloop.errors import NotAllowed

SECRET = "open sesame"
BASIC = f"Basic {base64.b64encode(f'ann:{SECRET}'.encode()).decode()}"


@pytest.fixture
def guarded() -> Iterator[str]:
    """An empty store behind a login; the second answer of the server is 503."""
    answered: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def do_GET(self) -> None:
            answered.append(self.path)
            known = self.headers.get("Authorization") in (BASIC, f"Bearer {SECRET}")
            status = 401 if not known else 503 if len(answered) == 2 else 200
            body = b"{}" if known else b"who is asking?"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.transfer.http._FIRST_WAIT_S", 0)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.parametrize("way", ["name", "token", "address"])
def test_credentials_are_sent(
    way: str, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{guarded}"
    if way == "name":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    elif way == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    else:
        url = f"http://ann:{SECRET.replace(' ', '%20')}@{guarded}"
    assert SECRET not in repr(settings.mlflow_login())
    with ev.open(tmp_path / "ws") as ws:
        report = ws.import_mlflow(url)
    assert report.is_complete
    assert report.origin == f"http://{guarded}"


def test_refusal_says_which_variables_to_set(guarded: str, tmp_path: Path) -> None:
    with ev.open(tmp_path / "ws") as ws, pytest.raises(NotAllowed, match="MLFLOW_TRACKING_TOKEN"):
        ws.import_mlflow(f"http://{guarded}")
