"""``everloop model``: models, versions, promotion."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.errors import InvalidInput

__all__ = ["model"]


@click.group()
def model() -> None:
    """Models, versions, promotion."""


@model.command("list")
@common
def list_(location: str | None, as_json: bool) -> None:
    """The registered models."""
    with open_workspace(location) as workspace:
        found = workspace.registry.models()
    if as_json:
        return json_document(found)
    table(
        ("name", "versions", "aliases", "owner", "updated"),
        [
            (
                m.name,
                m.latest,
                " ".join(f"{a}={v}" for a, v in m.aliases.items()),
                m.owner,
                m.updated_at,
            )
            for m in found
        ],
    )


@model.command("show")
@click.argument("ref", metavar="NAME[/VERSION]")
@click.option("--card", is_flag=True, help="Print the model card (Markdown).")
@common
def show(ref: str, card: bool, location: str | None, as_json: bool) -> None:
    """A model with its versions, or one version."""
    name, version = parse_ref(ref)
    with open_workspace(location) as workspace:
        if version is None:
            versions = workspace.registry.versions(name)
            if as_json:
                return json_document(
                    {"model": workspace.registry.model(name), "versions": versions}
                )
            return table(
                ("version", "state", "trained until", "run", "created"),
                [(v.ref, v.state, v.trained_until, v.run_id, v.created_at) for v in versions[::-1]],
            )
        if card:
            return click.echo(workspace.governance.card(name, version))
        found = workspace.registry.version(name, version)
        verdicts = workspace.evaluation.verdicts(name, version)
    if as_json:
        return json_document({"version": found, "verdicts": verdicts})
    key_values(
        [
            ("version", found.ref),
            ("state", found.state),
            ("format", f"{found.flavor} ({found.tier})"),
            ("digest", found.digest),
            ("run", found.run_id),
            ("trained until", found.trained_until),
            ("data", " ".join(f"{k}@{v}" for k, v in found.data.items())),
            ("features", found.feature_set),
            *sorted(found.metrics.items()),
        ]
    )
    for verdict in verdicts:
        say(f"verdict {verdict.id}: {'passed' if verdict.passed else 'refused'}")
        for result in verdict.results:
            say(f"  {result.reason}")


@model.command("promote")
@click.argument("ref", metavar="NAME/VERSION")
@click.argument("alias", default="champion")
@click.option("--reason", required=True, help="Why; kept with the event.")
@click.option("--expect", type=int, default=None, help="Only if the alias is at this version now.")
@common
def promote(
    ref: str, alias: str, reason: str, expect: int | None, location: str | None, as_json: bool
) -> None:
    """Move an alias to a version; a deployment that follows it serves the version at once."""
    name, version = parse_ref(ref)
    if version is None:
        raise InvalidInput(f"{ref!r} names no version", hint=f"write it as {name}/3")
    with open_workspace(location) as workspace:
        served = [d for d in workspace.deployment.deployments() if d.model == name]
        if alias == "champion" and served:
            result: object = [
                workspace.deployment.promote(d.name, version, reason=reason) for d in served
            ]
        else:
            result = workspace.registry.set_alias(
                name, alias, version, expect=expect, reason=reason
            )
    if as_json:
        return json_document(result)
    say(f"{alias} of {name} is now version {version}")


def parse_ref(ref: str) -> tuple[str, int | None]:
    """Split ``name/3`` into name and version; the version may be left out."""
    name, slash, version = ref.partition("/")
    if not slash:
        return name, None
    if not version.isdigit():
        raise InvalidInput(f"{ref!r} is no model version", hint="write it as name/3")
    return name, int(version)
