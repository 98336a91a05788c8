from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.context import acting
from everloop.core.deploy import Deployment
from everloop.core.machines import RolloutObservation, RolloutPlan
from everloop.core.time import ManualClock
from everloop.deployment.service import DeploymentService
from everloop.errors import (
    Conflict,
    GateRefused,
    InvalidInput,
    NotAllowed,
    NotFound,
    StateError,
)
from everloop.registry.service import RegistryService
from tests.unit.registry.conftest import artifact

PLAN = RolloutPlan((5, 25, 100), error_rate=0.01)
AT_ONCE = RolloutPlan((100,), shadow_s=0)


def _arms(found: Deployment) -> list[tuple[str, int, float]]:
    return [(arm.name, arm.version, arm.weight) for arm in found.arms]


def _states(registry: RegistryService) -> list[str]:
    return [version.state for version in registry.versions("m")]


def _verdict(catalog: Catalog, **more: object) -> str:
    row = {
        "id": "v1", "model": "m", "candidate": 2, "champion": 1, "passed": True, "results": [],
        "holdout": {}, "run_id": "", "at": catalog.clock.now(), **more,
    }  # fmt: skip
    with catalog.write() as tx:
        tx.execute(tables.verdicts.insert().values(row))
        return tx.append("verdict.Given", f"verdict:{row['id']}", {}).id


def test_a_new_deployment_serves_its_version(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    found = deployment.deployment("d")
    assert _arms(found) == [("champion", 1, 100)]
    assert (found.revision, found.state, found.owner) == (1, "serving", "ann")
    assert registry.by_alias("m", "champion").state == "live"
    assert deployment.deployments() == [found]
    with pytest.raises(Conflict):
        deployment.create("d", model="m", version=2)
    with pytest.raises(NotFound):
        deployment.create("e", model="m", version=9)
    with pytest.raises(NotFound, match="did you mean 'd'"):
        deployment.deployment("dd")


def test_a_rollout_goes_from_shadow_to_champion(
    deployment: DeploymentService, registry: RegistryService, catalog: Catalog, clock: ManualClock
) -> None:
    given = _verdict(catalog)
    started = deployment.start_rollout("d", 2, PLAN, verdict="v1")
    assert _arms(deployment.deployment("d")) == [("champion", 1, 100), ("shadow", 2, 0)]
    assert _states(registry) == ["live", "candidate", "draft"]
    seen = RolloutObservation(now_s=0, requests=500)
    assert deployment.advance("d", seen) == started
    weights = []
    for _ in range(3):
        clock.advance(days=1)
        moved = deployment.advance("d", seen)
        assert moved is not None
        weights.append(deployment.deployment("d").arms[-1].weight)
        assert deployment.advance("d", seen) == (None if weights[-1] == 100 else moved)
    assert weights == [5, 25, 100]
    found = deployment.deployment("d")
    assert (_arms(found), found.revision) == ([("champion", 2, 100)], 5)
    assert registry.by_alias("m", "champion").version == 2
    assert _states(registry) == ["archived", "live", "draft"]
    assert deployment.rollout(started.id).state.stage == "promoted"

    story = catalog.events(subject=f"rollout:{started.id}")
    assert [event.kind for event in story] == [
        "rollout.Started", "rollout.Advanced", "rollout.Advanced", "rollout.Promoted"
    ]  # fmt: skip
    assert [event.cause for event in story] == [given, *(event.id for event in story[:-1])]
    moved_alias = catalog.events(kind="model.AliasMoved")[-1]
    assert (moved_alias.cause, moved_alias.body["evidence"]) == (story[-1].id, "v1")
    revisions = [e.body["revision"] for e in catalog.events(kind="deployment.ArmsChanged")]
    assert revisions == [2, 3, 4, 5]


def test_errors_of_the_candidate_take_it_out_at_once(
    deployment: DeploymentService, registry: RegistryService, clock: ManualClock
) -> None:
    deployment.start_rollout("d", 2, RolloutPlan((5, 100), shadow_s=0, error_rate=0.01))
    assert _arms(deployment.deployment("d"))[1] == ("challenger", 2, 5)
    clock.advance(seconds=1)
    ended = deployment.advance("d", RolloutObservation(now_s=0, requests=100, errors=20))
    assert ended is not None
    assert ended.state.stage == "aborted"
    assert "error rate" in ended.reason
    assert _arms(deployment.deployment("d")) == [("champion", 1, 100)]
    assert _states(registry) == ["live", "archived", "draft"]
    assert registry.by_alias("m", "champion").version == 1
    assert deployment.advance("d") is None
    deployment.start_rollout("d", 2, PLAN)  # a second try is allowed


def test_one_of_two_who_advance_at_once_moves(
    deployment: DeploymentService, registry: RegistryService, catalog: Catalog, clock: ManualClock
) -> None:
    deployment.start_rollout("d", 2, PLAN)
    clock.advance(days=1)
    url = catalog.url
    other_catalog = Catalog(url, clock=clock)
    other = DeploymentService(other_catalog, EmbeddedAuthorizer(), registry)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit((deployment, other)[n % 2].advance, "d") for n in range(8)]
        results = {call.result() for call in calls if call.result() is not None}
    other_catalog.close()
    assert [result.state.step for result in results] == [0]
    assert deployment.deployment("d").revision == 3


