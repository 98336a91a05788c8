"""Tracking through the server: a bare keep-alive client, and MLflow's own client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Context, Missing, Row, in_turns, timed
from benchmarks.sides import Peer, Server, echo_server, mlflow_server
from benchmarks.tracking_places import PEER, Limit, Place, Steps, measured, peer_of, places

DEFAULT, SINGLE = f"{PEER} server, default workers", f"{PEER} server, one worker"


class Rest:
    """A run on each server, and one request at a time to it on a kept connection."""

    def __init__(self, servers: dict[str, Server], limit: Limit) -> None:
        self.servers = servers
        self.limit = limit
        self.runs = {name: self._run(name) for name in servers}
        self.steps = Steps()

    def _run(self, name: str) -> str:
        if name == "echo":
            return "0" * 32
        made = self.servers[name].call("runs/create", experiment_id="0", start_time=1)
        return str(made["run"]["info"]["run_id"])

    def turn(self, name: str, size: int) -> float:
        """Log `size` points by one request; the body is made before the clock starts."""
        steps = self.steps.take(name, size)
        points = [{"key": "loss", "value": s / 7, "timestamp": s, "step": s} for s in steps]
        asked: dict[str, Any] = {"run_id": self.runs[name]}
        asked |= points[0] if size == 1 else {"metrics": points}
        path = "/api/2.0/mlflow/runs/" + ("log-metric" if size == 1 else "log-batch")
        body = json.dumps(asked).encode()
        return timed(lambda: self.servers[name].post(path, body))()

    def raw(self, size: int) -> float:
        """The same points by the limit's transaction."""
        return timed(lambda: self.limit.log(self.steps.take("raw", size)))()

    def is_equal(self) -> bool:
        """Whether every server holds the points that were logged to it."""
        return all(self._holds(name) for name in self.servers if name != "echo")

    def _holds(self, name: str) -> bool:
        made = self.servers[name].call(
            "runs/search", experiment_ids=["0"], filter=f"attributes.run_id = '{self.runs[name]}'"
        )
        (metric,) = made["runs"][0]["data"]["metrics"]
        last = self.steps.last(name)
        return bool(metric["step"] == last and metric["value"] == last / 7)


def rows(context: Context) -> Iterator[Row]:
    """One server of each kind runs during all of it, on each database."""
    for place, default, single in zip(*(places(context) for _ in range(3)), strict=True):
        with place as here, default as one, single as other:
            yield from _served(context, here, {DEFAULT: one, SINGLE: other})


def _served(context: Context, place: Place, peers: dict[str, Place]) -> Iterator[Row]:
    env = peer_of(context)
    with contextlib.ExitStack() as stack:
        (place.folder / "echo").mkdir()
        servers: dict[str, Server] = {
            "everloop": stack.enter_context(place.server()),
            "echo": stack.enter_context(echo_server(place.folder / "echo")),
        }
        missing: dict[str, Missing] = {}
        for (name, there), options in zip(peers.items(), ((), ("--workers", "1")), strict=True):
            started = stack.enter_context(mlflow_server(env, there.folder, there.store, *options))
            if isinstance(started, Missing):
                missing[name] = started
            else:
                servers[name] = started
        rest = Rest(servers, stack.enter_context(place.limit()))
        for size, repeats in ((1, context.repeats(300)), (1000, context.repeats(60))):
            yield from _rest(rest, place, missing, size, repeats)
        peer = stack.enter_context(Peer(env, "peer_mlflow.py"))
        for processes in (1, 8):
            # Without MLflow there is no client of its own to measure with.
            if row := _clients(context, place, servers, missing, peer, processes):
                yield row


def _rest(
    rest: Rest, place: Place, missing: dict[str, Missing], size: int, repeats: int
) -> Iterator[Row]:
    def side(name: str) -> Callable[[], float]:
        return lambda: rest.turn(name, size)

    sides = {name: side(name) for name in rest.servers} | {"raw": lambda: rest.raw(size)}
    quick = {name: sides[name] for name in ("everloop", "echo", "raw")}
    seconds = in_turns(quick, repeats=repeats)
    slow = {name: sides[name] for name in rest.servers if name not in quick}
    theirs = in_turns(slow, repeats=max(3, repeats // 6))
    call = "log-metric" if size == 1 else f"log-batch of {size:,}"
    common: dict[str, Any] = {
        "unit": "s",
        "everloop": seconds["everloop"],
        "peers": {**theirs, **missing},
        "answers_equal": rest.is_equal(),
        "repeats": repeats,
    }
    yield measured(
        work=f"REST {call}, bare client, durable, {place.database}",
        limit=seconds["echo"],
        limit_name="a bare ASGI echo of the same body, which stores nothing",
        **common,
    )
    yield measured(
        work=f"REST {call}, bare client, durable, {place.database} in the limit",
        limit=seconds["echo"] + seconds["raw"],
        limit_name=f"the echo, and {rest.limit.name(size)}",
        **common,
    )


def _clients(
    context: Context,
    place: Place,
    servers: dict[str, Server],
    missing: dict[str, Missing],
    peer: Peer,
    processes: int,
) -> Row | None:
    calls = context.size(100, 10)
    said: dict[str, list[dict[str, Any]]] = {name: [] for name in servers if name != "echo"}
    repeats = context.repeats(5)
    for _ in range(repeats):
        for name, answers in said.items():
            url = servers[name].url
            answers.append(peer.ask("clients", url=url, processes=processes, calls=calls))
    if peer.fault is not None:
        return None
    echo = Echo(servers["echo"], calls * processes)
    limit = in_turns({"echo": echo.seconds}, repeats=repeats)["echo"]
    rates = {name: _rate(answers, calls * processes) for name, answers in said.items()}
    equal = all(
        answer.get("errors", 0) == 0 and set(answer.get("values", [calls])) == {calls}
        for answers in said.values()
        for answer in answers
    )
    ours = rates.pop("everloop")
    return measured(
        work=f"log_metric by MLflow's client, {processes} at once, durable, {place.database}",
        unit="calls/s",
        everloop=ours,
        limit=echo.calls / limit,
        limit_name="a bare client, one after another, to a bare ASGI echo",
        peers={**rates, **missing},
        answers_equal=equal,
        repeats=repeats,
        better="high",
    )


class Echo:
    """As many calls to the echo, one after another."""

    def __init__(self, server: Server, calls: int) -> None:
        self.server = server
        self.calls = calls

    def seconds(self) -> float:
        def work() -> None:
            for _ in range(self.calls):
                self.server.post("/api/2.0/mlflow/runs/log-metric", b'{"key": "loss"}')

        return timed(work)()


def _rate(answers: list[dict[str, Any]], calls: int) -> float:
    seconds = sorted(answer.get("seconds", float("nan")) for answer in answers)
    return calls / seconds[len(seconds) // 2]
