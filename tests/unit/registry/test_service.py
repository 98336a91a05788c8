from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import walk
from everloop.core.artifact import ModelArtifact
from everloop.core.context import acting
from everloop.core.time import ManualClock
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from everloop.registry.service import RegistryService
from everloop.registry.write import check_alias
from tests.unit.registry.conftest import artifact


def test_a_version_holds_all_that_was_given(registry: RegistryService, catalog: Catalog) -> None:
    made = artifact(
        params={"leaves": "31"},
        metrics={"auc": 0.75, "gap": math.nan, "worst": math.inf},
        trained_until=datetime(2013, 3, 31, tzinfo=UTC),
        data={"flights": 3},
        feature_set="delay",
        reference=b"{}",
    )
    with acting(actor="ann"):
        version = registry.register(
            "delay", made, run_id="r1", code="c0", alias="challenger", tags={"team": "ops"}
        )
    assert registry.by_alias("delay", "challenger").version == 1
    assert (version.version, version.state, version.run_id) == (1, "draft", "r1")
    assert (version.data, version.feature_set, version.actor) == ({"flights": 3}, "delay", "ann")
    assert version.trained_until == made.trained_until
    assert version.metrics["auc"] == 0.75
    assert math.isnan(version.metrics["gap"])
    assert version.metrics["worst"] == math.inf
    assert version.reference
    assert registry.files("delay", 1) == made.files
    assert registry.model("delay").aliases == {"challenger": 1}
    with catalog.read() as tx:
        edges, _ = walk(tx, "model:delay/1", upstream=True, depth=1, limit=10)
    assert [(edge.source, edge.kind) for edge, _ in edges] == [
        ("dataset:flights@3", "trained"),
        ("feature_set:delay", "features"),
        ("run:r1", "produced"),
    ]
    kinds = [event.kind for event in catalog.events()]
    assert kinds == ["model.Created", "model.Registered", "model.AliasMoved"]


def test_the_same_artifact_of_the_same_run_is_the_same_version(registry: RegistryService) -> None:
    first = registry.register("m", artifact(), run_id="a")
    assert registry.register("m", artifact(), run_id="a") == first
    assert registry.register("m", artifact(), run_id="b").version == 2
    assert registry.register("m", artifact(b"other"), run_id="a").version == 3


def test_numbers_are_never_used_again(registry: RegistryService) -> None:
    for text in (b"1", b"2"):
        registry.register("m", artifact(text), alias="champion")
    registry.delete_version("m", 2)
    assert registry.model("m").aliases == {}
    assert registry.register("m", artifact(b"3")).version == 3
    registry.delete_model("m")
    with pytest.raises(NotFound):
        registry.model("m")
    assert registry.register("m", artifact(b"4")).version == 4
    registry.rename_model("m", "n")
    assert registry.register("m", artifact(b"5")).version == 5
    assert registry.version("n", 4).name == "n"


def test_two_who_register_at_once_get_dense_numbers(
    registry: RegistryService, catalog: Catalog, blobs: LocalBlobs
) -> None:
    other_catalog = Catalog(catalog.url, clock=ManualClock(catalog.clock.now()))
    other = RegistryService(other_catalog, blobs, EmbeddedAuthorizer())

    def register(index: int) -> int:
        service = (registry, other)[index % 2]
        return service.register("m", artifact(str(index).encode())).version

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(register, range(12)))
    other_catalog.close()
    assert sorted(numbers) == list(range(1, 13))


def test_an_alias_moves_only_from_where_it_was_expected(
    registry: RegistryService, catalog: Catalog
) -> None:
    for text in (b"1", b"2"):
        registry.register("m", artifact(text))
    registry.set_alias("m", "champion", 1, expected=0)
    registry.set_alias("m", "champion", 2, expected=1, reason="better", evidence="v1")
    with pytest.raises(Conflict) as refused:
        registry.set_alias("m", "champion", 1, expected=1)
    assert refused.value.details == {"winner": 2}
    moved = catalog.events(kind="model.AliasMoved")[-1]
    assert moved.subject == "model:m/2"
    assert moved.body == {
        "alias": "champion", "from": 1, "to": 2, "reason": "better", "evidence": "v1"
    }  # fmt: skip


def test_moving_an_alias_to_where_it_is_tells_nothing(
    registry: RegistryService, catalog: Catalog
) -> None:
    registry.register("m", artifact(), alias="champion")
    before = len(catalog.events())
    registry.set_alias("m", "champion", 1)
    registry.delete_alias("m", "nobody")
    assert len(catalog.events()) == before


