"""Protected aliases: what must hold before one moves, by whichever door."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from everloop.core.context import acting
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.machines import RolloutPlan
from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.errors import Conflict, GateRefused, InvalidInput, NotAllowed, NotFound, StateError
from everloop.workspace import Workspace
from tests.unit.registry.conftest import artifact

BETTER = Gate(kind="beats_champion", metric="brier")
FAIR = Gate(kind="no_group_worse", metric="tpr", group="carrier")
ENOUGH = Gate(kind="threshold", metric="auc")


@pytest.fixture
def versions(ws: Workspace) -> Workspace:
    """A model with three versions by ann; the champion is 1."""
    with acting(actor="ann"):
        for text in (b"1", b"2", b"3"):
            ws.registry.register("m", artifact(text))
        ws.registry.set_alias("m", "champion", 1, expected=0, reason="the first")
    return ws


def judge(
    ws: Workspace,
    id_: str,
    *gates: Gate,
    candidate: int = 2,
    champion: int = 1,
    failed: tuple[Gate, ...] = (),
) -> None:
    results = tuple(
        GateResult(
            gate=gate, passed=gate not in failed, estimate=0, low=0, high=0, rows=9,
            reason=f"{gate.name} was looked at",
        )
        for gate in gates
    )  # fmt: skip
    verdict = Verdict(
        id=id_, model="m", candidate=candidate, champion=champion, passed=not failed,
        results=results, at=ws.clock.now(),
    )  # fmt: skip
    ws.evaluation.record(verdict)


def missing(ws: Workspace, version: int = 2, alias: str = "champion") -> list[str]:
    with pytest.raises(GateRefused) as refused:
        ws.registry.set_alias("m", alias, version)
    assert refused.value.details["missing"] == ws.registry.missing_for("m", alias, version)
    for item in refused.value.details["missing"]:
        assert item in refused.value.message
    assert ws.registry.model("m").aliases.get(alias) == (1 if alias == "champion" else None)
    return list(refused.value.details["missing"])


def test_an_alias_waits_for_every_gate(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", ["beats_champion", "no_group_worse:tpr:carrier"])
    assert missing(ws) == [
        "gate beats_champion was never judged for this version",
        "gate no_group_worse:tpr:carrier was never judged for this version",
    ]
    judge(ws, "v1", BETTER)
    assert missing(ws) == ["gate no_group_worse:tpr:carrier was never judged for this version"]
    judge(ws, "v2", FAIR)
    assert missing(ws, version=3)[0] == "gate beats_champion was never judged for this version"
    ws.registry.set_alias("m", "champion", 2, evidence="v1")
    assert ws.registry.by_alias("m", "champion").version == 2


def test_the_newest_verdict_on_a_gate_decides(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", ["threshold:auc"])
    judge(ws, "v1", ENOUGH)
    judge(ws, "v2", ENOUGH, failed=(ENOUGH,))
    assert missing(ws) == [
        "gate threshold:auc was not passed in verdict v2: threshold:auc was looked at"
    ]
    judge(ws, "v3", ENOUGH, FAIR, failed=(FAIR,))
    assert missing(ws) == ["gate threshold:auc was passed in verdict v3, but the verdict is a no"]
    judge(ws, "v4", ENOUGH)
    ws.registry.set_alias("m", "champion", 2)


def test_a_verdict_against_an_older_champion_is_stale(versions: Workspace) -> None:
    ws = versions
    judge(ws, "v1", BETTER, candidate=3)
    ws.registry.set_alias("m", "champion", 2)
    ws.registry.protect("m", "champion", ["beats_champion:brier"])
    with pytest.raises(GateRefused, match="against version 1; the champion is 2 now"):
        ws.registry.set_alias("m", "champion", 3)
    judge(ws, "v2", BETTER, candidate=3, champion=2)
    ws.registry.set_alias("m", "champion", 3)


def test_a_gate_is_meant_by_its_whole_name(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", ["threshold:au"])
    judge(ws, "v1", ENOUGH)
    assert missing(ws) == ["gate threshold:au was never judged for this version"]


def test_approvals_are_counted_without_maker_and_mover(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", approvals=2)
    with acting(actor="ann"), pytest.raises(NotAllowed, match="ann made m/2"):
        ws.registry.approve("m", 2)
    for actor in ("bob", "bob", "tester"):
        with acting(actor=actor):
            given = ws.registry.approve("m", 2, note="looked at the card")
            assert (given.actor, given.version, given.note) == (actor, 2, "looked at the card")
    assert missing(ws) == [
        "1 of 2 approvals (approved by bob) (that of tester does not count: four eyes)"
    ]
    assert missing(ws, version=3) == ["2 of 2 approvals"]
    with acting(actor="cyd"):
        ws.registry.set_alias("m", "champion", 2, reason="weekly")
    [approved, own] = ws.registry.approvals("m", 2, "champion")
    assert (approved.actor, own.actor) == ("bob", "tester")


def test_a_withdrawn_approval_does_not_count(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", approvals=1)
    with acting(actor="bob"):
        ws.registry.approve("m", 2)
        ws.registry.withdraw_approval("m", 2)
        ws.registry.withdraw_approval("m", 2)
    assert missing(ws) == ["1 of 1 approvals"]
    kinds = [event.kind for event in ws.lineage.events(subject="model:m/2")]
    assert kinds[-2:] == ["model.VersionApproved", "model.ApprovalWithdrawn"]


def test_two_eyes_may_be_enough(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", approvals=1, four_eyes=False)
    with acting(actor="ann"):
        ws.registry.approve("m", 2)
        ws.registry.set_alias("m", "champion", 2)


def test_an_approval_is_for_one_alias(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", approvals=1)
    with acting(actor="bob"):
        ws.registry.approve("m", 2, "staging")
    assert missing(ws) == ["1 of 1 approvals"]
    ws.registry.set_alias("m", "staging", 2)  # another alias is free


def test_going_back_is_free_only_where_the_rule_says_so(versions: Workspace) -> None:
    ws = versions
    ws.registry.set_alias("m", "champion", 2)
    ws.registry.protect("m", "champion", ["threshold:auc"])
    with pytest.raises(GateRefused):
        ws.registry.set_alias("m", "champion", 1)
    ws.registry.protect("m", "champion", ["threshold:auc"], rollback=True)
    with pytest.raises(GateRefused):
        ws.registry.set_alias("m", "champion", 3)
    ws.registry.set_alias("m", "champion", 1, reason="2 is slow")


def test_no_way_around_a_rule(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", ["threshold:auc"])
    with pytest.raises(GateRefused):
        ws.registry.register("m", artifact(b"4"), alias="champion")
    assert len(ws.registry.versions("m")) == 3, "nothing is registered when the alias is refused"
    for forbidden in (
        lambda: ws.registry.delete_alias("m", "champion"),
        lambda: ws.registry.delete_version("m", 1),
        lambda: ws.registry.delete_model("m"),
    ):
        with pytest.raises(StateError, match="protected"):
            forbidden()
    ws.registry.rename_model("m", "n")
    with pytest.raises(GateRefused):
        ws.registry.set_alias("n", "champion", 2)
    ws.registry.unprotect("n", "champion", reason="reorganised")
    ws.registry.unprotect("n", "champion")
    ws.registry.set_alias("n", "champion", 2)
    assert ws.registry.alias_rules("n") == []


def test_a_rollout_does_not_pass_a_rule_either(versions: Workspace, clock: ManualClock) -> None:
    ws = versions
    ws.deployment.create("d", model="m", version=1)
    ws.registry.protect("m", "champion", ["threshold:auc"], approvals=1)
    for attempt in (
        lambda: ws.deployment.promote("d", 2, "because"),
        lambda: ws.deployment.start_rollout("d", 2, RolloutPlan((100,), shadow_s=0)),
    ):
        with pytest.raises(GateRefused, match=r"threshold:auc .*; 1 of 1 approvals"):
            attempt()
        assert [arm.version for arm in ws.deployment.deployment("d").arms] == [1]
        assert ws.registry.version("m", 2).state == "draft"
    judge(ws, "v1", ENOUGH)
    ws.deployment.start_rollout("d", 2, RolloutPlan((50, 100), every_s=1, shadow_s=0), verdict="v1")
    clock.advance(seconds=5)
    with pytest.raises(GateRefused, match="1 of 1 approvals"):
        ws.deployment.advance("d")
    arms = ws.deployment.deployment("d").arms
    assert [(arm.version, arm.weight) for arm in arms] == [(1, 50), (2, 50)]
    with acting(actor="bob"):
        ws.registry.approve("m", 2)
    moved = ws.deployment.advance("d")
    assert moved is not None
    assert moved.state.stage == "promoted"
    assert ws.registry.by_alias("m", "champion").version == 2


def test_promote_tells_who_is_champion_where_another_was_expected(versions: Workspace) -> None:
    ws = versions
    ws.deployment.create("d", model="m", version=1)
    with pytest.raises(Conflict) as refused:
        ws.deployment.promote("d", 2, "x", expected=3)
    assert refused.value.details == {"winner": 1}
    ws.deployment.promote("d", 2, "x", expected=1, evidence="")
    assert ws.registry.version("m", 2).state == "live"


def test_a_rule_that_asks_for_nothing_is_refused_with_all_its_faults(versions: Workspace) -> None:
    ws = versions
    with pytest.raises(InvalidInput, match="name gates"):
        ws.registry.protect("m", "champion")
    with pytest.raises(InvalidInput) as refused:
        ws.registry.protect("m", "champion", ["accuracy", "threshold:auc", "x:y"], approvals=-1)
    assert [fault.path for fault in refused.value.faults] == ["gates[0]", "gates[2]", "approvals"]
    with pytest.raises(InvalidInput):
        ws.registry.protect("m", "latest", ["threshold"])
    with pytest.raises(NotFound):
        ws.registry.protect("k", "champion", ["threshold"])
    assert ws.registry.alias_rules("m") == []


def test_the_history_of_an_alias_says_who_and_why(versions: Workspace) -> None:
    ws = versions
    with acting(actor="bob"):
        ws.registry.set_alias("m", "champion", 2, reason="better", evidence="v9")
    ws.registry.set_alias("m", "other", 3)
    ws.registry.rename_model("m", "n")
    ws.registry.delete_alias("n", "champion", expected=2, reason="retired")
    told = [
        (move.before, move.after, move.actor, move.reason, move.evidence)
        for move in ws.registry.alias_history("n", "champion")
    ]
    assert told == [
        (0, 1, "ann", "the first", ""), (1, 2, "bob", "better", "v9"),
        (2, 0, "tester", "retired", ""),
    ]  # fmt: skip
    assert len(ws.registry.alias_history("n")) == 4
    ws.registry.create_model("m")
    assert ws.registry.alias_history("m") == [], "another model of the name begins anew"
    with pytest.raises(NotFound):
        ws.registry.alias_history("k")


def test_removing_an_alias_is_compare_and_set_too(versions: Workspace) -> None:
    with pytest.raises(Conflict) as refused:
        versions.registry.delete_alias("m", "champion", expected=2)
    assert refused.value.details == {"winner": 1}


def test_one_of_two_who_approve_and_move_at_once_is_consistent(versions: Workspace) -> None:
    ws = versions
    ws.registry.protect("m", "champion", approvals=1)

    def work(index: int) -> bool:
        with acting(actor=f"person {index}"):
            ws.registry.approve("m", 2)
            try:
                ws.registry.set_alias("m", "champion", 2, expected=1)
            except (Conflict, GateRefused):
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        moved = list(pool.map(work, range(4)))
    assert sum(moved) <= 1
    assert len(ws.registry.approvals("m", 2)) == 4
    moves = [move for move in ws.registry.alias_history("m", "champion") if move.after == 2]
    assert len(moves) == sum(moved)


def test_a_new_version_is_compared_with_the_champion(ws: Workspace) -> None:
    def signed(*fields: Field) -> Signature:
        return Signature(Schema(fields), Schema((Field("p", "float64", nullable=False),)))

    first = artifact(b"1", signature=signed(Field("x", "float64", nullable=False)))
    assert ws.registry.register("m", first, alias="champion").compatibility is None
    same = ws.registry.register("m", artifact(b"2", signature=first.signature)).compatibility
    assert same is not None
    assert (same.against, same.kind, same.backward) == (1, "backward", ())
    wants_more = signed(Field("x", "float64"), Field("y", "int8", nullable=False))
    other = ws.registry.register("m", artifact(b"3", signature=wants_more)).compatibility
    assert other is not None
    assert (other.kind, other.backward) == ("breaking", ("inputs.y: is required",))
    assert ws.registry.register("m", artifact(b"4")).compatibility is None  # it has no signature
