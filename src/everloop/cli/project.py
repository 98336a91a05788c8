"""``everloop init``: a folder with a loop of its user's own, ready to run."""

from __future__ import annotations

import importlib.util
import shlex
from importlib import resources
from pathlib import Path

import click

from everloop.cli.main import common
from everloop.cli.output import json_document, say
from everloop.errors import Conflict
from everloop.workspace import open_workspace

__all__ = ["init"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@common
def init(folder: Path, location: str | None, as_json: bool) -> None:
    """Make a workspace and a first loop.py in FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "loop.py"
    if target.exists():
        raise Conflict(f"{target} is there already", hint="choose another folder, or move it away")
    with open_workspace(location or folder / ".everloop") as workspace:
        where = workspace.location
    template = resources.files("everloop.cli").joinpath("loop_template.py").read_text("utf-8")
    target.write_text(template, "utf-8")
    if as_json:
        return json_document({"workspace": where, "loop": str(target)})
    say(f"made {target} and the workspace {where}")
    if importlib.util.find_spec("lightgbm") is None:
        say("it trains with LightGBM, which is not installed: pip install 'everloop[examples]'")
    there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))}   then   "
    say(f"next:  {there}everloop run loop.py:retrain   then   everloop up")
