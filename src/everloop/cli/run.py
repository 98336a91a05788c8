"""``everloop run``: run a pipeline of a file, list runs, show one."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import click

from everloop.cli.main import common, open_workspace, run_named
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.package import PACKAGE_TAG
from everloop.core.run import Run
from everloop.core.time import parse_instant
from everloop.errors import InvalidInput

__all__ = ["parse_arguments", "run"]


class _RunGroup(click.Group):
    # `everloop run loop.py:retrain until=2013-04-01` reads better than `run start ...`.
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and (":" in args[0] or args[0].endswith(".py")):
            args = ["start", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_RunGroup)
def run() -> None:
    """Run a pipeline (FILE.py:PIPELINE name=value ...); list and show runs."""


@run.command("start")
@click.argument("target", metavar="FILE.py:PIPELINE")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--resume", default="", metavar="RUN", help="Go on with this run, under its id.")
@click.option("--force", is_flag=True, help="Run every step, whatever is stored.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes for steps side by side; as many as cores if not given.",
)
@click.option(
    "--on",
    default="",
    metavar="CLUSTER",
    help="Execute the steps on a Ray cluster: ray (RAY_ADDRESS, or the one here), ray://HOST:PORT.",
)
@common
def start(
    target: str,
    arguments: tuple[str, ...],
    resume: str,
    force: bool,
    workers: int | None,
    on: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Run a pipeline in this process, or its steps on a cluster."""
    from everloop.core.context import using
    from everloop.pipelines.load import load_pipeline

    with open_workspace(location, must_exist=False) as workspace, using(workspace):
        pipeline = load_pipeline(target)
        given = parse_arguments(pipeline.function, arguments)
        result = pipeline.run(resume=resume, force=force, workers=workers, on=on, **given)
        found = workspace.tracking.run(pipeline.run_id)
        steps = workspace.pipelines.steps(pipeline.run_id)
    if as_json:
        return json_document({"run": found, "steps": steps, "result": _shown(result)})
    ran = sum(step.outcome == "ran" for step in steps)
    say(f"run {found.id} {found.state}: {ran} steps ran, {len(steps) - ran} were cached")
    click.echo(_shown(result))


@run.command("list")
@click.option("--experiment", default="", help="Only runs of this experiment.")
@click.option("--limit", default=20, show_default=True)
@common
def list_(experiment: str, limit: int, location: str | None, as_json: bool) -> None:
    """The latest runs."""
    with open_workspace(location) as workspace:
        workspace.reap()
        chosen = [workspace.tracking.experiment_by_name(experiment).id] if experiment else None
        found = workspace.tracking.runs(chosen, limit=limit).runs
    if as_json:
        return json_document(found)
    table(
        ("id", "name", "pipeline", "state", "started", "metrics"),
        [
            (
                r.id,
                r.name,
                r.pipeline,
                r.state,
                r.started_at,
                " ".join(f"{k}={v:.4g}" for k, v in sorted(r.metrics.items())[:4]),
            )
            for r in found
        ],
    )


@run.command("show")
@click.argument("run_id", metavar="RUN")
@common
def show(run_id: str, location: str | None, as_json: bool) -> None:
    """One run (an id, or last): parameters, data, code, steps, metrics."""
    with open_workspace(location) as workspace:
        workspace.reap()
        found = workspace.tracking.run(run_named(workspace, run_id))
        steps = workspace.pipelines.steps(found.id)
    if as_json:
        return json_document({"run": found, "steps": steps})
    key_values(
        [
            ("run", found.id),
            ("pipeline", found.pipeline),
            ("state", found.state),
            ("actor", found.actor),
            ("started", found.started_at),
            ("ended", found.ended_at),
            ("code", found.code[:16]),
            *((("package", found.tags[PACKAGE_TAG]),) if PACKAGE_TAG in found.tags else ()),
            ("git", " ".join(f"{k}={v}" for k, v in found.git.items())),
            ("data", " ".join(f"{i.dataset}@{i.version}" for i in found.inputs)),
            *((f"param {k}", v) for k, v in sorted(found.params.items())),
            *((f"metric {k}", v) for k, v in sorted(found.metrics.items())),
        ]
    )
    table(
        ("seq", "step", "outcome", "seconds", "key"),
        [
            (s.seq, s.step, s.outcome, (s.ended_at - s.started_at).total_seconds(), s.key[:12])
            for s in steps
        ],
    )
    if found.error:
        say(found.error)


@run.command("compare")
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
@click.option("--experiment", default="", help="The newest runs of this experiment, up to five.")
@click.option("--all", "show_all", is_flag=True, help="Also what is the same in all of them.")
@common
def compare(
    run_ids: tuple[str, ...], experiment: str, show_all: bool, location: str | None, as_json: bool
) -> None:
    """Runs side by side: in what they differ, and what came of it."""
    if bool(run_ids) == bool(experiment):
        raise click.UsageError("Name the runs to compare, or an experiment.")
    with open_workspace(location) as workspace:
        workspace.reap()
        found = [workspace.tracking.run(run_id) for run_id in dict.fromkeys(run_ids)]
        if experiment:
            chosen = workspace.tracking.experiment_by_name(experiment).id
            found = list(workspace.tracking.runs([chosen], limit=5).runs)
    lines = _side_by_side(found)
    differ = [line for line in lines if show_all or len({str(cell) for cell in line[1:]}) > 1]
    if as_json:
        return json_document({"runs": found, "differ": [line[0] for line in differ]})
    table(("", *(r.id for r in found)), differ)


def _side_by_side(found: list[Run]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = [
        ("name", *(r.name for r in found)),
        ("state", *(r.state for r in found)),
        ("started", *(r.started_at for r in found)),
        ("seconds", *(_seconds(r) for r in found)),
        ("git", *(r.git.get("commit", "")[:12] for r in found)),
        ("code", *(r.code[:12] for r in found)),
        ("data", *(" ".join(f"{i.dataset}@{i.version}" for i in r.inputs) for r in found)),
    ]
    for group, noun in (("params", "param"), ("metrics", "metric"), ("tags", "tag")):
        names = sorted({name for r in found for name in getattr(r, group)})
        lines += [(f"{noun} {n}", *(getattr(r, group).get(n) for r in found)) for n in names]
    return lines


def _seconds(found: Run) -> float | None:
    return (found.ended_at - found.started_at).total_seconds() if found.ended_at else None


def parse_arguments(function: Any, given: Sequence[str]) -> dict[str, Any]:
    """The arguments of a pipeline, from ``name=value``.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    faults, arguments = [], {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            faults.append((item, "write it as name=value"))
        elif name not in known:
            faults.append((name, f"unknown; the pipeline takes: {', '.join(known)}"))
        else:
            try:
                arguments[name] = _parse(text, hints.get(name, str))
            except ValueError as error:
                faults.append((name, str(error).splitlines()[0]))
    if faults:
        raise InvalidInput("the arguments of the pipeline are wrong", faults)
    return arguments


def _parse(text: str, hint: Any) -> Any:
    if hint is datetime:
        return parse_instant(text)
    if hint is date:
        return date.fromisoformat(text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if hint in (int, float):
        return hint(text)
    return text


def _shown(result: Any) -> Any:
    return getattr(result, "ref", None) or (
        result if isinstance(result, str | int | float) else repr(result)
    )
