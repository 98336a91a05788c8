"""The processes of the serving tests: ``supervise FOLDER`` and the workers that it starts.

The folder stands in for the workspace: ``deployment.json`` is the catalog's row, ``log`` gets one
file per stored table, ``ack-<worker>`` the revision that a worker serves.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from everloop.api.serving import WorkerInference
from everloop.core.deploy import Deployment
from everloop.core.ids import new_id
from everloop.serving.supervisor import ProcessTree, bind, worker_children
from everloop.serving.worker import ServingServices, run_worker
from tests.unit.serving_fakes import FakeModels, load


class FolderDeployments:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def deployment(self, name: str) -> Deployment:
        return self.deployments()[0]

    def deployments(self) -> list[Deployment]:
        data = (self.folder / "deployment.json").read_bytes()
        return [msgspec.json.decode(data, type=Deployment)]

    def acknowledge(self, name: str, worker: str, pid: int, revision: int) -> None:
        replace(self.folder / f"ack-{worker}", f"{pid} {revision}".encode())


class FolderSink:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, deployment: str, rows: Any) -> str:
        text = "\n".join(rows.column("id").to_pylist())
        replace(self.folder / "log" / new_id(), text.encode())
        return ""


def replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_bytes(data)
    temporary.rename(path)


def put(folder: Path, deployment: Deployment) -> None:
    replace(folder / "deployment.json", msgspec.json.encode(deployment))


def supervise(folder: Path, workers: int) -> int:
    listening = bind("127.0.0.1", 0)
    command = (sys.executable, "-m", "tests.e2e.serving_child", "work", str(folder))
    with tempfile.TemporaryDirectory() as metrics:
        children = worker_children(command, listening, workers, metrics_folder=metrics)
        replace(folder / "port", str(listening.getsockname()[1]).encode())
        return ProcessTree(children).run()


def work(folder: Path, fd: int, worker: str) -> int:
    services = ServingServices(
        deployments=FolderDeployments(folder),
        models=FakeModels(),
        predictions=FolderSink(folder),
        load=load,
    )
    return run_worker(fd, services, WorkerInference, worker=worker, poll_s=0.05)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("supervise", "work"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fd", type=int, default=-1)
    parser.add_argument("--worker", default="")
    options = parser.parse_args()
    if options.role == "supervise":
        return supervise(options.folder, options.workers)
    return work(options.folder, options.fd, options.worker)


if __name__ == "__main__":
    sys.exit(main())