def test_one_of_two_who_move_an_alias_at_once_wins(registry: RegistryService) -> None:
    for text in (b"1", b"2", b"3"):
        registry.register("m", artifact(text))

    def move(version: int) -> bool:
        try:
            registry.set_alias("m", "champion", version, expected=0)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(move, (1, 2, 3)))
    assert sum(won) == 1
    assert registry.by_alias("m", "champion").version == won.index(True) + 1


def test_an_alias_that_could_be_mistaken_is_refused(registry: RegistryService) -> None:
    registry.register("m", artifact())
    for alias in ("latest", "LATEST", "v3", "V12", "a/b", "", "a b", "x" * 256):
        with pytest.raises(InvalidInput):
            registry.set_alias("m", alias, 1)
    assert registry.model("m").aliases == {}


@given(st.text(max_size=12))
def test_accepted_aliases_hold_only_word_signs(alias: str) -> None:
    try:
        check_alias(alias)
    except InvalidInput:
        return
    assert all(sign.isalnum() or sign in "_-" or sign.isidentifier() for sign in "a" + alias)
    assert alias
    assert alias.lower() != "latest"


def test_a_name_that_no_uri_could_hold_is_refused(registry: RegistryService) -> None:
    for name in ("", "  ", "a/b", "a:b", "a@b", "a\x00b", "x" * 257, "\ud800"):
        with pytest.raises(InvalidInput):
            registry.create_model(name)
        with pytest.raises(InvalidInput):
            registry.register(name, artifact())


def test_unknown_names_get_the_nearest(registry: RegistryService) -> None:
    registry.register("flights-delay", artifact(), alias="champion")
    with pytest.raises(NotFound, match="flights-delay"):
        registry.model("flight-delay")
    with pytest.raises(NotFound, match="champion"):
        registry.by_alias("flights-delay", "champoin")
    for number in (0, 2, -1, 2**70):
        with pytest.raises(NotFound, match="there are 1, from 1 to 1"):
            registry.version("flights-delay", number)
    with pytest.raises(NotFound, match="flights-delay"):
        registry.versions("flight-delay")


def test_states_move_forward_and_live_cannot_be_deleted(registry: RegistryService) -> None:
    registry.register("m", artifact())
    registry.set_state("m", 1, "candidate", reason="gate passed")
    registry.set_state("m", 1, "live")
    with pytest.raises(StateError, match="cannot become draft"):
        registry.set_state("m", 1, "draft")
    for forbidden in (
        lambda: registry.delete_version("m", 1),
        lambda: registry.delete_model("m"),
        lambda: registry.rename_model("m", "n"),
    ):
        with pytest.raises(StateError, match="live"):
            forbidden()
    registry.set_state("m", 1, "archived")
    registry.delete_version("m", 1)


def test_a_path_that_leaves_the_model_is_refused(registry: RegistryService) -> None:
    for path in ("/etc/x", "../x", "a/../x", "a\\b", "a//b", "./a", "", "a\x00"):
        with pytest.raises(InvalidInput, match="plain relative path"):
            registry.register("m", ModelArtifact(flavor="x", files={path: b"1"}))
    with pytest.raises(InvalidInput, match="at least one file"):
        registry.register("m", ModelArtifact(flavor="x", files={}))
    assert registry.models() == []


def test_tags_are_set_and_removed(registry: RegistryService) -> None:
    registry.create_model("m", tags={"a": "1"}, description="d", owner="o")
    assert registry.tag_model("m", {"b": "2", "a": None}).tags == {"b": "2"}
    assert registry.update_model("m", description="new").owner == "o"
    registry.register("m", artifact(), tags={"x": "1"})
    assert registry.tag_version("m", 1, {"y": "2"}).tags == {"x": "1", "y": "2"}
    assert registry.update_version("m", 1, description="good").description == "good"
    with pytest.raises(Conflict):
        registry.create_model("m")


def test_a_foreign_source_makes_a_version_of_a_known_model_only(registry: RegistryService) -> None:
    with pytest.raises(NotFound):
        registry.register_source("m", "mlflow-artifacts:/1/x")
    registry.create_model("m")
    first = registry.register_source("m", "mlflow-artifacts:/1/x", run_id="r", tags={"k": "v"})
    second = registry.register_source("m", "mlflow-artifacts:/1/x", run_id="r")
    assert (first.version, second.version, first.source) == (1, 2, "mlflow-artifacts:/1/x")
    assert first.tier == "needs-trust"
    assert [v.version for v in registry.versions(run_id="r")] == [1, 2]
    with pytest.raises(InvalidInput):
        registry.register_source("m", " ")


def test_a_card_is_kept_and_written_once(registry: RegistryService, catalog: Catalog) -> None:
    registry.register("m", artifact())
    card = registry.set_card("m", 1, b"# m").card
    assert card == registry.set_card("m", 1, b"# m").card
    assert len(catalog.events(kind="model.CardWritten")) == 1
