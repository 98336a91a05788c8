"""``everloop sweep``: run a pipeline with many arguments, to find the best."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table

__all__ = ["sweep"]


@click.command()
@click.argument("target", metavar="FILE.py:PIPELINE")
@click.argument("space", nargs=-1, required=True, metavar="NAME=VALUES...")
@click.option("--trials", type=click.IntRange(min=1), help="How many; a grid has its own end.")
@click.option("--maximize", default="", metavar="METRIC", help="The metric to make large.")
@click.option("--minimize", default="", metavar="METRIC", help="The metric to make small.")
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random", "grid"]),
    default="tpe",
    show_default=True,
    help="Who proposes: tpe learns from the trials before.",
)
@click.option("--prune", is_flag=True, help="Give up trials that are worse than the median.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trials at once, each in a process.",
)
@click.option("--on", default="", metavar="CLUSTER", help="Execute the steps there: ray://...")
@click.option("--timeout", metavar="TIME", help='When to begin no further trial: "1h".')
@click.option("--resume", default="", metavar="RUN", help="Go on with this sweep.")
@common
def sweep(
    target: str,
    space: tuple[str, ...],
    trials: int | None,
    maximize: str,
    minimize: str,
    sampler: str,
    prune: bool,
    seed: int,
    workers: int,
    on: str,
    timeout: str | None,
    resume: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Run a pipeline again and again with other arguments, to find the best.

    VALUES are uniform(0, 1), loguniform(0.001, 1), integers(2, 8), choice("a", "b"), or one value
    that all trials get.
    """
    from everloop.cli.run import parse_arguments
    from everloop.core.context import using
    from everloop.core.stop import stop_if
    from everloop.pipelines.load import load_pipeline
    from everloop.pipelines.space import read_distribution

    if bool(maximize) == bool(minimize):
        raise click.UsageError("Name the metric: --maximize METRIC or --minimize METRIC.")
    metric = maximize or minimize
    with open_workspace(location, must_exist=False) as workspace, using(workspace):
        pipeline = load_pipeline(target)
        given = {}
        for item in space:
            name, _, text = item.partition("=")
            found = read_distribution(text)
            if found is not None:
                given[name] = found
            else:
                given |= parse_arguments(pipeline.function, [item])
        result = pipeline.sweep(
            given,
            trials=trials,
            maximize=maximize,
            minimize=minimize,
            sampler=sampler,
            stop=[stop_if(metric, goal="max" if maximize else "min")] if prune else (),
            seed=seed,
            workers=workers,
            on=on,
            timeout=timeout,
            resume=resume,
        )
    if as_json:
        return json_document(result)
    names = sorted({name for trial in result.trials for name in trial.params})
    table(
        ("trial", "state", metric, *names, "run"),
        [
            (t.number, t.state, t.value, *(t.params.get(name) for name in names), t.run_id)
            for t in result.trials
        ],
    )
    say(f"sweep {result.run_id}: {len(result.trials)} trials, the best first")
