"""``everloop export kuberay``: manifests that KubeRay's schema takes, and no others."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from everloop.cli.main import main
from everloop.errors import InvalidInput
from everloop.pipelines.kuberay import JobShape, ray_job

SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())

FLOW = """
import everloop as ev

@ev.step(cpus=2, memory="6GiB")
def train(x: int) -> int:
    return x

@ev.pipeline
def Retrain_All(x: int, note: str = "") -> int:
    return train(x)
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    file = tmp_path / f"exported_{tmp_path.name.lower()}.py"
    file.write_text(FLOW)
    return file


def export(flow: Path, *options: str) -> Result:
    arguments = ["export", "kuberay", f"{flow}:Retrain_All", *options]
    return CliRunner().invoke(main, arguments)


def written(flow: Path, *options: str) -> Any:
    done = export(flow, "x=1", "--image", "registry.example/loop:1", *options)
    assert done.exit_code == 0, done.output
    found = yaml.safe_load(done.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def test_the_manifest_runs_the_pipeline_on_the_cluster_of_the_job(flow: Path) -> None:
    made = written(flow, "note=two words", "--cpus", "2", "--memory", "8Gi", "--folder", "/app")
    spec = made["spec"]
    assert shlex.split(spec["entrypoint"]) == [
        *("everloop", "run", f"/app/{flow.name}:Retrain_All", "x=1", "note=two words"),
        *("--on", "ray"),
    ]
    assert made["metadata"]["name"].endswith("-retrain-all")
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "2", "memory": "8Gi"}
    assert worker["envFrom"] == [{"secretRef": {"name": "everloop"}}]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}


def test_more_workers_on_demand_take_the_autoscaler(flow: Path) -> None:
    options = ("--cpus", "4", "--memory", "16Gi", "--gpus", "1", "--workers", "2")
    made = written(flow, *options, "--max-workers", "9", "--namespace", "ml", "--name", "nightly")
    assert made["metadata"] | {"labels": 0} == {"name": "nightly", "namespace": "ml", "labels": 0}
    cluster = made["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    [group] = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 9)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_a_step_that_no_worker_can_execute_is_named(flow: Path) -> None:
    done = export(flow, "x=1", "--image", "i")
    assert isinstance(done.exception, InvalidInput)
    told = str(done.exception)
    assert "train: asks for 2 cpus (a worker has 1), 6442450944 bytes of memory" in told


def test_arguments_are_checked_before_anything_is_written(flow: Path) -> None:
    done = export(flow, "x=many", "y=1", "--image", "i")
    assert isinstance(done.exception, InvalidInput)
    assert [fault.path for fault in done.exception.faults] == ["x", "y"]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Nightly"), ("name", ""), ("name", "a" * 48), ("name", "-a"), ("secret", "a b"),
        ("namespace", "ML"), ("image", "an image"), ("image", ""), ("memory", "lots"),
        ("cpus", "-1"), ("workers", 0), ("gpus", -1),
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_is_refused_here(field: str, value: Any) -> None:
    shape: Any = {"image": "i", "name": "n", "ray_version": "2.60.0", field: value}
    with pytest.raises(InvalidInput) as caught:
        ray_job("loop.py:main", [], JobShape(**shape))
    assert len(caught.value.faults) == 1
