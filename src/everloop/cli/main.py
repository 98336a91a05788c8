"""The command line: groups load when they are used, errors become sentences and exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from everloop import __version__
from everloop.errors import EverloopError, exit_code

if TYPE_CHECKING:
    from everloop.workspace import Workspace

__all__ = ["common", "main", "open_workspace", "run", "run_named"]

#: Command -> (module, attribute, help); the module loads when the command is used.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("everloop.cli.project", "init", "Start a project with a loop of its own."),
    "up": ("everloop.cli.server", "up", "Run everything: server, pages, scheduler, serving."),
    "server": ("everloop.cli.server", "server", "Run the API and the pages alone."),
    "run": ("everloop.cli.run", "run", "Run a pipeline; list and show runs."),
    "ci": ("everloop.cli.ci", "ci", "Judge a commit: contracts, pipeline, model tests."),
    "sweep": ("everloop.cli.sweep", "sweep", "Run a pipeline with many arguments; find the best."),
    "approve": ("everloop.cli.approval", "approve", "Let a run that waits go on; list them."),
    "refuse": ("everloop.cli.approval", "refuse", "Refuse what a run waits for."),
    "backfill": ("everloop.cli.backfill", "backfill", "Run a pipeline for many values."),
    "rerun": ("everloop.cli.rerun", "rerun", "Repeat a run exactly; name what differs."),
    "why-ran": ("everloop.cli.rerun", "why_ran", "Why a step of a run was executed."),
    "why-cached": ("everloop.cli.rerun", "why_cached", "Why a step of a run was not executed."),
    "automation": ("everloop.cli.automation", "automation", "What happens by itself; firings."),
    "package": ("everloop.cli.package", "package", "Package pipelines; promote, deploy them."),
    "demo": ("everloop.cli.demo", "demo", "A year of real flights through a whole loop."),
    "why": ("everloop.cli.story", "why", "Everything behind one prediction."),
    "story": ("everloop.cli.story", "story", "The chain of causes of a loop."),
    "maturity": ("everloop.cli.story", "maturity", "How far a loop has come, from its records."),
    "lineage": ("everloop.cli.lineage", "lineage", "What led to what; OpenLineage export."),
    "data": ("everloop.cli.data", "data", "Datasets, versions, dropped and changed rows."),
    "model": ("everloop.cli.model", "model", "Models, versions, promotion."),
    "gate": ("everloop.cli.gate", "gate", "Verdicts of the gates, with their evidence."),
    "deploy": ("everloop.cli.deploy", "deploy", "Deployments and rollouts."),
    "user": ("everloop.cli.access", "user", "Users, roles, passwords."),
    "token": ("everloop.cli.access", "token", "Tokens that programs log in with."),
    "gc": ("everloop.cli.collect", "gc", "Purge what was deleted; reclaim its storage."),
    "fsck": ("everloop.cli.store", "fsck", "Check the store; mend what can be mended."),
    "backup": ("everloop.cli.store", "backup", "Copy the workspace while it is written."),
    "events": ("everloop.cli.story", "events", "The event log."),
    "export": ("everloop.cli.export", "export", "A pipeline for Kubernetes (KubeRay) to run."),
    "import": ("everloop.cli.transfer", "import_", "Take in runs and models of MLflow's."),
    "merge": ("everloop.cli.transfer", "merge", "Take in another workspace's folder."),
}

#: Commands that processes of ours start, not people.
_HIDDEN: dict[str, tuple[str, str]] = {
    "_contents": ("everloop.cli.package", "contents_process"),
    "_rerun": ("everloop.cli.rerun", "repeat_process"),
    "_server": ("everloop.cli.server", "server_process"),
    "_scheduler": ("everloop.cli.server", "scheduler_process"),
    "_work": ("everloop.cli.server", "work_process"),
    "_serve-worker": ("everloop.cli.server", "serve_worker_process"),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module, attribute = (_COMMANDS.get(name) or (*_HIDDEN.get(name, ("", "")), ""))[:2]
        if not module:
            return None
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The stock form would import every command only to ask for its help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="everloop")
def main() -> None:
    """Everloop keeps machine-learning models right after the notebook is closed."""


def _keep_objects(_: click.Context, __: click.Parameter, where: str | None) -> None:
    # By the environment, so that processes of ours that are started now have it too.
    if where:
        from everloop.settings import use_objects

        use_objects(where)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has: where the workspace is, and JSON output."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        command
    )
    command = click.option(
        "--objects",
        metavar="URL",
        default=None,
        expose_value=False,
        callback=_keep_objects,
        help="Objects of the workspace: s3://bucket/prefix, remembered (EVERLOOP_OBJECTS).",
    )(command)
    return click.option(
        "--dir",
        "location",
        metavar="DIR",
        default=None,
        help="Workspace: folder, catalog URL or server URL (EVERLOOP_DIR, else .everloop).",
    )(command)


def open_workspace(location: str | None, *, must_exist: bool = True) -> Workspace:
    """Open the workspace of a command; one that is only read is not made by looking at it."""
    from everloop import settings
    from everloop.errors import NotFound
    from everloop.workspace import open_workspace as open_

    where = location or settings.load().location
    if (
        must_exist
        and "://" not in where
        and not os.path.exists(os.path.join(where, "catalog.sqlite"))
    ):
        raise NotFound(
            f"there is no workspace in {where}",
            hint="make one with: everloop init   (or say where it is with --dir)",
        )
    return open_(where)


def run_named(workspace: Workspace, run_id: str) -> str:
    """`run_id`, or for ``last`` the id of the newest run of a pipeline that repeats no other."""
    if run_id != "last":
        return run_id
    from everloop.errors import NotFound

    found = workspace.tracking.runs(limit=200).runs
    for known in found:
        if known.pipeline and "everloop.rerun_of" not in known.tags:
            return known.id
    raise NotFound("there is no run of a pipeline yet", hint="everloop run loop.py:name")


def run() -> None:
    """Entry point: errors as sentences, exit codes as documented."""
    debug = os.environ.get("EVERLOOP_DEBUG") == "1"
    try:
        main(standalone_mode=False)
    except EverloopError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(exit_code(error))
    except click.exceptions.Abort:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
