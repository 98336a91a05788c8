"""Runs of pipelines: cached, resumed, refused; on SQLite and PostgreSQL."""

from __future__ import annotations

import contextvars
import math
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from everloop.core.artifact import ModelArtifact
from everloop.core.owner import is_dead, this_process
from everloop.core.run import StepRun
from everloop.data.frame import Table
from everloop.errors import Conflict, InvalidInput, NotFound, StateError, UserCodeError
from everloop.pipelines import api as ev
from everloop.pipelines import engine


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    execute = engine.Execution._execute

    def counting(self: Any, call: Any, *rest: Any) -> Any:
        seen.append(call.step.name.rpartition(".")[2])
        return execute(self, call, *rest)

    monkeypatch.setattr(engine.Execution, "_execute", counting)
    return seen


@ev.step
def double(x: int) -> int:
    ev.log(x=float(x))
    return 2 * x


@ev.step
def table(rows: int) -> pa.Table:
    return pa.table({"a": list(range(rows))})


@ev.step
def total(rows: pa.Table) -> int:
    return int(np.sum(rows["a"].to_numpy()))


@ev.pipeline
def sums(rows: int = 4, factor: float = 1.0) -> float:
    return double(total(table(rows))) * factor


def test_outside_a_run_a_step_is_its_function(calls: list[str]) -> None:
    assert double(2) == 4
    assert sums() == 12.0
    assert calls == []


def test_unchanged_run_executes_no_step(workspace: Any, calls: list[str]) -> None:
    assert sums.run() == 12.0
    assert calls == ["table", "total", "double"]
    first = workspace.tracking.run(sums.run_id)
    calls.clear()
    assert sums.run() == 12.0
    assert calls == []
    second = workspace.tracking.run(sums.run_id)
    assert first.id != second.id
    assert [s.outcome for s in workspace.pipelines.steps(first.id)] == ["ran"] * 3
    assert [s.outcome for s in workspace.pipelines.steps(second.id)] == ["cached"] * 3
    for run in (first, second):
        assert run.state == "finished"
        assert run.params == {"rows": "4", "factor": "1.0"}
        assert run.metrics == {"x": 6.0}  # a cached step's metrics are the run's too
        assert run.environment["pyarrow"] == pa.__version__
        assert run.code
    kinds = [e.kind for e in workspace.catalog.events(subject=f"run:{second.id}")]
    assert kinds == ["run.Started", "run.Finished"]


def test_changed_argument_runs_only_what_depends_on_it(
    sqlite_workspace: Any, calls: list[str]
) -> None:
    sums.run()
    calls.clear()
    sums.run(factor=2.0)
    assert calls == []
    sums.run(rows=5)
    assert calls == ["table", "total", "double"]


def test_force_runs_every_step(sqlite_workspace: Any, calls: list[str]) -> None:
    sums.run()
    calls.clear()
    assert sums.run(force=True) == 12.0
    assert calls == ["table", "total", "double"]


def test_equal_output_of_a_rerun_step_cuts_off_what_follows(
    sqlite_workspace: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sums.run()
    calls.clear()
    monkeypatch.setattr(table, "version", "2")
    sums.run()
    assert calls == ["table"]


def test_environment_variable_is_a_part_of_the_key(
    sqlite_workspace: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "environment", ("REGION",))
    for region in ("north", "north", "south"):
        monkeypatch.setenv("REGION", region)
        sums.run()
    assert calls.count("table") == 2
    [told] = sqlite_workspace.pipelines.explain(sums.run_id, "table")
    assert [change.part for change in told.changes] == ["env:REGION"]
    assert "south" not in str(told)


def test_explain_names_the_part_that_differs(workspace: Any) -> None:
    sums.run()
    first = sums.run_id
    [told] = workspace.pipelines.explain(first, "table")
    assert "before" in told.reason
    sums.run(rows=7)
    [told] = workspace.pipelines.explain(sums.run_id, "table")
    assert told.outcome == "ran"
    assert [(c.part, c.before, c.now) for c in told.changes] == [("param:rows", "4", "7")]
    assert told.compared_run == first
    sums.run(rows=7)
    [told] = workspace.pipelines.explain(sums.run_id, "table")
    assert told.outcome == "cached"
    with pytest.raises(NotFound, match="tabel"):
        workspace.pipelines.explain(first, "tabel")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"rows": "4"}, "rows: wanted int, got str '4'"),
        ({"rows": True}, "rows: wanted int, got bool True"),
        ({"rows": 4.0}, "rows: wanted int, got float 4.0"),
        ({"rosw": 4}, "rosw: unknown argument; there are: rows, factor"),
        ({"factor": None}, "factor: wanted float, got NoneType None"),
    ],
)
def test_wrong_argument_is_said_before_anything_runs(
    sqlite_workspace: Any, calls: list[str], arguments: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidInput, match=r"pipeline .*sums") as caught:
        sums.run(**arguments)
    assert fault in str(caught.value)
    assert calls == []
    assert sqlite_workspace.tracking.runs().runs == ()


