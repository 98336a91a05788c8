from __future__ import annotations

import math

import msgspec
import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.catalog.engine import Catalog
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.ids import new_id
from everloop.errors import Conflict, NotFound
from everloop.evaluation.service import EvaluationService
from everloop.registry.service import RegistryService
from tests.unit.registry.conftest import artifact


def _verdict(catalog: Catalog, **more: object) -> Verdict:
    result = GateResult(
        gate=Gate(kind="beats_champion", metric="brier"),
        passed=False,
        estimate=0.01,
        low=math.nan,
        high=0.02,
        rows=7,
        reason="too few rows to tell: 7",
        evidence={"days": 1},
    )
    given = {
        "id": new_id(), "model": "m", "candidate": 1, "champion": 0, "passed": False,
        "results": (result,), "holdout": {"rows": 7}, "run_id": "r", "at": catalog.clock.now(),
    }  # fmt: skip
    return Verdict(**{**given, **more})  # type: ignore[arg-type]


@pytest.fixture
def evaluation(catalog: Catalog, registry: RegistryService) -> EvaluationService:
    for text in (b"1", b"2"):
        registry.register("m", artifact(text))
    return EvaluationService(catalog, EmbeddedAuthorizer())


def test_a_no_is_kept_with_its_evidence(evaluation: EvaluationService, catalog: Catalog) -> None:
    given = _verdict(catalog)
    kept = evaluation.record(given)
    assert math.isnan(kept.results[0].low)
    assert msgspec.structs.replace(kept, results=()) == msgspec.structs.replace(given, results=())
    assert kept.results[0].evidence == {"days": 1}
    assert evaluation.verdict(given.id).results[0].gate == given.results[0].gate
    [event] = catalog.events(kind="verdict.Given")
    assert event.subject == f"verdict:{given.id}"
    assert event.body["reasons"] == ["too few rows to tell: 7"]


def test_recording_twice_is_once(evaluation: EvaluationService, catalog: Catalog) -> None:
    given = _verdict(catalog)
    evaluation.record(given)
    evaluation.record(given)
    assert len(catalog.events(kind="verdict.Given")) == 1
    with pytest.raises(Conflict):
        evaluation.record(msgspec.structs.replace(given, passed=True))


def test_verdicts_are_listed_by_model_and_candidate(
    evaluation: EvaluationService, catalog: Catalog
) -> None:
    one = evaluation.record(_verdict(catalog))
    two = evaluation.record(_verdict(catalog, candidate=2))
    assert [v.id for v in evaluation.verdicts("m")] == [one.id, two.id]
    assert [v.id for v in evaluation.verdicts("m", 2)] == [two.id]
    assert len(evaluation.verdicts()) == 2


def test_unknown_things_are_not_found(evaluation: EvaluationService, catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="register the candidate"):
        evaluation.record(_verdict(catalog, candidate=3))
    with pytest.raises(NotFound):
        evaluation.verdict("nothing")
    with pytest.raises(NotFound, match="did you mean 'm'"):
        evaluation.verdicts("mm")
