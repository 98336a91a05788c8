"""``everloop data pull``, ``sources`` and ``pulls``: where datasets come from."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.core.source import DataSource, Pull
from everloop.errors import InvalidInput, NotFound

__all__ = ["COMMANDS"]


@click.command()
@click.argument("source", metavar="NAME|FILE.py:NAME")
@click.option("--full", is_flag=True, help="Read everything, whatever is known.")
@click.option("--note", default="", help="For people.")
@common
def pull(source: str, full: bool, note: str, location: str | None, as_json: bool) -> None:
    """Read what is new in the source of a dataset, here, and make it a version.

    NAME is a dataset whose source is declared; FILE.py:NAME an ev.data_source in a file, which is
    declared first.
    """
    from everloop.core.context import using
    from everloop.data.sources import pull as pull_from

    given: DataSource | str = _loaded(source) if ".py:" in source else source
    with open_workspace(location) as workspace, using(workspace):
        made = pull_from(given, full=full, note=note)
    if as_json:
        return json_document(made)
    _show([made])
    for text in made.notes:
        say(text)


@click.command("sources")
@common
def sources(location: str | None, as_json: bool) -> None:
    """Where datasets come from."""
    with open_workspace(location) as workspace:
        found = workspace.data.sources()
    if as_json:
        return json_document(found)
    table(
        ("dataset", "mode", "key", "watermark", "from"),
        [(s.dataset, s.mode, ", ".join(s.key), s.watermark, " ".join(s.locations)) for s in found],
    )


@click.command("pulls")
@click.argument("name")
@click.option("--limit", default=20, show_default=True, help="Most pulls to show.")
@common
def pulls(name: str, limit: int, location: str | None, as_json: bool) -> None:
    """What was pulled into a dataset, newest first; files with sizes and digests by --json."""
    with open_workspace(location) as workspace:
        found = workspace.data.pulls(name, limit=limit)
    if as_json:
        return json_document(found)
    _show(found)


COMMANDS = (pull, sources, pulls)


def _show(found: list[Pull]) -> None:
    table(
        ("version", "new", "read", "rows", "files", "since", "watermark", "by", "run", "at"),
        [
            (p.ref, p.is_new, p.read, p.rows, len(p.files), p.since, p.watermark, p.actor,
             p.run_id, p.at)
            for p in found
        ],
    )  # fmt: skip


def _loaded(target: str) -> DataSource:
    from everloop.pipelines.load import load_module

    path, _, name = target.rpartition(":")
    module = load_module(path)
    found = getattr(module, name, None)
    if isinstance(found, DataSource):
        return found
    known = [key for key, value in vars(module).items() if isinstance(value, DataSource)]
    if found is None:
        raise NotFound.named(f"data source in {path}", name, known)
    raise InvalidInput(f"{target} is no ev.data_source")
