"""Runs the projects of the edit matrix, each as a pipeline, in one process; writes what happened.

Started as ``python edit_runner.py FOLDER``: each folder in it is a project with a ``flow.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import everloop
from everloop.core.context import using


def run(folder: Path, workspace: Any) -> dict[str, Any]:
    package = folder.name
    settings = json.loads((folder / "settings.json").read_text())
    os.chdir(folder)
    os.environ.update(settings)
    sys.path.insert(0, str(folder))
    try:
        pipeline = importlib.import_module(f"{package}.flow").main
        began = time.process_time()
        value = pipeline.run()
        spent = time.process_time() - began
        told = {}
        for row in workspace.pipelines.steps(pipeline.run_id):
            name = row.step.rpartition(".")[2]
            (why,) = workspace.pipelines.explain(pipeline.run_id, name)
            told[name] = {
                "outcome": row.outcome,
                "reason": why.reason,
                "changes": [change.part for change in why.changes],
                "parts": why.parts,
                "notes": why.notes,
            }
        # Outside a run every step is its bare function: this is what is true now.
        return {"value": repr(value), "truth": repr(pipeline()), "steps": told, "spent": spent}
    except Exception as error:  # noqa: BLE001 - a case that breaks is told by its test
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        sys.path.remove(str(folder))
        for name in settings:
            os.environ.pop(name, None)


def main(root: Path) -> None:
    with everloop.open(root / "workspace") as workspace, using(workspace):
        found = {
            folder.name: run(folder, workspace)
            for folder in sorted(root.iterdir())
            if (folder / "settings.json").exists()
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
