"""MLflow's client with one login after another, in one process, as importing it takes seconds.

Run by test_mlflow_access.py with MLFLOW_TRACKING_URI set. Reads a JSON object a line: by name the
variables of a login, and what else the client shall have. Answers each with what the client saw.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException


def seen(big: bool) -> dict[str, object]:
    try:
        mlflow.set_experiment("of clients")
        with mlflow.start_run() as run:
            mlflow.log_metric("auc", 0.9)
            mlflow.log_params({"lr": 1, "depth": 2})
            if big:
                Path("big.bin").write_bytes(b"x" * (12 << 20))
                mlflow.log_artifact("big.bin")
            else:
                mlflow.log_text("some text", "notes/text.txt")
        told: dict[str, object] = {"run": run.info.run_id}
        if not big:
            told["text"] = mlflow.artifacts.load_text(run.info.artifact_uri + "/notes/text.txt")
    except MlflowException as error:
        return {"error": error.error_code, "message": str(error)}
    return told


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the client prints where a run can be looked at
    for line in sys.stdin:
        login = json.loads(line)
        os.environ.update(login)
        told = seen(big="MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE" in login)
        for name in login:
            del os.environ[name]
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
