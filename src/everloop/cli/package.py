"""``everloop package``: package pipelines, move them up, carry them elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.package import Package, PackageEnvironment

__all__ = ["contents_process", "package"]

_reason = click.option("--reason", required=True, help="Why; kept with the event.")
_expected = click.option(
    "--expected",
    default=None,
    metavar="DIGEST",
    help="Only if this package is there now; '' for none.",
)
_path = click.Path(path_type=Path)


@click.group()
def package() -> None:
    """Packages of pipelines: build, promote, export, import, roll back.

    REF is NAME@ENVIRONMENT, NAME@DIGEST (8 digits at least), or NAME for the newest.
    """


@package.command("build")
@click.argument("file", type=_path)
@click.option("--name", default="", help="By default that of the only loop, else of FILE.")
@click.option("--include", multiple=True, type=_path, help="A further file, or a folder.")
@click.option("--lock", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None,
              help="The lock file; by default the nearest one that has a known name.")  # fmt: skip
@common
def build(
    file: Path,
    name: str,
    include: tuple[Path, ...],
    lock: Path | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Package what FILE declares: its code, the versions of what it imports, its lock file.

    The package is imported by itself before it counts. The same content is the same package.
    """
    from everloop.automation.packaging import build_package

    with open_workspace(location, must_exist=False) as workspace:
        built = build_package(workspace, file, name=name, include=include, lock=lock)
    if as_json:
        return json_document(built)
    for place, why in built.left_out.items():
        say(f"left out: {place} ({why})")
    made = built.package.manifest
    say(
        f"{len(made.loops)} loops, {len(made.automations)} automations, {len(made.pipelines)} "
        f"pipelines, {made.size:,} bytes; {'new' if built.is_new else 'as it was'}"
    )
    click.echo(f"{built.package.name} {built.package.digest}")


@package.command("list")
@click.argument("name", default="")
@common
def list_(name: str, location: str | None, as_json: bool) -> None:
    """All packages, newest first, with the environments that they are in."""
    with open_workspace(location) as workspace:
        found = workspace.packages.packages(name)
        places = workspace.packages.environments(name)
    if as_json:
        return json_document({"packages": found, "environments": places})
    table(
        ("name", "digest", "in", "git", "builder", "built"),
        [(p.name, p.digest[:8], _in(p, places), _git(p), p.builder, p.built_at) for p in found],
    )


def _in(found: Package, places: list[PackageEnvironment]) -> str:
    return " ".join(one.environment for one in places if one.digest == found.digest)


def _git(found: Package) -> str:
    dirty = "+changes" if found.git.get("dirty") == "yes" else ""
    return found.git.get("commit", "")[:8] + dirty


@package.command("show")
@click.argument("ref")
@click.option("--lock", is_flag=True, help="Print the lock file alone, or what takes its place.")
@common
def show(ref: str, lock: bool, location: str | None, as_json: bool) -> None:
    """One package: what it declares and needs, and where it has been."""
    with open_workspace(location) as workspace:
        found = workspace.packages.package(ref)
        moves = [
            move
            for move in workspace.packages.history(found.name)
            if found.digest in (move.before, move.after)
        ]
        approvals = workspace.packages.approvals(found.ref)
        places = workspace.packages.environments(found.name)
        text = workspace.blobs.get(found.manifest.lock).decode() if found.manifest.lock else ""
    made = found.manifest
    if lock:
        return click.echo(text or "\n".join(f"{n}=={v}" for n, v in made.distributions.items()))
    if as_json:
        return json_document({"package": found, "moves": moves, "approvals": approvals})
    key_values(
        [
            ("package", found.name),
            ("digest", found.digest),
            ("in", _in(found, places)),
            ("git", _git(found)),
            ("built", f"{found.built_at:%Y-%m-%d %H:%M} by {found.builder}"),
            ("reached elsewhere", " ".join(found.reached)),
            ("code", f"{made.code[:16]}, {made.size:,} bytes"),
            ("entry", made.entry),
            ("pipelines", " ".join(made.pipelines)),
            ("loops", " ".join(loop.name for loop in made.loops)),
            ("automations", " ".join(one.name for one in made.automations)),
            ("python", made.python),
            ("lock file", f"{made.lock_name} {made.lock[:16]}".strip()),
            ("memory", f"{made.memory:,} bytes" if made.memory else None),
            *((f"needs {name}", version) for name, version in made.distributions.items()),
        ]
    )
    for move in moves:
        verb = "went to" if move.after == found.digest else "left"
        say(f"{move.at:%Y-%m-%d %H:%M} {verb} {move.environment}: {move.reason} ({move.actor})")
    for given in approvals:
        say(f"approved for {given.environment} by {given.actor} {given.note}".rstrip())


@package.command("diff")
@click.argument("ref")
@click.argument("other")
@common
def diff(ref: str, other: str, location: str | None, as_json: bool) -> None:
    """In what two packages differ: files, versions, what they declare."""
    from everloop.packages.compare import compare

    with open_workspace(location) as workspace:
        first, second = workspace.packages.package(ref), workspace.packages.package(other)
        found = compare(first.manifest, second.manifest, workspace.blobs)
    if as_json:
        return json_document(found)
    table(
        ("part", first.ref, second.ref),
        [(c.part, c.before or "-", c.now or "-") for c in found],
    )


