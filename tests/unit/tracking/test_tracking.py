"""Experiments, runs, metrics, artifacts and logged models, on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
import math
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from everloop.catalog.engine import Catalog
from everloop.catalog.tables import artifacts, runs
from everloop.core.run import Metric, RunInput, RunOutput
from everloop.core.time import ManualClock
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from everloop.tracking.service import TrackingService
from everloop.tracking.store import RunRow


def test_default_experiment_is_there_from_the_start(tracking: TrackingService) -> None:
    assert tracking.experiment("0").name == "Default"
    assert tracking.create_run().experiment == "0"


def test_experiment_lives_and_comes_back_with_its_runs(tracking: TrackingService) -> None:
    made = tracking.create_experiment("churn", {"team": "growth"})
    assert made.tags == {"team": "growth"}
    run = tracking.create_run("churn")
    assert run.experiment == made.id
    assert tracking.create_run(made.id).experiment == made.id
    tracking.delete_experiment(made.id)
    assert tracking.run(run.id).lifecycle == "deleted"
    with pytest.raises(StateError, match="active"):
        tracking.create_run("churn")
    with pytest.raises(StateError, match="active"):
        tracking.log(run.id, params={"a": "1"})
    with pytest.raises(Conflict, match=r"Experiment\(name=churn\) already exists"):
        tracking.create_experiment("churn")
    tracking.restore_experiment(made.id)
    tracking.log(run.id, params={"a": "1"})


def test_experiment_is_renamed_and_tagged(tracking: TrackingService) -> None:
    a, b = tracking.create_experiment("a"), tracking.create_experiment("b")
    assert tracking.update_experiment(a.id, name="c", tags={"k": "v"}).name == "c"
    assert tracking.update_experiment(a.id, delete_tag="k").tags == {}
    with pytest.raises(Conflict):
        tracking.update_experiment(a.id, name="b")
    with pytest.raises(NotFound, match="No tag"):
        tracking.update_experiment(b.id, delete_tag="k")


@pytest.mark.parametrize("id_", ["99", "x", "", "9" * 30, "-1", "1.5", "²"])
def test_unknown_experiment_is_not_found(tracking: TrackingService, id_: str) -> None:
    with pytest.raises(NotFound, match="No Experiment with id="):
        tracking.experiment(id_)


def test_near_names_of_experiments_are_offered(tracking: TrackingService) -> None:
    tracking.create_experiment("flights-delay")
    with pytest.raises(NotFound, match="flights-delay"):
        tracking.experiment_by_name("flight-delays")


def test_run_keeps_what_is_logged(tracking: TrackingService) -> None:
    run = tracking.create_run("e", name="first", params={"lr": "0.1"}, tags={"k": "v"}, actor="me")
    tracking.log(
        run.id, [Metric(key="loss", value=1.0), Metric(key="auc", value=0.5)], {"n": "3"}, {"t": ""}
    )
    tracking.log_inputs(run.id, [RunInput(dataset="d", version=3, digest="x", role="train")] * 2)
    tracking.log_outputs(run.id, [RunOutput(model_id="m-1", step=2)])
    found = tracking.run(run.id)
    assert found.params == {"lr": "0.1", "n": "3"}
    assert found.tags == {"k": "v", "t": ""}
    assert found.metrics == {"loss": 1.0, "auc": 0.5}
    assert [i.dataset for i in found.inputs] == ["d"]
    assert found.outputs == (RunOutput(model_id="m-1", step=2),)
    assert (found.name, found.actor, found.state) == ("first", "me", "running")


def test_latest_metric_is_by_step_then_time_then_value(tracking: TrackingService) -> None:
    run = tracking.create_run()
    points = [(5, 10, 1.0), (3, 99, 2.0), (5, 10, 3.0), (5, 9, 9.0)]
    for step, at_ms, value in points:
        tracking.log(run.id, [Metric(key="m", value=value, step=step, at_ms=at_ms)])
    assert tracking.run(run.id).metrics == {"m": 3.0}
    other = tracking.create_run()
    tracking.log(
        other.id, [Metric(key="m", value=v, step=s, at_ms=t) for s, t, v in reversed(points)]
    )
    assert tracking.run(other.id).metrics == {"m": 3.0}
    assert len(tracking.history(run.id, "m")) == 4


def test_same_point_twice_is_one(tracking: TrackingService) -> None:
    run = tracking.create_run()
    tracking.log(run.id, [Metric(key="m", value=1.0, step=1)] * 3)
    tracking.log(run.id, [Metric(key="m", value=1.0, step=1)])
    assert len(tracking.history(run.id, "m")) == 1


def test_nan_and_infinities_are_kept(tracking: TrackingService) -> None:
    run = tracking.create_run()
    values = [math.nan, math.inf, -math.inf, 0.0]
    tracking.log(run.id, [Metric(key="m", value=v, step=i) for i, v in enumerate(values)])
    tracking.log(run.id, [Metric(key="n", value=math.nan)])
    found = [p.value for p in tracking.history(run.id, "m")]
    assert math.isnan(found[0])
    assert found[1:] == values[1:]
    assert math.isnan(tracking.run(run.id).metrics["n"])


def test_history_pages_meet_without_gap(tracking: TrackingService) -> None:
    run = tracking.create_run()
    tracking.log(run.id, [Metric(key="m", value=i, step=-i, at_ms=i // 3) for i in range(20)])
    for order in ("time", "step"):
        whole = tracking.history(run.id, "m", order=order)
        paged: list[Metric] = []
        while page := tracking.history(
            run.id, "m", limit=7, after=paged[-1] if paged else None, order=order
        ):
            paged += page
        assert paged == whole
        assert len(whole) == 20
    assert tracking.history(run.id, "nothing") == tracking.history("nobody", "m") == []


def test_sampled_history_has_both_ends(tracking: TrackingService) -> None:
    run = tracking.create_run()
    tracking.log(run.id, [Metric(key="m", value=i, step=i) for i in range(1000)])
    found = tracking.sampled_history([run.id, "nobody"], "m", points=10)
    steps = [p.step for p in found[run.id]]
    assert (steps[0], steps[-1], len(steps)) == (0, 999, 10)
    assert found["nobody"] == []
    part = tracking.sampled_history([run.id], "m", points=2, start_step=5, end_step=8)
    assert [p.step for p in part[run.id]] == [5, 8]
    with pytest.raises(InvalidInput) as caught:
        tracking.sampled_history([], "m", points=0, start_step=2, end_step=1)
    assert len(caught.value.faults) == 3


def test_sampled_history_of_steps_in_clusters_is_spread_over_the_points(
    tracking: TrackingService,
) -> None:
    run = tracking.create_run()
    steps = [*range(500), *range(10**12, 10**12 + 500)]
    tracking.log(run.id, [Metric(key="m", value=s, step=s) for s in steps])
    found = [p.step for p in tracking.sampled_history([run.id], "m", points=100)[run.id]]
    assert found == sorted(set(found))
    assert (found[0], found[-1], len(found)) == (steps[0], steps[-1], 100)
    assert sum(step < 500 for step in found) == 50


@pytest.mark.parametrize("steps", [1, 7])
def test_sampled_history_of_many_points_at_few_steps_is_spread_by_time(
    tracking: TrackingService, steps: int
) -> None:
    run = tracking.create_run()
    # Every third point is of the same millisecond as the one before: a loop that does little.
    logged = [
        Metric(key="m", value=n, step=n * steps // 3000, at_ms=n - n % 3) for n in range(3000)
    ]
    for first in range(0, 3000, 1000):
        tracking.log(run.id, logged[first : first + 1000])
    found = tracking.sampled_history([run.id], "m", points=100)[run.id]
    assert 90 <= len(found) <= 100
    assert found == sorted(set(found), key=lambda p: (p.step, p.at_ms, p.value))
    assert set(found) <= set(logged)
    assert (found[0], found[-1]) == (logged[0], logged[-1])
    assert {point.step for point in found} == set(range(steps))
    gaps = [after.at_ms - before.at_ms for before, after in itertools.pairwise(found)]
    assert max(gaps) < 3 * 3000 / len(found)


def test_sampled_history_draws_all_points_of_a_step_that_some_workers_logged(
    tracking: TrackingService,
) -> None:
    run = tracking.create_run()
    logged = [Metric(key="m", value=n, step=n // 4, at_ms=n) for n in range(400)]
    tracking.log(run.id, logged)
    found = tracking.sampled_history([run.id], "m", points=100)[run.id]
    assert found == logged


def test_sampled_history_of_few_points_has_them_all(tracking: TrackingService) -> None:
    run = tracking.create_run()
    values = {-5: math.nan, 0: 1.0, 10**9: math.inf}
    tracking.log(run.id, [Metric(key="m", value=v, step=s) for s, v in values.items()])
    found = tracking.sampled_history([run.id], "m", points=50)[run.id]
    assert [p.step for p in found] == list(values)
    assert math.isnan(found[0].value)
    assert [p.value for p in found[1:]] == [1.0, math.inf]
    assert [p.step for p in tracking.sampled_history([run.id], "m", points=1)[run.id]] == [10**9]


def test_many_files_by_one_call(tracking: TrackingService) -> None:
    files = {"a.txt": b"same", "deep/b.txt": b"same", "c.txt": b"other"}
    stored = tracking.put_artifacts("0/r/artifacts", files)
    assert [item.path for item in stored] == [f"0/r/artifacts/{name}" for name in files]
    assert {name: tracking.artifact(f"0/r/artifacts/{name}") for name in files} == files
    tracking.put_artifacts("0/r/artifacts", {"a.txt": b"newer"})
    assert tracking.artifact("0/r/artifacts/a.txt") == b"newer"
    with pytest.raises(InvalidInput):
        tracking.put_artifacts("0/r/artifacts", {"fine.txt": b"x", "../away.txt": b"x"})
    assert not [a for a in tracking.list_artifacts("0/r/artifacts") if "fine" in a.path]


def test_params_never_change(tracking: TrackingService) -> None:
    run = tracking.create_run(params={"a": "1"})
    tracking.log(run.id, params={"a": "1", "b": ""})
    with pytest.raises(InvalidInput, match="Changing param values is not allowed") as caught:
        tracking.log(run.id, [Metric(key="m", value=1)], {"a": "2", "c": "3"}, {"t": "1"})
    assert [f.path for f in caught.value.faults] == ["params.a"]
    found = tracking.run(run.id)  # all or nothing
    assert (found.params, found.metrics, found.tags) == ({"a": "1", "b": ""}, {}, {})


def test_long_values_are_cut(tracking: TrackingService) -> None:
    run = tracking.create_run()
    for _ in range(2):  # the same value again is no change
        tracking.log(run.id, params={"p": "x" * 7000}, tags={"t": "y" * 9000})
    found = tracking.run(run.id)
    assert (len(found.params["p"]), len(found.tags["t"])) == (6000, 8000)


@pytest.mark.parametrize(
    ("metrics", "params", "tags", "path"),
    [
        ([Metric(key="", value=1)], {}, {}, "metrics[0].key"),
        ([Metric(key="m", value=1), Metric(key="a\n", value=1)], {}, {}, "metrics[1].key"),
        ([Metric(key="m", value=1, at_ms=-1)], {}, {}, "metrics[0].timestamp"),
        ([Metric(key="m", value=1, at_ms=1 << 63)], {}, {}, "metrics[0].timestamp"),
        ([Metric(key="m", value=1, step=s) for s in (1, 1 << 63)], {}, {}, "metrics[1].step"),
        ([Metric(key="m", value="x")], {}, {}, "metrics[0].value"),
        ([Metric(key="m", value=10**400)], {}, {}, "metrics[0].value"),
        ([], {"../a": "1"}, {}, "params[0].key"),
        ([], {"a//b": "1"}, {}, "params[0].key"),
        ([], {"/a": "1"}, {}, "params[0].key"),
        ([], {"k" * 251: "1"}, {}, "params[0].key"),
        ([], {"a": "nul\x00"}, {}, "params[0].value"),
        ([], {}, {"a": "\ud800"}, "tags[0].value"),
        ([Metric(key="m", value=1)] * 1001, {}, {}, "metrics"),
        ([], {str(i): "" for i in range(101)}, {}, "params"),
        ([Metric(key="m", value=1)] * 950, {str(i): "" for i in range(60)}, {}, ""),
    ],
)  # fmt: skip
def test_wrong_batch_says_where_and_keeps_nothing(
    tracking: TrackingService,
    metrics: list[Metric],
    params: dict[str, str],
    tags: dict[str, str],
    path: str,
) -> None:
    run = tracking.create_run()
    with pytest.raises(InvalidInput) as caught:
        tracking.log(run.id, metrics, params, tags)
    assert path in [f.path for f in caught.value.faults]
    assert tracking.history(run.id, "m") == []


def test_tags_change_and_go(tracking: TrackingService) -> None:
    run = tracking.create_run()
    tracking.set_tag(run.id, "k", "1")
    tracking.set_tag(run.id, "k", "2")
    assert tracking.run(run.id).tags == {"k": "2"}
    tracking.delete_tag(run.id, "k")
    with pytest.raises(NotFound, match="No tag with name: k"):
        tracking.delete_tag(run.id, "k")


def test_run_ends_once_in_the_log_and_may_start_again(
    tracking: TrackingService, catalog: Catalog
) -> None:
    run = tracking.create_run(started_at=datetime(2013, 1, 1, tzinfo=UTC))
    ended = tracking.update_run(run.id, state="finished", name="renamed", tags={"a": "b"})
    assert (ended.state, ended.name, ended.tags) == ("finished", "renamed", {"a": "b"})
    assert ended.started_at.year == 2013
    assert ended.ended_at == datetime(2026, 1, 1, tzinfo=UTC)
    tracking.update_run(run.id, state="finished")
    assert tracking.update_run(run.id, state="running").ended_at is None
    kinds = [event.kind for event in catalog.events(subject=f"run:{run.id}")]
    assert kinds == ["run.Started", "run.Finished"]


def test_deleted_run_is_read_only_until_restored(tracking: TrackingService) -> None:
    run = tracking.create_run()
    for _ in range(2):
        tracking.delete_run(run.id)
    for write in (
        lambda: tracking.set_tag(run.id, "k", "v"),
        lambda: tracking.update_run(run.id, state="finished"),
        lambda: tracking.log_inputs(run.id, []),
    ):
        with pytest.raises(StateError, match=f"The run {run.id} must be in the 'active' state"):
            write()
    tracking.restore_run(run.id)
    tracking.set_tag(run.id, "k", "v")
    with pytest.raises(NotFound, match="Run with id=nobody not found"):
        tracking.run("nobody")
    with pytest.raises(InvalidInput, match="exists already"):
        tracking.create_run(id=run.id)


def test_state_of_a_pipelines_run_is_the_engines(tracking: TrackingService) -> None:
    run = tracking.create_run(pipeline="p")
    with pytest.raises(StateError, match="pipeline p"):
        tracking.update_run(run.id, state="finished")
    assert tracking.update_run(run.id, name="fine").name == "fine"


def test_writers_at_once_lose_nothing(tracking: TrackingService) -> None:
    run = tracking.create_run()

    def write(worker: int) -> None:
        for i in range(10):
            names = [f"k{(worker + i + j) % 5}" for j in range(5)]
            tracking.log(run.id, [Metric(key=n, value=worker, step=i, at_ms=worker) for n in names])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in range(5):
        assert len(tracking.history(run.id, f"k{key}")) == 40
    assert tracking.run(run.id).metrics == {f"k{key}": 3.0 for key in range(5)}


# Artifacts


def test_folder_of_artifacts_is_a_range_of_the_index(
    tracking: TrackingService, catalog: Catalog
) -> None:
    """What sorts beside a folder is not within it, by any rules of a language."""
    inside = ["a/b/", "a/b/c", "a/b/\U0010ffff", "a/b/Z", "a/b/~", "a/b/0"]
    for path in [*(p for p in inside if p[-1] != "/"), "a/b", "a/b0", "a/b.c", "a/B/c", "a/bc/d"]:
        tracking.put_artifact(path, b"x")
    found = [file.path for file in tracking.list_artifacts("a/b")]
    assert found == sorted(path for path in inside if path[-1] != "/")
    tracking.delete_artifacts("a/b")
    assert [file.path for file in tracking.list_artifacts("a")] == [
        "a/B", "a/b.c", "a/b0", "a/bc",
    ]  # fmt: skip
    if catalog.dialect == "sqlite":
        with catalog.read() as tx:
            query = select(artifacts.c.path).where(tx.within(artifacts.c.path, "a/b"))
            plan = tx.all(text(f"EXPLAIN QUERY PLAN {_literal(query)}"))
        assert "SEARCH artifacts" in str(plan)


def _literal(query: Any) -> str:
    return str(query.compile(compile_kwargs={"literal_binds": True}))


def test_artifacts_are_a_tree(tracking: TrackingService) -> None:
    tracking.put_artifact("1/run/artifacts/model/MLmodel", b"a")
    tracking.put_artifact("1/run/artifacts/model/MLmodel", b"new")
    tracking.put_artifact("1/run/artifacts/model/sub/x.bin", b"x")
    tracking.put_artifact("1/run/artifacts_2", b"other")
    assert tracking.artifact("1/run/artifacts/model/MLmodel") == b"new"
    listed = tracking.list_artifacts("1/run/artifacts/model/")
    assert [(a.path, a.size, bool(a.digest)) for a in listed] == [
        ("1/run/artifacts/model/MLmodel", 3, True),
        ("1/run/artifacts/model/sub", 0, False),
    ]
    assert tracking.list_artifacts("1/run/artifacts/model/MLmodel") == []
    assert [a.path for a in tracking.list_artifacts()] == ["1"]
    tracking.delete_artifacts("1/run/artifacts")
    assert [a.path for a in tracking.list_artifacts("1/run")] == ["1/run/artifacts_2"]
    with pytest.raises(NotFound, match="no artifact"):
        tracking.artifact("1/run/artifacts/model/MLmodel")


def test_streamed_object_is_linked(tracking: TrackingService) -> None:
    known = tracking.put_artifact("a", b"data")
    assert tracking.link_artifact("b", known.digest, known.size).path == "b"
    assert tracking.artifact("b") == b"data"
    with pytest.raises(NotFound):
        tracking.link_artifact("c", "0" * 64, 4)


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "%2e%2e/a",
        "%252e%252e/a",
        "a\\b",
        "C:/a",
        "a\x00",
    ],
)
def test_path_that_climbs_is_refused(tracking: TrackingService, path: str) -> None:
    with pytest.raises(InvalidInput, match="Invalid path"):
        tracking.put_artifact(path, b"")
    with pytest.raises(InvalidInput, match="Invalid path"):
        tracking.list_artifacts(path)


# Logged models


def test_logged_model_lives(tracking: TrackingService) -> None:
    run = tracking.create_run("e")
    model = tracking.create_logged_model(
        run.experiment, name="clf", source_run_id=run.id, params={"a": "1"}
    )
    assert model.status == "pending"
    assert model.id.startswith("m-")
    tracking.log(
        run.id,
        [Metric(key="auc", value=0.9, model_id=model.id, dataset="d", digest="x")],
    )
    tracking.update_logged_model(model.id, tags={"k": "v"}, params={"b": "2"})
    found = tracking.finish_logged_model(model.id)
    assert (found.status, found.params, found.tags) == ("ready", {"a": "1", "b": "2"}, {"k": "v"})
    assert [(m.key, m.value, m.dataset) for m in found.metrics] == [("auc", 0.9, "d")]
    assert tracking.run(run.id).metrics == {"auc": 0.9}
    with pytest.raises(InvalidInput, match="Changing param"):
        tracking.update_logged_model(model.id, params={"a": "2"})
    with pytest.raises(InvalidInput, match="may not hold"):
        tracking.create_logged_model(run.experiment, name="a/b")
    tracking.delete_logged_model(model.id)
    with pytest.raises(NotFound, match=model.id):
        tracking.logged_model(model.id)
    with pytest.raises(NotFound, match="m-nothing"):
        tracking.log(run.id, [Metric(key="auc", value=0.9, model_id="m-nothing")])


def test_logged_models_are_searched(tracking: TrackingService, catalog: Catalog) -> None:
    clock = catalog.clock
    assert isinstance(clock, ManualClock)
    for name in ("a", "b", "c"):
        clock.advance(seconds=1)
        model = tracking.create_logged_model("0", name=name, tags={"t": name})
        tracking.log(
            tracking.create_run().id, [Metric(key="m", value=ord(name), model_id=model.id)]
        )
    page = tracking.search_logged_models(["0"], limit=2)
    assert [m.name for m in page.models] == ["c", "b"]
    rest = tracking.search_logged_models(["0"], limit=2, page_token=page.next_page_token)
    assert [m.name for m in rest.models] == ["a"]
    assert rest.next_page_token == ""
    found = tracking.search_logged_models(
        ["0"], filter="metrics.m > 97 AND tags.t != 'c'", order_by=["metrics.m DESC"]
    )
    assert [m.name for m in found.models] == ["b"]
    with pytest.raises(InvalidInput, match="page token"):
        tracking.search_logged_models(["0"], filter="name = 'a'", page_token=page.next_page_token)


def test_points_of_an_owner_are_all_or_nothing(tracking: TrackingService) -> None:
    run = tracking.create_run(owner="elsewhere:1:1", lease_s=60)
    points = [Metric(key="loss", value=1.0, step=step) for step in range(10_001)]
    with pytest.raises(InvalidInput, match="at most 10000"):
        tracking.log_points(run.id, points, fence=run.fence)
    with pytest.raises(InvalidInput, match=r"metrics\[1\]\.key"):
        tracking.log_points(run.id, [points[0], Metric(key="a#b", value=1.0)])
    for known in (False, True):  # by the careful path, then by the quick one
        with pytest.raises(StateError, match="taken over"):
            tracking.log_points(run.id, points[:1], fence=run.fence + 1)
        assert tracking.history(run.id, "loss") == ([points[0]] if known else [])
        tracking.log_points(run.id, points[:1], fence=run.fence)
    tracking.log_points(run.id, points[:10_000])
    assert len(tracking.history(run.id, "loss")) == 10_000
    with pytest.raises(NotFound):
        tracking.log_points("nothing", points[:1])


def test_run_of_a_pipeline_is_not_resumed_by_hand(tracking: TrackingService) -> None:
    run = tracking.create_run(pipeline="p", owner="elsewhere:1:1", lease_s=60)
    with pytest.raises(InvalidInput, match="of pipeline p"):
        tracking.resume_run(run.id, owner="here:1:1")


def test_row_of_a_run_has_the_columns_of_its_table() -> None:
    assert RunRow._fields == tuple(runs.c.keys())
