"""``everloop import`` and ``everloop merge``: take in what was made elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.transfer.report import TransferReport

__all__ = ["import_", "merge"]

#: Failures shown one by one; all of them are in the JSON document.
_SHOWN = 50


@click.group("import")
def import_() -> None:
    """Take in experiments, runs, models and data of other products."""


@import_.command("mlflow")
@click.argument("source")
@click.option(
    "--artifacts",
    type=click.Path(exists=True, file_okay=False),
    default=None,
    help="Where the files of the runs are now, if not where the store says.",
)
@common
def mlflow(source: str, artifacts: str | None, location: str | None, as_json: bool) -> None:
    """Import a store of MLflow's: folder mlruns, file mlflow.db, URL of a database or server.

    Ids and numbers are kept. Importing again goes on where it ended.
    """
    with open_workspace(location, must_exist=False) as workspace:
        _show(workspace.import_mlflow(source, artifacts=artifacts or "", tell=_tell()), as_json)


@import_.command("dvc")
@click.argument("repo", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--rev",
    "revisions",
    multiple=True,
    help="Tag, branch or commit, oldest first (may be given again).",
)
@click.option(
    "--name", "names", multiple=True, metavar="PATH=NAME", help="What an output shall be called."
)
@common
def dvc(
    repo: str,
    revisions: tuple[str, ...],
    names: tuple[str, ...],
    location: str | None,
    as_json: bool,
) -> None:
    """Import the data of a DVC repository out of its cache: as it is, or revision by revision.

    DVC is not needed, and nothing there is written. Importing again changes nothing.
    """
    pairs = {}
    for item in names:
        path, equals, name = item.partition("=")
        if not equals or not path or not name:
            raise click.UsageError(f"--name {item!r} is not PATH=NAME")
        pairs[path] = name
    with open_workspace(location, must_exist=False) as workspace:
        report = workspace.import_dvc(repo, revisions=revisions, names=pairs, tell=_tell())
        _show(report, as_json, held="are what their MD5 says")


@click.command("merge")
@click.argument("folder")
@common
def merge(folder: str, location: str | None, as_json: bool) -> None:
    """Take in the runs, datasets and models of another workspace's FOLDER. Twice is once."""
    with open_workspace(location, must_exist=False) as workspace:
        _show(workspace.merge(folder, tell=_tell()), as_json)


def _tell() -> Callable[[str], None] | None:
    return say if sys.stderr.isatty() else None


def _show(
    report: TransferReport, as_json: bool, held: str = "were read back and are as they were"
) -> None:
    if as_json:
        json_document(report)
    else:
        table(
            ("kind", "found", "imported", "already there", "failed"),
            [(c.kind, c.found, c.imported, c.there, c.failed) for c in report.counts],
        )
        say(f"{report.bytes:,} bytes of files {held}")
        for note in report.notes:
            say(f"note: {note}")
        for refusal in report.refusals[:_SHOWN]:
            say(f"failed: {refusal.kind} {refusal.name}: {refusal.reason}")
        if len(report.refusals) > _SHOWN:
            say(f"... and {len(report.refusals) - _SHOWN} more; --json has all of them")
    if not report.is_complete:
        sys.exit(1)
