"""MLflow's command line, once for each JSON list of arguments that is given, in one process.

Run by tests with MLFLOW_TRACKING_URI set, as importing MLflow takes seconds. Prints a JSON list
with what each printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from mlflow.cli import cli


def printed(arguments: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(arguments, prog_name="mlflow", standalone_mode=False)
    return out.getvalue()


if __name__ == "__main__":
    print(json.dumps([printed(json.loads(line)) for line in sys.argv[1:]]))
