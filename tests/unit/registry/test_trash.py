"""Deletes that can be undone, states, and the maker's signature."""

from __future__ import annotations

import pytest

from everloop.core.context import acting
from everloop.core.gate import Verdict
from everloop.errors import Conflict, NotFound, StateError
from everloop.workspace import Workspace
from tests.unit.registry.conftest import artifact


@pytest.fixture
def model(ws: Workspace) -> Workspace:
    for text in (b"1", b"2"):
        ws.registry.register("m", artifact(text, metrics={"auc": float("nan")}), tags={"k": "v"})
    ws.registry.set_alias("m", "champion", 2)
    return ws


def test_a_deleted_model_comes_back_as_it_was(model: Workspace) -> None:
    ws = model
    ws.registry.approve("m", 2, "champion", note="ok")
    before = (ws.registry.model("m"), [v.ref for v in ws.registry.versions("m")])
    with acting(actor="bob"):
        ws.registry.delete_model("m", reason="by mistake")
    with pytest.raises(NotFound):
        ws.registry.model("m")
    assert ws.registry.models() == []
    assert ws.registry.versions() == []
    [gone] = ws.registry.deleted()
    assert (gone.kind, gone.name, gone.actor) == ("model", "m", "bob")
    assert ws.registry.restore_model("m") == before[0]
    assert [v.ref for v in ws.registry.versions("m")] == before[1]
    assert ws.registry.files("m", 1) == {"model.txt": b"1"}
    assert [approval.note for approval in ws.registry.approvals("m", 2)] == ["ok"]
    assert ws.registry.deleted() == []
    assert [move.after for move in ws.registry.alias_history("m")] == [2]


def test_the_name_of_a_deleted_model_is_free_at_once(model: Workspace) -> None:
    ws = model
    verdict = Verdict(
        id="v1", model="m", candidate=2, champion=1, passed=True, results=(), at=ws.clock.now()
    )
    ws.evaluation.record(verdict)
    ws.registry.delete_model("m")
    assert ws.registry.register("m", artifact(b"new")).version == 3
    with pytest.raises(Conflict) as refused:
        ws.registry.restore_model("m")
    assert refused.value.details == {"winner": "m"}
    back = ws.registry.restore_model("m", new_name="old")
    assert (back.name, back.aliases, back.latest) == ("old", {"champion": 2}, 2)
    assert [v.version for v in ws.registry.versions("m")] == [3]
    assert [v.ref for v in ws.registry.versions("old")] == ["old/1", "old/2"]
    assert [v.id for v in ws.evaluation.verdicts("old")] == ["v1"]
    assert [move.after for move in ws.registry.alias_history("old")] == [2]
    assert ws.registry.alias_history("m") == []


def test_the_last_of_two_deleted_models_comes_back(model: Workspace) -> None:
    ws = model
    ws.registry.delete_model("m")
    ws.registry.register("m", artifact(b"new"))
    ws.registry.delete_model("m")
    assert len(ws.registry.deleted("m")) == 2
    ws.registry.restore_model("m")
    assert [v.version for v in ws.registry.versions("m")] == [3]
    ws.registry.restore_model("m", new_name="first")
    assert [v.version for v in ws.registry.versions("first")] == [1, 2]
    with pytest.raises(NotFound, match="no deleted model 'm'"):
        ws.registry.restore_model("m", new_name="third")


def test_a_deleted_version_comes_back_with_its_aliases(model: Workspace) -> None:
    ws = model
    ws.registry.set_alias("m", "other", 2)
    before = ws.registry.version("m", 2)
    ws.registry.delete_version("m", 2)
    assert ws.registry.model("m").aliases == {}
    ws.registry.set_alias("m", "other", 1)
    back = ws.registry.restore_version("m", 2)
    assert (back.digest, back.created_at, back.tags) == (
        before.digest,
        before.created_at,
        {"k": "v"},
    )
    assert ws.registry.model("m").aliases == {"champion": 2, "other": 1}
    assert [(m.before, m.after) for m in ws.registry.alias_history("m", "champion")] == [
        (0, 2), (2, 0), (0, 2),
    ]  # fmt: skip
    with pytest.raises(NotFound, match="no deleted version 2"):
        ws.registry.restore_version("m", 2)


def test_a_restored_version_does_not_take_a_protected_alias(model: Workspace) -> None:
    ws = model
    ws.registry.delete_version("m", 2)
    ws.registry.protect("m", "champion", approvals=1)
    ws.registry.restore_version("m", 2)
    assert ws.registry.model("m").aliases == {}


def test_a_version_follows_its_model_and_no_other(model: Workspace, clock: object) -> None:
    ws = model
    ws.registry.delete_version("m", 1)
    ws.registry.rename_model("m", "n")
    assert ws.registry.restore_version("n", 1).ref == "n/1"
    ws.registry.delete_version("n", 1)
    ws.registry.delete_model("n")
    clock.advance(seconds=1)  # type: ignore[attr-defined]
    ws.registry.create_model("n")
    with pytest.raises(NotFound, match="another model of this name"):
        ws.registry.restore_version("n", 1)


def test_states_are_a_machine_with_a_way_back(model: Workspace) -> None:
    ws = model
    assert ws.registry.set_state("m", 1, "archived", reason="weak").state == "archived"
    assert ws.registry.set_state("m", 1, "draft", reason="judge it again").state == "draft"
    ws.registry.set_state("m", 1, "candidate")
    with pytest.raises(StateError, match="m/1 is candidate and cannot become draft") as refused:
        ws.registry.set_state("m", 1, "draft")
    assert "live or archived" in refused.value.hint
    ws.deployment.create("d", model="m", version=2)
    with pytest.raises(StateError, match="deployment 'd' answers with m/2"):
        ws.registry.set_state("m", 2, "archived")


def test_a_signed_version_is_verified(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ws.registry.register("m", artifact(b"0")).signed_by == ""
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "a secret")
    made = ws.registry.register("m", artifact(b"1", metrics={"auc": float("nan")}))
    assert made.signed_by
    assert "secret" not in made.signed_by
    assert ws.registry.verify("m", 1).signature == "unsigned"
    assert ws.registry.verify("m", 2).signature == "valid"
    ws.registry.set_reference("m", 2, b"{}")
    ws.registry.set_card("m", 2, b"# m")
    ws.registry.rename_model("m", "n")
    assert ws.registry.verify("n", 2).signature == "valid"
    ws.registry.delete_model("n")
    ws.registry.restore_model("n", new_name="k")
    assert ws.registry.verify("k", 2).signature == "valid"
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "another")
    assert ws.registry.verify("k", 2).signature == "unknown key"
    monkeypatch.delenv("EVERLOOP_SIGNING_KEY")
    assert ws.registry.verify("k", 2).signature == "unknown key"
