"""PredictionLog: what was answered, written off the hot path with a stated, bounded loss.

Appending puts a reference into a bounded buffer. One thread turns what has gathered into one table
per route and hands it to ``PredictionService.log``, which stores it durably. The shadow answers
here, not in the request, on the rows of many requests at once.

When the process is killed, at most the answers of the last ``max_loss_s`` seconds are missing from
the log. When the buffer is full (the store is down or too slow) rows are dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa

from everloop.errors import EverloopError, InvalidInput, StateError
from everloop.serving.fields import Column
from everloop.serving.route import Answers, Floats
from everloop.serving.signature import Columns

__all__ = ["PredictionLog", "PredictionSink", "prediction_table"]

_logger = logging.getLogger(__name__)

_INSTANT = pa.timestamp("us", tz="UTC")

#: Rows at which the writer does not wait any longer.
_ENOUGH = 10_000

#: Longest pause between two tries while the store is down, seconds.
_LONGEST_PAUSE_S = 5.0


class PredictionSink(Protocol):
    """What the log needs of PredictionService."""

    def log(self, deployment: str, rows: pa.Table) -> Any: ...


def prediction_table(answers: Sequence[Answers]) -> pa.Table:
    """The log rows of answers by one route, with a row for each answer of the shadow.

    A shadow's row has an id of its own, the request id of the answer that it doubles, and the arm
    ``shadow``. ``latency_us`` is the time of the call divided by its rows:
    what a row cost. Who sent several rows at once waited for all of them; that is the histogram
    ``everloop_prediction_seconds``, which counts calls.

    Args:
        answers: At least one, all by the same snapshot.
    """
    snapshot = answers[0].snapshot
    merged = _merge(answers)
    names = np.array([arm.name for arm in snapshot.arms], dtype=object)
    rows = len(merged)
    latency = np.repeat(
        [part.call_us // max(len(part), 1) for part in answers], [len(part) for part in answers]
    )
    errors = [merged.errors.get(position, "") for position in range(len(snapshot.arms))]
    columns: dict[str, Any] = {
        "id": merged.ids,
        "request_id": merged.request_ids,
        "at": pa.array(merged.at_us).cast(_INSTANT),
        "version": pa.array(merged.versions, pa.int32()),
        "revision": pa.array(np.full(rows, snapshot.revision, dtype=np.int32)),
        "arm": pa.array(names[merged.arm], pa.string()),
        "value": _values(merged.values),
        "latency_us": pa.array(latency.astype(np.int64)),
        "error": pa.array([errors[position] for position in merged.arm.tolist()], pa.string()),
        "request": pa.array(_requests(merged), pa.string()),
    }
    for position, name in enumerate(snapshot.names):
        columns[f"f.{name}"] = pa.array(np.ascontiguousarray(merged.features[:, position]))
    for view, known in merged.times.items():
        columns[f"t.{view}"] = pa.array(known, mask=known < 0).cast(_INSTANT)
    table = pa.table(columns)
    return _with_shadow(table, merged)


def _merge(answers: Sequence[Answers]) -> Answers:
    first = answers[0]
    if len(answers) == 1:
        return first
    columns: Columns = {
        name: [value for part in answers for value in _listed(part.columns[name])]
        for name in first.columns
    }
    return Answers(
        snapshot=first.snapshot,
        columns=columns,
        ids=[one for part in answers for one in part.ids],
        request_ids=[one for part in answers for one in part.request_ids],
        at_us=np.concatenate([part.at_us for part in answers]),
        arm=np.concatenate([part.arm for part in answers]),
        values=np.concatenate([part.values for part in answers]),
        features=np.concatenate([part.features for part in answers]),
        times={
            view: np.concatenate([part.times[view] for part in answers]) for view in first.times
        },
        errors={},
        call_us=0,
    )


def _listed(column: Column) -> list[Any]:
    return list(column.tolist()) if isinstance(column, np.ndarray) else column


def _values(values: Floats) -> pa.Array:
    """A prediction that is no number is none; its row says why."""
    return pa.array(values, mask=np.isnan(values))


def _requests(answers: Answers) -> list[str]:
    """Each request as JSON text, as the validator understood it."""
    names = list(answers.columns)
    lists = [_listed(column) for column in answers.columns.values()]
    if not names:
        return ["{}"] * len(answers)
    return [
        orjson.dumps(dict(zip(names, row, strict=True)), default=_as_text).decode()
        for row in zip(*lists, strict=True)
    ]


def _as_text(value: Any) -> str:
    return bytes(value).hex()


def _with_shadow(table: pa.Table, answers: Answers) -> pa.Table:
    shadow = answers.shadow()
    if shadow is None:
        return table
    ids, values, micros, error = shadow
    rows = len(answers)
    position = answers.snapshot.shadow or 0
    arm = answers.snapshot.arms[position]
    changed = {
        "id": pa.array(ids, pa.string()),
        "version": pa.array(np.full(rows, arm.version, dtype=np.int32)),
        "arm": pa.array([arm.name] * rows, pa.string()),
        "value": _values(values),
        "latency_us": pa.array(np.full(rows, micros // max(rows, 1), dtype=np.int64)),
        "error": pa.array([error] * rows, pa.string()),
    }
    doubled = table
    for name, column in changed.items():
        doubled = doubled.set_column(doubled.column_names.index(name), name, column)
    return pa.concat_tables([table, doubled])


class PredictionLog:
    """The log of one worker; :meth:`append` may be called by any thread.

    Args:
        sink: Stores tables durably.
        max_loss_s: Age in seconds at which an answer must be durable while the store is well.
        capacity: Rows that the buffer holds; what comes beyond is dropped and counted.
        on_drop: Told of a deployment and how many rows were dropped.
    """

    def __init__(
        self,
        sink: PredictionSink,
        *,
        max_loss_s: float = 1.0,
        capacity: int = 200_000,
        on_drop: Callable[[str, int], None] | None = None,
    ) -> None:
        self._sink = sink
        # Half the time to gather, half to store.
        self._interval_s = max_loss_s / 2
        self._capacity = capacity
        self._on_drop = on_drop
        self._buffer: deque[Answers] = deque()
        self._rows = 0
        self._taken = 0
        self._appended = 0
        self._written = 0
        self._goal = 0
        self._dropped = 0
        self._closing = False
        self._changed = threading.Condition()
        # Arrow imports pandas with the first array it makes, where pandas is installed. That takes
        # seconds, which must not fall among the first requests.
        pa.array([""])
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, answers: Answers) -> bool:
        """Take over `answers`; False if the buffer was full and they were dropped."""
        rows = len(answers)
        if not rows:
            return True
        with self._changed:
            if self._closing:
                raise StateError("the prediction log is closed")
            if self._rows + self._taken + rows > self._capacity and self._rows + self._taken:
                self._dropped += rows
                accepted = False
            else:
                self._buffer.append(answers)
                self._rows += rows
                self._appended += rows
                accepted = True
                if self._rows >= _ENOUGH or self._rows == rows:
                    self._changed.notify_all()
        if not accepted and self._on_drop is not None:
            self._on_drop(answers.snapshot.deployment, rows)
        return accepted

    def log_batch(self, answers: Answers) -> Any:
        """Store `answers` now, past the buffer; durable when it returns, with what the sink gave.

        Raises:
            BackendError: If they could not be stored; nothing of them was.
        """
        return self._sink.log(answers.snapshot.deployment, prediction_table([answers]))

    @property
    def dropped(self) -> int:
        """Rows dropped so far."""
        return self._dropped

    @property
    def pending(self) -> int:
        """Rows that are not durable yet."""
        return self._appended - self._written

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything appended before is durable.

        Raises:
            StateError: If it is not within `timeout_s`.
        """
        with self._changed:
            goal = self._appended
            self._goal = goal
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._written >= goal, timeout_s):
                raise StateError(
                    f"{goal - self._written} predictions are not stored yet",
                    hint="the store is down or slow; the log goes on trying",
                )

    def close(self, timeout_s: float = 30.0) -> None:
        """Store what is left and end the thread; safe to call twice. Raises as :meth:`flush`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self.pending:
            raise StateError(f"{self.pending} predictions could not be stored")

    def _run(self) -> None:
        pause_s = 0.1
        while True:
            taken = self._gather()
            if not taken:
                return
            for group in _by_route(taken):
                # Made once: a second try must carry the same ids, so that the store knows them.
                table = self._table(group)
                while table is not None and not self._store(group, table):
                    if self._closing and pause_s >= _LONGEST_PAUSE_S:
                        return
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                pause_s = 0.1
                rows = sum(map(len, group))
                with self._changed:
                    self._taken -= rows
                    self._written += rows
                    self._changed.notify_all()

    def _gather(self) -> list[Answers]:
        """Wait for the interval, or for enough; empty when the log is closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._buffer or self._closing)
            self._changed.wait_for(self._is_due, self._interval_s)
            taken = list(self._buffer)
            self._buffer.clear()
            self._taken = self._rows
            self._rows = 0
            return taken

    def _is_due(self) -> bool:
        return self._closing or self._rows >= _ENOUGH or self._goal > self._written

    def _table(self, group: list[Answers]) -> pa.Table | None:
        try:
            return prediction_table(group)
        except Exception:  # what cannot be written must not stop all that comes after it
            _logger.exception("predictions could not be made a table")
            self._lose(group)
            return None

    def _store(self, group: list[Answers], table: pa.Table) -> bool:
        """Whether the group is done with: stored, or lost for good."""
        deployment = group[0].snapshot.deployment
        try:
            self._sink.log(deployment, table)
        except InvalidInput as error:
            # Another try would be refused as well.
            _logger.error("predictions of %s are refused and lost: %s", deployment, error)
            self._lose(group)
        except EverloopError as error:
            _logger.warning("predictions of %s not stored yet: %s", deployment, error.message)
            return False
        except Exception:  # a fault nobody foresaw: counted, and the log goes on
            _logger.exception("predictions of %s could not be stored and are lost", deployment)
            self._lose(group)
        return True

    def _lose(self, group: list[Answers]) -> None:
        rows = sum(map(len, group))
        self._dropped += rows
        if self._on_drop is not None:
            self._on_drop(group[0].snapshot.deployment, rows)


def _by_route(answers: list[Answers]) -> list[list[Answers]]:
    groups: dict[tuple[int, str], list[Answers]] = {}
    for part in answers:
        # Calls in which a model failed stand alone: the fault belongs to an arm of that call.
        key = (id(part.snapshot), part.ids[0] if part.errors else "")
        groups.setdefault(key, []).append(part)
    return list(groups.values())
