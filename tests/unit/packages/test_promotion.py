"""Packages on every kind of workspace: kept by content, moved up stage by stage, and back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from everloop.core.context import acting
from everloop.core.package import Manifest, Package, to_bytes
from everloop.core.schema import canonical_json
from everloop.errors import (
    Conflict,
    EverloopError,
    GateRefused,
    InvalidInput,
    NotAllowed,
    NotFound,
    StateError,
)
from everloop.workspace import Workspace


def stored(ws: Workspace, text: str, **changes: Any) -> str:
    """The digest of a manifest whose code is one file."""
    tree = changes.pop("tree", None) or {"loop.py": ws.blobs.put(text.encode())[0]}
    code = ws.blobs.put(canonical_json(tree))[0]
    made = {"name": "delay", "code": code, "entry": "loop.py", "python": "3.11"}
    manifest = Manifest(**{**made, "distributions": {"numpy": "2"}, **changes})  # type: ignore[arg-type]
    return ws.blobs.put(to_bytes(manifest))[0]


def package(ws: Workspace, text: str, **changes: Any) -> Package:
    with acting(actor="ann"):
        return ws.packages.add(stored(ws, text, **changes), {"commit": "c0ffee", "dirty": "no"})


def where(ws: Workspace) -> dict[str, str]:
    return {one.environment: one.digest for one in ws.packages.environments("delay")}


def kinds(ws: Workspace) -> list[str]:
    return [event.kind for event in ws.lineage.events() if event.subject.startswith("package:")]


def test_a_package_goes_up_one_stage_at_a_time_and_back_the_way_it_came(ws: Workspace) -> None:
    service = ws.packages
    first, second = package(ws, "1"), package(ws, "2")
    assert package(ws, "2") == second  # the same content is the same package
    assert kinds(ws) == ["package.Built", "package.Promoted"] * 2
    assert (first.builder, first.git["commit"], first.reached) == ("ann", "c0ffee", ())
    assert where(ws) == {"dev": second.digest}
    assert service.package("delay") == second == service.package("delay@dev")
    assert service.package(f"delay@{first.digest[:8]}") == first
    assert service.packages() == service.packages("delay")

    with pytest.raises(StateError, match="is not in staging, where nothing is"):
        service.promote("delay@dev", "production", reason="at once")
    with pytest.raises(StateError, match="--force"):
        service.promote("delay@dev", "production", force=True)  # without a reason
    with pytest.raises(StateError, match=f"is not in dev, where {second.digest[:8]} is"):
        service.promote(first.ref, "staging", reason="an older one")
    moved = service.promote("delay@dev", "staging", expected="", reason="looks fine")
    assert (moved.environment, moved.digest) == ("staging", second.digest)
    assert service.promote("delay@dev", "staging", reason="again") == moved  # no event
    service.promote("delay@staging", "production", reason="live", evidence="ticket 7")
    assert package(ws, "1") == first  # built again: it is in dev again
    service.promote("delay@dev", "staging", reason="another")
    service.promote("delay@staging", "production", expected=second.digest[:8], reason="next")
    third = package(ws, "3")
    service.promote(third.ref, "production", reason="it burns", force=True)

    back = service.rollback("delay", "production", expected=third.digest, reason="it burns more")
    assert back.digest == first.digest
    assert service.rollback("delay", "production", reason="").digest == second.digest
    with pytest.raises(StateError, match="there was: nothing"):
        service.rollback("delay", "production")
    service.promote(third.ref, "production", reason="now", force=True)
    again = service.rollback("delay", "production", to=second.digest[:8], reason="")
    assert again.digest == second.digest

    moves = service.history("delay", "production")
    assert [(m.kind, m.after, m.is_forced) for m in moves] == [
        ("promoted", second.digest, False),
        ("promoted", first.digest, False),
        ("promoted", third.digest, True),
        ("rolled back", first.digest, False),
        ("rolled back", second.digest, False),
        ("promoted", third.digest, True),
        ("rolled back", second.digest, False),
    ]
    assert (moves[0].reason, moves[0].evidence, moves[0].actor) == ("live", "ticket 7", "tester")
    assert len(service.history("delay")) == len(moves) + 6


def test_what_is_not_there_is_told_with_what_is(ws: Workspace) -> None:
    made = package(ws, "1")
    service = ws.packages
    for ref, told in (
        ("dealy", "did you mean 'delay'"),
        ("delay@staging", "promote delay staging"),
        ("delay@0123abcd", made.digest[:8]),
        ("delay@abc", "8 digits at least"),
        ("delay@%", "8 digits at least"),
        ("", "there are: delay"),
    ):
        with pytest.raises(NotFound, match=told) as error:
            service.package(ref)
        assert told in str(error.value)
    with pytest.raises(NotFound, match="no environment 'prod'"):
        service.promote("delay", "prod", reason="r")
    with pytest.raises(NotFound):
        service.history("dealy")


def test_a_manifest_of_which_something_is_missing_or_leads_out_is_no_package(
    ws: Workspace,
) -> None:
    gone = "0" * 64
    file = ws.blobs.put(b"x")[0]
    tree = {"../out.py": file, "/etc/cron.d/x": file, "a\\b.py": file, "loop.py": gone}
    tree |= {"shop": file, "shop/a.py": file, "x" * 251: file, "a\nb.py": file}
    with pytest.raises(InvalidInput) as error:
        ws.packages.add(stored(ws, "1", name="a/b", entry="main.py", tree=tree))
    paths = [fault.path for fault in error.value.faults]
    wrong = ["../out.py", "/etc/cron.d/x", repr("a\nb.py"), "a\\b.py", "shop", repr("x" * 80)]
    assert sorted(paths) == sorted(["name", "entry", "loop.py", *wrong])
    for data in (b"{}", b"nothing", to_bytes(Manifest(name="a", code=gone, entry="e",
                 python="3", distributions={}, format=99))):  # fmt: skip
        with pytest.raises(InvalidInput):
            ws.packages.add(ws.blobs.put(data)[0])
    with pytest.raises(NotFound):
        ws.packages.add(gone)
    # What a builder that was killed between the objects and the row leaves is no package.
    stored(ws, "1")
    assert ws.packages.packages() == []
    assert kinds(ws) == []


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told_who(ws: Workspace) -> None:
    made = [package(ws, text) for text in ("1", "2")]
    outcomes: list[object] = []
    start = threading.Barrier(2)

    def promote(found: Package) -> None:
        start.wait()
        try:
            service = ws.packages
            outcomes.append(
                service.promote(found.ref, "staging", expected="", reason="r", force=True).digest
            )
        except EverloopError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=promote, args=(found,)) for found in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, str)]
    [lost] = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert lost.details["winner"] == winner == where(ws)["staging"]


def ci(ws: Workspace, code: str, outcome: str) -> None:
    """As `everloop ci` records it; straight into the log, which is also behind the server."""
    with ws.catalog.write() as tx:  # type: ignore[union-attr]
        body = {"code": code, "outcome": outcome, "report": "0" * 64}
        tx.append("ci.Finished", f"code:{code}", body)


@pytest.mark.parametrize("ws", ["sqlite", "postgres"], indirect=True)
def test_a_protected_environment_asks_for_ci_and_for_another_person(ws: Workspace) -> None:
    service = ws.packages
    made = package(ws, "1", loop_codes={"delay": "a" * 64, "other": "b" * 64})
    service.promote("delay@dev", "staging", reason="r")
    service.protect("delay", "production", ci=True, approvals=1)
    with pytest.raises(InvalidInput, match="everything that is built"):
        service.protect("delay", "dev", ci=True)

    def missing() -> list[str]:
        with pytest.raises(GateRefused) as error:
            service.promote(made.ref, "production", reason="r", force=True)
        found: list[str] = error.value.details["missing"]
        return found

    lacking = "1 of 1 approvals (not by ann or tester)"
    assert missing() == ["no CI run of its code is recorded here", lacking]
    ci(ws, "a" * 64, "passed")
    ci(ws, "b" * 64, "passed")
    ci(ws, "b" * 64, "refused")
    assert missing() == ["the newest CI run of its code says: refused", lacking]
    ci(ws, "b" * 64, "passed")
    service.approve(made.ref, "production", note="who moves it does not count")
    assert missing() == [lacking]
    with acting(actor="ann"), pytest.raises(NotAllowed, match="four eyes"):
        service.approve(made.ref, "production")
    with acting(actor="bob"):
        given = service.approve(made.ref, "production", note="read it")
        assert service.approve(made.ref, "production") == given
    assert [one.actor for one in service.approvals(made.ref)] == ["tester", "bob"]
    service.promote(made.ref, "production", reason="r")
    [move] = service.history("delay", "production")
    assert ws.lineage.events(kind="ci.Finished")[-1].id == move.evidence
    # What was there once comes back without asking anybody.
    service.protect("delay", "production")
    other = package(ws, "2")
    service.promote(other.ref, "production", reason="r", force=True)
    service.protect("delay", "production", ci=True)
    assert service.rollback("delay", "production", reason="r").digest == made.digest


def test_one_from_elsewhere_has_its_stages_and_moves_nothing(ws: Workspace) -> None:
    service = ws.packages
    facts: dict[str, Any] = {"git": {}, "builder": "ann", "built_at": ws.clock.now()}
    first, second = (stored(ws, text) for text in ("1", "2"))
    for digest in (first, second, second):
        service.receive(digest, **facts, reached=["dev", "staging"])
    assert where(ws) == {}
    assert kinds(ws) == ["package.Imported"] * 2
    for digest in (first, second):
        service.promote(f"delay@{digest}", "production", reason="r")
    with pytest.raises(StateError, match="was in production before"):
        service.promote(f"delay@{first}", "production", reason="an older one")
    service.receive(stored(ws, "3"), **facts, reached=["dev"])
    with pytest.raises(StateError, match="is not in staging"):
        service.promote("delay", "production", reason="r")


def test_a_deployment_is_told_once(ws: Workspace) -> None:
    made = package(ws, "1")
    for refused in ("", "", "numpy must be 2, is 1", "numpy must be 2, is 1", ""):
        ws.packages.note_deployment(made.digest, "dev", "host", refused=refused)
    assert kinds(ws)[2:] == ["package.Deployed", "package.DeployRefused", "package.Deployed"]


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_a_collection_keeps_what_a_package_names(ws: Workspace) -> None:
    lock = ws.blobs.put(b"numpy==2")[0]
    made = package(ws, "1", lock=lock, lock_name="requirements.lock")
    loose = ws.blobs.put(b"named by nothing")[0]
    collected = ws.objects.collect(grace="0s")
    assert collected.objects == 1
    assert not ws.blobs.exists(loose)
    assert ws.blobs.exists(lock)
    assert ws.packages.add(made.digest) == made  # all that it names is looked for