@ev.step
def needs(model: ModelArtifact, names: list[str], rate: float | None = None) -> int:
    return len(names)


@ev.pipeline
def wrong_call() -> int:
    return needs("no model", ["a", 2], rate="x")  # type: ignore[arg-type, list-item]


def test_step_called_with_wrong_types_lists_all_of_them(sqlite_workspace: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        wrong_call.run()
    assert [fault.path for fault in caught.value.faults] == ["model", "names[1]", "rate"]
    run = sqlite_workspace.tracking.run(wrong_call.run_id)
    assert run.state == "failed"


FAIL = {"on": True}


@ev.step
def fragile(x: int) -> int:
    if FAIL["on"]:
        raise ValueError("no luck")
    return x + 1


@ev.pipeline
def breaks(x: int = 1) -> int:
    return fragile(double(x))


def test_failed_step_shows_the_users_traceback_and_resumes(
    workspace: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserCodeError) as caught:
        breaks.run(x=5)
    text = str(caught.value)
    assert text.startswith("Traceback (most recent call last)")
    assert 'raise ValueError("no luck")' in text
    assert "engine.py" not in text
    assert isinstance(caught.value.__cause__, ValueError)
    run = workspace.tracking.run(breaks.run_id)
    assert run.state == "failed"
    assert "no luck" in run.error
    assert [s.outcome for s in workspace.pipelines.steps(run.id)] == ["ran", "failed"]
    calls.clear()
    monkeypatch.setitem(FAIL, "on", False)
    assert breaks.run(resume=run.id) == 11  # with the argument of the start
    assert breaks.run_id == run.id
    assert calls == ["fragile"]
    again = workspace.tracking.run(run.id)
    assert (again.state, again.error, again.fence) == ("finished", "", 2)
    kinds = [e.kind for e in workspace.catalog.events(subject=f"run:{run.id}")]
    assert kinds == ["run.Started", "run.Failed", "run.Resumed", "run.Finished"]
    with pytest.raises(StateError, match="finished cannot resume"):
        breaks.run(resume=run.id)


def test_user_code_may_catch_what_a_step_raised(sqlite_workspace: Any) -> None:
    @ev.pipeline
    def careful() -> int:
        try:
            return fragile(1)
        except ValueError:
            return -1

    assert careful.run() == -1
    assert sqlite_workspace.tracking.run(careful.run_id).state == "finished"


def test_retries_try_again_and_tell_each_failure(
    sqlite_workspace: Any, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = iter([1, 2, 3])

    @ev.step(cache=False, retries=2)
    def flaky() -> int:
        if next(attempts) < 3:
            raise OSError("busy")
        return 3

    @ev.pipeline
    def tries() -> int:
        return flaky()

    assert tries.run() == 3
    told = [record.getMessage().partition("flaky ")[2] for record in caplog.records]
    assert told == ["failed in try 1 of 3: OSError: busy", "failed in try 2 of 3: OSError: busy"]


def test_stopped_by_hand_is_killed_and_resumable(sqlite_workspace: Any) -> None:
    stop = [True]

    @ev.step(cache=False)
    def waits() -> int:
        if stop.pop():
            raise KeyboardInterrupt
        return 1

    @ev.pipeline
    def stopped() -> int:
        return waits()

    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert sqlite_workspace.tracking.run(stopped.run_id).state == "killed"
    stop.append(False)
    assert stopped.run(resume=stopped.run_id) == 1


def test_uncached_step_runs_in_each_run_but_once_in_a_resumed_one(
    sqlite_workspace: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @ev.step(cache=False)
    def side_effect() -> int:
        return 1

    @ev.pipeline
    def effects() -> int:
        return side_effect() + side_effect() + fragile(1)

    with pytest.raises(UserCodeError):
        effects.run()
    assert calls == ["side_effect", "side_effect", "fragile"]
    calls.clear()
    monkeypatch.setitem(FAIL, "on", False)
    assert effects.run(resume=effects.run_id) == 4
    assert calls == ["fragile"]
    effects.run()
    assert calls == ["fragile", "side_effect", "side_effect"]


def test_output_without_a_stored_form_names_its_path(sqlite_workspace: Any) -> None:
    @ev.step
    def opaque() -> dict[str, Any]:
        return {"model": [1, threading.Lock()], "fine": 2}

    @ev.pipeline
    def stores() -> dict[str, Any]:
        return opaque()

    with pytest.raises(InvalidInput, match="cannot be stored") as caught:
        stores.run()
    assert [fault.path for fault in caught.value.faults] == ["result['model'][1]"]
    assert "ev.model" in caught.value.hint


def test_damaged_result_is_a_miss_and_is_noted(sqlite_workspace: Any, calls: list[str]) -> None:
    sums.run()
    for digest in list(sqlite_workspace.blobs.digests()):
        sqlite_workspace.blobs.delete(digest)
    calls.clear()
    assert sums.run() == 12.0
    assert calls == ["table"]
    events = [e.kind for e in sqlite_workspace.catalog.events()]
    assert "run.MemoDropped" in events


def test_tables_and_arrays_are_handed_over_read_only(sqlite_workspace: Any) -> None:
    @ev.step
    def array() -> np.ndarray:
        return np.arange(5.0)

    @ev.pipeline
    def gives() -> np.ndarray:
        return array()

    for _ in range(2):
        found = gives.run()
        assert found.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 9


def test_pipeline_within_a_pipeline_joins_its_run(sqlite_workspace: Any) -> None:
    @ev.pipeline
    def outer() -> float:
        return sums(rows=3)

    assert outer.run() == 6.0
    assert len(sqlite_workspace.tracking.runs().runs) == 1

    @ev.pipeline
    def starts_another() -> float:
        return sums.run()

    with pytest.raises(StateError, match="inside a run"):
        starts_another.run()


def test_file_argument_counts_by_content(
    sqlite_workspace: Any, calls: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "data.csv"

    @ev.step
    def read(path: Path) -> str:
        return path.read_text()

    @ev.pipeline
    def reads(path: Path) -> str:
        return read(path)

    for text in ("one", "one", "two"):
        file.write_text(text)
        assert reads.run(path=file) == text
    assert calls == ["read", "read"]


def test_two_threads_may_run_one_pipeline(workspace: Any) -> None:
    results: list[float] = []

    def go() -> None:
        results.append(sums.run())

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(go,)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [12.0, 12.0]
    assert {run.state for run in workspace.tracking.runs().runs} == {"finished"}


# Tables with sources and pending changes


@ev.step
def reads_dataset() -> Table:
    return Table(pa.table({"id": [1, 2], "x": [1.0, None]}), sources=[("flights", 3, "digest")])


@ev.step
def clean(raw: Table) -> dict[str, Any]:
    return {"rows": raw.drop_where("no_x", "x IS NULL", reason="no label", owner="ops")}


@ev.pipeline
def cleans() -> Table:
    found: Table = clean(reads_dataset())["rows"]
    return found


def test_dropped_rows_are_recorded_once_and_sources_in_each_run(sqlite_workspace: Any) -> None:
    for _ in range(2):
        rows = cleans.run()
        assert (rows.num_rows, rows.changes) == (1, ())
        inputs = sqlite_workspace.tracking.run(cleans.run_id).inputs
        assert [(i.dataset, i.version, i.role) for i in inputs] == [("flights", 3, "reads_dataset")]
    [change] = sqlite_workspace.data.changes
    assert change[0].endswith("clean")
    assert change[1:6] == ("flights", "no_x", "dropped", "no label", "ops")


# The service: leases and fences


def a_step(run_id: str, seq: int = 0) -> StepRun:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return StepRun(
        run_id=run_id, seq=seq, step="s", key="k", outcome="ran", started_at=at, ended_at=at
    )


def test_live_owner_is_not_taken_over(workspace: Any) -> None:
    service = workspace.pipelines
    run = service.start("p", owner=this_process())
    with pytest.raises(Conflict, match="is alive"):
        service.start("p", run_id=run.id)
    service.renew(run.id, run.fence)
    workspace.clock.advance(seconds=61)
    assert service.start("p", run_id=run.id).fence == 2


def test_late_writer_is_refused_and_nothing_is_kept(workspace: Any) -> None:
    service = workspace.pipelines
    run = service.start("p", owner="elsewhere:1:1")
    workspace.clock.advance(seconds=61)
    service.start("p", run_id=run.id, owner="here:2:2")
    for write in (
        lambda: service.commit_steps(run.id, 1, [a_step(run.id)], []),
        lambda: service.finish(run.id, 1, "finished"),
        lambda: service.renew(run.id, 1),
        lambda: service.annotate(run.id, 1, code="x"),
    ):
        with pytest.raises(StateError, match="taken over by here:2:2"):
            write()
    assert service.steps(run.id) == []
    service.commit_steps(run.id, 2, [a_step(run.id)], [])
    assert len(service.steps(run.id)) == 1


def test_dead_owner_on_this_host_is_known_at_once(workspace: Any) -> None:
    code = "from everloop.core.owner import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owner = done.stdout.strip()
    assert is_dead(owner)
    assert not is_dead(this_process())
    assert not is_dead("another host:1:1")
    assert not is_dead("")
    service = workspace.pipelines
    run = service.start("p", owner=owner)
    assert workspace.tracking.reap() == [run.id]
    assert workspace.tracking.run(run.id).state == "lost"
    assert workspace.tracking.reap() == []
    assert service.start("p", run_id=run.id).state == "running"


def test_reap_marks_what_outlived_its_lease(workspace: Any) -> None:
    service = workspace.pipelines
    kept, gone = service.start("p"), service.start("p")
    workspace.clock.advance(seconds=50)
    service.renew(kept.id, kept.fence)
    workspace.clock.advance(seconds=20)
    assert workspace.tracking.reap() == [gone.id]


def test_run_of_another_pipeline_is_not_resumed(workspace: Any) -> None:
    run = workspace.pipelines.start("p")
    with pytest.raises(InvalidInput, match="is of pipeline p"):
        workspace.pipelines.start("q", run_id=run.id)
    with pytest.raises(NotFound, match="Run with id=nothing"):
        workspace.pipelines.start("p", run_id="nothing")


# Definition


def test_wrong_definitions_are_refused() -> None:
    with pytest.raises(InvalidInput, match="retries"):
        ev.step(retries=-1)
    with pytest.raises(InvalidInput, match="environment"):
        ev.step(environment="HOME")

    async def wait() -> None: ...

    with pytest.raises(InvalidInput, match="plain function"):
        ev.step(wait)

    def resumes(resume: str) -> None: ...

    with pytest.raises(InvalidInput, match="resume"):
        ev.pipeline(resumes)

    class Holder:
        @ev.step
        def method(self) -> None: ...

    with pytest.raises(InvalidInput, match="stands in a class"):
        Holder().method()


def test_log_takes_numbers_only() -> None:
    ev.log(step=3, loss=math.nan, count=2)
    with pytest.raises(InvalidInput, match="wanted a number, got str"):
        ev.log(loss="high")  # type: ignore[arg-type]


class Settings(msgspec.Struct):
    depth: int
    names: tuple[str, ...] = ()


def test_struct_argument_brings_the_code_of_its_class(sqlite_workspace: Any) -> None:
    @ev.step
    def uses(settings: Settings) -> Settings:
        return settings

    @ev.pipeline
    def configured() -> Settings:
        return uses(Settings(3, ("a",)))

    for _ in range(2):
        assert configured.run() == Settings(3, ("a",))
    [told] = sqlite_workspace.pipelines.explain(configured.run_id, "uses")
    assert any(part.endswith("Settings") for part in told.parts)


@ev.step
def read_text(name: str) -> str:
    return Path(name).read_text()


@ev.step
def read_texts(names: dict[str, list[str]]) -> list[str]:
    return [Path(name).read_text() for name in names["files"]]


@ev.pipeline
def texts(name: str) -> list[str]:
    return [read_text(name), *read_texts({"files": [name]})]


def test_text_that_names_a_file_counts_by_the_files_content(
    sqlite_workspace: Any, calls: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("1")
    assert texts.run(name=str(file)) == ["1", "1"]
    assert texts.run(name=str(file)) == ["1", "1"]
    file.write_text("2")
    assert texts.run(name=str(file)) == ["2", "2"]
    assert calls == ["read_text", "read_texts"] * 2


def test_two_threads_do_not_execute_one_run(
    sqlite_workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    @ev.step(cache=False)
    def waits() -> int:
        begun.set()
        assert go.wait(60)
        return 1

    @ev.pipeline
    def slow() -> int:
        return waits()

    results: list[int] = []
    copied = contextvars.copy_context()
    first = threading.Thread(target=copied.run, args=(lambda: results.append(slow.run()),))
    first.start()
    assert begun.wait(60)
    with pytest.raises(Conflict, match="is alive"):
        slow.run(resume=slow.run_id)
    go.set()
    first.join()
    assert results == [1]
    with pytest.raises(StateError, match="finished"):
        slow.run(resume=slow.run_id)
