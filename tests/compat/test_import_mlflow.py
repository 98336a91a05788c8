"""Stores made by MLflow's own client, imported: that client sees here what it saw there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.transfer.report import TransferReport
from everloop.workspace import Workspace
from tests.servers import serve

pytestmark = pytest.mark.timeout(400)

SCRIPT = Path(__file__).with_name("mlflow_store.py")
KINDS = ("files", "sqlite", "server")
START_S = 90


def environment() -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")},
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def client(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]  # the client says before where runs can be looked at


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def mlflow_server(root: Path) -> Iterator[str]:
    folder = root / "server"
    folder.mkdir()
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--port", str(port)]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            command,
            env=environment(),
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not answers(f"{url}/health"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def postgres_store(postgres_url: str) -> Iterator[str]:
    """URL of a database for a store of MLflow's."""
    import psycopg

    name = f"everloop_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def seen_there(root: Path, mlflow_server: str, postgres_store: str) -> dict[str, Any]:
    """What MLflow's client sees in each store, after it filled them."""
    uris = {
        "files": f"file://{root}/files/mlruns",
        "sqlite": f"sqlite:///{root}/sqlite/mlflow.db",
        "server": mlflow_server,
        "postgres": postgres_store.replace("postgresql://", "postgresql+psycopg://"),
    }
    for kind in uris:
        (root / kind).mkdir(exist_ok=True)
    told = client(root, "make", *(f"{root / kind}={uri}" for kind, uri in uris.items()))
    return dict(zip(uris, json.loads(told), strict=True))


@pytest.fixture(scope="module")
def stores(root: Path, mlflow_server: str, seen_there: dict[str, Any]) -> dict[str, str]:
    """The source of each kind, as a person would name it."""
    return {
        "files": str(root / "files" / "mlruns"),
        "sqlite": str(root / "sqlite" / "mlflow.db"),
        "server": mlflow_server,
    }


@pytest.fixture(scope="module")
def imported(
    root: Path, stores: dict[str, str]
) -> Iterator[dict[str, tuple[Workspace, TransferReport]]]:
    with ExitStack() as stack:
        found = {}
        for kind, source in stores.items():
            workspace = stack.enter_context(ev.open(root / f"{kind}.everloop", actor="tester"))
            found[kind] = (workspace, workspace.import_mlflow(source))
        yield found


@pytest.fixture(scope="module")
def seen_here(root: Path, imported: dict[str, tuple[Workspace, TransferReport]]) -> dict[str, Any]:
    with ExitStack() as stack:
        copies = [stack.enter_context(ev.open(w.folder)) for w, _ in imported.values()]
        urls = [stack.enter_context(serve(workspace)) for workspace in copies]
        return dict(zip(KINDS, json.loads(client(root, "see", *urls)), strict=True))


def counts(report: TransferReport) -> dict[str, tuple[int, int, int, int]]:
    return {c.kind: (c.found, c.imported, c.there, c.failed) for c in report.counts}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_found_was_imported_and_nothing_failed(
    kind: str, imported: dict[str, tuple[Workspace, TransferReport]]
) -> None:
    report = imported[kind][1]
    assert report.refusals == ()
    assert counts(report) == {
        "experiment": (3, 2, 1, 0),
        "run": (6, 6, 0, 0),
        "points": (934, 934, 0, 0),
        "files": (5, 5, 0, 0),
        "logged model": (1, 1, 0, 0),
        "trace": (2, 2, 0, 0),
        "spans": (3, 3, 0, 0),
        "assessment": (5, 5, 0, 0),
        "model": (3, 3, 0, 0),
        "version": (5, 5, 0, 0),
        "alias": (2, 2, 0, 0),
    }
    assert report.bytes == 256 * 8192 + 8 + 2 * len("flavors: {}\n")


