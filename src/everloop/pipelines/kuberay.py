"""A pipeline as a job of KubeRay: the manifest of a RayJob, which Kubernetes then runs.

The fields are those of ``RayJob`` in ``ray.io/v1``. Nothing is sent anywhere from here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

import msgspec

from everloop.errors import InvalidInput
from everloop.pipelines.definition import Step

__all__ = ["JobShape", "ray_job", "too_large_for"]

#: KubeRay makes names of pods and services from that of the job.
_LONGEST_NAME = 47
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTPE]i?|m|k)?")
_IMAGE = re.compile(r"[\w./:@-]+")
_KEEP_S = 600
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class JobShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a job takes of Kubernetes.

    Attributes:
        image: With Python, Everloop, Ray, the pipeline's file and what it imports.
        name: Of the job; lower-case letters, digits and hyphens.
        folder: Where the image has the pipeline's file; empty is where it starts.
        secret: Whose entries become environment variables: ``EVERLOOP_DIR``, and what else
            the workspace needs.
        workers: Pods that execute steps.
        most_workers: Up to so many, by Ray's autoscaler; no more than `workers` if 0.
        cpus: Processors of each of them.
        memory: Of each, as Kubernetes writes it.
        gpus: Graphics cards of each.
        namespace: Empty is where the manifest is applied.
        ray_version: Of Ray in the image; that of Ray here if empty.
    """

    image: str
    name: str
    folder: str = ""
    secret: str = "everloop"
    workers: int = 1
    most_workers: int = 0
    cpus: str = "1"
    memory: str = "4Gi"
    gpus: int = 0
    namespace: str = ""
    ray_version: str = ""


def ray_job(target: str, arguments: Iterable[str], shape: JobShape) -> dict[str, Any]:
    """The manifest of a job that runs a pipeline.

    Args:
        target: ``file.py:pipeline``.
        arguments: As ``everloop run`` takes them.
        shape: What it takes.

    Raises:
        InvalidInput: With everything that is wrong with `shape`.
    """
    _check(shape)
    file, _, pipeline = target.rpartition(":")
    path = str(PurePosixPath(shape.folder) / PurePosixPath(file).name) if shape.folder else file
    command = ["everloop", "run", f"{path}:{pipeline}", *arguments, "--on", "ray"]
    names = {"app.kubernetes.io/managed-by": "everloop"}
    metadata = {"name": shape.name, "labels": names}
    if shape.namespace:
        metadata["namespace"] = shape.namespace
    most = max(shape.workers, shape.most_workers)
    cluster: dict[str, Any] = {
        "rayVersion": shape.ray_version or _ray_version(),
        "headGroupSpec": {
            # The head keeps the cluster and runs the pipeline; steps go to the others.
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod("ray-head", shape, {"cpu": "1", "memory": "4Gi"}),
        },
        "workerGroupSpecs": [
            {
                "groupName": "steps",
                "replicas": shape.workers,
                "minReplicas": shape.workers,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": _pod("ray-worker", shape, _resources(shape)),
            }
        ],
    }
    if most > shape.workers:
        cluster["enableInTreeAutoscaling"] = True
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": shlex.join(command),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _KEEP_S,
            "rayClusterSpec": cluster,
        },
    }


def _check(shape: JobShape) -> None:
    faults = []
    for field in ("name", "secret", "namespace"):
        value = getattr(shape, field)
        needed = field != "namespace"
        if (value or needed) and (not _NAME.fullmatch(value) or len(value) > _LONGEST_NAME):
            told = f"{value!r}: lower-case letters, digits and hyphens, {_LONGEST_NAME} at most"
            faults.append((field, told))
    if not _IMAGE.fullmatch(shape.image):
        faults.append(("image", f"{shape.image!r} names no image"))
    for field in ("cpus", "memory"):
        value = getattr(shape, field)
        if not _QUANTITY.fullmatch(value):
            faults.append((field, f"{value!r} is no quantity, such as 2, 500m or 8Gi"))
    if shape.workers < 1 or shape.most_workers < 0 or shape.gpus < 0:
        faults.append(("workers", "at least one, and no number below 0"))
    if faults:
        raise InvalidInput("the job cannot be described", faults)


def _resources(shape: JobShape) -> dict[str, str]:
    found = {"cpu": shape.cpus, "memory": shape.memory}
    if shape.gpus:
        found["nvidia.com/gpu"] = str(shape.gpus)
    return found


def _pod(name: str, shape: JobShape, resources: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": shape.image,
        "envFrom": [{"secretRef": {"name": shape.secret}}],
        "resources": {"requests": resources, "limits": resources},
    }
    return {"spec": {"containers": [container]}}


def _ray_version() -> str:
    try:
        return version("ray")
    except PackageNotFoundError:
        raise InvalidInput(
            "which Ray the image has is not known here", hint="say it: --ray-version 2.60.0"
        ) from None


def too_large_for(shape: JobShape, steps: Iterable[Step]) -> list[tuple[str, str]]:
    """Steps that no worker of this shape can execute, with what they ask for."""
    cpus, memory = _number(shape.cpus), _number(shape.memory)
    faults = []
    for step in steps:
        asked = (("cpus", step.cpus, cpus), ("gpus", step.gpus, shape.gpus))
        wants = [
            f"{value:g} {name} (a worker has {has:g})" for name, value, has in asked if value > has
        ]
        if step.memory > memory:
            wants.append(f"{step.memory} bytes of memory (a worker has {memory:.0f})")
        if wants:
            faults.append((step.name, f"asks for {', '.join(wants)}"))
    return faults


def _number(quantity: str) -> float:
    if quantity.endswith("m"):
        return float(quantity[:-1]) / 1000
    digits = quantity.rstrip("KMGTPEik")
    return float(digits) * _UNITS.get(quantity[len(digits) :], 10**15)
