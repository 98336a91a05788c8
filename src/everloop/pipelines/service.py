"""PipelineService: the run store of the engine. Runs with leases and fences, steps, stored results.

A run has one owner at a time. The owner renews a lease; whoever takes over raises the fence, and a
write with an older fence is refused. A step's end is one transaction: its row and its result.
"""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.direct import Direct, marks
from everloop.catalog.engine import Catalog
from everloop.core.ids import new_id
from everloop.core.pipeline import Explanation, Memo, StepKey, StoredValue
from everloop.core.run import Run, RunInput, StepRun
from everloop.core.time import from_micros, to_micros
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound
from everloop.pipelines.explain import explain
from everloop.ports.blobs import BlobStore
from everloop.tracking.leases import (
    EndState,
    annotate,
    end,
    lease_end,
    refused,
    renew,
    revive,
    take_over,
)
from everloop.tracking.store import (
    add_inputs,
    insert_run,
    open_experiment,
    read_run,
    run_row,
)

__all__ = ["PipelineService"]

# All statements are written out: they decide what a step and a run cost.
_INSERT_STEP = (
    "INSERT INTO step_runs (run_id, seq, step, key, outcome, output, error, started_at, ended_at) "
    "SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? "
    "WHERE EXISTS (SELECT 1 FROM runs WHERE id = ? AND fence = ? AND state = 'running') "
    "ON CONFLICT DO NOTHING"
)
_INSERT_MEMO = (
    "INSERT INTO memos (key, step, parts, notes, value, run_id, created_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_MEMO = "SELECT key, step, parts, notes, value, run_id, created_at FROM memos"
_STEPS = (
    "SELECT seq, step, key, outcome, output, error, started_at, ended_at FROM step_runs"
    " WHERE run_id = ? ORDER BY seq"
)
# Of this run, if it is resumed, and of the two before it.
_RECENT = (
    "SELECT key, value FROM memos WHERE key IN (SELECT key FROM step_runs WHERE run_id IN ("
    "SELECT ? UNION ALL SELECT id FROM (SELECT id FROM runs WHERE id <> ? AND pipeline = "
    "(SELECT pipeline FROM runs WHERE id = ?) ORDER BY pk DESC LIMIT 2) AS newest)) LIMIT 5000"
)
_encode = msgspec.json.Encoder().encode
_stored = msgspec.json.Decoder(StoredValue).decode
#: Keys asked for by one statement.
_KEYS = 500
#: Later than all times of the catalog.
_EVER = (1 << 63) - 1


class PipelineService(Service):
    """Runs of pipelines, their steps and stored results."""

    area = "pipelines"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    # The life of a run

    @action("run:start", on="pipeline")
    def start(
        self,
        pipeline: str,
        *,
        arguments: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
        run_id: str = "",
        code: str = "",
        git: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        trigger: str = "",
        owner: str = "",
        lease_s: float = 60,
    ) -> Run:
        """Start a run, or take over the run `run_id`.

        Args:
            pipeline: Name of the pipeline; also the experiment that its runs are in.
            arguments: Stored arguments, for a resume; ignored when one is resumed.
            params: The same as text, for people.
            run_id: A run to resume: lost, failed or killed, or running with a dead owner.
            code: Digest of the code snapshot.
            git: Commit, branch and whether there are changes.
            environment: Python, platform, distributions.
            tags: Tags; ignored when a run is resumed.
            trigger: Id of the firing that started it.
            owner: Who runs it, as :func:`everloop.core.owner.this_process` says.
            lease_s: Seconds until it counts as lost without a renewal.

        Raises:
            NotFound: If there is no run `run_id`.
            Conflict: If its owner is alive.
            StateError: If it finished.
        """
        with self._catalog.direct(write=True) as tx:
            until = lease_end(tx, lease_s)
            if run_id:
                self._take_over(tx, run_id, pipeline, owner, until)
                return read_run(tx, run_id)
            id_ = new_id()
            run = insert_run(
                tx,
                id_,
                open_experiment(tx, pipeline),
                params=params or {},
                tags=tags or {},
                pipeline=pipeline,
                code=code,
                git=git or {},
                environment=environment or {},
                arguments=arguments or {},
                trigger=trigger,
                owner=owner,
                fence=1,
                lease_until=until,
            )
            tx.append("run.Started", f"run:{id_}", {"pipeline": pipeline, "trigger": trigger})
        return run

    def _take_over(self, tx: Direct, run_id: str, pipeline: str, owner: str, until: Any) -> None:
        row = run_row(tx, run_id)
        if row.pipeline != pipeline:
            raise InvalidInput(
                f"run {run_id} is of pipeline {row.pipeline or 'none'}, not of {pipeline}",
                [("run_id", run_id)],
            )
        # A process knows what it executes. Where the catalog was away when a run ended, the run
        # still seems to be executed by the process that resumes it now.
        take_over(tx, row, owner, until, gave_up=owner)

    @action("run:write", on="run_id")
    def renew(self, run_id: str, fence: int, *, lease_s: float = 60) -> None:
        """Say that the owner lives.

        Raises:
            StateError: If somebody else took the run over, or it ended.
        """
        with self._catalog.direct(write=True, ordered=False) as tx:
            if renew(tx, run_id, fence, lease_end(tx, lease_s)):
                return
        with self._catalog.direct(write=True) as tx:
            revive(tx, run_row(tx, run_id), fence, lease_end(tx, lease_s))

    @action("run:write", on="run_id")
    def annotate(
        self,
        run_id: str,
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
        given = {"code": code, "git": git, "environment": environment}
        with self._catalog.direct(write=True) as tx:
            annotate(tx, run_id, fence, given)

    @action("run:write", on="run_id")
    def finish(
        self,
        run_id: str,
        fence: int,
        state: EndState,
        *,
        error: str = "",
        result: str = "",
        steps: list[StepRun] | None = None,
        inputs: list[RunInput] | None = None,
    ) -> None:
        """End a run; `steps` are rows of cached steps not yet written.

        Raises:
            StateError: If somebody else took the run over, or it ended already.
        """
        with self._catalog.direct(write=True) as tx:
            row = run_row(tx, run_id)
            _insert_steps(tx, run_id, fence, steps or [])
            add_inputs(tx, row, inputs or [])
            end(tx, row, fence, state, error=error, result=result)

    # Steps and stored results

    @action("run:read")
    def memo(self, key: str) -> Memo | None:
        """The stored result under a key."""
        with self._catalog.direct(write=False) as tx:
            row = tx.run(f"{_MEMO} WHERE key = ?", (key,)).fetchone()
        return None if row is None else _memo(row)

    @action("run:read")
    def results(self, keys: list[str]) -> dict[str, StoredValue]:
        """The stored results under those of `keys` that have one."""
        found: dict[str, StoredValue] = {}
        with self._catalog.direct(write=False) as tx:
            for start in range(0, len(keys), _KEYS):
                some = keys[start : start + _KEYS]
                rows = tx.run(
                    f"SELECT key, value FROM memos WHERE key IN ({marks(len(some))})", some
                )
                found |= {key: _stored(value) for key, value in rows.fetchall()}
        return found

    @action("run:read", on="run_id")
    def recent(self, run_id: str) -> dict[str, StoredValue]:
        """Stored results that the pipeline's two newest runs used, by key.

        The next run most likely asks for these, so the engine fetches them together.
        """
        with self._catalog.direct(write=False) as tx:
            rows = tx.run(_RECENT, (run_id, run_id, run_id)).fetchall()
        return {key: _stored(value) for key, value in rows}

    @action("run:write", on="run_id")
    def commit_steps(
        self, run_id: str, fence: int, steps: list[StepRun], results: list[Memo]
    ) -> None:
        """Write the ends of steps and their results in one transaction; all of it or nothing.

        Args:
            run_id: The run.
            fence: As given by ``start``.
            steps: The steps that ended.
            results: What is to be kept; the first result of a key stays.

        Raises:
            StateError: If somebody else took the run over.
            Conflict: If one of the rows is there already: another worker was first with it.
        """
        with self._catalog.direct(write=True) as tx:
            is_refused = not _insert_steps(tx, run_id, fence, steps)
            if is_refused:
                tx.cursor.connection.rollback()
            else:
                for memo in results:
                    tx.run(_INSERT_MEMO, _memo_values(memo))
        if is_refused:
            with self._catalog.direct(write=False) as tx:
                row = run_row(tx, run_id)
            if row.fence == fence and row.state == "running":
                raise Conflict(f"rows of run {run_id} are there already; nothing was written")
            raise refused(row, fence)

    @action("run:write")
    def forget(self, key: str, reason: str, *, damaged: str = "") -> None:
        """Drop a stored result that cannot be used any more, and note why.

        Args:
            key: Of the result.
            reason: For the event log.
            damaged: Digest of an object that was found damaged: if it is, it goes as well, or
                else the same result could not be stored again.
        """
        if damaged:
            self._drop_damaged(damaged)
        with self._catalog.direct(write=True) as tx:
            if tx.run("DELETE FROM memos WHERE key = ?", (key,)).rowcount:
                tx.append("run.MemoDropped", f"memo:{key}", {"reason": reason})

    def _drop_damaged(self, digest: str) -> None:
        try:
            for _ in self._blobs.stream(digest):
                pass
        except NotFound:
            return
        except BackendError:  # not taken from who says so: it is looked at
            self._blobs.delete(digest)

    @action("run:write")
    def retire(self, key: str, reason: str) -> None:
        """Take a stored result out of use, and keep its parts to compare with."""
        with self._catalog.direct(write=True) as tx:
            change = "UPDATE memos SET key = ? WHERE key = ?"
            if tx.run(change, (f"{key}@{new_id()}", key)).rowcount:
                tx.append("run.MemoDropped", f"memo:{key}", {"reason": reason})

    # Looking back

    @action("run:read", on="run_id")
    def arguments(self, run_id: str) -> dict[str, Any]:
        """The stored arguments of a run, as given to ``start``."""
        with self._catalog.direct(write=False) as tx:
            return dict(run_row(tx, run_id).arguments)

    @action("run:read", on="run_id")
    def steps(self, run_id: str) -> list[StepRun]:
        """The steps of a run in the order of their ends.

        Raises:
            NotFound: If there is no such run.
        """
        with self._catalog.direct(write=False) as tx:
            run_row(tx, run_id)
            rows = tx.run(_STEPS, (run_id,)).fetchall()
        return [_step_run(run_id, row) for row in rows]

    @action("run:read")
    def nearest(
        self, step: str, *, before: str = "", parts: dict[str, str] | None = None
    ) -> Memo | None:
        """The stored result of `step` that differs least from `parts`.

        Args:
            step: Name of the step.
            before: Key of a result; only those stored before it count.
            parts: What to compare with; without it the newest is taken.
        """
        with self._catalog.direct(write=False) as tx:
            made = tx.run("SELECT created_at FROM memos WHERE key = ?", (before,)).fetchone()
            rows = tx.run(
                f"{_MEMO} WHERE step = ? AND key <> ? AND created_at <= ?"
                " ORDER BY created_at DESC LIMIT 50",
                (step, before, made[0] if made else _EVER),
            ).fetchall()
        wanted = (parts or {}).items()
        found = [_memo(row) for row in rows]
        # The newest comes first, so that it wins among equals.
        return max(found, key=lambda m: len(wanted & m.key.parts.items()), default=None)

    @action("run:read", on="run_id")
    def explain(self, run_id: str, step: str) -> list[Explanation]:
        """Why each call of `step` in a run was executed or taken from the store.

        Args:
            run_id: The run.
            step: Full or last part of the step's name.

        Raises:
            NotFound: If the run has no such step.
        """
        rows = self.steps(run_id)
        mine = [r for r in rows if r.step == step or r.step.rpartition(".")[2] == step]
        if not mine:
            raise NotFound.named(f"step of run {run_id}", step, {row.step for row in rows})
        return [explain(row, self.memo(row.key) if row.key else None, self.nearest) for row in mine]


def _insert_steps(tx: Direct, run_id: str, fence: int, steps: list[StepRun]) -> bool:
    """Insert rows of steps; False if the fence does not hold."""
    for step in steps:
        row = (
            run_id,
            step.seq,
            step.step,
            step.key,
            step.outcome,
            step.output,
            step.error,
            to_micros(step.started_at),
            to_micros(step.ended_at),
            run_id,
            fence,
        )
        if tx.run(_INSERT_STEP, row).rowcount != 1:
            return False
    return True


def _step_run(run_id: str, row: Any) -> StepRun:
    seq, step, key, outcome, output, error, started, ended = row
    return StepRun(
        run_id=run_id,
        seq=seq,
        step=step,
        key=key,
        outcome=outcome,
        output=output,
        error=error,
        started_at=from_micros(started),
        ended_at=from_micros(ended),
    )


def _memo_values(memo: Memo) -> tuple[Any, ...]:
    key = memo.key
    return (
        key.digest,
        key.step,
        _encode(key.parts).decode(),
        _encode(key.notes).decode(),
        _encode(memo.value).decode(),
        memo.run_id,
        to_micros(memo.created_at),
    )


def _memo(row: Any) -> Memo:
    key, step, parts, notes, value, run_id, created = row
    decode = msgspec.json.decode
    return Memo(
        key=StepKey(
            step=step,
            digest=key,
            parts=decode(parts, type=dict[str, str]),
            notes=decode(notes, type=tuple[str, ...]),
        ),
        value=_stored(value),
        run_id=run_id,
        created_at=from_micros(created),
    )
