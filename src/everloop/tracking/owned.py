"""The part of the tracking service for runs that a process owns: leases, points, what is new."""

from __future__ import annotations

from everloop.access.policy import Authorizer
from everloop.access.service import action
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_principal
from everloop.core.run import Metric, PointPage, Run
from everloop.errors import EverloopError, InvalidInput
from everloop.tracking import models as logged
from everloop.tracking.follow import page_after
from everloop.tracking.groups import Logged, PointGroups
from everloop.tracking.leases import (
    EndState,
    annotate,
    end,
    expired,
    lease_end,
    reap,
    refused,
    renew,
    revive,
    take_over,
)
from everloop.tracking.limits import check_log
from everloop.tracking.points import MetricWriter
from everloop.tracking.store import RunRow, active_run, read_run, run_row

__all__ = ["OwnedRunMethods"]

#: Points of one call of ``log_points``; a transaction of this size is a few hundredths of a second.
MAX_POINTS = 10_000


class OwnedRunMethods:
    """Runs that a process keeps by a lease, see ``everloop.tracking.leases``."""

    _catalog: Catalog
    _metrics: MetricWriter
    _groups: PointGroups
    _authorizer: Authorizer

    @action("run:write", on="id")
    def resume_run(self, id: str, *, owner: str, lease_s: float = 60) -> Run:
        """Take over a run that was lost, failed or killed; it goes on under its id.

        Raises:
            NotFound: If there is no such run.
            InvalidInput: If it is of a pipeline, which resumes its runs itself.
            Conflict: If its owner is alive.
            StateError: If it finished, or is deleted.
        """
        with self._catalog.write() as tx:
            row = active_run(tx, id)
            if row.pipeline:
                raise InvalidInput(
                    f"run {id} is of pipeline {row.pipeline}",
                    [("id", id)],
                    hint=f"resume it with: everloop run FILE.py:PIPELINE --resume {id}",
                )
            take_over(tx, row, owner, lease_end(tx, lease_s))
            return read_run(tx, id)

    @action("run:write", on="id")
    def renew_run(self, id: str, fence: int, *, lease_s: float = 60) -> None:
        """Say that the owner lives.

        Raises:
            StateError: If somebody else took the run over, or it ended.
        """
        with self._catalog.write(ordered=False) as tx:
            if renew(tx, id, fence, lease_end(tx, lease_s)):
                return
        with self._catalog.write() as tx:
            revive(tx, run_row(tx, id), fence, lease_end(tx, lease_s))

    @action("run:write", on="id")
    def annotate_run(
        self,
        id: str,
        fence: int,
        *,
        code: str = "",
        git: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Add what became known while it ran: code snapshot, repository, environment.

        Raises:
            StateError: If somebody else took the run over.
        """
        with self._catalog.write() as tx:
            annotate(tx, id, fence, {"code": code, "git": git, "environment": environment})

    @action("run:write", on="id")
    def end_run(self, id: str, fence: int, state: EndState, *, error: str = "") -> Run:
        """End a run.

        Raises:
            StateError: If somebody else took it over, or it ended already.
        """
        with self._catalog.write() as tx:
            end(tx, run_row(tx, id), fence, state, error=error)
            return read_run(tx, id)

    @action("run:reap")
    def reap(self) -> list[str]:
        """Mark running runs as lost whose lease ran out or whose owner is dead; their ids."""
        with self._catalog.read() as tx:
            if not expired(tx):
                return []
        with self._catalog.write() as tx:
            return reap(tx)

    @action("run:write", on="id")
    def log_points(self, id: str, points: list[Metric], *, fence: int = 0) -> None:
        """Log up to 10,000 points in one transaction: all of them or nothing.

        The same point twice is one, so a call whose answer was lost may be repeated.

        Args:
            id: The run.
            points: Any keys, in any order.
            fence: Of the owner who logs; 0 for those who need not own the run.

        Raises:
            InvalidInput: With everything that is wrong or too much.
            NotFound: If there is no such run.
            StateError: If it is deleted, or somebody else took it over.
        """
        if len(points) > MAX_POINTS:
            faults = [("points", f"{len(points)} in one call, at most {MAX_POINTS} are allowed")]
            raise InvalidInput("too many points", faults)
        check_log(points, {}, {}, of_client=False)
        if self._log_known(id, points, fence):
            return
        with self._catalog.write(ordered=False) as tx:
            row = active_run(tx, id)
            if fence and row.fence != fence:
                raise refused(row, fence)
            keys = self._write_points(tx, row, points)
        self._metrics.remember(keys)

    @action("run:write")
    def log_known(self, logs: list[tuple[str, list[Metric]]]) -> list[bool]:
        """Log the points of several callers in one commit, as far as that needs nothing but rows.

        Args:
            logs: Id of a run, and points as a client may log them.

        Returns:
            For each whether it was written. What was not is to be given to ``log``, which makes
            names that are new, or says what is wrong; it keeps no other from being written.
        """
        fast = [index for index, (id_, points) in enumerate(logs) if self._is_plain(id_, points)]
        written = [False] * len(logs)
        if fast:
            done = self._groups.put([Logged(*logs[index]) for index in fast])
            for index, is_written in zip(fast, done, strict=True):
                written[index] = is_written
        return written

    def _is_plain(self, id_: str, points: list[Metric]) -> bool:
        try:
            self._authorizer.authorize(current_principal(), "run:write", id_)
            check_log(points, {}, {}, of_client=True)
        except EverloopError:
            return False
        return self._is_known(points)

    def _is_known(self, points: list[Metric]) -> bool:
        return self._metrics.knows(points) and not {point.model_id for point in points} - {""}

    def _log_known(self, id_: str, points: list[Metric], fence: int = 0) -> bool:
        """The hot path: points under known names alone, in one commit with other threads'."""
        if not self._is_known(points):
            return False
        return self._groups.log(id_, points, fence)  # if not, the other path says what is wrong

    def _write_points(self, tx: Transaction, row: RunRow, points: list[Metric]) -> dict[str, int]:
        keys = self._metrics.make_keys(tx, points)
        cursor = tx.connection.connection.cursor()
        self._metrics.write(cursor, tx.dialect, row.pk, points, keys)
        logged.write_model_metrics(tx, row.id, points)
        return keys

    @action("run:read", on="id")
    def points_after(
        self, id: str, cursor: str = "", *, keys: list[str] | None = None, limit: int = 5000
    ) -> PointPage:
        """Points of a run that lie after a cursor, for those who follow it while it runs.

        A cursor is a position (step, time, value) in each metric. A point that arrives late with an
        earlier step than one that was seen already lies before it: ``history`` has it, a follower
        does not see it.

        Args:
            id: The run.
            cursor: Of the page before; empty for the beginning.
            keys: Only these metrics; None for all.
            limit: Most points to return, 1 to 50,000.

        Raises:
            NotFound: If there is no such run.
            InvalidInput: If the cursor is none of ours.
        """
        with self._catalog.read() as tx:
            return page_after(tx, run_row(tx, id), cursor, keys, limit)
