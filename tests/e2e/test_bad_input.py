"""Bad input, from the first day: what was wrong, where, what to do; nothing half-done."""

from __future__ import annotations

import pytest

import everloop as ev
from everloop.errors import InvalidInput, NotFound

SCHEMA = ev.Schema(
    fields=(
        ev.Field("id", "string", nullable=False),
        ev.Field("distance", "float64", nullable=False, ge=1, le=5000),
        ev.Field("origin", "string", among=("EWR", "JFK", "LGA")),
    ),
    key=("id",),
)


def test_a_frame_that_breaks_the_schema_gets_every_fault_and_makes_no_version(
    ws: ev.Workspace,
) -> None:
    broken = {"id": ["a", None, "c"], "distance": [0.5, 100.0, None], "origin": ["EWR", "X", "LGA"]}
    with pytest.raises(InvalidInput) as caught:
        ev.commit("flights", broken, schema=SCHEMA)
    paths = {fault.path for fault in caught.value.faults}
    assert paths >= {"rows[1].id", "rows[0].distance", "rows[2].distance", "rows[1].origin"}
    assert ws.data.datasets() == []


def test_unknown_names_get_the_nearest(ws: ev.Workspace) -> None:
    ev.commit("flights", {"id": ["a"], "distance": [2.0], "origin": ["EWR"]}, schema=SCHEMA)
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        ev.read("flihgts")
    with pytest.raises(NotFound, match="did you mean 'distance'"):
        ev.read("flights", columns=["distnace"])
    with pytest.raises(KeyError):
        ws.registry.model("nothing")
