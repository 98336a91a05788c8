"""Steps on a cluster, seen from the driver: orders out, answers in, and what to do about losses.

The driver keeps nothing that matters. A worker commits what it finished; when it is lost, the
driver looks up which of its calls were committed and sends the others again.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from everloop.core.project import module_name
from everloop.core.run import Metric, Run
from everloop.core.schema import canonical_json
from everloop.pipelines.alike import Checks, version_of
from everloop.pipelines.calls import Call
from everloop.pipelines.code import CodePrint, fingerprint
from everloop.pipelines.definition import Step
from everloop.pipelines.node import Order, read_answer, to_payload
from everloop.pipelines.snapshot import check_size, data_of, files_of
from everloop.pipelines.source import STARTED
from everloop.pipelines.worker import Outcome, Raised, Task
from everloop.ports.executor import Executor, Needs, WorkerLost
from everloop.tracking.surroundings import snapshot_code

__all__ = ["Cluster", "needs_of"]

_logger = logging.getLogger(__name__)

_ENTRY = "everloop.pipelines.node:execute"
#: How often a call is sent again because its worker was lost; that is not one of its `retries`.
_RESENT = 3
#: Variables that a node sets itself, whatever the driver has.
_OF_THE_NODE = ("RAY_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "OMP_NUM_THREADS", "PATH", "HOME")


def needs_of(step: Step) -> Needs:
    """What one call of a step takes."""
    return Needs(step.cpus, step.gpus, step.memory)


class _Code(NamedTuple):
    """The code that a step needs.

    Attributes:
        digest: Of the snapshot.
        checks: What must be on the worker as it is here.
        variables: Names of environment variables that the step depends on.
    """

    digest: str
    checks: Checks
    variables: tuple[str, ...]


class Cluster:
    """Executes the calls of one run on a cluster.

    Args:
        workspace: The run's; it says where it is.
        run: The run.
        executor: The cluster.
        root: The pipeline's function; all that it reaches is one snapshot.
        next_number: Gives the number of a row of the run.
    """

    def __init__(
        self,
        workspace: Any,
        run: Run,
        executor: Executor,
        root: Callable[..., Any],
        next_number: Callable[[], int],
    ) -> None:
        self._workspace = workspace
        self._run = run
        self._executor = executor
        self._next_number = next_number
        self._place = workspace.place()
        self._lock = threading.Lock()
        self._codes: dict[tuple[Step, str], _Code] = {}
        # As the code is now: what is edited while the run is on counts for the next one.
        self._files: dict[str, str] = {}
        self._tree = self._snapshot(fingerprint(root))

    def capacity(self, step: Step) -> int:
        """How many calls of a step fit at once."""
        return self._executor.capacity(needs_of(step))

    def close(self) -> None:
        """End what is being executed."""
        self._executor.close()

    # Executing

    def run(self, task: Task, calls: list[Call]) -> Iterator[Outcome]:
        """Execute calls of one step, each once; their outcomes in order.

        Raises:
            EverloopError: If no worker can execute them, or commit for this run.
        """
        start = 0
        # What code reads (a file, a variable) may change between two calls; hardly ever.
        for _, alike in itertools.groupby(calls, lambda call: call.prints[0].digest):
            some = list(alike)
            part = task._replace(calls=task.calls[start : start + len(some)])
            start += len(some)
            yield from self._group(part, some)

    def _group(self, task: Task, calls: list[Call]) -> Iterator[Outcome]:
        numbers = [self._next_number() for _ in calls]
        try:
            outcomes = self._send(task, calls, numbers)
        except WorkerLost as lost:
            name = calls[0].step.name
            _logger.warning("a worker of the cluster was lost over %s: %s", name, lost)
            outcomes = [Outcome(call.began, call.began, committed=2) for call in calls]
        for place, (call, outcome) in enumerate(zip(calls, outcomes, strict=True)):
            if outcome.committed == 2:
                one = task._replace(calls=task.calls[place : place + 1])
                yield self._again(one, call, numbers[place])
            else:
                yield outcome

    def _send(self, task: Task, calls: list[Call], numbers: list[int]) -> list[Outcome]:
        step = calls[0].step
        code = self._code(step, calls[0].prints[0])
        arguments = {path: text for call in calls for path, text in _paths_in(call)}
        order = Order(
            place=self._place,
            code=code.digest,
            main=module_name("__main__"),
            environment=tuple((name, os.environ.get(name)) for name in code.variables),
            task=task._replace(checks=msgspec.structs.replace(code.checks, arguments=arguments)),
            timeout_s=step.timeout_s,
            keys=[call.key() for call in calls],
            numbers=numbers,
        )
        name = step.name.rpartition(".")[2]
        return read_answer(self._executor.execute(_ENTRY, to_payload(order), needs_of(step), name))

    def _again(self, task: Task, call: Call, number: int) -> Outcome:
        """Send a call again whose worker was lost, unless that one committed it."""
        told: WorkerLost | None = None
        for turn in range(_RESENT):
            known = self._committed(call, number)
            if known is not None:
                return known
            if call.digest in self._rows(number):  # with another value than the stored one
                number = self._next_number()
            try:
                [outcome] = self._send(task, [call], [number])
            except WorkerLost as lost:
                _logger.warning(
                    "a worker of the cluster was lost over %s for the %s time: %s",
                    *(call.step.name, ("second", "third", "fourth")[turn], lost),
                )
                told = lost
                continue
            if outcome.committed != 2:
                return outcome
        known = self._committed(call, number)
        if known is not None:
            return known
        message = f"the workers that executed it were lost {_RESENT + 1} times, at last by {told}"
        return Outcome(call.began, call.began, raised=Raised(b"", "ChildProcessError", message, ""))

    def _rows(self, number: int) -> dict[str, str]:
        rows = self._workspace.pipelines.steps(self._run.id)
        return {row.key: row.output for row in rows if row.seq == number}

    def _committed(self, call: Call, number: int) -> Outcome | None:
        """What a lost worker committed of a call; None if it did not."""
        output = self._rows(number).get(call.digest)
        memo = self._workspace.pipelines.memo(call.digest) if output is not None else None
        if memo is None or memo.value.digest != output:
            return None
        meta = memo.value.meta
        at_ms = int(memo.created_at.timestamp() * 1000)
        return Outcome(
            call.began,
            memo.created_at,
            stored=memo.value,
            tables=(("", tuple(meta.get("sources", ())), ()),),
            logged=tuple(
                Metric(key=key, value=float(value), step=step, at_ms=at_ms)
                for key, value, step in meta.get("logged", ())
            ),
            committed=1,
        )

    # The code

    def _code(self, step: Step, print_: CodePrint) -> _Code:
        with self._lock:
            known = self._codes.get((step, print_.digest))
            if known is None:
                known = self._codes[step, print_.digest] = self._code_of(step, print_)
            return known

    def _code_of(self, step: Step, print_: CodePrint) -> _Code:
        if not files_of(print_).keys() <= self._files.keys():
            self._tree |= self._snapshot(print_)  # reached by a way that the pipeline does not show
        elif any(of_step is step for of_step, _ in self._codes):  # a data file was written
            self._tree |= self._stored({}, data_of(print_))
        digest = self._workspace.blobs.put(canonical_json(self._tree))[0] if self._tree else ""
        kept = data_of(print_)
        inside = {*kept, *kept.values()}
        parts = print_.parts.items()
        files = {p.removeprefix("file:"): v for p, v in parts if p.startswith("file:")}
        checks = Checks(
            distributions={n: v for n, v in print_.distributions.items() if version_of(n) == v},
            files={
                place: content
                for place, content in files.items()
                if os.path.isfile(place) and not (os.path.isabs(place) and place in inside)
            },
            code=self._uncertain(step, print_),
        )
        names = dict.fromkeys((*print_.variables, *step.environment))
        variables = [name for name in names if not name.startswith(_OF_THE_NODE)]
        return _Code(digest, checks, tuple(variables))

    def _uncertain(self, step: Step, print_: CodePrint) -> dict[str, str]:
        """Parts to be compared there, where a file was written after this process began."""
        if not any(_written_lately(file) for file in files_of(print_).values()):
            return {}
        own = module_name(step.function.__module__)
        is_sent = step.function.__module__ == "__main__"
        return {
            part: value
            for part, value in print_.parts.items()
            if part.startswith(("code:", "const:"))
            and not (is_sent and part.partition(":")[2].startswith(f"{own}."))
        }

    def _snapshot(self, print_: CodePrint) -> dict[str, str]:
        """Store the files that code needs; name in the snapshot -> digest."""
        files, data = files_of(print_), data_of(print_)
        check_size(
            {**files, **data},
            "the code of the run",
            hint="install it as a package on the nodes, or keep data in datasets",
        )
        self._files |= files
        return self._stored(files, data)

    def _stored(self, files: dict[str, str], data: dict[str, str]) -> dict[str, str]:
        digest = snapshot_code(files, self._workspace.blobs, data=data)
        if not digest:
            return {}
        return msgspec.json.decode(self._workspace.blobs.get(digest), type=dict[str, str])


def _written_lately(file: str) -> bool:
    try:
        return os.stat(file).st_mtime > STARTED
    except OSError:
        return True


def _paths_in(call: Call) -> Iterator[tuple[str, str]]:
    """Paths among the arguments, with the content that the key has of them."""
    for _, text in call.texts:
        if '"content"' in text:
            yield from _paths(msgspec.json.decode(text))


def _paths(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        for item in node:
            yield from _paths(item)
    elif isinstance(node, dict):
        content = node.get("content")
        if isinstance(content, str) and ("$path" in node or "$text" in node):
            yield str(node.get("$path") or node.get("$text")), content
        for item in node.values():
            yield from _paths(item)
