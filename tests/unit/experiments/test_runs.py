"""`ev.run` in each workspace that users have: SQLite, PostgreSQL, and through a server."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import everloop as ev
from everloop import server
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound, StateError
from everloop.experiments.run import ActiveRun
from everloop.workspace import Workspace
from tests.servers import serve


def values(run: ActiveRun, metric: str) -> list[float]:
    return [point.value for point in run.history(metric)]


def test_run_keeps_what_is_logged(ws: Workspace) -> None:
    with ev.run("churn", params={"lr": 0.05, "deep": True}, tags={"team": "growth"}, seed=7) as run:
        for step in range(50):
            run.log(loss=1 / (step + 1), step=step)
        run.log({"eval/auc": np.float32(0.5)}, best=3, step=np.int64(9))
        run.flush()
        assert len(run.history("loss")) == 50
        run.log(auc=0.9, sync=True)
        assert values(run, "auc") == [0.9]
        run.log_params({"leaves": 31})
        run.set_tags({"team": "core"})
        ev.log(seen=2.0)
    found = ws.tracking.run(run.id)
    assert found.state == run.state == "finished"
    assert found.params == {"lr": "0.05", "deep": "True", "seed": "7", "leaves": "31"}
    assert found.tags == {"team": "core"}
    assert found.metrics == {
        "loss": 0.02,
        "eval/auc": 0.5,
        "best": 3.0,
        "auc": 0.9,
        "seen": 2.0,
    }
    assert ws.tracking.experiment(found.experiment).name == "churn"
    assert [point.step for point in run.history("loss", points=10)][::9] == [0, 49]
    assert [point.step for point in run.history("best")] == [9]


def test_run_tells_what_it_was_made_of(ws: Workspace) -> None:
    with ev.run("e") as run:
        pass
    found = ws.tracking.run(run.id)
    assert found.environment["python"].startswith("3.")
    assert int(found.environment["hardware.cpus"]) > 0
    assert found.environment["command"].startswith(shlex.quote(sys.orig_argv[0]))
    assert found.environment["msgspec"]
    tree = json.loads(ws.blobs.get(found.code))
    mine = next(
        digest for path, digest in tree.items() if path.endswith("experiments/test_runs.py")
    )
    assert ws.blobs.get(mine) == Path(__file__).read_bytes()


@pytest.mark.parametrize(
    "value",
    ["0.5", None, 1 + 2j, np.complex64(1j), b"1", True, [1.0], np.zeros(2), 10**400],
    ids=repr,
)
def test_value_that_is_no_number_is_refused_at_the_call(tmp_path: Path, value: object) -> None:
    with ev.open(tmp_path) as ws, using(ws), ev.run("e") as run:
        with pytest.raises(TypeError, match="metric 'loss' must be"):
            run.log(loss=value, good=1.0)
        run.flush()
        assert run.refresh().metrics == {}


@pytest.mark.parametrize("step", [1.5, "1", None, 1 << 63])
def test_step_that_is_no_whole_number_is_refused(tmp_path: Path, step: object) -> None:
    with (
        ev.open(tmp_path) as ws,
        using(ws),
        ev.run("e") as run,
        pytest.raises(TypeError, match="the step must"),
    ):
        run.log(loss=1.0, step=step)  # type: ignore[arg-type]


def test_name_that_cannot_be_kept_is_refused_at_the_call(tmp_path: Path) -> None:
    with ev.open(tmp_path) as ws, using(ws), ev.run("e") as run:
        for name in ("a#b", "", "../x", "a" * 251):
            with pytest.raises(InvalidInput):
                run.log({name: 1.0})
        with pytest.raises(TypeError, match="name of a metric"):
            run.log({1: 1.0})  # type: ignore[dict-item]


def test_numbers_of_any_kind_are_kept(ws: Workspace) -> None:
    class Tensor:
        def __float__(self) -> float:
            return 2.5

    given = [math.nan, math.inf, -math.inf, np.float64(1.5), np.int8(3), Decimal("0.5"), Tensor()]
    with ev.run("e") as run:
        for step, value in enumerate(given):
            run.log(x=value, step=step)
    found = values(run, "x")
    assert math.isnan(found[0])
    with ev.run("e", name="nan") as run:
        run.log(x=math.nan)
    assert math.isnan(ev.runs("e").where("attributes.run_name = 'nan'")[0].metrics["x"])
    assert found[1:] == [math.inf, -math.inf, 1.5, 3.0, 0.5, 2.5]


def test_run_within_a_run_is_its_child(ws: Workspace) -> None:
    with ev.run("e") as outer:
        with ev.run("e") as inner:
            ev.log(x=1.0)
        ev.log(x=2.0)
    assert inner.tags == {"mlflow.parentRunId": outer.id}
    assert (values(inner, "x"), values(outer, "x")) == ([1.0], [2.0])


def fail(run: ActiveRun) -> None:
    run.log(loss=1.0)
    raise ZeroDivisionError("division by zero")


def train(run: ActiveRun, losses: Iterable[float]) -> None:
    with run:
        for step, loss in enumerate(losses):
            run.log(loss=loss, step=step)


def test_error_ends_the_run_as_failed_and_is_kept(ws: Workspace) -> None:
    run = ev.run("e")
    with pytest.raises(ZeroDivisionError), run:
        fail(run)
    found = ws.tracking.run(run.id)
    assert found.state == "failed"
    assert found.error.endswith("ZeroDivisionError: division by zero")
    assert "test_runs.py" in found.error
    assert found.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "killed"), (SystemExit(3), "killed"), (SystemExit(0), "finished")],
    ids=["ctrl-c", "exit 3", "exit 0"],
)
def test_signals_end_the_run(tmp_path: Path, error: BaseException, state: str) -> None:
    with ev.open(tmp_path) as ws, using(ws):
        with pytest.raises(type(error)), ev.run("e") as run:
            raise error
        assert run.state == state


def test_run_whose_process_died_is_lost_and_goes_on_under_its_id(
    ws: Workspace, clock: ManualClock
) -> None:
    first = ws.tracking.create_run("e", params={"lr": "1"}, owner="elsewhere:1:1", lease_s=60)
    with pytest.raises(Conflict, match="is alive"):
        ev.run(resume=first.id)
    clock.advance(seconds=61)
    if ws.is_remote:  # a server looks by itself every few seconds
        ws.tracking.reap()
    [found] = ev.runs("e")
    assert found.state == "lost"
    with ev.run(resume=first.id, params={"more": 2}) as run:
        assert run.id == first.id
        run.log(loss=1.0)
        with pytest.raises(StateError, match="taken over"):
            ws.tracking.log_points(first.id, [], fence=1)
    assert ws.tracking.run(first.id).params == {"lr": "1", "more": "2"}
    assert (run.state, values(run, "loss")) == ("finished", [1.0])
    with pytest.raises(StateError, match="finished"):
        ev.run(resume=first.id)


def test_server_notices_by_itself_that_a_run_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REAP_S", 0.01)
    clock = ManualClock(datetime(2013, 4, 1, tzinfo=UTC))
    with ev.open(tmp_path, clock=clock) as embedded, serve(embedded) as url, ev.open(url) as ws:
        run = ws.tracking.create_run("e", owner="elsewhere:1:1", lease_s=60)
        clock.advance(seconds=61)
        deadline = time.monotonic() + 30
        while ws.tracking.run(run.id).state != "lost":
            assert time.monotonic() < deadline, "nobody noticed"
            time.sleep(0.01)


def test_owner_that_only_slept_keeps_its_run(ws: Workspace, clock: ManualClock) -> None:
    with ev.run("e") as run:
        clock.advance(seconds=3600)
        assert ws.tracking.reap() == [run.id]
        run._renew()
        assert run.refresh().state == "running"
        clock.advance(seconds=3600)
        assert ws.tracking.reap() == [run.id]
    assert run.state == "finished"


def test_run_that_somebody_else_took_over_is_told_so(ws: Workspace, clock: ManualClock) -> None:
    run = ev.run("e")
    clock.advance(seconds=61)
    ws.tracking.reap()
    ws.tracking.resume_run(run.id, owner="elsewhere:2:2")
    with pytest.raises(StateError, match="taken over by elsewhere:2:2"):
        run.log(loss=1.0, sync=True)
    with pytest.raises(StateError, match="taken over"):
        run.end()
    assert ws.tracking.run(run.id).state == "running"


def test_deleted_run_is_told_at_the_end_with_the_own_error(ws: Workspace) -> None:
    run = ev.run("e")
    ws.tracking.delete_run(run.id)
    with pytest.raises(ZeroDivisionError) as caught, run:
        fail(run)
    assert "must be in the 'active' state" in caught.value.__notes__[0]
    assert ws.tracking.run(run.id).state == "failed"


def test_end_can_be_repeated_when_the_catalog_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object, **options: object) -> None:
        raise BackendError("the catalog is away")

    with ev.open(tmp_path) as ws, using(ws):
        for call in ("log_points", "end_run"):
            run = ev.run("e")
            with monkeypatch.context() as patch:
                patch.setattr(ws.tracking, call, away)
                with pytest.raises(BackendError, match="is away"):
                    train(run, [1.0, 2.0])
            run.end()
            assert (run.state, values(run, "loss")) == ("finished", [1.0, 2.0])


def test_nothing_is_logged_after_the_end(tmp_path: Path) -> None:
    with ev.open(tmp_path) as ws, using(ws):
        run = ev.run("e")
        run.end()
        run.end()
        with pytest.raises(StateError, match="has ended"):
            run.log(loss=1.0)


def test_files_are_kept(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    with ev.run("e") as run:
        run.log_file(tmp_path / "report.html")
        run.log_text("grüß", "notes/a.txt")
        run.log_dict({"a": [1]}, "notes/b.json")
        for path, fault in (("../x", "Invalid path"), ("/x", "Invalid path")):
            with pytest.raises(InvalidInput, match=fault):
                run.log_text("x", path)
        with pytest.raises(InvalidInput, match="folder"):
            run.log_file(tmp_path)
        with pytest.raises(NotFound, match="no file"):
            run.log_file(tmp_path / "nothing")
        with pytest.raises(InvalidInput, match="JSON"):
            run.log_dict({"a": object()}, "c.json")
        with pytest.raises(InvalidInput, match="JSON"):
            run.log_dict({}, "c.yaml")
    assert run.files() == ["notes", "report.html"]
    assert run.files("notes") == ["notes/a.txt", "notes/b.json"]
    assert run.read_file("notes/a.txt").decode() == "grüß"
    assert json.loads(run.read_file("notes/b.json")) == {"a": [1]}


def test_runs_are_filtered_sorted_and_made_tables(ws: Workspace) -> None:
    for lr, auc in ((0.05, 0.9), (0.05, 0.85), (0.1, 0.95), (0.05, 0.7)):
        with ev.run("churn", params={"lr": lr}) as run:
            run.log(auc=auc)
    with ev.run("other") as run:
        run.log(auc=1.0)
    found = ev.runs("churn").where("metrics.auc > 0.8 and params.lr = '0.05'").sort("-metrics.auc")
    assert [r.metrics["auc"] for r in found] == [0.9, 0.85]
    assert [r.metrics["auc"] for r in found.top(1)] == [0.9]
    either = (
        ev.runs("churn").where("metrics.auc > 0.9 or metrics.auc < 0.8").where("params.lr = '0.1'")
    )
    assert [r.metrics["auc"] for r in either] == [0.95]
    table = ev.runs().sort("metrics.auc").to_arrow()
    assert table["metrics.auc"].to_pylist() == [0.7, 0.85, 0.9, 0.95, 1.0]
    assert table["params.lr"].to_pylist() == ["0.05", "0.05", "0.05", "0.1", None]
    assert found.to_polars()["metrics.auc"].to_list() == [0.9, 0.85]
    assert list(found.to_pandas()["state"]) == ["finished", "finished"]
    assert ev.runs("churn").where("metrics.auc > 2").to_arrow().num_rows == 0
    with pytest.raises(InvalidInput, match="metrics"):
        len(ev.runs("churn").where("metrics.auc >"))
    with pytest.raises(NotFound, match="churn"):
        len(ev.runs("chrun"))
    with pytest.raises(InvalidInput, match="from 1"):
        ev.runs("churn").top(0)


def test_hopeless_run_is_stopped_by_a_bound(ws: Workspace) -> None:
    run = ev.run("e", stop=[ev.stop_if("loss", 10, after=3)])
    run.log(acc=99.0, step=5)
    with pytest.raises(ev.RunStopped, match="loss is 12 at step 3, worse than 10"):
        train(run, [12.0] * 9)
    assert run.state == "killed"
    assert "worse than 10" in run.record.error
    assert values(run, "loss") == [12.0] * 4


def test_hopeless_run_is_stopped_by_the_median_of_the_others(ws: Workspace) -> None:
    for level in (1.0, 2.0, 3.0):
        train(ev.run("e"), [level] * 10)
    train(ev.run("e", stop=[ev.stop_if("loss", after=5)]), [2.0] * 10)
    bad = ev.run("e", stop=[ev.stop_if("loss", after=5)])
    with pytest.raises(ev.RunStopped, match="the median of 4 finished runs"):
        train(bad, [2.5] * 10)
    assert [point.step for point in bad.history("loss")] == [0, 1, 2, 3, 4, 5]


def test_follower_sees_each_point_once(ws: Workspace) -> None:
    with ev.run("e") as run:
        run.log(a=1.0, b=math.nan, step=1)
        run.log(a=2.0, step=2, sync=True)
        page = ws.tracking.points_after(run.id)
        assert [(p.key, p.step) for p in page.points] == [("a", 1), ("a", 2), ("b", 1)]
        assert ws.tracking.points_after(run.id, page.cursor).points == ()
        run.log(a=3.0, b=math.inf, step=3, sync=True)
        page = ws.tracking.points_after(run.id, page.cursor)
        assert [(p.key, p.value) for p in page.points] == [("a", 3.0), ("b", math.inf)]
        assert (page.state, page.has_more) == ("running", False)
    for cursor in ("?", "AAAA", page.cursor[:-3]):
        with pytest.raises(InvalidInput, match="none of ours"):
            ws.tracking.points_after(run.id, cursor)
    seen, cursor, has_more = [], "", True
    while has_more:
        page = ws.tracking.points_after(run.id, cursor, keys=["a"], limit=1)
        seen += [point.step for point in page.points]
        cursor, has_more = page.cursor, page.has_more
    assert (seen, page.state) == ([1, 2, 3], "finished")


def test_threads_log_to_one_run(ws: Workspace) -> None:
    with ev.run("e") as run:

        def work(worker: int) -> None:
            for step in range(200):
                run.log({f"loss_{worker}": step / 3}, step=step)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for worker in range(4):
        assert values(run, f"loss_{worker}") == [step / 3 for step in range(200)]


FORKS = """
    import multiprocessing, os, sys
    import everloop as ev
    from everloop.core.context import using

    def work():
        for step in range(100, 200):
            run.log(loss=1.0, step=step)

    with ev.open(sys.argv[1]) as ws, using(ws):
        with ev.run("e") as run:
            run.log(loss=1.0, step=0, sync=True)
            for step in range(1, 100):
                run.log(loss=1.0, step=step)
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()
            assert child.exitcode == 0
            pid = os.fork()
            if not pid:
                with run:  # the child's end of the block is not the end of the run
                    run.log(loss=1.0, step=200)
                assert ws.tracking.run(run.id).state == "running"
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(run.id)
"""


def in_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True
    )


def test_both_sides_of_a_fork_log(ws: Workspace) -> None:
    done = in_python(FORKS, ws.location)
    assert done.returncode == 0, done.stderr
    run = ws.tracking.run(done.stdout.strip())
    assert run.state == "finished"
    assert [p.step for p in ws.tracking.history(run.id, "loss", order="step")] == list(range(201))


ENDS = """
    import sys
    import everloop as ev

    run = ev.run("e", workspace=ev.open(sys.argv[1]))
    print(run.id, flush=True)
    for step in range(1000):
        run.log(loss=1.0, step=step)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "state"), [("", "finished"), ("raise ValueError('bad')", "failed")]
)
def test_end_of_the_program_loses_nothing(ws: Workspace, end: str, state: str) -> None:
    done = in_python(ENDS.format(end=end), ws.location)
    assert (done.returncode == 0) is (state == "finished"), done.stderr
    run = ws.tracking.run(done.stdout.strip())
    assert run.state == state
    assert len(ws.tracking.history(run.id, "loss")) == 1000
    assert run.error.endswith("ValueError: bad" if end else "")


def test_fault_at_the_end_of_the_program_is_not_silent(tmp_path: Path) -> None:
    end = "ev.open(sys.argv[1]).tracking.delete_run(run.id); run.log(loss=2.0)"
    done = in_python(ENDS.format(end=end), str(tmp_path))
    assert "must be in the 'active' state" in done.stderr


def test_dead_owner_is_noticed_within_a_minute_wherever_it_ran() -> None:
    """What is told of a process on another machine is its lease alone, and when somebody looks."""
    from everloop.experiments import run as experiments
    from everloop.pipelines import engine

    for module in (experiments, engine):
        assert module.LEASE_S + server.REAP_S <= 60
        assert module.RENEW_S * 2 < module.LEASE_S  # one renewal may be late
