"""``everloop export``: what is here, in the words of other systems."""

from __future__ import annotations

import re
import sys

import click

from everloop.cli.output import json_document
from everloop.errors import InvalidInput

__all__ = ["export"]


@click.group()
def export() -> None:
    """Describe a pipeline for another system to run it."""


@export.command("kuberay")
@click.argument("target", metavar="FILE.py:PIPELINE")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--image", required=True, help="Has Everloop, Ray, the file and what it imports.")
@click.option("--name", default="", help="Of the job; made from the pipeline's if not given.")
@click.option("--namespace", default="", help="Where the manifest is applied if not given.")
@click.option("--folder", default="", metavar="PATH", help="Where the image has the file.")
@click.option(
    "--secret",
    default="everloop",
    show_default=True,
    help="Its entries become environment variables, with EVERLOOP_DIR among them.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Pods.")
@click.option("--max-workers", type=click.IntRange(min=0), default=0, help="Pods, on demand.")
@click.option("--cpus", default="1", show_default=True, help="Processors of a pod.")
@click.option("--memory", default="4Gi", show_default=True, help="Memory of a pod.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="Graphics cards of a pod.")
@click.option("--ray-version", default="", help="Of Ray in the image; as here if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def kuberay(
    target: str,
    arguments: tuple[str, ...],
    image: str,
    name: str,
    namespace: str,
    folder: str,
    secret: str,
    workers: int,
    max_workers: int,
    cpus: str,
    memory: str,
    gpus: int,
    ray_version: str,
    as_json: bool,
) -> None:
    """The manifest of a RayJob that runs a pipeline on Kubernetes, for kubectl apply -f -.

    The workspace must be one that pods reach: give its URL as EVERLOOP_DIR in the secret.
    """
    from everloop.cli.run import parse_arguments
    from everloop.pipelines.definition import Step
    from everloop.pipelines.kuberay import JobShape, ray_job, too_large_for
    from everloop.pipelines.load import load_module, load_pipeline

    pipeline = load_pipeline(target)
    parse_arguments(pipeline.function, arguments)
    plain = re.sub(r"[^a-z0-9]+", "-", pipeline.name.lower()).strip("-")
    shape = JobShape(
        image=image,
        name=name or plain[-47:].lstrip("-0123456789"),
        namespace=namespace,
        folder=folder,
        secret=secret,
        workers=workers,
        most_workers=max_workers,
        cpus=cpus,
        memory=memory,
        gpus=gpus,
        ray_version=ray_version,
    )
    made = ray_job(target, arguments, shape)
    module = load_module(target.rpartition(":")[0])
    faults = too_large_for(shape, [s for s in vars(module).values() if isinstance(s, Step)])
    if faults:
        raise InvalidInput(
            "steps ask for more than a worker has", faults, hint="see --cpus, --gpus and --memory"
        )
    if as_json:
        return json_document(made)
    import yaml

    sys.stdout.write(yaml.safe_dump(made, sort_keys=False))
