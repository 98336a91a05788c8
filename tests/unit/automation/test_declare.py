"""How a loop is written, and what is said when it is written wrongly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import everloop as ev
from everloop.automation.declare import contracts_of
from everloop.automation.triggers import collecting, declared
from everloop.core.context import using
from everloop.core.gate import Gate
from everloop.core.policy import LoopSpec
from everloop.errors import InvalidInput


def retrain() -> None:
    """A pipeline of this file."""


def whole() -> LoopSpec:
    return ev.loop(
        "flights-delay",
        owner="ops@example.org",
        pipeline=retrain,
        charter=ev.charter(
            problem="late flights",
            value="fewer missed connections",
            sla=[ev.sla("prediction", "100ms"), ev.sla("renewal", "90d")],
        ),
        gate=[ev.beats_champion("brier"), ev.no_group_worse("carrier", "auc", by=0.02)],
        rollout=ev.canary(
            5, 25, 100, every="12h", abort_on=[ev.slo("p99_ms < 50"), ev.slo("error_rate < 0.1%")]
        ),
        watch=[
            ev.performance("brier_skill", label_delay="2d", fire="2 of 3 weeks"),
            ev.drift(),
            ev.prediction_drift(),
            ev.quality(),
        ],
        retrain_on=[ev.alert("performance"), ev.schedule("0 3 1 * *"), ev.new_data("flights")],
        cooldown="10d",
        budget="4 per month",
    )


def test_a_loop_says_what_was_written() -> None:
    spec = whole()
    assert spec.pipeline.endswith("test_declare.py:retrain")
    assert spec.cooldown_s == 10 * 86_400
    assert (spec.budget, spec.budget_s) == (4, 30 * 86_400)
    assert [gate.days for gate in spec.gates] == [21, 21]
    assert (spec.rollout.steps, spec.rollout.every_s) == ((5.0, 25.0, 100.0), 43_200)
    assert (spec.rollout.p99_ms, spec.rollout.error_rate) == (50.0, 0.001)
    watch = {monitor.name: monitor for monitor in spec.monitors}
    assert set(watch) == {"performance", "drift", "prediction_drift", "quality"}
    weekly = watch["performance"]
    assert (weekly.window_s, weekly.fire, weekly.clear) == (7 * 86_400, (2, 3), (0, 3))
    assert weekly.label_delay_s == 2 * 86_400
    assert {monitor.deployment for monitor in spec.monitors} == {"flights-delay"}
    assert spec.charter.service_levels[0].at_most_s == 0.1
    assert spec in declared()


def test_the_path_of_a_pipeline_is_relative_to_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    assert whole().pipeline == "test_declare.py:retrain"


def test_a_loop_has_a_gate_even_if_none_is_written() -> None:
    spec = ev.loop("a", owner="o", pipeline="a.py:f")
    assert [gate.kind for gate in spec.gates] == ["beats_champion"]
    with pytest.raises(InvalidInput, match="no model goes live because it is new"):
        ev.loop("a", owner="o", pipeline="a.py:f", gate=[])


@pytest.mark.parametrize(
    ("gate", "path"),
    [
        (ev.beats_champion("brierr"), "gates[0].metric"),
        (ev.beats_champion("auc@0.3"), "gates[0].metric"),
        (ev.beats_champion("brier", level=0.5), "gates[0].level"),
        (ev.no_group_worse("", "tpr", by=0.02), "gates[0].group"),
        (ev.threshold("auc", float("nan")), "gates[0].by"),
    ],
)
def test_a_gate_that_could_never_be_judged_is_refused_where_it_is_declared(
    gate: Gate, path: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        ev.loop("a", owner="o", pipeline="a.py:f", gate=[gate])
    assert [fault.path for fault in caught.value.faults] == [path]


def test_every_fault_of_a_loop_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        ev.loop(
            "no spaces please",
            owner=" ",
            pipeline="retrain",
            cooldown="soon",
            budget="lots",
            watch=[ev.performance("auc"), ev.performance("brier")],
            retrain_on=[ev.alert("performence")],
        )
    assert {fault.path for fault in caught.value.faults} == {
        "name", "owner", "pipeline", "cooldown", "budget", "watch", "retrain_on[0]",
    }  # fmt: skip


def test_a_function_that_no_supervisor_can_import_is_refused() -> None:
    def local() -> None: ...

    for pipeline in (local, lambda: None, len):
        with pytest.raises(InvalidInput, match="pipeline"):
            ev.loop("a", owner="o", pipeline=pipeline)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda: ev.schedule("61 * * * *"), "cron"),
        (lambda: ev.schedule("often"), "cron"),
        (lambda: ev.slo("p99_ms > 50"), "objective"),
        (lambda: ev.slo("p99_ms < 5%"), "objective"),
        (lambda: ev.slo("p99_ms < 0"), "objective"),
        (lambda: ev.canary(25, 5, 100), "ascend"),
        (lambda: ev.canary(5, 25), "end with 100"),
        (lambda: ev.performance(fire="4 of 3 days"), "rule"),
        (lambda: ev.performance(fire="3 of 5 days", window="7d"), "is not what"),
        (lambda: ev.performance(label_delay="x", fire="y"), "label_delay"),
        (lambda: ev.beats_champion("brier", on="some days"), "hold-out"),
        (lambda: ev.sla("happiness", "1d"), "none of"),  # type: ignore[arg-type]
        (lambda: ev.charter(problem="", value=" "), "problem"),
        (lambda: ev.charter(problem="p", value="v", sla=[ev.sla("renewal", "1d")] * 2), "twice"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(write: object, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        write()  # type: ignore[operator]


class _Workspace:
    def __init__(self) -> None:
        self.automation = self
        self.seen: list[LoopSpec] = []

    def declare(self, spec: LoopSpec) -> LoopSpec:
        self.seen.append(spec)
        return spec


def test_a_loop_is_declared_where_a_workspace_is_current() -> None:
    workspace = _Workspace()
    with using(workspace):
        spec = whole()
        with collecting():
            whole()
    assert workspace.seen == [spec]


def test_contracts_are_stated_beside_the_loop_and_not_kept_with_it() -> None:
    schema = ev.Schema((ev.Field("id", "string"),))
    spec = ev.loop("churn", owner="o", pipeline=retrain, contracts={"visits": schema})
    assert contracts_of("churn") == {"visits": schema}
    assert "visits" not in msgspec.json.encode(spec).decode()
    ev.loop("churn", owner="o", pipeline=retrain)
    assert contracts_of("churn") == {}
    with pytest.raises(InvalidInput, match=r"contracts\.visits: must be an ev\.Schema, not a dict"):
        ev.loop("churn", owner="o", pipeline=retrain, contracts={"visits": {}})  # type: ignore[dict-item]
