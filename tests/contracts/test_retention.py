"""Versions go by rule, and what something names stays, with the reason."""

from __future__ import annotations

import pytest

from everloop.core.artifact import ModelArtifact
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput, NotFound
from everloop.workspace import Workspace
from tests.contracts.test_dataset_rows import KEYED, listed, table


def _versions(ws: Workspace, clock: ManualClock, count: int) -> None:
    for n in range(count):
        ws.data.commit("d", table([(n, 0.0, "")]), schema=KEYED, mode="replace")
        clock.advance(days=1)


def test_old_versions_go_and_what_is_named_stays(ws: Workspace, clock: ManualClock) -> None:
    _versions(ws, clock, 10)
    ws.data.commit("other", table([(1, 0.0, "")]), schema=KEYED)
    assert ws.data.expire().items == ()
    ws.data.keep("d", for_days=3, last=2, reason="policy 7")
    ws.data.tag("d", "audited", 2)
    artifact = ModelArtifact(flavor="lightgbm", files={"m.txt": b"m"}, data={"d": 4})
    ws.registry.register("m", artifact)
    would = ws.data.expire(dry_run=True)
    assert would.going == ("d@1", "d@3", "d@5", "d@6", "d@7")
    assert {i.ref: i.stays for i in would.items if i.stays} == {
        "d@2": ("tag audited",), "d@4": ("model m/1",),
    }  # fmt: skip
    assert len(ws.data.versions("d")) == 10
    ws.data.hold("case", "court", dataset="d")
    assert ws.data.expire().going == ()
    ws.data.release("case")
    assert ws.data.expire().going == would.going
    assert [v.number for v in ws.data.versions("d")] == [2, 4, 8, 9, 10]
    assert listed(ws.data.read("d", 4)) == [(3, 0.0, "")]
    assert ws.data.version_at("d", "2013-01-06").number == 4
    with pytest.raises(NotFound, match="there are 2 to 10"):
        ws.data.read("d", 5)
    ws.objects.collect(grace="0")
    assert not ws.files.verify().damaged
    assert ws.data.commit("d", table([(99, 0.0, "")]), mode="replace").number == 11
    events = ws.lineage.events(kind="dataset.VersionExpired")
    assert {event.subject.removeprefix("dataset:") for event in events} == set(would.going)


def test_branches_keep_their_ends_and_lines_go_on_over_a_gap(
    ws: Workspace, clock: ManualClock
) -> None:
    _versions(ws, clock, 4)
    ws.data.branch("d", "side", at=2)
    for n in (10, 11, 12):
        ws.data.commit("d", table([(n, 0.0, "")]), schema=KEYED, mode="replace", branch="side")
        clock.advance(days=1)
    ws.data.keep("d", for_days=0)
    expired = ws.data.expire()
    assert expired.going == ("d@1", "d@3", "d@5", "d@6")
    assert {i.ref: i.stays for i in expired.items if i.stays} == {
        "d@2": ("branch side began there",), "d@4": ("the latest",),
    }  # fmt: skip
    merged = ws.data.merge("d", "side", strategy="theirs")
    assert (merged.base, merged.ours, merged.theirs) == (2, 4, 7)
    assert sorted(listed(ws.data.read("d"))) == [(3, 0.0, ""), (12, 0.0, "")]
    assert ws.data.version_at("d", "2013-01-03").number == 2


def test_the_last_ones_stay_however_old(ws: Workspace, clock: ManualClock) -> None:
    _versions(ws, clock, 3)
    clock.advance(days=1000)
    ws.data.keep("d", for_days=0)
    assert ws.data.expire().going == ("d@1", "d@2")
    assert ws.data.expire().items == ()
    ws.data.keep_all("d")
    assert ws.data.retention() == []
    with pytest.raises(NotFound):
        ws.data.keep_all("d")


def test_a_rule_that_cannot_be_is_refused(ws: Workspace, clock: ManualClock) -> None:
    with pytest.raises(NotFound):
        ws.data.keep("d", for_days=1)
    with pytest.raises(InvalidInput, match=r"for_days[\s\S]*last"):
        ws.data.keep("d", for_days=-1, last=0)
