from __future__ import annotations

import math
from datetime import datetime, timedelta

import msgspec
import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.catalog.engine import Catalog
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.ids import new_id
from everloop.errors import Conflict, NotFound
from everloop.evaluation.render import verdict_markdown
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


def _judged(catalog: Catalog, begin: datetime, days: int = 14, **more: object) -> Verdict:
    """A verdict that looked at so many days from `begin` on."""
    end = begin + timedelta(days=days)
    holdout = {"rows": 900, "from": begin.isoformat(), "to": end.isoformat(), "digest": "d"}
    return _verdict(catalog, **{"champion": 1, "candidate": 2, "holdout": holdout, **more})


def test_uses_of_a_hold_out_are_counted_by_the_days_that_they_share(
    evaluation: EvaluationService, catalog: Catalog
) -> None:
    now = catalog.clock.now()
    day = timedelta(days=1)
    assert evaluation.uses("m", now - 14 * day, now).holdout == 0
    evaluation.record(_judged(catalog, now - 14 * day))
    evaluation.record(_judged(catalog, now - 20 * day))
    evaluation.record(_judged(catalog, now - 60 * day, at=now - 40 * day))
    evaluation.record(_judged(catalog, now - 20 * day, at=now - 400 * day))
    evaluation.record(_verdict(catalog, champion=1, holdout={"reason": "the same model"}))
    evaluation.record(_judged(catalog, now - 14 * day, champion=0))  # the first had nobody to beat
    found = evaluation.uses("m", now - 14 * day, now)
    assert (found.holdout, found.year) == (3, 3)
    assert evaluation.uses("m", now - 30 * day, now - 21 * day).holdout == 0
    assert evaluation.uses("other", now - 14 * day, now).holdout == 0


def test_two_that_judge_at_once_do_not_both_count_as_the_first(
    evaluation: EvaluationService, catalog: Catalog
) -> None:
    now = catalog.clock.now()
    begin = now - timedelta(days=14)
    counted = {"use": 1, "counted": [begin.isoformat(), now.isoformat()]}
    verdicts = [
        _judged(catalog, begin, holdout=_judged(catalog, begin).holdout | counted) for _ in range(2)
    ]
    evaluation.record(verdicts[0])
    evaluation.record(verdicts[0])  # the same again is no second use
    with pytest.raises(Conflict, match="used by another verdict"):
        evaluation.record(verdicts[1])
    second = msgspec.structs.replace(verdicts[1], holdout=verdicts[1].holdout | {"use": 2})
    assert evaluation.record(second).holdout["use"] == 2
    events = catalog.events(kind="verdict.Given")
    assert [event.body["use"] for event in events] == [1, 2]
    assert events[0].body["holdout"] == "d"


def test_a_verdict_with_all_its_evidence_reads_the_same_from_the_catalog(
    evaluation: EvaluationService, catalog: Catalog
) -> None:
    given = _judged(catalog, catalog.clock.now() - timedelta(days=14))
    kept = evaluation.record(given)
    assert verdict_markdown(kept) == verdict_markdown(given)
