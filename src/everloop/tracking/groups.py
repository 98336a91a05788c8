"""Group commit: points that many threads log at once go into one transaction.

A durable commit waits for the disk, which writes for eight callers in the time of one. The first
caller writes at once; those who come meanwhile wait, and the first of them then writes for all of
them. Alone, a caller waits for nobody and no other thread takes part.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import nullcontext

from everloop.catalog.engine import Catalog
from everloop.core.run import Metric
from everloop.tracking.points import MetricWriter

__all__ = ["PointGroups"]


class _Entry:
    """What one caller logs, and what became of it."""

    __slots__ = ("error", "fence", "leads", "points", "run_id", "turn", "written")

    def __init__(self, run_id: str, points: Sequence[Metric], fence: int) -> None:
        self.run_id = run_id
        self.fence = fence
        self.points = points
        self.leads = False
        self.written = False
        self.error: BaseException | None = None
        #: Held until the caller may go on: it leads, or its points are written.
        self.turn = threading.Lock()
        self.turn.acquire()


class PointGroups:
    """Writes points under known names for all threads of this process; safe to keep over a fork."""

    def __init__(self, catalog: Catalog, writer: MetricWriter) -> None:
        self._catalog = catalog
        self._writer = writer
        self._forget()
        _groups_over_fork.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._is_led = False

    def log(self, run_id: str, points: Sequence[Metric], fence: int = 0) -> bool:
        """Write the points durably; False, and nothing written, if there is no such active run.

        With a `fence`, only if the run has it still.
        """
        entry = _Entry(run_id, points, fence)
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
        return entry.written

    def _wait(self, entry: _Entry) -> None:
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
            self._write(group)
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

    def _write(self, group: list[_Entry]) -> None:
        with (
            self._catalog.driver(write=True, ordered=False) as (cursor, dialect),
            # What does not wait for an answer goes to PostgreSQL at once.
            nullcontext() if dialect == "sqlite" else cursor.connection.pipeline(),
        ):
            mark = "?" if dialect == "sqlite" else "%s"
            query = f"SELECT pk, fence FROM runs WHERE id = {mark} AND lifecycle = 'active'"
            found: dict[str, tuple[int, int]] = {}
            for run_id in {entry.run_id for entry in group}:
                cursor.execute(query, (run_id,))
                if row := cursor.fetchone():
                    found[run_id] = row
            sound = [
                entry
                for entry in group
                if entry.run_id in found and entry.fence in (0, found[entry.run_id][1])
            ]
            self._writer.write_known(
                cursor, dialect, [(found[entry.run_id][0], entry.points) for entry in sound]
            )
        for entry in sound:
            entry.written = True


_groups_over_fork: weakref.WeakSet[PointGroups] = weakref.WeakSet()


def _forget_in_child() -> None:
    # The thread that leads, and those who wait for it, are in the parent.
    for groups in list(_groups_over_fork):
        groups._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
