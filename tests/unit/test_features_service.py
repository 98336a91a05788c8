"""FeatureService: definitions by name and by content, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.access.wire import decode_call, decode_result, encode_call, encode_result
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, NotFound
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.features.service import FeatureService
from tests.unit import features_cases as cases


class Datasets:
    """One dataset, ``flights``, of two columns."""

    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        if name != "flights":
            raise NotFound.named("dataset", name, ["flights"])
        schema = Schema((Field("k", "string"), Field("time", "timestamp")))
        at = datetime(2013, 1, 1, tzinfo=UTC)
        return DatasetVersion(
            dataset=name, number=1, digest="", schema=schema, blocks=(), rows=0, created_at=at
        )


@pytest.fixture(params=["sqlite", "postgres"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_database")
    opened = Catalog(url)
    yield opened
    opened.close()


@pytest.fixture
def features(catalog: Catalog, tmp_path: Path) -> FeatureService:
    return FeatureService(
        catalog, LocalBlobs(tmp_path / "objects"), EmbeddedAuthorizer(), Datasets()
    )


def delay(window: str = "24h", **options: Any) -> Any:
    events = source("events", time="time")
    view = feature_view(
        "late", entity="k", source=events, features={"late": agg.mean(col.x, window)}
    )
    return feature_set("delay@1", view, time="t", request={"k": str}, **options)


def test_feature_set_is_read_from_the_catalog_alone(features: FeatureService) -> None:
    for definition in (delay(), cases.definitions(), cases.wild()):
        features.apply(definition)
        assert features.feature_set(definition.name) == definition
        assert features.view(definition.views[0].name) == definition.views[0]


def test_old_content_stays_readable_by_its_digest(features: FeatureService) -> None:
    old, new = delay(), delay("12h")
    features.apply(old)
    features.apply(new)
    assert features.feature_set("delay@1") == new
    assert features.get("delay@1").digest == new.digest
    for name in (old.digest, f"delay@1@{old.digest}", f"delay@1@{old.digest[:12]}"):
        assert features.feature_set(name) == old


def test_apply_twice_changes_nothing(features: FeatureService, catalog: Catalog) -> None:
    first = features.apply(delay())
    assert features.apply(delay()) == first
    applied = [event.subject for event in catalog.events(kind="feature.Applied")]
    assert applied == ["feature_view:late", "feature_set:delay@1"]


def test_events_tell_what_a_name_stood_for_before(
    features: FeatureService, catalog: Catalog
) -> None:
    features.apply(delay())
    features.apply(delay("12h"))
    last = catalog.events(subject="feature_set:delay@1")[-1]
    assert last.body == {"digest": delay("12h").digest, "before": delay().digest}


def test_new_owner_is_recorded(features: FeatureService) -> None:
    features.apply(delay())
    assert features.apply(delay(owner="ops@example.org")).owner == "ops@example.org"
    assert features.get("delay@1").owner == "ops@example.org"


def test_unknown_name_gets_the_nearest(features: FeatureService) -> None:
    features.apply(delay())
    for call in (features.feature_set, features.get):
        with pytest.raises(NotFound, match="did you mean 'delay@1'"):
            call("dela@1")
    with pytest.raises(NotFound, match="late"):
        features.view("lat")
    with pytest.raises(NotFound):
        features.feature_set("delay@1@00000000")


def test_definitions_lists_names_of_both_kinds(features: FeatureService) -> None:
    features.apply(delay())
    assert [(d.kind, d.name) for d in features.definitions()] == [
        ("feature_set", "delay@1"),
        ("feature_view", "late"),
    ]
    assert [d.name for d in features.definitions("feature_view")] == ["late"]


def test_columns_that_a_dataset_lacks_are_all_named(features: FeatureService) -> None:
    flights = source("flights", time="time", known="landed")
    view = feature_view("v", entity="k", source=flights, features={"delay": col.delay})
    with pytest.raises(InvalidInput, match=r"flights.landed(.|\n)*flights.delay"):
        features.apply(feature_set("s", view, time="t", request={"k": str}))
    assert features.definitions() == []


def test_name_that_reads_like_a_digest_is_refused(features: FeatureService) -> None:
    with pytest.raises(InvalidInput, match="digest"):
        features.apply(feature_set("s@deadbeef", delay().views[0], time="t", request={"k": str}))


def test_definitions_cross_the_wire() -> None:
    definition = cases.definitions()
    body, head = encode_call({"definition": definition})
    assert decode_call(FeatureService.apply, body, head)["definition"] == definition
    body, head = encode_result(definition)
    assert decode_result(FeatureService.feature_set, body, head) == definition


def test_new_description_is_recorded(features: FeatureService, catalog: Catalog) -> None:
    first = features.apply(delay(owner="ann", description="one"))
    again = features.apply(delay(owner="ann", description="two"))
    assert first.digest == again.digest
    found = features.feature_set("delay@1")
    assert (found.owner, found.description) == ("ann", "two")
    features.apply(delay(owner="bob", description="two"))
    assert features.feature_set("delay@1").owner == "bob"
    before = len(catalog.events())
    features.apply(delay(owner="bob", description="two"))
    assert len(catalog.events()) == before
