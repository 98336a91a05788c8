"""What every benchmark needs: rows, a registry, fair timing and peers in environments of their own.

An area is a module `benchmarks/area_<name>.py`. It registers functions that return rows:

    @bench
    def cached_step(context: Context) -> Row:
        env = peer_env("mlflow", ["mlflow-skinny==3.12.0"])
        seconds = in_turns(
            {"everloop": timed(ours), "limit": timed(raw)}, repeats=context.repeats(50)
        )
        return Row(
            area="pipelines", work="step, cached", unit="s",
            everloop=seconds["everloop"], limit=seconds["limit"], limit_name="one SQLite commit",
            peers={"mlflow": env.measure("peer_mlflow.py", str(runs))},
            answers_equal=..., repeats=50,
        )

Figures are medians in the row's unit. All sides do the same work on the same data, and
`answers_equal` says that their answers were compared. A peer that could not be installed or run
stays in the row, without a figure and with the reason; a figure that was not measured now but
before has `(quoted)` in the peer's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".bench"


@dataclass(frozen=True)
class Missing:
    """A peer's figure that could not be had, and why."""

    reason: str


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        area: The area's name, as in `area_<name>.py`.
        work: What was done, with its size.
        unit: Of all figures in the row: `s`, `us`, `requests/s`, `bytes`.
        everloop: Our median.
        limit: The raw limit's median: the least that any product would have to do.
        limit_name: What the limit does.
        peers: Median of each peer, with its version in the name, or why there is none.
        answers_equal: Whether all who took part gave the same answer.
        repeats: How many measurements each median is of.
        better: Whether a low or a high figure is good.
    """

    area: str
    work: str
    unit: str
    everloop: float
    limit: float
    limit_name: str
    answers_equal: bool
    repeats: int
    peers: Mapping[str, float | Missing] = field(default_factory=dict)
    better: Literal["low", "high"] = "low"

    @property
    def ratio_to_limit(self) -> float:
        """Our figure divided by the limit's."""
        return self.everloop / self.limit

    @property
    def ratio_to_best_peer(self) -> float | None:
        """Our figure divided by the best peer's; None where no peer has one."""
        figures = [figure for figure in self.peers.values() if not isinstance(figure, Missing)]
        if not figures:
            return None
        return self.everloop / (min(figures) if self.better == "low" else max(figures))

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON document; a peer without a figure is null, with its reason."""
        missing = {n: p.reason for n, p in self.peers.items() if isinstance(p, Missing)}
        return {
            "area": self.area,
            "work": self.work,
            "unit": self.unit,
            "everloop": self.everloop,
            "limit": self.limit,
            "limit_name": self.limit_name,
            "peers": {n: None if isinstance(p, Missing) else p for n, p in self.peers.items()},
            "ratio_to_limit": self.ratio_to_limit,
            "ratio_to_best_peer": self.ratio_to_best_peer,
            "answers_equal": self.answers_equal,
            "repeats": self.repeats,
            "better": self.better,
            **({"peers_missing": missing} if missing else {}),
        }


@dataclass(frozen=True)
class Context:
    """How thoroughly to measure, and with whom.

    Attributes:
        quick: Small sizes and few repeats.
        peers: Measure the peers too; installs them.
        postgres: URL of a database; areas that can measure on it too.
    """

    quick: bool = False
    peers: bool = True
    postgres: str = ""

    def size(self, full: int, quick: int) -> int:
        """Return how large a thing to measure."""
        return quick if self.quick else full

    def peer_env(self, name: str, requirements: Sequence[str]) -> PeerEnv:
        """Return a peer's environment; without peers, one that is not there and says so."""
        if not self.peers:
            return PeerEnv(name, Path(), "not asked for (--no-peers)")
        return peer_env(name, requirements)

    def repeats(self, full: int) -> int:
        """Return `full`, or a tenth of it (at least 3) in a quick run."""
        return max(3, full // 10) if self.quick else full


Bench = Callable[[Context], Row | Iterable[Row]]
_registered: list[Bench] = []


def bench(function: Bench) -> Bench:
    """Register `function` as a benchmark of the area whose module defines it."""
    _registered.append(function)
    return function


# Areas


def area_names(folder: Path | None = None) -> list[str]:
    """Return the names of all areas, sorted."""
    files = (folder or Path(__file__).parent).glob("area_*.py")
    return sorted(file.stem.removeprefix("area_") for file in files)


def load_area(name: str, package: str = "benchmarks") -> list[Bench]:
    """Import one area and return its benchmarks in the order in which it defines them."""
    module = importlib.import_module(f"{package}.area_{name}").__name__
    return [function for function in _registered if function.__module__ == module]


# Timing


def in_turns(
    turns: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: int = 1
) -> dict[str, float]:
    """The median of what each side says it took, the sides taking turns."""
    said: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(-warm_up, repeats):
        for name, call in turns.items():
            seconds = call()
            if turn >= 0:
                said[name].append(seconds)
    return {name: statistics.median(values) for name, values in said.items()}


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """`call` as a side of `in_turns`, by our clock."""

    def turn() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return turn


# Peers


@dataclass(frozen=True)
class PeerEnv:
    """A peer's virtual environment, or the reason why there is none."""

    name: str
    python: Path
    fault: str | None = None

    def measure(self, script: str | Path, *args: str, timeout_s: float = 600) -> float | Missing:
        """Run `script` there and return the number `value` of the JSON document it prints last."""
        answer = self.run(script, *args, timeout_s=timeout_s)
        if isinstance(answer, Missing):
            return answer
        try:
            return float(answer["value"])
        except (KeyError, TypeError, ValueError):
            return Missing(f"{script} printed no number named value")

    def run(
        self, script: str | Path, *args: str, timeout_s: float = 600
    ) -> dict[str, Any] | Missing:
        """Run `script` (relative to `benchmarks/`) there; return the JSON object it prints last."""
        if self.fault is not None:
            return Missing(self.fault)
        command = [str(self.python), str(Path(__file__).parent / script), *args]
        # Files and not pipes: what a peer leaves running would keep a pipe open.
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
            process = subprocess.Popen(command, stdout=said, stderr=complained, process_group=0)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return Missing(f"{script} took longer than {timeout_s:g} s")
            finally:
                # And it would disturb what is measured next.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            said.seek(0)
            complained.seek(0)
            out, err = said.read(), complained.read()
        if process.returncode:
            return Missing(f"{script} failed: {_last_line(err)}")
        try:
            answer = json.loads(_last_line(out))
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            return Missing(f"{script} did not end with a JSON object")
        return answer


def peer_env(name: str, requirements: Sequence[str], folder: Path = ENVIRONMENTS) -> PeerEnv:
    """Return the environment with exactly these requirements, made at the first call.

    An install that failed is tried again by the next run; it never raises.
    """
    digest = hashlib.sha256(json.dumps([sys.version, *requirements]).encode()).hexdigest()[:12]
    home = folder / f"{name}-{digest}"
    python = home / "bin" / "python"
    complete = home / "complete"
    if complete.exists():
        return PeerEnv(name, python)
    shutil.rmtree(home, ignore_errors=True)
    steps = [[sys.executable, "-m", "venv", str(home)]]
    if requirements:
        steps.append([str(python), "-m", "pip", "install", "--quiet", *requirements])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            return PeerEnv(
                name, python, f"not installed: {_error_line(done.stderr or done.stdout)}"
            )
    complete.touch()
    return PeerEnv(name, python)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "nothing was printed"


def _error_line(text: str) -> str:
    """Return the line of pip's output that says most."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return errors[-1] if errors else _last_line(text)