@package.command("promote")
@click.argument("ref")
@click.argument("environment")
@click.option("--evidence", default="", metavar="EVENT", help="What speaks for it.")
@click.option("--force", is_flag=True, help="Jump a stage.")
@_reason
@_expected
@common
def promote(
    ref: str,
    environment: str,
    evidence: str,
    force: bool,
    reason: str,
    expected: str | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Move ENVIRONMENT to a package that is in the environment below; supervisors follow."""
    with open_workspace(location) as workspace:
        service = workspace.packages
        found = service.package(ref)
        if expected is None:  # what is there as we look: of two at once one wins
            there = service.environments(found.name)
            expected = next((one.digest for one in there if one.environment == environment), "")
        now = service.promote(
            f"{found.name}@{found.digest}",
            environment,
            expected=expected,
            reason=reason,
            evidence=evidence,
            force=force,
        )
    _moved(now, as_json)


@package.command("rollback")
@click.argument("name")
@click.argument("environment")
@click.option("--to", default="", metavar="DIGEST", help="One that was there earlier.")
@_reason
@_expected
@common
def rollback(
    name: str,
    environment: str,
    to: str,
    reason: str,
    expected: str | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Move ENVIRONMENT back to the package that was there before; supervisors follow."""
    with open_workspace(location) as workspace:
        now = workspace.packages.rollback(
            name, environment, to=to, expected=expected, reason=reason
        )
    _moved(now, as_json)


def _moved(now: PackageEnvironment, as_json: bool) -> None:
    if as_json:
        return json_document(now)
    return say(f"{now.environment} of {now.name} is {now.digest[:8]}")


@package.command("history")
@click.argument("name")
@click.argument("environment", default="")
@common
def history(name: str, environment: str, location: str | None, as_json: bool) -> None:
    """The moves of the environments of a package, oldest first: who, when, why."""
    with open_workspace(location) as workspace:
        found = workspace.packages.history(name, environment)
    if as_json:
        return json_document(found)
    table(
        ("at", "environment", "what", "from", "to", "by", "reason"),
        [
            (
                m.at,
                m.environment,
                f"{m.kind}, forced" if m.is_forced else m.kind,
                m.before[:8] or "-",
                m.after[:8],
                m.actor,
                m.reason,
            )
            for m in found
        ],
    )


@package.command("protect")
@click.argument("name")
@click.argument("environment")
@click.option("--ci", is_flag=True, help="Its code must have passed everloop ci.")
@click.option("--approvals", default=0, help="So many people must have approved it.")
@click.option("--off", is_flag=True, help="Let it move freely again.")
@common
def protect(
    name: str,
    environment: str,
    ci: bool,
    approvals: int,
    off: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Say what it takes to move ENVIRONMENT of a package."""
    if off == bool(ci or approvals):
        raise click.UsageError("Give --ci, --approvals or both; or --off alone.")
    with open_workspace(location) as workspace:
        now = workspace.packages.protect(name, environment, ci=ci, approvals=approvals)
    if as_json:
        return json_document(now)
    needs = [*(["CI"] if ci else []), *([f"{approvals} approvals"] if approvals else [])]
    say(f"{environment} of {name} needs {' and '.join(needs) or 'nothing'}")


@package.command("approve")
@click.argument("ref")
@click.argument("environment")
@click.option("--note", default="", help="Kept with the event.")
@common
def approve(ref: str, environment: str, note: str, location: str | None, as_json: bool) -> None:
    """Agree that a package comes to ENVIRONMENT; whoever built it cannot."""
    with open_workspace(location) as workspace:
        given = workspace.packages.approve(ref, environment, note=note)
    if as_json:
        return json_document(given)
    say(f"approved for {environment} by {given.actor}")


@package.command("export")
@click.argument("ref")
@click.argument("file", type=_path)
@common
def export(ref: str, file: Path, location: str | None, as_json: bool) -> None:
    """Write a package to FILE, for another workspace."""
    from everloop.packages.archive import export_package

    with open_workspace(location) as workspace:
        found = export_package(workspace, ref, file)
    if as_json:
        return json_document({"package": found, "file": str(file)})
    say(f"{found.ref} is in {file}, {file.stat().st_size:,} bytes")


@package.command("import")
@click.argument("file", type=_path)
@common
def import_(file: Path, location: str | None, as_json: bool) -> None:
    """Take in the package in FILE, with all its digests verified; no environment moves to it."""
    from everloop.packages.archive import import_package

    with open_workspace(location, must_exist=False) as workspace:
        found = import_package(workspace, file)
    if as_json:
        return json_document(found)
    say(f"it had reached {' '.join(found.reached) or 'no environment'} where it comes from")
    click.echo(f"{found.name} {found.digest}")


@click.command("_contents")
@click.argument("entry", type=_path)
@click.argument("answer", type=_path)
def contents_process(entry: Path, answer: Path) -> None:
    """Import a file in this process and say what it is made of."""
    from everloop.automation.packaging import tell
    from everloop.core.process import watch_lifeline

    watch_lifeline()
    tell(entry, answer)
