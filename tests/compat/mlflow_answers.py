"""MLflow's own server, asked without a socket: a request in each line, its answer in the next.

Run as ``mlflow_answers.py FOLDER``. A request is ``[method, target, body, headers]``, where a body
is an object, or the bytes of a protobuf message as base64. What MLflow prints goes elsewhere.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from typing import Any

folder = sys.argv[1]
os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
}
answers, sys.stdout = sys.stdout, sys.stderr

from mlflow.server import app  # noqa: E402
from mlflow.server.fastapi_app import create_fastapi_app  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

logging.disable(logging.CRITICAL)
flask = app.test_client()
# The few routes that are no Flask routes, such as /v1/traces.
starlette = TestClient(create_fastapi_app(app), base_url="http://localhost")


def answer(method: str, target: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    if isinstance(body, str):
        done = starlette.request(method, target, content=base64.b64decode(body), headers=headers)
        return done.status_code, done.text
    told = flask.open(target, method=method, json=body, headers=headers)
    return told.status_code, told.get_json(silent=True) or told.get_data(as_text=True)


for line in sys.stdin:
    answers.write(json.dumps(answer(*json.loads(line))) + "\n")
    answers.flush()
