"""From a prediction back to the row and the owner; what nobody stated is said to be so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.ids import new_id
from everloop.core.model import Signature
from everloop.core.policy import Charter
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput, NotFound
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.governance.records import Why
from everloop.governance.render import story_text, why_text
from everloop.workspace import Workspace

NAME = "delay"
NOW = datetime(2013, 4, 1, 12, tzinfo=UTC)

landed = source("flights", time="sched", known="landed")
aircraft = feature_view(
    "aircraft",
    entity=("tail",),
    source=landed,
    features={"last_delay": col.delay},
    owner="fleet@example.org",
)
carrier = feature_view(
    "carrier", entity=("tail",), source=landed, features={"late": agg.mean(col.delay > 15, "24h")}
)
planes = feature_view("planes", entity=("tail",), source=source("planes"), features=[col.seats])
delay = feature_set(
    "delay-features",
    aircraft,
    carrier,
    planes,
    time="sched",
    request={"tail": str},
    owner="features@example.org",
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def workspace(tmp_path: Path, clock: ManualClock) -> Iterator[Workspace]:
    with Workspace(str(tmp_path), clock=clock, actor="test") as made:
        yield made


def commit_data(workspace: Workspace) -> None:
    hours = [NOW - timedelta(hours=h) for h in (9, 6, 3, 1, 9)]
    rows = pa.table(
        {
            "tail": ["N1", "N1", "N1", "N1", "N1"],
            "sched": pa.array(hours, pa.timestamp("us", tz="UTC")),
            "landed": pa.array(
                [*(at + timedelta(hours=2) for at in hours[:4]), None], pa.timestamp("us", tz="UTC")
            ),
            "delay": [1.0, 22.0, 3.0, 99.0, None],
        }
    )
    schema = Schema(
        (
            Field("tail", "string"),
            Field("sched", "timestamp"),
            Field("landed", "timestamp"),
            Field("delay", "float64"),
        ),
        checks=(Check("cancelled", "delay IS NOT NULL", on_fail="drop", reason="it never left"),),
    )
    workspace.data.commit("flights", rows, schema=schema, owner="data@example.org")
    seats = pa.table({"tail": ["N1", "N2"], "seats": [100.0, 200.0]})
    workspace.data.commit("planes", seats)


def register(workspace: Workspace, **facts: object) -> None:
    signature = Signature(delay.schema, Schema((Field("score", "float64"),)))
    artifact = ModelArtifact(
        flavor="lightgbm",
        files={"model.txt": b"tree"},
        signature=signature,
        **facts,  # type: ignore[arg-type]
    )
    workspace.registry.register(NAME, artifact)


def deploy_and_ask(workspace: Workspace) -> str:
    workspace.deployment.create(NAME, model=NAME, version=1, owner="serve@example.org")
    known = pa.array([NOW - timedelta(hours=1)], pa.timestamp("us", tz="UTC"))
    row = pa.table(
        {
            "id": [new_id()],
            "request_id": ["f1"],
            "at": pa.array([NOW], pa.timestamp("us", tz="UTC")),
            "version": pa.array([1], pa.int32()),
            "value": [0.25],
            "request": ['{"tail": "N1"}'],
            "f.last_delay": [3.0],
            "f.late": [0.3],
            "f.seats": [100.0],
            "t.aircraft": known,
            "t.carrier": known,
        }
    )
    return workspace.predictions.log(NAME, row).first_id


def ask(workspace: Workspace) -> Why:
    commit_data(workspace)
    workspace.features.apply(delay)
    register(
        workspace,
        feature_set="delay-features",
        data={"flights": 1, "planes": 1},
        trained_until=NOW - timedelta(days=30),
    )
    return workspace.governance.why(deploy_and_ask(workspace))


def test_why_walks_to_the_row_that_was_known_then(workspace: Workspace) -> None:
    why = ask(workspace)
    rows = {row.view: row for row in why.rows}
    # The flight of an hour ago had not landed yet, so its delay of 99 was not known.
    assert rows["aircraft"].row is not None
    assert rows["aircraft"].row["delay"] == 3.0
    assert rows["aircraft"].key == {"tail": "N1"}
    assert rows["planes"].row == {"tail": "N1", "seats": 100.0}
    views = {feature.name: feature.view for feature in why.features}
    assert views == {"last_delay": "aircraft", "late": "carrier", "seats": "planes"}


def test_why_names_data_rules_and_owners(workspace: Workspace) -> None:
    why = ask(workspace)
    used = {use.name: (use.version, use.owner) for use in why.datasets}
    assert used == {"flights": (1, "data@example.org"), "planes": (1, "")}
    assert [(change.rule, change.action, change.rows) for change in why.changes] == [
        ("cancelled", "dropped", 1)
    ]
    assert why.owners["features"] == "features@example.org"
    assert why.owners["dataset flights"] == "data@example.org"
    text = why_text(why)
    for said in ("prediction", "delay=3", "it never left", "data@example.org", "not stated"):
        assert said in text
    assert msgspec.json.decode(msgspec.json.encode(why), type=Why).rows[0] == why.rows[0]


def test_why_of_a_model_that_nobody_described_still_answers(workspace: Workspace) -> None:
    register(workspace)
    why = workspace.governance.why(deploy_and_ask(workspace))
    assert why.verdict is None
    assert why.run is None
    assert why.rows == ()
    assert "training period" in why.not_stated
    assert "no verdict let it live" in why_text(why)


def test_why_of_an_unknown_prediction_is_not_found(workspace: Workspace) -> None:
    with pytest.raises(NotFound):
        workspace.governance.why(new_id())


def test_a_card_lists_what_nobody_stated(workspace: Workspace) -> None:
    register(workspace)
    card = workspace.governance.card(NAME, 1)
    missing = card.split("## Not stated")[1]
    for name in ("Problem", "Value", "Trained until", "Run", "Commit", "Feature set"):
        assert f"- {name}" in missing
    assert "It has no reference" in card


def test_a_card_shows_the_refusal_with_its_evidence(workspace: Workspace) -> None:
    register(workspace)
    result = GateResult(
        gate=Gate(kind="beats_champion", metric="brier"),
        passed=False,
        estimate=-0.01,
        low=-0.02,
        high=float("nan"),
        rows=500,
        reason="brier is not shown to be better",
    )
    verdict = Verdict(
        id=new_id(), model=NAME, candidate=1, champion=7, passed=False, results=(result,), at=NOW
    )
    workspace.evaluation.record(verdict)
    card = workspace.governance.card(NAME, 1)
    assert "refused against version 7" in card
    assert "brier is not shown to be better" in card


def declare(workspace: Workspace, charter: Charter | None = None) -> None:
    workspace.automation.declare(
        ev.loop(NAME, owner="ops@example.org", pipeline="a.py:f", charter=charter)
    )


def test_a_charter_is_kept_when_the_loop_is_declared_again(workspace: Workspace) -> None:
    declare(workspace)
    said = Charter(problem="late flights", value="calm", owner="ops@example.org")
    workspace.governance.set_charter(NAME, said)
    declare(workspace)
    assert workspace.governance.charter(NAME) == said
    with pytest.raises(InvalidInput, match="problem"):
        workspace.governance.set_charter(NAME, Charter(problem=" ", value="v", owner="o"))
    with pytest.raises(NotFound, match="delay"):
        workspace.governance.charter("dealy")


def test_promises_are_measured_or_said_not_to_be(workspace: Workspace, clock: ManualClock) -> None:
    promises = ev.charter(
        problem="p",
        value="v",
        owner="o",
        sla=[ev.sla("renewal", "10d"), ev.sla("retraining", "1h"), ev.sla("prediction", "1s")],
    )
    declare(workspace, promises)
    levels = workspace.governance.service_levels(NAME)
    assert [level.kept for level in levels] == [None, None, None]
    register(workspace)
    workspace.deployment.create(NAME, model=NAME, version=1)
    clock.advance(days=11)
    renewal = workspace.governance.service_levels(NAME)[0]
    assert renewal.measured_s == 11 * 86_400
    assert renewal.kept is False
    assert not renewal.of_answers


def test_promises_are_measured_up_to_the_last_answer(
    workspace: Workspace, clock: ManualClock
) -> None:
    promises = ev.charter(problem="p", value="v", owner="o", sla=[ev.sla("renewal", "10d")])
    declare(workspace, promises)
    register(workspace)
    workspace.deployment.create(NAME, model=NAME, version=1)
    clock.advance(days=3)
    answered = clock.now()
    row = {"id": new_id(), "at": answered, "version": 1, "value": 0.5}
    workspace.predictions.log(NAME, pa.Table.from_pylist([row]))
    clock.advance(days=500)
    renewal = workspace.governance.service_levels(NAME)[0]
    assert (renewal.as_of, renewal.of_answers) == (answered, True)
    assert renewal.measured_s == 3 * 86_400
    assert renewal.kept is True


def test_the_story_of_a_new_loop_is_its_declaration(workspace: Workspace) -> None:
    declare(workspace)
    lines = workspace.governance.story(NAME)
    assert [line.kind for line in lines] == ["loop.Declared"]
    assert "ops@example.org answers" in story_text(lines)
    assert story_text([]) == "nothing has happened yet"
    with pytest.raises(NotFound, match="delay"):
        workspace.governance.story("dealy")
