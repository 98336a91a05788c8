"""What a step costs in the products that users would pick instead, each in its own environment."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from benchmarks.harness import Context, Missing, PeerEnv

__all__ = ["Peers", "measure_peers"]

#: Shape (chain, fan) and kind (first, again) of the work; by it the figure of each peer.
Peers = dict[tuple[str, str], dict[str, float | Missing]]

TURNS = 2


class _Peer(NamedTuple):
    """A product, and of how many steps its chain is: more where one step is lost in the noise."""

    name: str
    requirements: tuple[str, ...]
    steps: int
    again: str = ""


_PEERS = (
    _Peer("joblib", ("joblib==1.6.0",), 200),
    _Peer("hamilton", ("sf-hamilton==1.90.0",), 100),
    _Peer("flytekit", ("flytekit==1.16.31",), 100),
    _Peer("dbos", ("dbos==3.4.0",), 100, "a workflow that has run is answered as a whole"),
    # A newer FastAPI than it was made for makes it fail at its start.
    _Peer("prefect", ("prefect==3.8.8", "fastapi<0.150"), 400),
    _Peer("dagster", ("dagster==1.13.29",), 40, "it skips nothing when it runs again"),
    _Peer("dvc", ("dvc==3.67.1",), 40),
    _Peer("zenml", ("zenml[server]==0.98.0",), 20),
    _Peer("metaflow", ("metaflow==2.19.39",), 10),
)


def measure_peers(context: Context) -> tuple[Peers, bool]:
    """Seconds a step of each peer, and whether all of their answers were right."""
    found: Peers = {}
    all_right = True
    for peer in _PEERS:
        env = context.peer_env(peer.name, peer.requirements)
        for shape in ("chain", "fan"):
            figures, right = _measure(peer, env, shape)
            all_right = all_right and right
            for kind in ("first", "again"):
                name = f"{peer.name} {_version(peer)}"
                found.setdefault((shape, kind), {})[name] = figures[kind]
    return found, all_right


def _version(peer: _Peer) -> str:
    return peer.requirements[0].partition("==")[2]


def _measure(peer: _Peer, env: PeerEnv, shape: str) -> tuple[Mapping[str, float | Missing], bool]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        said = env.run(
            "peer_pipelines.py", peer.name, shape, str(peer.steps), folder, str(TURNS),
            timeout_s=900,
        )  # fmt: skip
    if isinstance(said, Missing):
        return {"first": said, "again": said}, True
    # The start of turn t is 10,000 t + 1.
    each = 2 if said["again"] else 1
    right = all(
        answer == _answer(shape, 10_000 * (number // each + 1) + 1, peer.steps)
        for number, answer in enumerate(said["answers"])
    )
    again = median(said["again"]) if said["again"] else Missing(peer.again)
    return {"first": median(said["first"]), "again": again}, right


def _answer(shape: str, start: int, steps: int) -> int:
    if shape == "chain":
        return start + steps
    return sum(start + number + 1 for number in range(steps))
