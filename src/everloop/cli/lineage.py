"""``everloop lineage``: what led to a thing, what came of it, and the log as OpenLineage."""

from __future__ import annotations

import sys

import click

from everloop import settings
from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.core.lineage import Graph

__all__ = ["lineage"]

_DEPTH = click.option("--depth", default=100, show_default=True, help="Most steps to walk.")
_LIMIT = click.option("--limit", default=10_000, show_default=True, help="Most edges to show.")


@click.group()
def lineage() -> None:
    """What led to what; OpenLineage export.

    A REF is kind:name, such as dataset:flights@3, run:<id>, model:delay/3, deployment:delay,
    segment:<id>, labels:<id>, alert:<id>, external:s3://lake/flights.
    """


@lineage.command()
@click.argument("ref")
@_DEPTH
@_LIMIT
@common
def upstream(ref: str, depth: int, limit: int, location: str | None, as_json: bool) -> None:
    """What led to REF, nearest first."""
    with open_workspace(location) as workspace:
        found = workspace.lineage.upstream(ref, depth=depth, limit=limit)
    _show(found, as_json)


@lineage.command()
@click.argument("ref")
@_DEPTH
@_LIMIT
@common
def downstream(ref: str, depth: int, limit: int, location: str | None, as_json: bool) -> None:
    """What came of REF, nearest first."""
    with open_workspace(location) as workspace:
        found = workspace.lineage.downstream(ref, depth=depth, limit=limit)
    _show(found, as_json)


@lineage.command()
@click.option("--jobs", "kind", flag_value="job", help="Jobs.")
@click.option("--runs", "kind", flag_value="run", help="Runs of jobs.")
@click.option("--after", default="", help="Only what comes after this REF.")
@click.option("--limit", default=1000, show_default=True)
@common
def external(kind: str | None, after: str, limit: int, location: str | None, as_json: bool) -> None:
    """Datasets outside that OpenLineage events spoke of; or jobs, or runs."""
    with open_workspace(location) as workspace:
        found = workspace.lineage.externals(
            "job" if kind == "job" else "run" if kind == "run" else "dataset",
            after=after,
            limit=limit,
        )
    if as_json:
        return json_document(found)
    table(
        ("ref", "state", "at", "facets"),
        [(one.ref, one.state, one.at, " ".join(sorted(one.facets))) for one in found],
    )


@lineage.command()
@click.option(
    "--to",
    "target",
    default="",
    help="File or http(s):// URL (EVERLOOP_OPENLINEAGE); what it has already is left out.",
)
@common
def export(target: str, location: str | None, as_json: bool) -> None:
    """The event log as OpenLineage events: what is new to a target, or all of it to stdout."""
    from everloop.governance.export import everything

    found = settings.load()
    target = target or found.openlineage
    with open_workspace(location) as workspace:
        if not target:
            for event in everything(workspace, namespace=found.openlineage_namespace):
                sys.stdout.write(event.decode() + "\n")
            return None
        done = workspace.lineage_exporter(target).run_once()
    if as_json:
        return json_document(done)
    say(f"{done.sent} events sent, {done.refused} refused, up to position {done.seq} of the log")


def _show(found: Graph, as_json: bool) -> None:
    if as_json:
        return json_document(found)
    if not found.edges:
        say(f"nothing is recorded {found.direction} of {found.root}")
    table(("source", "was", "target"), [(e.source, e.kind, e.target) for e in found.edges])
    if found.truncated:
        say("there is more beyond --depth or --limit")
