"""``everloop backfill``: one run of a pipeline for each value of an argument."""

from __future__ import annotations

import sys
import typing

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.cli.run import parse_arguments
from everloop.errors import InvalidInput

__all__ = ["backfill"]


@click.command()
@click.argument("target", metavar="FILE.py:PIPELINE")
@click.argument("values", nargs=-1, required=True, metavar="NAME=VALUES...")
@click.option(
    "--concurrency", type=click.IntRange(1, 64), default=1, show_default=True, help="Runs at once."
)
@common
def backfill(
    target: str, values: tuple[str, ...], concurrency: int, location: str | None, as_json: bool
) -> None:
    """Run a pipeline for each value, such as day=2013-01-01..2013-01-31 or region=eu,us.

    With several arguments each combination is run. What is stored is not computed again: the same
    command goes on where it was stopped, and tries again what failed. Exit code 1 if a part failed.
    """
    from everloop.core.context import using
    from everloop.pipelines.backfill import Part, spread
    from everloop.pipelines.backfill import backfill as run_all
    from everloop.pipelines.load import load_pipeline

    def tell(part: Part) -> None:
        given = " ".join(f"{name}={value}" for name, value in part.values.items())
        say(f"{given}: {part.outcome} {part.error}".rstrip())

    with open_workspace(location, must_exist=False) as workspace, using(workspace):
        pipeline = load_pipeline(target)
        hints = typing.get_type_hints(pipeline.function)
        chosen: dict[str, list[typing.Any]] = {}
        for item in values:
            name, equals, text = item.partition("=")
            if not equals or name in chosen:
                raise InvalidInput(f"{item!r} is not NAME=VALUES, or is given twice")
            texts = spread(text, hints.get(name, str))
            read = [parse_arguments(pipeline.function, (f"{name}={one}",)) for one in texts]
            chosen[name] = [given[name] for given in read]
        done = run_all(pipeline, chosen, concurrency=concurrency, tell=tell)
    if as_json:
        json_document(done)
    else:
        table(
            ("values", "outcome", "run"),
            [
                (" ".join(f"{k}={v}" for k, v in part.values.items()), part.outcome, part.run_id)
                for part in done.parts
            ],
        )
        say(str(done))
    if done.failed:
        sys.exit(1)
