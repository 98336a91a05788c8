"""Definitions: what may be said, what is refused, and what is part of the identity."""

from __future__ import annotations

import math
import pickle
from datetime import datetime
from typing import Any

import msgspec
import pytest

from everloop.core.expr import digest_of
from everloop.core.schema import Field, Schema, canonical_json
from everloop.errors import InvalidInput
from everloop.features.define import agg, col, feature_set, feature_view, lit, source
from everloop.features.sets import FeatureSet
from tests.unit import features_cases as cases

EVENTS = source("events", time="time", known="known")


def view(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "entity": "k",
        "source": EVENTS,
        "features": {"late": agg.mean(col.x > 15, "24h"), "newest": col.x},
        "ttl": "3h",
    }
    return feature_view(changes.pop("name", "v"), **options | changes)


def make(*views: Any, **changes: Any) -> FeatureSet:
    options: dict[str, Any] = {"time": "t", "request": {"k": str}}
    return feature_set(changes.pop("name", "s"), *views or (view(),), **options | changes)


def test_definition_survives_json() -> None:
    definition = cases.definitions()
    read = msgspec.json.decode(canonical_json(definition), type=FeatureSet)
    assert read == definition
    assert read.digest == definition.digest
    assert pickle.loads(pickle.dumps(definition)) == definition


def test_digest_is_the_same_in_every_release() -> None:
    wanted = "36bb6fe4c83e"
    assert make().digest[: len(wanted)] == wanted


@pytest.mark.parametrize(
    "changed",
    [
        make(view(ttl="4h")),
        make(view(entity="j"), request={"j": str}),
        make(view(source=source("events", time="time"))),
        make(view(source=source("events", time="time", known="known", id="id"))),
        make(view(features={"late": agg.mean(col.x > 16, "24h"), "newest": col.x})),
        make(view(features={"late": agg.mean(col.x > 15, "23h"), "newest": col.x})),
        make(view(features={"late": agg.mean(col.x > 15, "24h", closed="both"), "newest": col.x})),
        make(view(features={"late": agg.sum(col.x > 15, "24h"), "newest": col.x})),
        make(view(features={"newest": col.x, "late": agg.mean(col.x > 15, "24h")})),
        make(request={"k": str | None}),
        make(select=["newest", "late"]),
        make(on_demand={"hour": col.t.hour()}),
        make(name="other"),
    ],
)
def test_digest_tells_every_meaning_apart(changed: FeatureSet) -> None:
    assert changed.digest != make().digest
    assert changed != make()


def test_owner_and_description_are_outside_the_digest() -> None:
    described = make(view(owner="a@example.org", description="x"), owner="b@example.org")
    assert described.digest == make().digest
    assert described == make()


def test_schema_types_what_comes_out() -> None:
    definition = make(
        view(
            features={
                "x": col.x,
                "n": col.n.cast("int64"),
                "s": col.s.lower(),
                "c": agg.count("1h"),
            }
        ),
        request={"k": str, "m": float},
        on_demand={"code": col.k.code(["a", "b"]), "word": col.k.lower(), "m": col.m},
    )
    assert [(f.name, f.type, f.semantic) for f in definition.schema.fields] == [
        ("x", "float64", "numeric"),
        ("n", "int64", "numeric"),
        ("s", "string", ""),
        ("c", "float64", "numeric"),
        ("code", "float64", "categorical"),
        ("word", "string", ""),
        ("m", "float64", "numeric"),
    ]
    assert all(field.nullable for field in definition.schema.fields)


def test_request_schema_types_what_goes_in() -> None:
    definition = make(request={"k": str | None, "n": "int32", "when": datetime, "b": bool})
    assert [(f.name, f.type, f.nullable) for f in definition.request_schema.fields] == [
        ("k", "string", True),
        ("n", "int32", False),
        ("when", "timestamp", False),
        ("b", "bool", False),
        ("t", "timestamp", False),
    ]


def test_request_may_be_a_schema_with_rules() -> None:
    fields = (Field("k", "string", among=("a",)), Field("t", "timestamp", nullable=False))
    assert make(request=Schema(fields)).request_schema == Schema(fields)
    assert make(request=Schema(fields[:1])).request_schema == Schema(fields)


def test_select_gives_these_in_this_order() -> None:
    assert make(on_demand={"hour": col.t.hour()}, select=["hour", "late"]).names == ("hour", "late")


def test_datasets_lists_what_is_read() -> None:
    assert cases.definitions().datasets == {
        "events": ("k", "j", "time", "known", "x", "n", "s", "b"),
        "facts": ("k", "size"),
    }


def test_view_collects_every_fault() -> None:
    with pytest.raises(InvalidInput) as caught:
        feature_view(
            "v",
            entity=("k", "k"),
            source=source("facts"),
            features={"a": agg.count("1h"), "b": 5},
            ttl="3h",
        )
    assert [fault.path for fault in caught.value.faults] == [
        "v.entity",
        "v.a",
        "v.b",
        "v.ttl",
        "v.ttl",
    ]


def test_set_collects_every_fault() -> None:
    with pytest.raises(InvalidInput) as caught:
        make(
            view(),
            view(),
            view(name="w", entity="j", features={"k": col.x}),
            request={"k": str, "f": list},
            on_demand={"late": lit(1), "bad": col.t + 1, "none": col.nope, "k": lit(2)},
            select=["newst"],
        )
    paths = [fault.path for fault in caught.value.faults]
    assert paths == [
        "request.f", "views", "request.j", "features.k", "on_demand.bad", "on_demand.none",
        "on_demand.k", "features", "features", "features", "select.newst",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: source(""),
        lambda: source("d", known="k"),
        lambda: view(name=""),
        lambda: view(entity=()),
        lambda: view(features={}),
        lambda: view(features=[col.x + 1]),
        lambda: view(features=[col.x, col.x]),
        lambda: view(ttl="0h"),
        lambda: view(ttl="-1h"),
        lambda: view(features={"a": agg.count("1h")}, ttl="3h"),
        lambda: agg.count(col.x),
        lambda: agg.count("soon"),
        lambda: agg.sum(col.x, "1h", closed="yes"),
        lambda: make(request={"k": str, "t": str}),
        lambda: make(request={"k": float}),
        lambda: make(time=""),
        lambda: make(name=""),
    ],
)
def test_what_means_nothing_is_refused(build: Any) -> None:
    with pytest.raises(InvalidInput):
        build()


def test_an_infinite_bound_of_clip_bounds_nothing() -> None:
    assert digest_of(col.x.clip(-math.inf, 5)) == digest_of(col.x.clip(high=5))
    assert digest_of(col.x.clip(0, math.inf)) == digest_of(col.x.clip(low=0))


@pytest.mark.parametrize(
    ("low", "high"), [(math.nan, 1), (0, math.nan), (math.inf, None), (None, -math.inf), (2, 1)]
)
def test_clip_without_an_order_is_refused(low: Any, high: Any) -> None:
    with pytest.raises(InvalidInput, match="low <= high"):
        col.x.clip(low, high)


def test_an_unknown_feature_gets_the_nearest() -> None:
    with pytest.raises(InvalidInput) as caught:
        make(view(), select=[view().names[0] + "x"])
    assert f"did you mean {view().names[0]!r}" in caught.value.faults[0].message
