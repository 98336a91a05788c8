"""``everloop model``: models, versions, aliases and what protects them."""

from __future__ import annotations

from pathlib import Path

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.model import Compatibility, ModelVersion, VersionState
from everloop.errors import InvalidInput

__all__ = ["model"]

_reason = click.option("--reason", default="", help="Why; kept with the event.")
_expected = click.option(
    "--expected", type=int, default=None, help="Only if the alias is at this version now; 0: none."
)


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
                    {
                        "model": workspace.registry.model(name),
                        "versions": versions,
                        "rules": workspace.registry.alias_rules(name),
                    }
                )
            return table(
                ("version", "state", "trained until", "run", "created"),
                [(v.ref, v.state, v.trained_until, v.run_id, v.created_at) for v in versions[::-1]],
            )
        if card:
            return click.echo(workspace.governance.card(name, version))
        found = workspace.registry.version(name, version)
        verdicts = workspace.evaluation.verdicts(name, version)
        approvals = workspace.registry.approvals(name, version)
        checked = workspace.registry.verify(name, version)
    if as_json:
        return json_document(
            {
                "version": found,
                "verdicts": verdicts,
                "approvals": approvals,
                "verification": checked,
            }
        )
    key_values([*_facts(found), ("signature", checked.signature), *sorted(found.metrics.items())])
    if checked.damaged:
        say(f"damaged: {', '.join(checked.damaged)}")
    for line in _compatibility(found.compatibility):
        say(line)
    for verdict in verdicts:
        say(f"verdict {verdict.id}: {'passed' if verdict.passed else 'refused'}")
        for result in verdict.results:
            say(f"  {result.reason}")
    for given in approvals:
        say(f"approved for {given.alias} by {given.actor} {given.note}".rstrip())


def _facts(found: ModelVersion) -> list[tuple[str, object]]:
    compared = found.compatibility
    return [
        ("version", found.ref),
        ("state", found.state),
        ("format", f"{found.flavor} ({found.tier})"),
        ("digest", found.digest),
        ("run", found.run_id),
        ("code", found.code),
        ("trained until", found.trained_until),
        ("data", " ".join(f"{k}@{v}" for k, v in found.data.items())),
        ("features", found.feature_set),
        ("compatible", f"{compared.kind} with {compared.against}" if compared else None),
    ]


def _compatibility(found: Compatibility | None) -> list[str]:
    if found is None:
        return []
    return [
        *(f"callers of version {found.against} break: {reason}" for reason in found.backward),
        *(f"going back to {found.against} breaks: {reason}" for reason in found.forward),
    ]


