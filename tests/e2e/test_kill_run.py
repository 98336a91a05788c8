"""A run killed by SIGKILL in its second step goes on under its id; finished work stays done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.pipelines.service import PipelineService
from everloop.tracking.service import TrackingService

FLOW = """
    import sys
    import time
    from pathlib import Path
    from types import SimpleNamespace

    import numpy as np
    import pyarrow as pa

    from everloop.access.policy import EmbeddedAuthorizer
    from everloop.backends.blobs.local import LocalBlobs
    from everloop.catalog.engine import Catalog
    from everloop.core.context import using
    from everloop.pipelines import api as ev
    from everloop.pipelines.service import PipelineService
    from everloop.tracking.service import TrackingService


    def executed(folder, name):
        with open(f"{folder}/executed", "a") as file:
            file.write(name + "\\n")


    @ev.step
    def load(folder: str) -> pa.Table:
        executed(folder, "load")
        ev.log(rows=1000.0)
        return pa.table({"x": np.arange(1000)})


    @ev.step
    def train(folder: str, rows: pa.Table) -> float:
        executed(folder, "train")
        if not Path(f"{folder}/go").exists():
            print("in the second step", flush=True)
            time.sleep(60)
        return float(rows["x"].to_numpy().mean())


    @ev.step
    def report(folder: str, mean: float) -> str:
        executed(folder, "report")
        return f"mean {mean}"


    @ev.pipeline
    def flow(folder: str) -> str:
        return report(folder, train(folder, load(folder)))


    if __name__ == "__main__":
        folder, resume = sys.argv[1], sys.argv[2]
        catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite")
        blobs, authorizer = LocalBlobs(f"{folder}/objects"), EmbeddedAuthorizer()
        workspace = SimpleNamespace(
            catalog=catalog,
            blobs=blobs,
            data=None,
            tracking=TrackingService(catalog, blobs, authorizer),
            pipelines=PipelineService(catalog, blobs, authorizer),
        )
        with using(workspace):
            result = flow.run(resume=resume) if resume else flow.run(folder=folder)
        print(result, flow.run_id)
"""


def test_killed_run_resumes_under_its_id(tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(textwrap.dedent(FLOW))
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen([*command, ""], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline().strip() == "in the second step"
        os.kill(killed.pid, signal.SIGKILL)
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")
    blobs, authorizer = LocalBlobs(tmp_path / "objects"), EmbeddedAuthorizer()
    service = PipelineService(catalog, blobs, authorizer)
    tracking = TrackingService(catalog, blobs, authorizer)
    [run] = tracking.runs().runs
    assert run.state == "running"  # nobody has looked yet
    assert [(s.step, s.outcome) for s in service.steps(run.id)] == [("flow.load", "ran")]
    assert tracking.reap() == [run.id]  # its lease has not run out, but its process is gone

    (tmp_path / "go").touch()
    done = subprocess.run([*command, run.id], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["mean", "499.5", run.id]
    executed = (tmp_path / "executed").read_text().split()
    assert executed == ["load", "train", "train", "report"]
    again = tracking.run(run.id)
    assert (again.state, again.fence) == ("finished", 2)
    assert again.metrics == {"rows": 1000.0}
    outcomes = [(s.step.rpartition(".")[2], s.outcome) for s in service.steps(run.id)]
    assert outcomes[1:] == [("load", "cached"), ("train", "ran"), ("report", "ran")]
    kinds = [event.kind for event in catalog.events(subject=f"run:{run.id}")]
    assert kinds == ["run.Started", "run.Lost", "run.Resumed", "run.Finished"]
    catalog.close()