@pytest.mark.parametrize("kind", KINDS)
def test_mlflow_client_sees_the_same(
    kind: str, root: Path, seen_there: dict[str, Any], seen_here: dict[str, Any]
) -> None:
    there, here = seen_there[kind], seen_here[kind]
    for experiment in here["experiments"].values():
        # A server of MLflow's keeps files itself; the stores say in which folder they are.
        place = experiment["tags"].pop("everloop.imported_from", "")
        assert place.startswith(str(root)) or "file:" in place or not place
    assert here["experiments"] == there["experiments"]
    for id_, run in there["runs"].items():
        if kind == "sqlite":  # that store keeps them and tells nobody, not even over a server
            run["read"] = run["read"] or here["runs"][id_]["read"]
        assert here["runs"][id_] == run
    assert here["runs"].keys() == there["runs"].keys()
    told = 0 if kind == "server" else 1
    assert sum(len(run["read"]) for run in here["runs"].values()) == told
    assert here["models"] == there["models"]
    assert [trace["info"]["trace_id"] for trace in there["traces"]]
    assert here["traces"] == there["traces"]
    assert here["prompt"] == there["prompt"]
    for found in (there, here):
        for version in found["registered"]["reg"]["versions"].values():
            version["tags"].pop("everloop.imported_from", None)
    assert here["registered"] == there["registered"]
    assert sorted(here["registered"]["reg"]["versions"]) == ["1", "3", "4", "5"]


@pytest.mark.parametrize("kind", KINDS)
def test_again_changes_nothing(
    kind: str,
    stores: dict[str, str],
    imported: dict[str, tuple[Workspace, TransferReport]],
    seen_here: dict[str, Any],
) -> None:
    workspace = imported[kind][0]
    before = list(dump(workspace))
    report = workspace.import_mlflow(stores[kind])
    assert report.refusals == ()
    assert all(count.imported == 0 for count in report.counts if count.kind != "files")
    assert list(dump(workspace)) == before


def dump(workspace: Workspace) -> Iterator[str]:
    with sqlite3.connect(workspace.folder / "catalog.sqlite") as connection:
        yield from connection.iterdump()


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_a_deleted_version_is_not_used_again(
    kind: str, root: Path, imported: dict[str, tuple[Workspace, TransferReport]]
) -> None:
    copy = root / f"{kind}.numbers"
    shutil.copytree(imported[kind][0].folder, copy)
    with ev.open(copy) as workspace:
        made = workspace.registry.register_source("reg", "runs:/x/m")
    # A server does not tell that there was a version 6.
    assert made.version == (6 if kind == "server" else 7)


def test_store_that_was_moved_is_found_beside_itself(
    root: Path, stores: dict[str, str], imported: dict[str, tuple[Workspace, TransferReport]]
) -> None:
    moved = root / "elsewhere"
    shutil.copytree(Path(stores["sqlite"]).parent, moved)
    text = sqlite3.connect(moved / "mlflow.db")
    old, new = str(Path(stores["sqlite"]).parent), "/nowhere/at/all"
    with text:
        for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            text.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
        text.execute("UPDATE model_versions SET source = replace(source, ?, ?)", (old, new))
    text.close()
    with ev.open(root / "moved.everloop") as workspace:
        report = workspace.import_mlflow(str(moved / "mlflow.db"))
    assert report.refusals == ()
    assert counts(report) == counts(imported["sqlite"][1])


def test_postgres_store_and_postgres_workspace(
    seen_there: dict[str, Any],
    postgres_store: str,
    postgres_database: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    with ev.open(postgres_database, actor="tester") as workspace:
        report = workspace.import_mlflow(postgres_store)
        assert report.refusals == ()
        assert counts(report)["run"] == (6, 6, 0, 0)
        assert counts(report)["points"] == (934, 934, 0, 0)
        again = workspace.import_mlflow(postgres_store)
        assert counts(again)["run"] == (6, 0, 6, 0)
        # Ids that were kept are counted on from.
        made = workspace.tracking.create_experiment("made here")
        assert int(made.id) == 3
