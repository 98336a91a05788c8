"""``step.map``: many calls of one step, side by side in worker processes.

Small calls travel in groups that take about as long as a worker should be left alone, and each
group is committed by one transaction. A call that fails does not stop the others: they are
finished and kept, so that a resumed run has only the failed ones to do again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextvars import copy_context
from typing import Any, NamedTuple

from everloop.errors import Fault, InvalidInput
from everloop.pipelines.calls import Call
from everloop.pipelines.definition import Step
from everloop.pipelines.engine import End, Execution, backoff_s
from everloop.pipelines.handles import resolved

__all__ = ["FanOut"]

#: Calls looked up together.
_TOGETHER = 64
#: How many calls a group holds at most.
_GROUP_MOST = 512
#: Until a call is looked at again whose result another run computes, seconds.
_LOOK_S = 0.05


class _Todo(NamedTuple):
    place: int
    call: Call
    attempt: int = 0
    not_before: float = 0.0


class FanOut:
    """One ``map``.

    Args:
        execution: The run's.
        step: What is called for each item.
    """

    def __init__(self, execution: Execution, step: Step) -> None:
        self._execution = execution
        self._step = step
        self._results: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}
        self._changed = threading.Condition()
        self._todo: deque[_Todo] = deque()
        self._later: list[_Todo] = []
        self._open = 0
        self._is_complete = False
        self._fault: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._mean_s = 0.0
        self._workers = 1

    def run(self, items: list[Any], fixed: dict[str, Any]) -> list[Any]:
        """The results in the order of the items.

        Raises:
            InvalidInput: If an argument is of the wrong type; then nothing ran.
            Exception: What the first call that failed raised, when all the others are done.
        """
        items = [resolved(item) for item in items]
        fixed = {name: resolved(value) for name, value in fixed.items()}
        self._check(items, fixed)
        try:
            for start in range(0, len(items), _TOGETHER):
                self._begin(start, items[start : start + _TOGETHER], fixed)
        except BaseException as error:  # also Ctrl-C: the threads must end with it
            self._end(error)
            raise
        self._end(None)
        self._wait()
        if self._fault is not None:
            raise self._fault
        if self._errors:
            raise self._first_error(len(items))
        return [self._results[place] for place in range(len(items))]

    def _check(self, items: list[Any], fixed: dict[str, Any]) -> None:
        faults: list[Fault] = []
        for place, item in enumerate(items):
            try:
                self._step.signature.bind((item,), fixed)
            except InvalidInput as error:
                faults += [Fault(f"[{place}] {f.path}", f.message) for f in error.faults]
        if faults:
            raise InvalidInput(f"step {self._step.name} cannot be mapped over these items", faults)

    def _begin(self, start: int, items: list[Any], fixed: dict[str, Any]) -> None:
        calls = [self._execution.prepare(self._step, (item,), fixed) for item in items]
        hits = self._execution.look_up(calls)
        todo = []
        for place, call in enumerate(calls, start):
            if call.digest in hits:
                self._results[place] = self._execution.use(call, *hits[call.digest])
            else:
                todo.append(_Todo(place, call))
        if todo:
            with self._changed:
                self._open += len(todo)
                self._todo.extend(todo)
                self._changed.notify_all()
            if not self._threads:
                self._start()

    def _start(self) -> None:
        self._workers = self._execution.side_by_side(self._step)
        for number in range(self._execution.in_hand(self._workers)):
            work = threading.Thread(
                target=copy_context().run, args=(self._work,), name=f"everloop-map-{number}"
            )
            work.start()
            self._threads.append(work)

    def _wait(self) -> None:
        try:
            for thread in self._threads:
                thread.join()
        except BaseException as error:  # Ctrl-C while we wait
            self._end(error)
            raise

    def _end(self, fault: BaseException | None) -> None:
        with self._changed:
            self._is_complete = True
            self._fault = self._fault or fault
            self._changed.notify_all()
        if fault is not None:
            self._execution.stop_workers()
            for thread in self._threads:
                thread.join()

    def _first_error(self, total: int) -> BaseException:
        place = min(self._errors)
        error = self._errors[place]
        error.add_note(
            f"{len(self._errors)} of {total} calls of step {self._step.name} failed, the first for"
            f" item {place}; the results of the others are kept"
        )
        return error

    # In the threads

    def _work(self) -> None:
        try:
            while group := self._next_group():
                self._do(group)
        except BaseException as error:  # noqa: BLE001 - raised by `run`, in the caller's thread
            with self._changed:
                self._fault = self._fault or error
                self._changed.notify_all()

    def _next_group(self) -> list[_Todo]:
        with self._changed:
            while True:
                if self._fault is not None or (self._is_complete and self._open == 0):
                    return []
                now = time.monotonic()
                due = [todo for todo in self._later if todo.not_before <= now]
                if due:
                    self._later = [todo for todo in self._later if todo.not_before > now]
                    self._todo.extend(due)
                if self._todo:
                    return [self._todo.popleft() for _ in range(self._group_size())]
                soonest = min((todo.not_before for todo in self._later), default=None)
                self._changed.wait(None if soonest is None else max(soonest - now, 0.001))

    def _group_size(self) -> int:
        # Towards the end the groups get smaller, so that the workers end together.
        share = len(self._todo) // (2 * self._workers)
        fitting = int(self._execution.group_s / self._mean_s) if self._mean_s > 0 else 1
        return max(1, min(_GROUP_MOST, fitting, share))

    def _do(self, group: list[_Todo]) -> None:
        claims = self._execution.claims
        shared = [todo.call.digest for todo in group if todo.call.is_shared]
        ours = set(shared) if claims is None else claims.take(shared)
        try:
            self._do_claimed(group, ours)
        finally:
            if claims is not None:
                claims.release(ours)

    def _do_claimed(self, group: list[_Todo], ours: set[str]) -> None:
        mine, seen = [], set()
        elsewhere = []
        for todo in group:
            digest = todo.call.digest
            if todo.call.is_shared and (digest not in ours or digest in seen):
                elsewhere.append(todo)  # being computed, by another run or for an equal item
            else:
                seen.add(digest)
                mine.append(todo)
        # Since the first look another run, or this one for an equal item, may have stored it.
        hits = self._execution.look_up([t.call for t in mine])
        for todo in mine:
            if todo.call.digest in hits:
                self._results[todo.place] = self._execution.use(todo.call, *hits[todo.call.digest])
        again = self._execute([t for t in mine if t.call.digest not in hits])
        look_at = time.monotonic() + _LOOK_S
        with self._changed:
            self._later += [todo._replace(not_before=look_at) for todo in elsewhere] + again
            self._open -= len(group) - len(elsewhere) - len(again)
            self._changed.notify_all()

    def _execute(self, group: list[_Todo]) -> list[_Todo]:
        """Execute and commit; those that are to be tried again."""
        if not group:
            return []
        ends: list[End] = []
        again: list[_Todo] = []
        for todo, end in zip(
            group, self._execution.in_worker([todo.call for todo in group]), strict=True
        ):
            if end.error is not None and todo.attempt < self._step.retries:
                self._execution.tell_retry(end, todo.attempt)
                at = time.monotonic() + backoff_s(self._step, todo.attempt)
                again.append(todo._replace(attempt=todo.attempt + 1, not_before=at))
                continue
            ends.append(end)
            if end.error is not None:
                self._errors[todo.place] = end.error
        if ends:
            self._execution.commit(ends)
            taken = sum((end.ended - end.began).total_seconds() for end in ends) / len(ends)
            self._mean_s = taken if self._mean_s == 0 else (self._mean_s + taken) / 2
        by_key = {id(end.call): end for end in ends if end.error is None}
        for todo in group:
            if id(todo.call) in by_key:
                self._results[todo.place] = self._execution.value_of(by_key[id(todo.call)])
        return again