def test_what_was_seen_at_another_revision_decides_nothing(
    deployment: DeploymentService, clock: ManualClock
) -> None:
    deployment.start_rollout("d", 2, RolloutPlan((5, 25, 100), every_s=0, shadow_s=0))
    bad = RolloutObservation(now_s=0, requests=100, errors=100)
    before = deployment.deployment("d")
    deployment.advance("d", bad, expect=before.revision - 1)
    assert deployment.deployment("d") == before


def test_two_rollouts_at_once_are_a_conflict(deployment: DeploymentService) -> None:
    opened = deployment.start_rollout("d", 2, PLAN)
    with pytest.raises(Conflict, match="rollout of version 2 is open") as refused:
        deployment.start_rollout("d", 3, PLAN)
    assert refused.value.details == {"winner": opened.id}
    assert deployment.rollouts("d", open_only=True) == [opened]


def test_promote_twice_is_conflict(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    assert deployment.promote("d", 2, "by hand").revision == 2
    with pytest.raises(Conflict, match="champion of 'd' already"):
        deployment.promote("d", 2, "again")
    assert deployment.promote("d", 1, "back").arms[0].version == 1
    assert _states(registry) == ["live", "archived", "draft"]


def test_promoting_the_candidate_ends_its_rollout(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    rollout = deployment.start_rollout("d", 2, PLAN)
    deployment.promote("d", 2, "sure of it")
    assert deployment.rollout(rollout.id).state.stage == "promoted"
    assert registry.by_alias("m", "champion").version == 2


def test_promoting_another_version_ends_the_rollout_too(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    rollout = deployment.start_rollout("d", 2, PLAN)
    deployment.promote("d", 3, "urgent")
    ended = deployment.rollout(rollout.id)
    assert (ended.state.stage, ended.reason) == ("aborted", "version 3 was promoted: urgent")
    assert _states(registry) == ["archived", "archived", "live"]
    assert _arms(deployment.deployment("d")) == [("champion", 3, 100)]


def test_a_plan_of_one_step_promotes_at_once(
    deployment: DeploymentService, catalog: Catalog
) -> None:
    done = deployment.start_rollout("d", 2, AT_ONCE)
    assert done.state.stage == "promoted"
    assert _arms(deployment.deployment("d")) == [("champion", 2, 100)]
    kinds = [event.kind for event in catalog.events(subject=f"rollout:{done.id}")]
    assert kinds == ["rollout.Started", "rollout.Promoted"]


def test_abort_keeps_the_champion_and_needs_a_rollout(deployment: DeploymentService) -> None:
    with pytest.raises(StateError, match="there has been none yet"):
        deployment.abort("d", "why")
    deployment.start_rollout("d", 2, PLAN)
    assert deployment.abort("d", "complaints").reason == "complaints"
    with pytest.raises(StateError, match="of version 2, was aborted: complaints"):
        deployment.abort("d", "again")
    assert _arms(deployment.deployment("d")) == [("champion", 1, 100)]


def test_a_refusing_verdict_starts_nothing(deployment: DeploymentService, catalog: Catalog) -> None:
    _verdict(catalog, passed=False)
    _verdict(catalog, id="v2", champion=3)
    _verdict(catalog, id="v3", candidate=3)
    with pytest.raises(GateRefused) as refused:
        deployment.start_rollout("d", 2, PLAN, verdict="v1")
    assert refused.value.details == {"verdict": "v1"}
    with pytest.raises(Conflict, match="judged against version 3"):
        deployment.start_rollout("d", 2, PLAN, verdict="v2")
    with pytest.raises(InvalidInput, match="is on m/3"):
        deployment.start_rollout("d", 2, PLAN, verdict="v3")
    with pytest.raises(NotFound):
        deployment.start_rollout("d", 2, PLAN, verdict="v9")
    assert deployment.rollouts("d") == []
    assert deployment.deployment("d").revision == 1


def test_a_stopped_deployment_stands_still(
    deployment: DeploymentService, clock: ManualClock
) -> None:
    deployment.start_rollout("d", 2, PLAN)
    assert deployment.stop("d").revision == deployment.stop("d").revision == 3
    clock.advance(days=2)
    held = deployment.advance("d")
    assert held is not None
    assert held.state.stage == "shadow"
    deployment.abort("d", "while stopped")
    with pytest.raises(StateError, match="is stopped"):
        deployment.start_rollout("d", 2, PLAN)
    assert deployment.start("d").state == "serving"


def test_the_champion_is_no_candidate(deployment: DeploymentService) -> None:
    with pytest.raises(StateError, match="champion"):
        deployment.start_rollout("d", 1, PLAN)
    with pytest.raises(NotFound):
        deployment.start_rollout("d", 9, PLAN)


def test_a_version_that_another_deployment_serves_stays_live(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    deployment.create("other", model="m", version=1)
    deployment.promote("d", 2, "better here")
    assert _states(registry) == ["live", "live", "draft"]


def test_each_candidate_is_tried_by_other_keys(deployment: DeploymentService) -> None:
    deployment.start_rollout("d", 2, PLAN)
    first = deployment.deployment("d").salt
    deployment.abort("d", "no")
    deployment.start_rollout("d", 3, PLAN)
    assert deployment.deployment("d").salt != first


def test_a_candidate_cannot_be_deleted_under_its_rollout(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    deployment.start_rollout("d", 2, PLAN)
    with pytest.raises(StateError, match="is candidate"):
        registry.delete_version("m", 2)


def test_workers_say_what_they_serve(deployment: DeploymentService, clock: ManualClock) -> None:
    deployment.acknowledge("d", "w0", 10, 0)
    deployment.acknowledge("d", "w1", 11, 1)
    clock.advance(seconds=5)
    said = deployment.acknowledge("d", "w0", 12, 1)
    assert [(w.worker, w.pid, w.revision) for w in deployment.workers("d")] == [
        ("w0", 12, 1), ("w1", 11, 1)
    ]  # fmt: skip
    assert said.at == clock.now()
    with pytest.raises(InvalidInput, match="there is no 2"):
        deployment.acknowledge("d", "w0", 12, 2)
    with pytest.raises(NotFound):
        deployment.acknowledge("x", "w0", 12, 1)


def test_changes_follow_from_what_acts(deployment: DeploymentService, catalog: Catalog) -> None:
    with acting(actor="loop:d", cause="E1"):
        deployment.start_rollout("d", 2, PLAN)
    started = catalog.events(kind="rollout.Started")[0]
    changed = catalog.events(kind="deployment.ArmsChanged")[0]
    assert (started.actor, started.cause, changed.cause) == ("loop:d", "E1", started.id)


def test_time_in_which_nothing_was_served_counts_for_no_step(
    deployment: DeploymentService, clock: ManualClock
) -> None:
    plan = RolloutPlan(steps=(5, 50, 100), every_s=86_400, shadow_s=0)
    deployment.start_rollout("d", 2, plan)
    deployment.stop("d")
    clock.advance(days=3)
    deployment.start("d")
    stands = deployment.advance("d")
    assert stands is not None
    assert (stands.state.stage, stands.state.step) == ("canary", 0)
    clock.advance(days=1)
    moved = deployment.advance("d")
    assert moved is not None
    assert moved.state.step == 1


def test_version_that_no_server_would_load_is_refused_at_once(
    deployment: DeploymentService, registry: RegistryService
) -> None:
    registry.create_model("elsewhere")
    registry.register_source("elsewhere", "runs:/x/m")
    with pytest.raises(InvalidInput, match="only says where its files are"):
        deployment.create("no files", model="elsewhere", version=1)
    risky = msgspec.structs.replace(artifact(b"pickle"), tier="needs-trust")
    registry.register("risky", risky)
    with pytest.raises(NotAllowed, match="risky"):
        deployment.create("risky", model="risky", version=1)
    unknown = msgspec.structs.replace(artifact(b"x"), flavor="of-nobody")
    registry.register("unknown", unknown)
    with pytest.raises(NotFound, match="of-nobody"):
        deployment.create("unknown", model="unknown", version=1)
    assert [found.name for found in deployment.deployments()] == ["d"]
