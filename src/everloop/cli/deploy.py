"""``everloop deploy``: what is served and how traffic moves."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, table

__all__ = ["deploy"]


@click.group()
def deploy() -> None:
    """Deployments and rollouts."""


@deploy.command("status")
@click.argument("name", default="")
@common
def status(name: str, location: str | None, as_json: bool) -> None:
    """What is served, with which versions and shares of the traffic."""
    with open_workspace(location) as workspace:
        service = workspace.deployment
        found = [service.deployment(name)] if name else service.deployments()
        rollouts = {d.name: service.rollouts(d.name) for d in found}
        workers = {d.name: service.workers(d.name) for d in found}
    if as_json:
        return json_document(
            [
                {"deployment": d, "rollouts": rollouts[d.name], "workers": workers[d.name]}
                for d in found
            ]
        )
    table(
        ("name", "state", "revision", "arms", "workers", "rollout"),
        [
            (
                d.name,
                d.state,
                d.revision,
                " ".join(f"{a.name}={a.version}:{a.weight:g}%" for a in d.arms),
                len(workers[d.name]),
                rollouts[d.name][-1].state.stage if rollouts[d.name] else "-",
            )
            for d in found
        ],
    )