@model.command("promote")
@click.argument("ref", metavar="NAME/VERSION")
@click.argument("alias", default="champion")
@click.option("--reason", required=True, help="Why; kept with the event.")
@click.option("--evidence", default="", metavar="VERDICT", help="The verdict that allows it.")
@_expected
@common
def promote(
    ref: str,
    alias: str,
    reason: str,
    evidence: str,
    expected: int | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Move an alias to a version; a deployment that follows it serves the version at once."""
    name, version = version_of(ref)
    with open_workspace(location) as workspace:
        served = [d for d in workspace.deployment.deployments() if d.model == name]
        if alias == "champion" and served:
            result: object = [
                workspace.deployment.promote(
                    d.name, version, reason, expected=expected, evidence=evidence
                )
                for d in served
            ]
        else:
            result = workspace.registry.set_alias(
                name, alias, version, expected=expected, reason=reason, evidence=evidence
            )
    if as_json:
        return json_document(result)
    say(f"{alias} of {name} is now version {version}")


@model.command("alias")
@click.argument("name")
@click.argument("alias")
@click.argument("version", type=int, required=False)
@click.option("--remove", is_flag=True, help="Remove the alias.")
@_reason
@_expected
@common
def alias_(
    name: str,
    alias: str,
    version: int | None,
    remove: bool,
    reason: str,
    expected: int | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Where an alias points; with VERSION move it, with --remove take it away."""
    if remove and version is not None:
        raise InvalidInput("give a version or --remove, not both")
    with open_workspace(location) as workspace:
        registry = workspace.registry
        if remove:
            registry.delete_alias(name, alias, expected=expected, reason=reason)
            now = 0
        else:
            if version is not None:
                registry.set_alias(name, alias, version, expected=expected, reason=reason)
            now = registry.by_alias(name, alias).version
    if as_json:
        return json_document({"name": name, "alias": alias, "version": now})
    key_values([("name", name), ("alias", alias), ("version", now or None)])


@model.command("history")
@click.argument("name")
@click.argument("alias", default="")
@common
def history(name: str, alias: str, location: str | None, as_json: bool) -> None:
    """The moves of the aliases of a model: when, from where to where, who, why."""
    with open_workspace(location) as workspace:
        moves = workspace.registry.alias_history(name, alias)
    if as_json:
        return json_document(moves)
    table(
        ("at", "alias", "from", "to", "by", "reason", "evidence"),
        [
            (m.at, m.alias, m.before or None, m.after or None, m.actor, m.reason, m.evidence)
            for m in moves
        ],
    )


@model.command("protect")
@click.argument("name")
@click.argument("alias", default="champion")
@click.option("--gate", "gates", multiple=True, help="A gate that must have passed; repeatable.")
@click.option("--approvals", default=0, help="How many people must have approved.")
@click.option("--two-eyes", is_flag=True, help="Count the approval of maker and mover too.")
@click.option("--rollback", is_flag=True, help="Let it return to where it was before.")
@click.option("--off", is_flag=True, help="Take the protection away.")
@_reason
@common
def protect(
    name: str,
    alias: str,
    gates: tuple[str, ...],
    approvals: int,
    two_eyes: bool,
    rollback: bool,
    off: bool,
    reason: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Let an alias move only to versions that passed gates or were approved."""
    with open_workspace(location) as workspace:
        if off:
            workspace.registry.unprotect(name, alias, reason=reason)
        else:
            workspace.registry.protect(
                name, alias, list(gates), approvals, four_eyes=not two_eyes, rollback=rollback
            )
        rules = workspace.registry.alias_rules(name)
    if as_json:
        return json_document(rules)
    table(
        ("alias", "gates", "approvals", "four eyes", "rollback", "by"),
        [
            (r.alias, " ".join(r.gates), r.approvals, r.four_eyes, r.rollback, r.actor)
            for r in rules
        ],
    )


@model.command("approve")
@click.argument("ref", metavar="NAME/VERSION")
@click.argument("alias", default="champion")
@click.option("--note", default="", help="What was looked at.")
@click.option("--withdraw", is_flag=True, help="Take one's own approval back.")
@common
def approve(
    ref: str, alias: str, note: str, withdraw: bool, location: str | None, as_json: bool
) -> None:
    """Agree that an alias moves to a version."""
    name, version = version_of(ref)
    with open_workspace(location) as workspace:
        if withdraw:
            workspace.registry.withdraw_approval(name, version, alias)
        else:
            workspace.registry.approve(name, version, alias, note=note)
        given = workspace.registry.approvals(name, version, alias)
        missing = workspace.registry.missing_for(name, alias, version)
    if as_json:
        return json_document({"approvals": given, "missing": missing})
    table(("alias", "by", "note", "at"), [(a.alias, a.actor, a.note, a.at) for a in given])
    for item in missing:
        say(f"still missing: {item}")


@model.command("export")
@click.argument("ref", metavar="NAME/VERSION")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@common
def export(ref: str, folder: Path, location: str | None, as_json: bool) -> None:
    """Write the files of a version to a new FOLDER, byte for byte as they were registered."""
    name, version = version_of(ref)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty", hint="name a folder that is not there yet")
    with open_workspace(location) as workspace:
        files = workspace.registry.files(name, version)
        if not files:
            source = workspace.registry.version(name, version).source
            raise InvalidInput(f"{ref} has no files here; they are at {source or 'no known place'}")
    for path, data in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if as_json:
        return json_document({"folder": str(folder), "files": sorted(files)})
    say(f"wrote {len(files)} files to {folder}")


@model.command("archive")
@click.argument("ref", metavar="NAME/VERSION")
@click.option("--undo", is_flag=True, help="Make an archived version a draft again.")
@_reason
@common
def archive(ref: str, undo: bool, reason: str, location: str | None, as_json: bool) -> None:
    """Archive a version; with --undo it can be judged again."""
    name, version = version_of(ref)
    with open_workspace(location) as workspace:
        state: VersionState = "draft" if undo else "archived"
        found = workspace.registry.set_state(name, version, state, reason=reason)
    if as_json:
        return json_document(found)
    say(f"{found.ref} is {found.state}")


@model.command("delete")
@click.argument("ref", metavar="NAME[/VERSION]")
@_reason
@common
def delete(ref: str, reason: str, location: str | None, as_json: bool) -> None:
    """Delete a model or a version; it can be restored until it is purged."""
    name, version = parse_ref(ref)
    with open_workspace(location) as workspace:
        if version is None:
            workspace.registry.delete_model(name, reason=reason)
        else:
            workspace.registry.delete_version(name, version, reason=reason)
        found = workspace.registry.deleted(name)
    if as_json:
        return json_document(found)
    say(f"deleted {ref}; everloop model restore {ref} brings it back")


@model.command("restore")
@click.argument("ref", metavar="NAME[/VERSION]", default="")
@click.option("--as", "new_name", default="", metavar="NAME", help="Another name for the model.")
@common
def restore(ref: str, new_name: str, location: str | None, as_json: bool) -> None:
    """Bring back what was deleted; without a name list what can be."""
    name, version = parse_ref(ref)
    if new_name and (version is not None or not name):
        raise InvalidInput("--as is for a whole model")
    with open_workspace(location) as workspace:
        if not name:
            found = workspace.registry.deleted()
            if as_json:
                return json_document(found)
            return table(
                ("kind", "name", "version", "by", "deleted"),
                [(d.kind, d.name, d.version or None, d.actor, d.deleted_at) for d in found],
            )
        back: object
        if version is None:
            back = workspace.registry.restore_model(name, new_name=new_name)
        else:
            back = workspace.registry.restore_version(name, version)
    if as_json:
        return json_document(back)
    say(f"restored {ref}" + (f" as {new_name}" if new_name else ""))


def parse_ref(ref: str) -> tuple[str, int | None]:
    """Split ``name/3`` into name and version; the version may be left out."""
    name, slash, version = ref.partition("/")
    if not slash:
        return name, None
    if not version.isdigit():
        raise InvalidInput(f"{ref!r} is no model version", hint="write it as name/3")
    return name, int(version)


def version_of(ref: str) -> tuple[str, int]:
    """Split ``name/3`` into name and version; raises InvalidInput without a version."""
    name, version = parse_ref(ref)
    if version is None:
        raise InvalidInput(f"{ref!r} names no version", hint=f"write it as {name}/3")
    return name, version
