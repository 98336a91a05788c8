"""LineageService on each database, called directly and through the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from everloop.catalog import lineage as statements
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.core.context import acting
from everloop.core.lineage import Edge, Node
from everloop.core.time import ManualClock
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
    assert [edge.source for edge in found.edges] == [
        "model:delay/1",
        "run:R",
        "dataset:flights@2",
        "dataset:weather@1",
        "dataset:flights@1",
    ]
    assert found.nodes[0] == Node("deployment:delay", 0)
    assert found.nodes[-1] == Node("dataset:flights@1", 4)
    assert found.of_kind("run") == ("run:R",)
    assert not found.truncated
    down = lineage.downstream("dataset:weather@1")
    assert down.edges == (STORY[2], STORY[3], STORY[4])
    assert down.refs == ("dataset:weather@1", "run:R", "model:delay/1", "deployment:delay")
    near = lineage.upstream("deployment:delay", depth=2)
    assert near.edges == (STORY[4], STORY[3])
    assert near.truncated
    assert lineage.upstream("run:none").edges == ()


def test_edge_is_recorded_once(lineage: LineageService, catalog: Catalog) -> None:
    lineage.link([STORY[0], STORY[0]])
    lineage.link([STORY[0]])
    with catalog.write() as tx:
        link(tx, *[getattr(STORY[0], name) for name in ("source", "target", "kind")])
    assert lineage.downstream(STORY[0].source).edges == (STORY[0],)


def test_circle_ends(lineage: LineageService) -> None:
    circle = [Edge("a:1", "b:1", "x"), Edge("b:1", "c:1", "x"), Edge("c:1", "a:1", "x")]
    lineage.link(circle)
    found = lineage.upstream("a:1")
    assert sorted(found.edges, key=str) == sorted(circle, key=str)
    assert not found.truncated


def test_diamond_gives_each_edge_once(lineage: LineageService) -> None:
    lineage.link(
        [Edge("n:a", f"n:{m}", "x") for m in "bc"] + [Edge(f"n:{m}", "n:d", "x") for m in "bc"]
    )
    found = lineage.upstream("n:d")
    assert len(found.edges) == len(set(found.edges)) == 4


@contextmanager
def counted(catalog: Catalog) -> Iterator[list[str]]:
    """The statements that the catalog's readers execute within the block."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "lineage_edges" in statement:
            seen.append(statement)

    event.listen(catalog._reader, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(catalog._reader, "before_cursor_execute", note)


def test_walk_is_one_statement_however_large(lineage: LineageService, catalog: Catalog) -> None:
    edges = [Edge("n:root", f"mid:{n}", "x") for n in range(300)]
    edges += [Edge(f"mid:{n}", f"leaf:{n}", "x") for n in range(300)]
    edges += [Edge(f"chain:{n}", f"chain:{n + 1}", "x") for n in range(300)]
    lineage.link(edges)
    with counted(catalog) as statements:
        assert len(lineage.downstream("n:root").edges) == 600
        assert len(statements) == 1
        assert len(lineage.upstream("chain:300", depth=250).edges) == 250
        assert len(statements) == 2
    assert all("RECURSIVE" in statement for statement in statements)


def test_limit_keeps_the_nearest_and_says_so(lineage: LineageService) -> None:
    lineage.link([Edge(f"n:{n}", f"n:{n + 1}", "x") for n in range(20)])
    found = lineage.downstream("n:0", limit=5)
    assert found.refs == tuple(f"n:{n}" for n in range(6))
    assert found.truncated
    assert not lineage.downstream("n:0", limit=20).truncated


def test_dense_graph_ends(
    lineage: LineageService, monkeypatch: pytest.MonkeyPatch, catalog: Catalog
) -> None:
    names = [f"n:{n}" for n in range(12)]
    lineage.link([Edge(a, b, "x") for a in names for b in names if a != b])
    found = lineage.downstream("n:0")
    assert (len(found.edges), len(found.nodes), found.truncated) == (132, 12, False)
    monkeypatch.setattr(statements, "MOST_STEPS", 5)
    statements._walk.cache_clear()
    try:
        assert lineage.downstream("n:0").truncated
    finally:
        statements._walk.cache_clear()


def test_deployment_is_as_it_was_when_it_answered(
    lineage: LineageService, clock: ManualClock
) -> None:
    for version in (1, 2):
        lineage.link([Edge(f"model:delay/{version}", "deployment:delay", "served")])
        clock.advance(hours=1)
        lineage.link([Edge("deployment:delay", f"segment:{version}", "answered")])
        clock.advance(hours=1)
    assert lineage.upstream("segment:1").of_kind("model") == ("model:delay/1",)
    assert set(lineage.upstream("segment:2").of_kind("model")) == {"model:delay/1", "model:delay/2"}
    assert lineage.downstream("model:delay/2").of_kind("segment") == ("segment:2",)
    assert len(lineage.downstream("model:delay/1").of_kind("segment")) == 2


def test_bad_edges_are_all_named_and_none_recorded(lineage: LineageService) -> None:
    bad = [STORY[0], Edge("", "b:1", "x"), Edge("a:1", "a:1", ""), Edge("a:1", "b:\n", "x")]
    with pytest.raises(InvalidInput) as got:
        lineage.link(bad)
    assert [fault.path for fault in got.value.faults] == [
        "edges[1].source", "edges[2].kind", "edges[2]", "edges[3].target",
    ]  # fmt: skip
    assert lineage.downstream(STORY[0].source).edges == ()
    with pytest.raises(InvalidInput, match="walk") as got:
        lineage.upstream("a:1", depth=0, limit=10**9)
    assert [fault.path for fault in got.value.faults] == ["depth", "limit"]
    for wrong in ("flights", "dataset:", ":flights", "data set:x", "run:" + "x" * 3000):
        with pytest.raises(InvalidInput, match="names nothing"):
            lineage.upstream(wrong)
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
