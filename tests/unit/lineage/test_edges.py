"""Every fact puts its edges into the graph: one walk goes from an alert to the rows and back."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

import pyarrow as pa
import pytest
from sqlalchemy import func, select

import everloop as ev
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.transaction import Transaction
from everloop.core.artifact import ModelArtifact
from everloop.core.ids import new_id
from everloop.core.machines import RolloutPlan
from everloop.core.monitor import Alert, Window
from everloop.core.run import RunInput
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput
from everloop.features.define import col, feature_set, feature_view, source
from everloop.monitoring import ledger
from everloop.workspace import Workspace

#: For what is done beside the catalog, as the supervisor does it.
EMBEDDED = pytest.mark.parametrize("ws", ["sqlite", "postgres"], indirect=True)

NEAR = feature_view(
    "near", entity=("flight",), source=source("flights"), features={"far": col.distance}
)
SET = feature_set("set", NEAR, time="t", request={"flight": int, "t": "timestamp"})
VIEW_REF, SET_REF = f"feature_view:near@{NEAR.digest[:16]}", f"feature_set:set@{SET.digest[:16]}"


def trained(ws: Workspace, *, trigger: str = "") -> str:
    """A run that reads the data and registers a model; its subject."""
    run = ws.tracking.create_run("train", trigger=trigger)
    number = ws.data.version("flights").number
    digest = ws.data.version("flights").digest
    ws.tracking.log_inputs(run.id, [RunInput(dataset="flights", version=number, digest=digest)])
    made = ModelArtifact(
        flavor="onnx", files={"m": run.id.encode()}, data={"flights": number}, feature_set="set"
    )
    ws.registry.register("delay", made, run_id=run.id)
    return f"run:{run.id}"


def answered(ws: Workspace, version: int, at: datetime) -> str:
    rows = {"id": [new_id()], "at": [at], "version": [version], "value": [0.5]}
    return f"segment:{ws.predictions.log('delay', pa.table(rows)).id}"


def raised(ws: Workspace, clock: ManualClock) -> str:
    """An alert as the monitors raise it, in the catalog that lies behind `ws`."""
    now = clock.now()
    window = Window(
        deployment="delay", monitor="performance", start=now - timedelta(days=1),
        end=now + timedelta(days=1), rows=1, labels=1, value=0.5, bound=0.4, breach=True,
        mature=True,
    )  # fmt: skip
    alert = Alert(
        id=new_id(), deployment="delay", monitor="performance", state="firing", opened_at=now,
        evidence={"kind": "performance"},
    )  # fmt: skip
    assert ws.catalog is not None
    with ws.catalog.write() as tx:
        ledger.fire_alert(tx, alert, [window])
    return f"alert:{alert.id}"


@pytest.fixture
def told(ws: Workspace, clock: ManualClock) -> dict[str, str]:
    """One round of a loop, up to the predictions and their labels."""
    ev.commit("flights", {"flight": [1], "distance": [2.0]}, sources=["s3://lake/flights"])
    ws.features.apply(SET)
    found = {"run": trained(ws)}
    ws.deployment.create("delay", model="delay", version=1)
    clock.advance(hours=1)
    found["segment"] = answered(ws, 1, clock.now())
    rows = {"request_id": ["r"], "label": [1.0], "known_at": [clock.now()]}
    found["labels"] = f"labels:{ws.predictions.labels('delay', pa.table(rows)).id}"
    return found


def test_prediction_leads_back_to_what_lies_outside(ws: Workspace, told: dict[str, str]) -> None:
    found = ws.lineage.upstream(told["segment"])
    assert set(found.refs) == {
        told["segment"], "deployment:delay", "model:delay/1", told["run"], "dataset:flights@1",
        "dataset:flights", VIEW_REF, SET_REF, "external:s3://lake/flights",
    }  # fmt: skip
    assert {edge.kind for edge in found.edges} == {
        "answered", "served", "produced", "trained", "features", "read"
    }  # fmt: skip


def test_dataset_leads_on_to_what_came_of_it(ws: Workspace, told: dict[str, str]) -> None:
    found = ws.lineage.downstream("external:s3://lake/flights")
    assert {told["run"], "model:delay/1", "deployment:delay", *told.values()} <= set(found.refs)
    below = ws.lineage.downstream("dataset:flights")
    assert {VIEW_REF, SET_REF, "model:delay/1", "deployment:delay"} <= set(below.refs)


def test_handle_takes_what_services_return(ws: Workspace, told: dict[str, str]) -> None:
    version = ws.registry.version("delay", 1)
    assert ev.lineage(version).upstream(1).refs[0] == "model:delay/1"
    batch = ws.predictions.label_batches("delay")[0]
    things = [
        (ws.data.version("flights"), "dataset:flights@1"),
        (ws.tracking.run(told["run"].partition(":")[2]), told["run"]),
        (ws.deployment.deployment("delay"), "deployment:delay"),
        (ws.predictions.segments("delay")[0], told["segment"]),
        (batch, told["labels"]),
        ("alert:x", "alert:x"),
    ]
    assert [ev.lineage(thing).ref for thing, _ in things] == [ref for _, ref in things]
    assert told["labels"] in ev.lineage("deployment:delay").downstream().refs
    with pytest.raises(InvalidInput, match="int has no place"):
        ev.lineage(7)


def test_candidate_of_a_rollout_is_in_the_graph(ws: Workspace, told: dict[str, str]) -> None:
    ev.commit("flights", {"flight": [1, 2], "distance": [2.0, 3.0]})
    trained(ws)
    ws.deployment.start_rollout("delay", 2, RolloutPlan(shadow_s=60))
    found = ws.lineage.downstream("model:delay/2", depth=1)
    assert [(edge.kind, edge.target) for edge in found.edges] == [("tried", "deployment:delay")]


@EMBEDDED
def test_alert_closes_the_circle(ws: Workspace, clock: ManualClock, told: dict[str, str]) -> None:
    """From the alert to the firing, the run and the new version; never from a later one back."""
    alert = raised(ws, clock)
    assert ws.catalog is not None
    above = ws.lineage.upstream(alert, depth=1)
    assert set(above.refs[1:]) == {"deployment:delay", told["segment"], told["labels"]}
    clock.advance(hours=1)
    firing = new_id()
    with ws.catalog.write() as tx:
        link(tx, alert, f"firing:{firing}", "triggered")
    ev.commit("flights", {"flight": [1, 2], "distance": [2.0, 3.0]})
    run = trained(ws, trigger=firing)
    clock.advance(hours=1)
    with ws.catalog.write() as tx:
        link(tx, "model:delay/2", "deployment:delay", "served")
    found = ws.lineage.upstream("model:delay/2")
    assert {run, f"firing:{firing}", alert, told["segment"], "model:delay/1"} <= set(found.refs)
    # The deployment led to the alert before it served what came of it.
    assert "model:delay/2" not in ws.lineage.upstream(alert).refs
    assert "model:delay/2" not in ws.lineage.upstream(told["segment"]).refs
    assert "model:delay/2" in ws.lineage.downstream(told["segment"]).refs


@EMBEDDED
def test_edges_are_made_with_the_fact_or_not_at_all(
    ws: Workspace, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ws.catalog is not None

    def count() -> int:
        assert ws.catalog is not None
        with ws.catalog.read() as tx:
            return int(tx.scalar(select(func.count()).select_from(tables.lineage_edges)))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no event, no fact")

    before = count()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "append", fail)
        with pytest.raises(RuntimeError):
            ev.commit("flights", {"flight": [9], "distance": [1.0]}, sources=["s3://x/y"])
        with pytest.raises(RuntimeError):
            ws.predictions.log(
                "delay",
                pa.table({"id": ["z" * 26], "at": [1], "version": [1], "value": [0.1]}).set_column(
                    1, "at", pa.array([0], pa.timestamp("us"))
                ),
            )
        with pytest.raises(RuntimeError):
            ws.registry.register("delay", ModelArtifact(flavor="onnx", files={"m": b"n"}))
    assert count() == before


def test_function_stands_where_the_package_is() -> None:
    code = (
        "import everloop as ev, everloop.lineage.service\n"
        "assert ev.lineage('run:x').ref == 'run:x'\n"
        "from everloop import lineage\n"
        "assert lineage('run:x').ref == 'run:x'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
