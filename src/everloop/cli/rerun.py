"""``everloop rerun``, ``why-ran`` and ``why-cached``: whether a run holds, and why it ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from everloop.cli.main import common, open_workspace, run_named
from everloop.cli.output import json_document, say, table
from everloop.core.pipeline import Explanation

__all__ = ["repeat_process", "rerun", "why_cached", "why_ran"]


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--allow-environment", is_flag=True, help="Go on where packages or Python are not as then."
)
@common
def rerun(run_id: str, allow_environment: bool, location: str | None, as_json: bool) -> None:
    """Repeat a RUN exactly, and name the steps that gave something else.

    Its code is restored as it was (uncommitted changes too), with its arguments and the versions of
    the data that it read; every step is executed. Exit code 0 if every output is equal, 1 if not.
    """
    from everloop.errors import StateError
    from everloop.pipelines.rerun import compare, environment_changes, repeatable, restore

    with (
        open_workspace(location) as workspace,
        tempfile.TemporaryDirectory(prefix="everloop-rerun-") as name,
    ):
        workspace.reap()
        run_id = run_named(workspace, run_id)
        first = repeatable(workspace, run_id)
        code = Path(name) / "code"
        code.mkdir()
        files = restore(first, workspace.blobs, code)
        keys = [step.key for step in workspace.pipelines.steps(run_id) if step.key]
        memos = [workspace.pipelines.memo(key) for key in keys]
        changed = environment_changes(first, [m.key.parts for m in memos if m], files)
        # A new kernel alone is told, but does not stop anybody.
        stops = [c for c in changed if c.part != "environment:platform"]
        if stops and not allow_environment:
            told = [f"{c.part.partition(':')[2]} was {c.before}, is {c.now}" for c in stops]
            raise StateError(
                f"the environment of run {run_id} is not there any more: {'; '.join(told)}",
                hint="install what it ran with, or see what comes with --allow-environment",
            )
        found = _in_a_process(run_id, location, workspace.place().objects, Path(name))
        report = compare(workspace, run_id, found, changed)
    if as_json:
        json_document(report)
    else:
        table(
            ("step", "verdict", "then", "now", "differs in"),
            [
                (s.step, s.verdict, s.before[:12], s.now[:12], _names(s.changes))
                for s in report.steps
            ],
        )
        for change in report.environment:
            say(f"{change.part.partition(':')[2]} was {change.before}, is {change.now}")
        odd = dict.fromkeys(s.step for s in report.steps if s.verdict == "not deterministic")
        end = "every output is equal" if report.equal else "it differs"
        say(f"run {found} ({report.state}) repeats {run_id}: {end}")
        if odd:
            say(f"not deterministic: {', '.join(odd)}")
    sys.exit(0 if report.equal else 1)


def _names(changes: tuple[object, ...]) -> str:
    shown = [str(getattr(change, "part", "")) for change in changes[:3]]
    return ", ".join(shown) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _in_a_process(run_id: str, location: str | None, objects: str, folder: Path) -> str:
    """Execute the restored code where no module of today's is loaded; id of the new run."""
    from everloop import settings
    from everloop.errors import UserCodeError

    found = settings.load()
    where = location or found.location
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    # It works in another folder, so no path may be relative.
    if where.startswith("sqlite:///"):
        where = f"sqlite:///{Path(where.removeprefix('sqlite:///')).absolute()}"
    elif "://" not in where:
        where = str(Path(where).expanduser().absolute())
    if found.objects or "://" in where:
        environment["EVERLOOP_OBJECTS"] = objects
    answer = folder / "answer.json"
    command = [sys.executable, "-m", "everloop", "_rerun", run_id, str(folder), "--dir", where]
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    made = json.loads(answer.read_text())["run"] if answer.exists() else ""
    if not made:
        raise UserCodeError(
            f"the repetition of run {run_id} did not start (exit code {done.returncode})",
            hint="what it printed stands above",
        )
    return str(made)


@click.command("_rerun")
@click.argument("run_id")
@click.argument("folder", type=click.Path(path_type=Path))
@common
def repeat_process(run_id: str, folder: Path, location: str | None, as_json: bool) -> None:
    """Execute restored code in this process."""
    from everloop.core.context import using
    from everloop.pipelines.rerun import repeat

    with open_workspace(location) as workspace, using(workspace):
        first = workspace.tracking.run(run_id)
        answer = folder / "answer.json"

        def tell(made: str) -> None:
            answer.write_text(json.dumps({"run": made}))

        repeat(workspace, first, folder / "code", tell)


@click.command("why-ran")
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@common
def why_ran(run_id: str, step: str, location: str | None, as_json: bool) -> None:
    """Why a STEP of a RUN was executed: the parts of its key that no stored result had."""
    _explain(run_id, step, location, as_json, wanted="ran")


@click.command("why-cached")
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@common
def why_cached(run_id: str, step: str, location: str | None, as_json: bool) -> None:
    """Why a STEP of a RUN was taken from the store: all that its result depends on."""
    _explain(run_id, step, location, as_json, wanted="cached")


def _explain(run_id: str, step: str, location: str | None, as_json: bool, *, wanted: str) -> None:
    with open_workspace(location) as workspace:
        run_id = run_named(workspace, run_id)
        found: list[Explanation] = workspace.pipelines.explain(run_id, step)
    if as_json:
        return json_document(found)
    for call in found:
        other = "" if call.outcome == wanted else f"(not {wanted}) "
        say(f"{call.step} {call.outcome} {other}- {call.reason}")
        for note in call.notes:
            say(f"  note: {note}")
    rows = [(c.seq, x.part, x.before or "-", x.now or "-") for c in found for x in c.changes]
    if rows:
        table(("call", "part", "before", "now"), rows)
    else:
        parts = {part: value for call in found for part, value in call.parts.items()}
        table(("part", "value"), sorted(parts.items()))
    return None
