"""What it costs to be there: memory and start of the idle server, the command line, the import."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Context, Missing, PeerEnv, Row, in_turns, timed
from benchmarks.sides import Server, echo_server, mlflow_server
from benchmarks.tracking_places import PEER, Place, measured, peer_of, places


def rows(context: Context) -> Iterator[Row]:
    """Servers first, then commands."""
    env = peer_of(context)
    for place, there in zip(places(context), places(context), strict=True):
        with place as here, there as peers:
            yield from _servers(context, env, here, peers)
    yield _command(
        context,
        env,
        "everloop --help",
        [sys.executable, "-m", "everloop", "--help"],
        ([sys.executable, "-c", "pass"], "python -c pass"),
        ["-m", "mlflow", "--help"],
    )
    yield _command(
        context,
        env,
        "import everloop",
        [sys.executable, "-c", "import everloop"],
        ([sys.executable, "-c", "import sqlite3, json"], "import sqlite3, json"),
        ["-c", "import mlflow"],
    )


def _servers(context: Context, env: PeerEnv, place: Place, there: Place) -> Iterator[Row]:
    repeats = context.repeats(10)
    memory: dict[str, float] = {}

    def started(side: str, server: Callable[[], Any]) -> Callable[[], float]:
        def turn() -> float:
            with contextlib.ExitStack() as stack:
                running: list[Server] = []
                seconds = timed(lambda: running.append(stack.enter_context(server())))()
                memory[side] = tree_memory(running[0].pid)
            return seconds

        return turn

    sides = {
        "everloop": started("everloop", place.server),
        "limit": started("limit", lambda: echo_server(place.folder)),
    }
    seconds = in_turns(sides, repeats=repeats)
    peers = _peer_server(env, there)
    common: dict[str, Any] = {"answers_equal": True, "repeats": repeats}
    limit_name = "a bare ASGI echo on the same server software"
    yield measured(
        work=f"idle server, memory (PSS) of all its processes, {place.database}",
        unit="bytes",
        everloop=memory["everloop"],
        limit=memory["limit"],
        limit_name=limit_name,
        peers={f"{PEER} server, default workers": peers[1]},
        **common,
    )
    yield measured(
        work=f"server, from its start to /health, {place.database}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name=limit_name,
        peers={f"{PEER} server, default workers": peers[0]},
        **common,
    )


def _peer_server(env: PeerEnv, place: Place) -> tuple[float | Missing, float | Missing]:
    """Seconds to the first answer, once, and memory."""
    with mlflow_server(env, place.folder, place.store) as first:  # makes its tables
        if isinstance(first, Missing):
            return first, first
    with contextlib.ExitStack() as stack:
        running: list[Server | Missing] = []
        again = mlflow_server(env, place.folder, place.store)
        seconds = timed(lambda: running.append(stack.enter_context(again)))()
        server = running[0]
        return (
            (server, server) if isinstance(server, Missing) else (seconds, tree_memory(server.pid))
        )


def tree_memory(pid: int) -> float:
    """Bytes that a process and all below it hold, shared pages by halves (PSS)."""
    total = 0.0
    for process in [pid, *_below(pid)]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_below(child)]
    return found


def _command(
    context: Context,
    env: PeerEnv,
    work: str,
    ours: Sequence[str],
    limit: tuple[Sequence[str], str],
    theirs: Sequence[str],
) -> Row:
    def side(command: Sequence[str]) -> Callable[[], float]:
        return timed(lambda: subprocess.run(command, check=True, capture_output=True))

    repeats = context.repeats(20)
    seconds = in_turns({"everloop": side(ours), "limit": side(limit[0])}, repeats=repeats)
    peer: float | Missing
    if env.fault is not None:
        peer = Missing(env.fault)
    else:
        peer = in_turns({"peer": side([str(env.python), *theirs])}, repeats=3)["peer"]
    return measured(
        work=work,
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name=limit[1],
        peers={PEER: peer},
        answers_equal=True,
        repeats=repeats,
    )
