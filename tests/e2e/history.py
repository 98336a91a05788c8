"""A loop with a past, made by the real services under a clock: what the pages are to show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.context import acting, using
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.ids import new_id, new_ids
from everloop.core.policy import Firing
from everloop.core.run import Metric
from everloop.core.time import ManualClock, to_micros
from everloop.monitoring.reference import make_reference
from everloop.workspace import Workspace

NAME = "flights-delay"
START = datetime(2013, 4, 1, tzinfo=UTC)
DAYS = 60
DAY = timedelta(days=1)
ROWS = 250

#: From which day on the champion ranks how well.
SKILLS = ((0, 0.9), (25, 0.35))
GATE = Gate(kind="beats_champion", metric="brier")


def make_history(workspace: Workspace, clock: ManualClock) -> None:
    """Live through `DAYS` days: an alert, a candidate that is refused, one that is promoted."""
    clock.set(START)
    with using(workspace):
        _declare()
    _train(workspace, skill=0.9)
    workspace.deployment.create(NAME, model=NAME, version=1, owner="ops@example.org")
    workspace.monitoring.watch(list(workspace.automation.loop(NAME).monitors))
    skill, attempts = 0.9, 0
    for number in range(DAYS):
        skill = next((s for day, s in SKILLS if day == number), skill)
        _answer(workspace, START + number * DAY, skill)
        clock.set(START + (number + 1) * DAY + timedelta(hours=2))
        with acting(actor=f"loop:{NAME}"):
            workspace.monitoring.update(NAME)
            rollout = workspace.deployment.advance(NAME)
            if rollout is not None and rollout.state.stage == "promoted":
                skill = 0.9
            workspace.automation.decide()
            while (firing := workspace.automation.claim()) is not None:
                attempts += 1
                _retrain(workspace, clock, firing, passed=attempts > 1)


def _declare() -> None:
    ev.loop(
        NAME,
        owner="ops@example.org",
        pipeline="loop.py:retrain",
        charter=ev.charter(
            problem="Will a flight arrive more than 15 minutes late?",
            value="Gates and crews are planned an hour earlier",
            owner="ops@example.org",
            success="Brier score below the frozen model's, every month",
            sla=[
                ev.sla("prediction", "50ms"),
                ev.sla("retraining", "2h"),
                ev.sla("renewal", "60d"),
            ],
        ),
        gate=[GATE],
        rollout=ev.canary(25, 100, every="1d"),
        watch=[
            ev.performance("auc", fire="3 of 5 days", min_rows=100),
            ev.performance("brier", fire="3 of 5 days", min_rows=100, name="calibration"),
        ],
        retrain_on=[ev.alert("performance")],
        cooldown="7d",
        budget="4 per month",
    )


def _rows(day: datetime, skill: float, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng([seed, to_micros(day) // 86_400_000_000])
    truth = random.normal(-0.9, 1.3, ROWS)
    seen = skill * truth + (1 - skill) * random.normal(-0.9, 1.3, ROWS)
    return {
        "at": to_micros(day) + np.sort(random.integers(0, 86_400_000_000, ROWS)),
        "label": (random.random(ROWS) < 1 / (1 + np.exp(-truth))).astype(float),
        "value": 1 / (1 + np.exp(-seen)),
        "distance": random.normal(1000, 300, ROWS),
    }


def _answer(workspace: Workspace, day: datetime, skill: float) -> None:
    rows = _rows(day, skill, seed=3)
    requests = [f"{day:%Y%m%d}-{index}" for index in range(ROWS)]
    deployment = workspace.deployment.deployment(NAME)
    champion = deployment.arm("champion")
    assert champion is not None
    workspace.predictions.log(
        NAME,
        pa.table(
            {
                "id": new_ids(ROWS),
                "request_id": requests,
                "at": pa.array(rows["at"], pa.timestamp("us", tz="UTC")),
                "version": pa.array([champion.version] * ROWS, pa.int32()),
                "revision": pa.array([deployment.revision] * ROWS, pa.int32()),
                "arm": ["champion"] * ROWS,
                "value": rows["value"],
                "latency_us": pa.array(2000 + rows["distance"].astype("int64"), pa.int64()),
                "f.distance": rows["distance"],
            }
        ),
    )
    workspace.predictions.labels(
        NAME,
        pa.table(
            {
                "request_id": requests,
                "label": rows["label"],
                "known_at": pa.array([day + DAY] * ROWS, pa.timestamp("us", tz="UTC")),
            }
        ),
    )


def _train(workspace: Workspace, *, skill: float, firing: Firing | None = None) -> int:
    """A run of the pipeline and the version that it registers."""
    now = workspace.clock.now()
    run = workspace.tracking.create_run(
        "Default",
        name="retrain",
        params={"leaves": "31", "trees": "150"},
        trigger=firing.id if firing else "",
    )
    found = {"auc": 0.5 + 0.28 * skill, "brier": 0.21 - 0.06 * skill}
    at_ms = to_micros(now) // 1000
    points = [Metric(key=key, value=value, at_ms=at_ms) for key, value in found.items()]
    workspace.tracking.log(run.id, points)
    workspace.tracking.update_run(run.id, state="finished", ended_at=now + timedelta(minutes=21))
    past = [_rows(now - (back + 1) * DAY, skill, seed=11) for back in range(25)]
    whole = {name: np.concatenate([day[name] for day in past]) for name in past[0]}
    version = workspace.registry.register(
        NAME,
        ModelArtifact(
            flavor="lightgbm",
            files={"model.txt": f"trained by {run.id}".encode()},
            metrics=found,
            trained_until=now,
            reference=make_reference(
                whole["value"], whole["label"], whole["at"], {"distance": whole["distance"]}
            ),
        ),
        run_id=run.id,
    )
    return version.version


def _retrain(workspace: Workspace, clock: ManualClock, firing: Firing, *, passed: bool) -> None:
    with acting(actor=f"loop:{NAME}", cause=firing.cause):
        candidate = _train(workspace, skill=0.9, firing=firing)
        champion = workspace.deployment.deployment(NAME).arm("champion")
        assert champion is not None
        clock.advance(minutes=21)
        verdict = workspace.evaluation.record(_verdict(clock, candidate, champion.version, passed))
        if passed:
            workspace.deployment.start_rollout(
                NAME, candidate, workspace.automation.loop(NAME).rollout, verdict=verdict.id
            )
        workspace.automation.finish(firing.id, "done", "promoted" if passed else "refused")


def _verdict(clock: ManualClock, candidate: int, champion: int, passed: bool) -> Verdict:
    better = 0.012 if passed else 0.0004
    reason = f"Brier {better:.4f} better on 5,021 later flights, 95 % from {better - 0.002:.4f}"
    result = GateResult(
        gate=GATE,
        passed=passed,
        estimate=better,
        low=better - 0.002,
        high=better + 0.002,
        rows=5021,
        reason=reason,
    )
    return Verdict(
        id=new_id(),
        model=NAME,
        candidate=candidate,
        champion=champion,
        passed=passed,
        results=(result,),
        at=clock.now(),
    )
