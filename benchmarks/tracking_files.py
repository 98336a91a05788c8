"""Artifacts through the server: one large file, many small ones, and one model again and again."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from benchmarks.harness import Context, Missing, Row, in_turns, timed
from benchmarks.sides import Peer, Server, mlflow_server
from benchmarks.tracking_places import PEER, Place, measured, peer_of, places
from everloop.workspace import open_workspace

PIECE = 1 << 20
SMALL = 4096
MODEL = 256 << 10


def rows(context: Context) -> Iterator[Row]:
    """All on one server of each kind, on each database."""
    for place, peers_place in zip(places(context), places(context), strict=True):
        with place as here, peers_place as there:
            yield from _files(context, here, there)


def _files(context: Context, place: Place, there: Place) -> Iterator[Row]:
    env = peer_of(context)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(place.server())
        theirs = stack.enter_context(
            mlflow_server(env, there.folder, there.store, "--workers", "1")
        )
        if not place.url:  # of a large file the catalog sees one row, wherever that row is
            yield from _large(context, place, ours, theirs)
        peer = stack.enter_context(Peer(env, "peer_mlflow.py"))
        yield _small(context, place, ours, theirs, peer)
        if not place.url:
            yield _again(context, place, ours)


class Large:
    """One file, sent and fetched by a bare client."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.source, self.copy = folder / "source", folder / "copy"
        with self.source.open("wb") as file:
            for _ in range(size // PIECE):
                file.write(os.urandom(PIECE))
        self.turns = 0

    def limit(self, *, durable: bool) -> float:
        def work() -> None:
            shutil.copyfile(self.source, self.copy)
            if durable:
                with self.copy.open("r+b") as file:
                    os.fsync(file.fileno())
            digest = blake3()
            with self.source.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)

        return timed(work)()

    def up(self, server: Server) -> float:
        """Send it, each time with other content: a store that knows it would have less to do."""
        self.turns += 1
        with self.source.open("r+b") as file:
            file.write(self.turns.to_bytes(8, "big"))

        def work() -> None:
            connection = http.client.HTTPConnection(server.host, timeout=600, blocksize=PIECE)
            with self.source.open("rb") as file:
                headers = {"Content-Length": str(self.size)}
                connection.request("PUT", _PATH, file, headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            if answer.status != 200:
                raise RuntimeError(f"the upload was answered {answer.status}")

        return timed(work)()

    def down(self, server: Server) -> float:
        def work() -> None:
            connection = http.client.HTTPConnection(server.host, timeout=600)
            connection.request("GET", _PATH)
            with self.copy.open("wb") as file:
                shutil.copyfileobj(connection.getresponse(), file, PIECE)
            connection.close()

        return timed(work)()

    def is_copied(self) -> bool:
        with self.source.open("rb") as one, self.copy.open("rb") as other:
            while piece := one.read(PIECE):
                if other.read(len(piece)) != piece:
                    return False
            return not other.read(1)


_PATH = "/api/2.0/mlflow-artifacts/artifacts/large/model.bin"


def _large(context: Context, place: Place, ours: Server, theirs: Server | Missing) -> Iterator[Row]:
    file = Large(place.folder, context.size(1 << 30, 16 << 20))
    repeats = context.repeats(5)
    up = {"everloop": lambda: file.up(ours), "limit": lambda: file.limit(durable=True)}
    down = {"everloop": lambda: file.down(ours), "limit": lambda: file.limit(durable=False)}
    if isinstance(theirs, Server):
        there = theirs
        up["peer"] = lambda: file.up(there)
        down["peer"] = lambda: file.down(there)
    before = peak_memory(ours.pid)
    sent = in_turns(up, repeats=repeats)
    if isinstance(theirs, Server):
        file.up(theirs)
    file.up(ours)
    fetched = in_turns(down, repeats=repeats)
    file.down(ours)
    equal = file.is_copied()
    after = peak_memory(ours.pid)
    size = f"{file.size >> 20:,} MiB"
    common: dict[str, Any] = {"answers_equal": equal, "repeats": repeats}
    for name, seconds, limit_name in (
        ("up", sent, "copyfile with fsync, and blake3 on one core"),
        ("down", fetched, "copyfile, and blake3 on one core"),
    ):
        peer = theirs if isinstance(theirs, Missing) else seconds["peer"]
        yield measured(
            work=f"artifact of {size} {name} through the server",
            unit="s",
            everloop=seconds["everloop"],
            limit=seconds["limit"],
            limit_name=limit_name,
            peers={f"{PEER} server, one worker": peer},
            **common,
        )
    yield measured(
        work=f"peak memory of the server after artifacts of {size}",
        unit="bytes",
        everloop=after,
        limit=before,
        limit_name="the same server before them",
        **common,
    )


def peak_memory(pid: int) -> float:
    """The highest resident memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def _small(
    context: Context, place: Place, ours: Server, theirs: Server | Missing, peer: Peer
) -> Row:
    count = context.size(1000, 50)
    repeats = context.repeats(5)
    workspace = open_workspace(ours.url)
    folder = place.folder / "small"
    folder.mkdir()
    turns = 0

    def files() -> Path:
        nonlocal turns
        turns += 1
        made = folder / str(turns)
        made.mkdir()
        for number in range(count):
            (made / f"{number:04}.bin").write_bytes(os.urandom(SMALL))
        return made

    def up() -> float:
        source = files()

        def work() -> None:
            found = {file.name: file.read_bytes() for file in source.iterdir()}
            workspace.tracking.put_artifacts(source.name, found)

        return timed(work)()

    def copied() -> float:
        source = files()
        return timed(lambda: shutil.copytree(source, source.with_suffix(".copy")))()

    def by_peer() -> float:
        assert isinstance(theirs, Server)
        return peer.seconds("log_artifacts", url=theirs.url, folder=str(files()))

    sides = {"everloop": up, "limit": copied}
    has_peer = isinstance(theirs, Server) and peer.fault is None
    if has_peer:
        sides["peer"] = by_peer
    seconds = in_turns(sides, repeats=repeats)
    source = files()
    sent = {file.name: file.read_bytes() for file in source.iterdir()}
    workspace.tracking.put_artifacts(source.name, sent)
    kept = {name: workspace.tracking.artifact(f"{source.name}/{name}") for name in sent}
    workspace.close()
    if isinstance(theirs, Missing):
        figure: float | Missing = theirs
    else:
        figure = peer.figure(seconds.get("peer", 0.0))
    return measured(
        work=f"{count:,} artifacts of 4 KiB up through the server, durable, {place.database}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name="copytree, which waits for no disk",
        peers={f"{PEER} client and server (no fsync)": figure},
        answers_equal=kept == sent,
        repeats=repeats,
    )


def _again(context: Context, place: Place, ours: Server) -> Row:
    times = context.size(50, 5)
    files = {f"part{number}.bin": os.urandom(MODEL) for number in range(8)}
    objects = place.folder / "objects"
    with open_workspace(ours.url) as workspace:
        before = stored(objects)
        for number in range(times):
            workspace.tracking.put_artifacts(f"again/{number}", files)
        grown = stored(objects) - before
        kept = workspace.tracking.artifact(f"again/{times - 1}/part7.bin")
    return measured(
        work=f"disk for the same model of 2 MiB logged {times} times",
        unit="bytes",
        everloop=grown,
        limit=sum(map(len, files.values())),
        limit_name="the model once",
        answers_equal=kept == files["part7.bin"],
        repeats=times,
    )


def stored(folder: Path) -> float:
    """Bytes of all files in a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
