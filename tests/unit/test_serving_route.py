"""One request, one revision; one row and many by the same code."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.errors import BackendError, InvalidInput, NotFound, StateError
from everloop.serving.loader import RouteLoader, Router
from everloop.serving.route import RouteSnapshot, ServedFeatures
from tests.unit.serving_fakes import (
    OUTPUTS,
    FakeDeployments,
    FakeModels,
    HourLookup,
    Linear,
    deployment,
    load,
    route,
)

REQUEST = Schema(
    (
        Field("origin", "string", nullable=False),
        Field("sched_dep", "timestamp", nullable=True),
    )
)
CANARY = (("champion", 1, 75.0), ("challenger", 2, 25.0), ("shadow", 3, 0.0))


def with_features() -> RouteSnapshot:
    served = ServedFeatures(REQUEST, ("x", "y"), "sched_dep", HourLookup())
    models = FakeModels(feature_set="delay")
    return RouteLoader(models, load, lambda _name: served).load(deployment())


def test_values_come_from_the_arm_that_is_named() -> None:
    answers = route(*CANARY).answer({"x": np.arange(400.0), "y": np.zeros(400)})
    assert answers.values.tolist() == (1000.0 * answers.versions + np.arange(400.0)).tolist()
    assert set(answers.versions.tolist()) == {1, 2}
    assert 50 < (answers.arm == 1).sum() < 150


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=4), st.floats(-1e6, 1e6)), max_size=12))
def test_one_row_and_many_answer_the_same(rows: list[tuple[str, float]]) -> None:
    snapshot = route(*CANARY)
    names = [f"{name}-{i}" for i, (name, _) in enumerate(rows)]
    xs = [x for _, x in rows]
    together = snapshot.answer({"x": xs, "y": [1.0] * len(xs)}, names, rows=len(xs))
    for i, (name, x) in enumerate(zip(names, xs, strict=True)):
        alone = snapshot.answer({"x": [x], "y": [1.0]}, [name])
        assert alone.values[0] == together.values[i]
        assert alone.arm[0] == together.arm[i]


def test_each_arm_predicts_its_rows_in_one_call() -> None:
    snapshot = route(*CANARY)
    for arm in snapshot.arms:
        arm.predictor.rows.clear()  # type: ignore[attr-defined]
    snapshot.answer({"x": np.zeros(1000), "y": np.zeros(1000)})
    calls = [arm.predictor.rows for arm in snapshot.arms]  # type: ignore[attr-defined]
    assert [len(rows) for rows in calls] == [1, 1, 0]
    assert sum(calls[0] + calls[1]) == 1000


def test_ids_increase_and_name_rows_without_a_name() -> None:
    answers = route().answer({"x": [1.0, 2.0], "y": [0.0, 0.0]}, ["mine", ""])
    assert answers.ids == sorted(answers.ids)
    assert answers.request_ids == ["mine", answers.ids[1]]


def test_pinned_version_answers_every_row() -> None:
    snapshot = route(*CANARY)
    answers = snapshot.answer({"x": np.zeros(50), "y": np.zeros(50)}, version=3)
    assert set(answers.values.tolist()) == {3000.0}
    assert answers.shadow() is None
    with pytest.raises(NotFound, match="no version '9'"):
        snapshot.answer({"x": [1.0], "y": [1.0]}, version=9)


def test_routing_by_a_field_is_sticky() -> None:
    loader = RouteLoader(FakeModels(), load)
    snapshot = loader.load(deployment(*CANARY, route_by="x"))
    first = snapshot.answer({"x": np.arange(100.0), "y": np.zeros(100)})
    again = snapshot.answer({"x": np.arange(100.0), "y": np.ones(100)})
    assert first.arm.tolist() == again.arm.tolist()
    with pytest.raises(InvalidInput, match="no such field"):
        loader.load(deployment(route_by="tailnum"))


def test_features_are_taken_at_the_requests_own_time() -> None:
    hour = 3_600_000_000
    answers = with_features().answer({"origin": ["JFK", "EWRX"], "sched_dep": [7 * hour, 0]})
    assert answers.features.tolist() == [[7.0, 3.0], [0.0, 4.0]]
    assert answers.at_us.tolist() == [7 * hour, 0]
    assert answers.times["weather"].tolist() == [7 * hour - 1, -1]
    assert answers.values.tolist() == [1037.0, 1040.0]


def test_request_without_its_time_is_refused_with_the_row() -> None:
    with pytest.raises(InvalidInput) as error:
        with_features().answer({"origin": ["JFK", "JFK"], "sched_dep": [0, None]})
    assert [fault.path for fault in error.value.faults] == ["sched_dep[1]"]


def test_failing_arm_spoils_its_own_rows_only() -> None:
    models = FakeModels(files_of={2: {"model.txt": b"broken"}})
    answers = route(*CANARY, models=models).answer({"x": np.ones(200), "y": np.zeros(200)})
    assert answers.errors == {1: "RuntimeError"}
    assert np.isnan(answers.values[answers.arm == 1]).all()
    assert (answers.values[answers.arm == 0] == 1001.0).all()


def test_log_has_the_traceback_of_a_failing_model_once(caplog: pytest.LogCaptureFixture) -> None:
    models = FakeModels(files_of={2: {"model.txt": b"broken"}})
    arm = route(*CANARY, models=models).arms[1]
    for _ in range(3):
        assert arm.predict(np.ones((1, 2)))[1] == "RuntimeError"
    (record,) = caplog.records
    assert record.getMessage() == "the model of version 2 failed: secret of the model"
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("answer", "error"),
    [(np.zeros(3), "wrong number of values"), (np.full(2, np.nan), "no number"),
     (["a", "b"], "ValueError")],
)  # fmt: skip
def test_model_that_breaks_its_contract_is_named(answer: Any, error: str) -> None:
    class Odd(Linear):
        def predict(self, matrix: np.ndarray) -> Any:
            return answer if matrix.any() else np.zeros(len(matrix))

    snapshot = RouteLoader(FakeModels(), lambda _v, _f: Odd(0)).load(deployment())
    assert snapshot.answer({"x": [1.0, 2.0], "y": [1.0, 2.0]}).errors == {0: error}


def test_model_takes_its_own_columns_in_its_own_order() -> None:
    loader = RouteLoader(FakeModels(), lambda _v, _f: Linear(0, ("y", "x")))
    answers = loader.load(deployment()).answer({"x": [1.0], "y": [2.0]})
    assert answers.values.tolist() == [12.0]
    strange = RouteLoader(FakeModels(), lambda _v, _f: Linear(0, ("z",)))
    with pytest.raises(StateError, match="takes z"):
        strange.load(deployment())


def test_damaged_bytes_are_not_loaded() -> None:
    with pytest.raises(BackendError, match="not what the manifest"):
        route(models=FakeModels(damaged={1}))


def test_text_input_without_features_is_refused_at_load() -> None:
    schema = Schema((Field("origin", "string"),))
    models = FakeModels(signature=Signature(schema, OUTPUTS))
    loader = RouteLoader(models, lambda _v, _f: Linear(0, ("origin",)))
    with pytest.raises(StateError, match="takes origin"):
        loader.load(deployment())


def test_no_rows_answer_nothing() -> None:
    answers = route(*CANARY).answer({"x": [], "y": []})
    assert len(answers) == 0
    assert answers.values.dtype == np.float64


def test_swap_loads_only_what_is_new_and_is_acknowledged() -> None:
    deployments, models = FakeDeployments(), FakeModels()
    router = Router(deployments, RouteLoader(models, load), worker="w", pid=7)
    assert not router.is_ready
    deployments.put(deployment())
    assert router.refresh() == ["delay"]
    deployments.put(deployment(*CANARY, revision=2))
    assert router.refresh() == ["delay"]
    assert router.refresh() == []
    router.acknowledge()
    assert models.reads == [1, 2, 3]
    assert deployments.acknowledged == [("delay", "w", 7, 2)]


def test_revision_that_does_not_load_leaves_the_one_before() -> None:
    deployments, models = FakeDeployments(), FakeModels(damaged={2})
    router = Router(deployments, RouteLoader(models, load))
    deployments.put(deployment())
    router.refresh()
    deployments.put(deployment(("champion", 2, 100.0), revision=2))
    assert router.refresh() == []
    assert router.route("delay").revision == 1
    assert "not what the manifest says" in router.failures["delay"]
    assert router.is_ready


def test_fault_of_a_models_own_code_is_logged_once_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load_badly(_version: Any, _files: Any) -> Any:
        raise ZeroDivisionError("in a pickle")

    router = Router(FakeDeployments({"delay": deployment()}), RouteLoader(FakeModels(), load_badly))
    router.refresh()
    router.refresh()
    assert router.failures == {"delay": "ZeroDivisionError: in a pickle"}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_router_is_not_ready_while_a_wanted_model_is_missing() -> None:
    deployments = FakeDeployments({"delay": deployment()})
    router = Router(deployments, RouteLoader(FakeModels(damaged={1}), load))
    router.refresh()
    assert not router.is_ready
    waiting = Router(deployments, RouteLoader(FakeModels(), load), only=("delay", "churn"))
    waiting.refresh()
    assert not waiting.is_ready


def test_stopped_deployment_is_no_longer_served() -> None:
    deployments = FakeDeployments({"delay": deployment()})
    router = Router(deployments, RouteLoader(FakeModels(), load))
    router.refresh()
    deployments.put(deployment(state="stopped"))
    router.refresh()
    with pytest.raises(NotFound):
        router.route("delay")


def test_catalog_that_is_away_changes_nothing() -> None:
    deployments = FakeDeployments({"delay": deployment()})
    router = Router(deployments, RouteLoader(FakeModels(), load))
    router.refresh()
    deployments.down = True
    with pytest.raises(BackendError):
        router.refresh()
    assert router.route("delay").revision == 1


def test_swaps_under_load_never_mix_two_revisions() -> None:
    deployments = FakeDeployments({"delay": deployment()})
    router = Router(deployments, RouteLoader(FakeModels(), load))
    router.refresh()
    seen: list[tuple[int, set[int]]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers = router.route("delay").answer({"x": np.zeros(64), "y": np.zeros(64)})
            assert set(answers.values.tolist()) == {1000.0 * answers.versions[0]}
            seen.append((answers.snapshot.revision, set(answers.versions.tolist())))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for revision in range(2, 40):
        deployments.put(deployment(("champion", revision, 100.0), revision=revision))
        router.refresh()
    done.set()
    for thread in threads:
        thread.join()
    assert seen
    assert all(versions == {revision} for revision, versions in seen)
