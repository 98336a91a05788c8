"""Verdicts through every kind of workspace: what has no number arrives as none."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from everloop.automation import gates as ev
from everloop.core.gate import GateResult, Verdict
from everloop.core.ids import new_id
from everloop.errors import NotFound
from everloop.evaluation.render import verdict_markdown
from everloop.workspace import Workspace
from tests.unit.registry.conftest import artifact


def test_a_verdict_arrives_with_its_evidence_and_counts_as_a_use(ws: Workspace) -> None:
    for text in (b"1", b"2"):
        ws.registry.register("m", artifact(text))
    now = ws.clock.now()
    begin = now - timedelta(days=14)
    results = tuple(
        GateResult(
            gate=gate, passed=False, estimate=math.nan, low=math.nan, high=math.nan, rows=3,
            reason="too few rows to tell: 3", answer="cannot tell", evidence={"days": 1},
        )
        for gate in (ev.answers("late", {"delay": 3}, "> 0.5"), ev.not_worse("auc", by=0.01))
    )  # fmt: skip
    given = Verdict(
        id=new_id(), model="m", candidate=2, champion=1, passed=False, results=results, at=now,
        holdout={"rows": 3, "days": 1, "from": begin.isoformat(), "to": now.isoformat()},
    )  # fmt: skip
    kept = ws.evaluation.record(given)
    assert kept.results[0].gate == results[0].gate
    assert math.isnan(kept.results[0].estimate)
    assert verdict_markdown(ws.evaluation.verdict(given.id)) == verdict_markdown(given)
    assert ws.evaluation.uses("m", begin, now).holdout == 1
    with pytest.raises(NotFound, match="everloop gate list"):
        ws.evaluation.verdict("nothing")
