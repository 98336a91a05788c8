"""Asking MLflow's door in this process, and judging its answers."""

from __future__ import annotations

import itertools
import json
from typing import Any
from urllib.parse import quote, urlencode

from starlette.types import ASGIApp

from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts"
JSON = {"Content-Type": "application/json"}

#: Code and status of an error as a test names it.
INVALID = ("INVALID_PARAMETER_VALUE", 400)
TAKEN = ("RESOURCE_ALREADY_EXISTS", 400)
ABSENT = ("RESOURCE_DOES_NOT_EXIST", 404)


class Door:
    """One server; paths are below its API unless they begin with a slash."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.app: ASGIApp = make_app(workspace)
        self._names = itertools.count()

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        target = path if path.startswith("/") else f"{API}/{path}"
        if body is None:
            data: bytes | list[bytes] = b""
        elif isinstance(body, bytes | list) and not isinstance(body, dict):
            data = body
        else:
            data = json.dumps(body).encode()
        return ask(self.app, method, target, data, headers=JSON if headers is None else headers)

    def post(self, path: str, body: Any) -> Any:
        return self.good(self.send("POST", path, body))

    def get(self, path: str, /, **query: Any) -> Any:
        return self.good(self.send("GET", f"{path}?{urlencode(query, doseq=True)}"))

    @staticmethod
    def good(answer: Answer) -> Any:
        assert answer.status == 200, answer.text
        return answer.json()

    @staticmethod
    def refused(answer: Answer, error: tuple[str, int] = INVALID) -> str:
        assert (answer.json()["error_code"], answer.status) == error, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert "Traceback" not in answer.text
        assert "SELECT" not in answer.text
        return str(answer.json()["message"])

    def name(self, kind: str = "n") -> str:
        """A name that nothing else in this module has."""
        return f"{kind}-{next(self._names)}"

    def experiment(self, **fields: Any) -> str:
        made = self.post("experiments/create", {"name": self.name("exp"), **fields})
        return str(made["experiment_id"])

    def run(self, experiment_id: str = "0", **fields: Any) -> str:
        made = self.post("runs/create", {"experiment_id": experiment_id, **fields})
        return str(made["run"]["info"]["run_id"])

    def logged_model(self, experiment_id: str = "0", **fields: Any) -> str:
        made = self.post("logged-models", {"experiment_id": experiment_id, **fields})
        return str(made["model"]["info"]["model_id"])

    def model(self, *sources: str) -> str:
        """A registered model with a version of each source."""
        name = self.name("model")
        self.post("registered-models/create", {"name": name})
        for source in sources:
            self.post("model-versions/create", {"name": name, "source": source})
        return name

    def put(self, path: str, data: bytes | list[bytes]) -> None:
        answer = ask(self.app, "PUT", f"{FILES}/artifacts/{quote(path)}", data)
        assert answer.json() == {}
