"""Group commit: what many threads write at once, points or small files, is one transaction.

A durable commit waits for the disk, which writes for eight callers in the time of one. The first
caller writes at once; those who come meanwhile wait, and the first of them then writes for all of
them. Alone, a caller waits for nobody and no other thread takes part.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

from everloop.catalog.engine import Catalog
from everloop.core.run import Metric
from everloop.tracking.points import MetricWriter

__all__ = ["Logged", "PointGroups", "Together"]


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Entry(Generic[_Item, _Result]):
    """What one caller writes, and what became of it."""

    __slots__ = ("error", "item", "leads", "result", "turn")

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.leads = False
        self.result: _Result
        self.error: BaseException | None = None
        #: Held until the caller may go on: it leads, or its item is written.
        self.turn = threading.Lock()
        self.turn.acquire()


class Together(ABC, Generic[_Item, _Result]):
    """Lets one thread write for all that wait; safe to keep over a fork."""

    def __init__(self) -> None:
        self._forget()
        _groups_over_fork.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Entry[_Item, _Result]] = []
        self._is_led = False

    @abstractmethod
    def _write(self, items: list[_Item]) -> list[_Result]:
        """Write all items or none; the result of each."""

    def put(self, item: _Item) -> _Result:
        """Write an item, with those of other threads; raises what its writing raised."""
        entry: _Entry[_Item, _Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            if not self._is_led:
                self._is_led = entry.leads = True
        if not entry.leads:
            self._wait(entry)
        if entry.leads:
            self._lead()
        if entry.error is not None:
            raise entry.error
        return entry.result

    def _wait(self, entry: _Entry[_Item, _Result]) -> None:
        try:
            entry.turn.acquire()
        except BaseException:  # Ctrl-C: the others must not wait for one who went away
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)
            if entry.leads:
                self._pass_on()
            raise

    def _lead(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        try:
            results = self._write([entry.item for entry in group])
            for entry, result in zip(group, results, strict=True):
                entry.result = result
        except Exception as error:  # noqa: BLE001 - each caller raises it
            for entry in group:
                entry.error = error
        finally:
            self._pass_on()
            for entry in group:
                entry.turn.release()

    def _pass_on(self) -> None:
        with self._lock:
            self._is_led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].turn.release()


class Logged(NamedTuple):
    """What one caller logs."""

    run_id: str
    points: Sequence[Metric]
    fence: int = 0


class PointGroups(Together[Sequence[Logged], list[bool]]):
    """Writes points under known names for all threads of this process."""

    def __init__(self, catalog: Catalog, writer: MetricWriter) -> None:
        super().__init__()
        self._catalog = catalog
        self._writer = writer

    def log(self, run_id: str, points: Sequence[Metric], fence: int = 0) -> bool:
        """Write the points durably; False, and nothing written, if there is no such active run.

        With a `fence`, only if the run has it still.
        """
        return self.put([Logged(run_id, points, fence)])[0]

    def _write(self, items: list[Sequence[Logged]]) -> list[list[bool]]:
        # Points are written once however often this is done, as the catalog asks.
        return self._catalog.hot(lambda cursor, dialect: self._write_rows(items, cursor, dialect))

    def _write_rows(
        self, items: list[Sequence[Logged]], cursor: Any, dialect: str
    ) -> list[list[bool]]:
        # What does not wait for an answer goes to PostgreSQL at once.
        with nullcontext() if dialect == "sqlite" else cursor.connection.pipeline():
            mark = "?" if dialect == "sqlite" else "%s"
            query = f"SELECT pk, fence FROM runs WHERE id = {mark} AND lifecycle = 'active'"
            found: dict[str, tuple[int, int]] = {}
            for run_id in {logged.run_id for item in items for logged in item}:
                cursor.execute(query, (run_id,))
                if row := cursor.fetchone():
                    found[run_id] = row
            rows: list[tuple[int, Sequence[Metric]]] = []
            written: list[list[bool]] = []
            for item in items:
                sound = [
                    logged.run_id in found and logged.fence in (0, found[logged.run_id][1])
                    for logged in item
                ]
                written.append(sound)
                for logged, is_sound in zip(item, sound, strict=True):
                    if is_sound:
                        rows.append((found[logged.run_id][0], logged.points))
            self._writer.write_known(cursor, dialect, rows)
        return written


_groups_over_fork: weakref.WeakSet[Together[Any, Any]] = weakref.WeakSet()


def _forget_in_child() -> None:
    # The thread that leads, and those who wait for it, are in the parent.
    for groups in list(_groups_over_fork):
        groups._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
