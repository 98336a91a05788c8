"""LineageService on each database, called directly and through the wire."""

from __future__ import annotations

import pytest

from everloop.catalog import lineage as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import link
from everloop.core.context import acting
from everloop.core.lineage import Edge
from everloop.errors import InvalidInput, NotFound
from everloop.lineage.service import LineageService

STORY = [
    Edge("dataset:flights@1", "dataset:flights@2", "parent"),
    Edge("dataset:flights@2", "run:R", "read"),
    Edge("dataset:weather@1", "run:R", "read"),
    Edge("run:R", "model:delay/1", "produced"),
    Edge("model:delay/1", "deployment:delay", "deployed"),
]


def test_walk_reaches_everything_nearest_first(lineage: LineageService) -> None:
    lineage.link(STORY)
    found = lineage.upstream("deployment:delay")
    assert [edge.source for edge in found] == [
        "model:delay/1",
        "run:R",
        "dataset:flights@2",
        "dataset:weather@1",
        "dataset:flights@1",
    ]
    assert lineage.downstream("dataset:weather@1") == [STORY[2], STORY[3], STORY[4]]
    assert lineage.upstream("deployment:delay", 2) == [STORY[4], STORY[3]]
    assert lineage.upstream("run:none") == []


def test_edge_is_recorded_once(lineage: LineageService, catalog: Catalog) -> None:
    lineage.link([STORY[0], STORY[0]])
    lineage.link([STORY[0]])
    with catalog.write() as tx:
        link(tx, *[getattr(STORY[0], name) for name in ("source", "target", "kind")])
    assert lineage.downstream(STORY[0].source) == [STORY[0]]


def test_circle_ends(lineage: LineageService) -> None:
    circle = [Edge("a:1", "b:1", "x"), Edge("b:1", "c:1", "x"), Edge("c:1", "a:1", "x")]
    lineage.link(circle)
    assert sorted(lineage.upstream("a:1"), key=str) == sorted(circle, key=str)


def test_diamond_gives_each_edge_once(lineage: LineageService) -> None:
    lineage.link(
        [Edge("a", "b", "x"), Edge("a", "c", "x"), Edge("b", "d", "x"), Edge("c", "d", "x")]
    )
    found = lineage.upstream("d")
    assert len(found) == len(set(found)) == 4


def test_wide_walk_is_cut_into_statements(
    lineage: LineageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "_AT_ONCE", 7)
    lineage.link([Edge("root", f"mid:{n}", "x") for n in range(30)])
    lineage.link([Edge(f"mid:{n}", f"leaf:{n}", "x") for n in range(30)])
    assert len(lineage.downstream("root")) == 60


def test_bad_edges_are_all_named_and_none_recorded(lineage: LineageService) -> None:
    bad = [STORY[0], Edge("", "b", "x"), Edge("a", "a", "x")]
    with pytest.raises(InvalidInput) as got:
        lineage.link(bad)
    assert [fault.path for fault in got.value.faults] == ["edges[1]", "edges[2]"]
    assert lineage.downstream(STORY[0].source) == []
    with pytest.raises(InvalidInput, match="depth"):
        lineage.upstream("a", 0)
    with pytest.raises(InvalidInput, match="limit"):
        lineage.events(limit=0)


def test_chain_tells_the_story_root_first(lineage: LineageService, catalog: Catalog) -> None:
    cause = ""
    for kind in ("alert.Fired", "trigger.Fired", "run.Started"):
        with acting(actor="loop:delay", cause=cause), catalog.write() as tx:
            cause = tx.append(kind, "loop:delay", {"n": 1}).id
    with catalog.write() as tx:
        tx.append("unrelated.Happened", "x:1")
    story = lineage.chain(cause)
    assert [event.kind for event in story] == ["alert.Fired", "trigger.Fired", "run.Started"]
    assert [event.actor for event in story] == ["loop:delay"] * 3
    assert lineage.event(cause) == story[-1]
    assert lineage.chain(story[0].id) == [story[0]]


def test_chain_ends_at_an_unknown_cause(lineage: LineageService, catalog: Catalog) -> None:
    with catalog.write() as tx:
        event = tx.append("a.Happened", "a:1", cause="of another workspace")
    assert lineage.chain(event.id) == [event]
    with pytest.raises(NotFound):
        lineage.chain("none")


def test_events_are_read_by_kind_subject_and_place(
    lineage: LineageService, catalog: Catalog
) -> None:
    for n in range(4):
        with catalog.write() as tx:
            tx.append("a.Happened" if n % 2 else "b.Happened", f"x:{n}", {"n": n})
    everything = lineage.events()
    assert [event.body["n"] for event in everything] == [0, 1, 2, 3]
    assert [event.body["n"] for event in lineage.events(kind="a.Happened")] == [1, 3]
    assert [event.body["n"] for event in lineage.events(subject="x:2")] == [2]
    assert [event.body["n"] for event in lineage.events(after=everything[2].seq)] == [3]
    assert [event.body["n"] for event in lineage.events(newest=True, limit=2)] == [3, 2]
