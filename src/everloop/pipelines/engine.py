"""The engine: one execution of a pipeline, step call by step call.

A step call computes its key. If a result is stored under it, that is the value; if not, the
function runs, its result is made durable, and one transaction commits step and result. Rows of
cached steps ride with the next commit: should the process die, the resumed run finds them again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec
from blake3 import blake3

from everloop.core.pipeline import Memo, StepKey, StoredValue
from everloop.core.run import Metric, Run, RunInput, StepRun
from everloop.errors import EverloopError, InvalidInput
from everloop.pipelines.code import CodePrint, fingerprint
from everloop.pipelines.definition import Step, environment_parts
from everloop.pipelines.values import Encoder, Unreadable, load, store

__all__ = [
    "LEASE_S",
    "Execution",
    "executing",
    "shown_arguments",
    "stored_arguments",
]

_logger = logging.getLogger(__name__)

LEASE_S = 45.0
RENEW_S = 15.0
#: Metric points held back at most, and for how long, seconds. A step that dies is executed again
#: and logs them again, so nothing that is acknowledged rests on them.
_HELD_POINTS, _HELD_S = 500, 1.0
#: Text of a parameter up to this length is shown in the key as it is.
_SHOWN = 80

executing: ContextVar[Execution | None] = ContextVar("everloop_executing", default=None)

_encode = msgspec.json.Encoder().encode


class Execution:
    """One owner's execution of a run.

    Args:
        workspace: Has ``pipelines``, ``blobs``, ``data`` and ``tracking``.
        run: As started.
        force: Run every step, whatever is stored.
    """

    def __init__(self, workspace: Any, run: Run, *, force: bool = False) -> None:
        self.run = run
        self.failed_step = ""
        self.failure: BaseException | None = None
        self._workspace = workspace
        self._service = workspace.pipelines
        self._blobs = workspace.blobs
        self._force = force
        self._seq = 0
        self._cached: list[StepRun] = []
        self._recent: dict[str, StoredValue] = {}
        self._calls: dict[str, int] = {}
        self._inputs: dict[tuple[Any, ...], RunInput] = {}
        self._points: list[Metric] = []
        self._logged: list[Metric] = []
        self._flushed_at = time.monotonic()
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="everloop-lease", daemon=True)

    def open(self) -> None:
        """Read what the pipeline's last runs stored, and begin to renew the lease."""
        self._recent = self._service.recent(self.run.id)
        known = self._service.steps(self.run.id)
        self._seq = max((step.seq for step in known), default=-1) + 1
        self._renewer.start()

    def close(self) -> None:
        """Stop renewing the lease."""
        self._stop.set()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self._service.renew(self.run.id, self.run.fence, lease_s=LEASE_S)
            except EverloopError:
                # Taken over, or the catalog is away: the next commit is refused or says so.
                continue

    # One step

    def call(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one call of a step, or take its stored result."""
        bound = step.signature.bind(args, kwargs)
        began = datetime.now(UTC)
        code = fingerprint(step.function)
        texts, encoder = self._arguments(step, bound)
        prints = [code, *(fingerprint(cls) for cls in dict.fromkeys(encoder.classes))]
        salt = self._salt(step, all(p.cacheable for p in prints) and not encoder.faults)
        digest = _key_digest(step, prints, texts, salt)
        if not self._force or "run" in salt:
            found = self._stored(digest)
            if found is not None:
                value, stored = found
                self._note_cached(step, digest, stored, began)
                return value
        value = self._execute(step, bound, digest, began)
        key = _key(step, digest, prints, texts, salt, encoder.faults)
        return self._commit(step, key, value, began)

    def _arguments(
        self, step: Step, bound: dict[str, Any]
    ) -> tuple[list[tuple[str, str]], Encoder]:
        encoder = Encoder(files=True)
        texts = [(name, encoder.text(value, name).decode()) for name, value in bound.items()]
        for path, table in encoder.tables:
            self._note_sources(table.sources, path.partition("[")[0])
        return texts, encoder

    def _note_sources(self, sources: Iterable[Any], role: str) -> None:
        """Note dataset versions as inputs; what came in by an argument keeps that role."""
        for dataset, version, digest in sources:
            item = RunInput(dataset=dataset, version=version, digest=digest, role=role)
            self._inputs.setdefault((dataset, version, digest), item)

    def _salt(self, step: Step, is_cacheable: bool) -> dict[str, str]:
        # A step that is not cached is still not executed twice by one run: a resume finds its
        # n-th call under the run's own id.
        if step.cache and is_cacheable:
            return {}
        number = self._calls[step.name] = self._calls.get(step.name, 0) + 1
        return {"run": self.run.id, "call": str(number)}

    def _stored(self, digest: str) -> tuple[Any, StoredValue] | None:
        stored = self._recent.get(digest)
        if stored is None:
            memo = self._service.memo(digest)
            if memo is None:
                return None
            stored = memo.value
        try:
            return load(stored, self._blobs), stored
        except Unreadable as error:
            self._recent.pop(digest, None)
            self._service.forget(digest, str(error))
            return None

    def _note_cached(self, step: Step, digest: str, stored: StoredValue, began: datetime) -> None:
        self._cached.append(self._row(step, digest, "cached", began, output=stored.digest))
        self._note_sources(stored.meta.get("sources", ()), _short(step))
        logged = stored.meta.get("logged")
        if logged:  # what the step logged when it ran belongs to this run too
            for key, value, at_step in logged:
                self.log({key: float(value)}, step=at_step)
        self._logged.clear()

    def _execute(self, step: Step, bound: dict[str, Any], digest: str, began: datetime) -> Any:
        args, kwargs = step.signature.unbind(bound)
        token = executing.set(None)  # steps called inside a step are plain functions
        try:
            for attempt in range(step.retries + 1):
                self._logged.clear()
                try:
                    return step.function(*args, **kwargs)
                except Exception as error:
                    # What the step asks to be tried again for may be anything.
                    if attempt == step.retries:
                        raise
                    _logger.warning(
                        "step %s failed in try %d of %d: %s: %s",
                        *(step.name, attempt + 1, step.retries + 1, type(error).__name__, error),
                        exc_info=True,
                    )
            raise AssertionError("unreachable")
        except BaseException as error:
            # Whatever ended the step, it goes on to the caller; first it is noted who failed.
            self.failed_step, self.failure = step.name, error
            if isinstance(error, Exception):
                told = f"{type(error).__name__}: {error}"
                row = self._row(step, digest, "failed", began, error=told)
                self._flush_points()
                self._service.commit_step(
                    self.run.id, self.run.fence, row, None, cached=self._take_cached()
                )
            raise
        finally:
            executing.reset(token)

    def _commit(self, step: Step, key: StepKey, value: Any, began: datetime) -> Any:
        try:
            stored, encoder = store(value, self._blobs, f"step {step.name}")
        except InvalidInput as error:
            if step.cache:
                self.failed_step, self.failure = step.name, error
                raise
            # Not cached and not to be stored: allowed, and a resume executes it again.
            row = self._row(step, key.digest, "ran", began)
            self._service.commit_step(
                self.run.id, self.run.fence, row, None, cached=self._take_cached()
            )
            return value
        # A later run that takes the result from the store has the same inputs and metrics.
        beside: dict[str, Any] = {}
        for _, table in encoder.tables:
            self._note_sources(table.sources, _short(step))
            self._record_changes(f"run:{self.run.id}/{step.name}", table)
            beside.setdefault("sources", []).extend(list(source) for source in table.sources)
        self._flush_points()
        if self._logged:
            beside["logged"] = [[p.key, repr(p.value), p.step] for p in self._logged]
            self._logged.clear()
        if beside:
            stored = msgspec.structs.replace(stored, meta={**stored.meta, **beside})
        now = datetime.now(UTC)
        memo = Memo(key=key, value=stored, run_id=self.run.id, created_at=now)
        row = self._row(step, key.digest, "ran", began, output=stored.digest)
        self._service.commit_step(
            self.run.id, self.run.fence, row, memo, cached=self._take_cached()
        )
        if encoder.tables or stored.kind in ("arrow", "numpy", "polars"):
            # Hand on what later runs will get: the mapped, read-only form, without the changes
            # that are in the ledger now. It frees memory too.
            return load(stored, self._blobs)
        return value

    def _record_changes(self, scope: str, table: Any) -> None:
        for change in table.changes:
            self._workspace.data.record_changes(
                scope,
                change.dataset,
                change.rule,
                change.action,
                change.reason,
                change.owner,
                change.rows,
            )

    def _row(
        self,
        step: Step,
        digest: str,
        outcome: Any,
        began: datetime,
        *,
        output: str = "",
        error: str = "",
    ) -> StepRun:
        seq, self._seq = self._seq, self._seq + 1
        return StepRun(
            run_id=self.run.id,
            seq=seq,
            step=step.name,
            key=digest,
            outcome=outcome,
            output=output,
            error=error,
            started_at=began,
            ended_at=datetime.now(UTC),
        )

    def _take_cached(self) -> list[StepRun]:
        taken, self._cached = self._cached, []
        return taken

    # Metrics

    def log(self, metrics: Mapping[str, Any], /, *, step: int = 0) -> None:
        """Hold metric points back for the next flush; also kept with the step's result."""
        at_ms = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            point = Metric(key=key, value=value, step=step, at_ms=at_ms)
            self._points.append(point)
            self._logged.append(point)
        late = time.monotonic() - self._flushed_at > _HELD_S
        if late or len(self._points) >= _HELD_POINTS:
            self._flush_points()

    def _flush_points(self) -> None:
        self._flushed_at = time.monotonic()
        if self._points:
            points, self._points = self._points, []
            self._workspace.tracking.log(self.run.id, points)

    # The end

    def finish(self, state: Any, *, error: str = "", result: Any = None) -> Run:
        """End the run with what is still held back."""
        self.close()
        self._flush_points()
        if state == "finished":
            for _, table in _tables_in(result):
                self._note_sources(table.sources, "result")
                self._record_changes(f"run:{self.run.id}", table)
        return self._service.finish(  # type: ignore[no-any-return]
            self.run.id,
            self.run.fence,
            state,
            error=error,
            steps=self._take_cached(),
            inputs=list(self._inputs.values()),
        )


def _short(step: Step) -> str:
    return step.name.rpartition(".")[2]


def _tables_in(value: Any) -> list[tuple[str, Any]]:
    encoder = Encoder()
    is_table = hasattr(value, "sources") and hasattr(value, "changes")
    if is_table or isinstance(value, list | tuple | dict):
        encoder.text(value, "result")
    return encoder.tables


def _key_digest(
    step: Step,
    prints: Iterable[CodePrint],
    texts: list[tuple[str, str]],
    salt: dict[str, str],
) -> str:
    whole = ([p.digest for p in prints], texts, step.version, environment_parts(step), salt)
    return blake3(_encode(whole)).hexdigest()


def _key(
    step: Step,
    digest: str,
    prints: list[CodePrint],
    texts: list[tuple[str, str]],
    salt: dict[str, str],
    faults: list[tuple[str, str]],
) -> StepKey:
    parts: dict[str, str] = {}
    for code in prints:
        parts |= code.parts
    for name, text in texts:
        shown = text if len(text) <= _SHOWN else blake3(text.encode()).hexdigest()[:32]
        parts[f"input:{name}" if '{"$' in text else f"param:{name}"] = shown
    parts |= environment_parts(step)
    if step.version:
        parts["version"] = step.version
    parts |= salt
    notes = [note for code in prints for note in code.notes]
    notes += [f"argument {path}: {message}; not cached" for path, message in faults]
    return StepKey(step=step.name, digest=digest, parts=parts, notes=tuple(notes))


def stored_arguments(bound: dict[str, Any], blobs: Any, where: str) -> dict[str, Any]:
    """Arguments in stored form, for a resume.

    Raises:
        InvalidInput: If one of them has no stored form.
    """
    return {
        name: msgspec.to_builtins(store(value, blobs, f"{where}, argument {name},")[0])
        for name, value in bound.items()
    }


def shown_arguments(stored: dict[str, Any]) -> dict[str, str]:
    """Arguments as text for people: short ones as they are, others by their digest."""
    shown = {}
    for name, value in stored.items():
        text = value["meta"].get("text", "")
        plain = msgspec.json.decode(text) if text else None
        if isinstance(plain, str):
            shown[name] = plain
        elif isinstance(plain, dict) and "$datetime" in plain:
            shown[name] = plain["$datetime"]
        elif isinstance(plain, dict) and "$date" in plain:
            shown[name] = plain["$date"]
        elif isinstance(plain, dict) and "$path" in plain:
            shown[name] = plain["$path"]
        elif value["kind"] == "json" and text and len(text) <= 500:
            shown[name] = text
        else:
            shown[name] = f"{value['kind']}:{value['digest'][:16]}"
    return shown
