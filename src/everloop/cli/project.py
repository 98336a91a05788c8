"""``everloop init``: a folder with a loop of its own, ready to run and to be judged by a CI."""

from __future__ import annotations

import importlib.util
import platform
import shlex
from importlib import resources
from pathlib import Path

import click

from everloop import __version__
from everloop.cli.main import common
from everloop.cli.output import json_document, say
from everloop.errors import Conflict
from everloop.workspace import open_workspace

__all__ = ["init"]

_WORKFLOWS = {"github": ".github/workflows/everloop.yml", "gitlab": ".gitlab-ci.yml"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option(
    "--ci",
    "place",
    type=click.Choice(sorted(_WORKFLOWS)),
    help="Also write the workflow that judges each commit; where there is a loop.py, only that.",
)
@common
def init(folder: Path, place: str | None, location: str | None, as_json: bool) -> None:
    """Make a workspace and a first loop.py in FOLDER."""
    target = folder / "loop.py"
    is_new = not target.exists()
    if not is_new and place is None:
        raise Conflict(f"{target} is there already", hint="choose another folder, or move it away")
    workflow = None if place is None else folder / _WORKFLOWS[place]
    if workflow is not None and workflow.exists():
        raise Conflict(f"{workflow} is there already", hint="remove it, and do this again")
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}
    if is_new:
        with open_workspace(location or folder / ".everloop") as workspace:
            made["workspace"] = workspace.location
        target.write_text(_template("loop_template.py"), "utf-8")
        made["loop"] = str(target)
    if workflow is not None:
        made |= _for_ci(folder, place or "", workflow, with_example=is_new)
    if as_json:
        return json_document(made)
    for what, path in made.items():
        say(f"made {path}" if what != "workspace" else f"made the workspace {path}")
    if is_new and importlib.util.find_spec("lightgbm") is None:
        say("it trains with LightGBM, which is not installed: pip install 'everloop[examples]'")
    if is_new:
        there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))}   then   "
        say(f"next:  {there}everloop run loop.py:retrain   then   everloop up")
    if workflow is not None:
        say("commit these; try it here first with:  everloop ci loop.py")


def _for_ci(folder: Path, place: str, workflow: Path, *, with_example: bool) -> dict[str, str]:
    """The workflow, and what it needs beside it; a file that is there stays as it is."""
    made = {"workflow": str(workflow)}
    workflow.parent.mkdir(parents=True, exist_ok=True)
    python = ".".join(platform.python_version_tuple()[:2])
    workflow.write_text(_template(f"ci_{place}.yml").replace("@PYTHON@", python), "utf-8")
    extra = "[lightgbm]" if with_example else ""
    beside = {
        "requirements.txt": f"everloop{extra}=={__version__}\n",
        ".gitignore": ".everloop/\nci-report/\n__pycache__/\n",
    }
    for name, text in beside.items():
        path = folder / name
        if not path.exists():
            path.write_text(text, "utf-8")
            made[name] = str(path)
    return made


def _template(name: str) -> str:
    return resources.files("everloop.cli").joinpath(name).read_text("utf-8")
