"""The cases of a CI run, each from what was found: contracts, steps, the candidate, its gates.

Nothing here tests in a way of its own: contracts are the checks of a commit, gates are the loop's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.automation.holdout import Scorer
from everloop.core.ci import CiCase, CiStatus
from everloop.core.dataset import DatasetVersion
from everloop.core.gate import Gate, GateResult
from everloop.core.run import Run, StepRun
from everloop.core.schema import Field, Schema
from everloop.data.check_rules import ValuesOf
from everloop.data.checks import BrokenRule, CheckReport, check
from everloop.errors import EverloopError
from everloop.evaluation.gates import HoldOut, judge
from everloop.evaluation.metrics import parse_metric, task_of

__all__ = [
    "contract_case",
    "finite_metrics",
    "gate_case",
    "learned_case",
    "made_up_rows",
    "not_judged",
    "scores_case",
    "step_cases",
    "takes_probabilities",
]

_WITH_METRIC = ("beats_champion", "not_worse", "no_group_worse", "threshold", "no_weak_slice")
#: Rows that are named of those that break a rule.
_NAMED = 5
_MADE_UP = 256


# --- contracts -----------------------------------------------------------------------------------


def contract_case(
    loop: str,
    schema: Schema,
    found: DatasetVersion,
    rows: pa.Table,
    *,
    owner: str = "",
    values_of: ValuesOf | None = None,
) -> CiCase:
    """Hold the rows of a version against the schema that this code states.

    Args:
        owner: Of the dataset, for rules that name none.
        values_of: Where a check looks that refers to another dataset.
    """
    try:
        report = check(rows, schema, values_of)
    except EverloopError as error:  # a rule that cannot be evaluated over these columns
        told = f"{found.ref} cannot be checked: {error.message}"
        return CiCase(
            group="contract", loop=loop, name=found.dataset, status="refused", told=told,
            evidence={"version": found.ref, "digest": found.digest},
        )  # fmt: skip
    columns = [str(fault) for fault in report.faults if not fault.path.startswith("rows[")]
    broken = [_broken(one, report, schema, owner) for one in report.broken]
    wrong = columns + [_said(one) for one in broken if one["on_fail"] == "fail"]
    if "types" in report.counts:
        first = next(str(fault) for fault in report.faults if fault.path.startswith("rows["))
        wrong.append(f"{report.counts['types']} values have another type, such as {first}")
    mild = [f"{_said(one)} ({one['on_fail']})" for one in broken if one["on_fail"] != "fail"]
    if wrong:
        told = f"{found.ref} does not hold: " + "; ".join(wrong + mild)
    else:
        told = "; ".join([f"{found.rows} rows of {found.ref} hold", *mild])
    return CiCase(
        group="contract",
        loop=loop,
        name=found.dataset,
        status="refused" if wrong else "passed",
        told=told,
        evidence={
            "version": found.ref,
            "digest": found.digest,
            "rows": found.rows,
            "schema": schema.digest,
            "columns": columns,
            "broken": broken,
        },
    )


def _broken(rule: BrokenRule, report: CheckReport, schema: Schema, owner: str) -> dict[str, Any]:
    return {
        "rule": rule.rule,
        "on_fail": rule.on_fail,
        "reason": rule.reason,
        "owner": rule.owner or owner,
        "rows": rule.failed,
        "such_as": _named(report.table, rule.rows[:_NAMED], schema),
    }


def _named(rows: pa.Table, numbers: npt.NDArray[np.int64], schema: Schema) -> list[str]:
    """Rows by their keys; by their numbers where there is no key, or it is a person's."""
    personal = {field.name for field in schema.fields if field.pii}
    key = [name for name in schema.key if name in rows.column_names]
    if not key or personal & set(key):
        return [f"row {number}" for number in numbers.tolist()]
    taken = rows.select(key).take(pa.array(numbers)).to_pylist()
    return [", ".join(f"{name}={value}" for name, value in row.items()) for row in taken]


def _said(rule: dict[str, Any]) -> str:
    owner = f", owner {rule['owner']}" if rule["owner"] else ""
    such_as = f", such as {rule['such_as'][0]}" if rule["such_as"] else ""
    return f"{rule['rows']} rows break {rule['rule']} ({rule['reason']}{owner}{such_as})"


# --- the pipeline --------------------------------------------------------------------------------


def step_cases(loop: str, phase: str, steps: Iterable[StepRun]) -> list[CiCase]:
    """One case for each step of a run, however often it was called."""
    calls: dict[str, list[StepRun]] = {}
    for step in steps:
        calls.setdefault(step.step, []).append(step)
    found = []
    for name, mine in calls.items():
        failed = [step for step in mine if step.outcome == "failed"]
        cached = sum(step.outcome == "cached" for step in mine)
        seconds = sum((step.ended_at - step.started_at).total_seconds() for step in mine)
        told = "cached" if cached == len(mine) else "ran"
        if len(mine) > 1:
            told = f"{len(mine)} calls, {cached} of them cached"
        if failed:
            told = f"{len(failed)} of {len(mine)} calls failed: {failed[0].error}"
        found.append(
            CiCase(
                group="step",
                loop=loop,
                name=f"{phase}: {name}",
                status="failed" if failed else "passed",
                told=told,
                seconds=max(seconds, 0.0),
                evidence={"calls": len(mine), "cached": cached, "failed": len(failed)},
            )
        )
    return found


# --- the candidate -------------------------------------------------------------------------------


def finite_metrics(loop: str, run: Run) -> CiCase:
    """Whether everything that the training logged is a number: a loss of NaN has not converged."""
    bad = sorted(name for name, value in run.metrics.items() if not math.isfinite(value))
    if bad:
        told = f"no finite numbers were logged last for {', '.join(bad)}"
    else:
        shown = [f"{name} {value:.4g}" for name, value in sorted(run.metrics.items())]
        told = ", ".join(shown) or "the pipeline logs none"
    return CiCase(
        group="check",
        loop=loop,
        name="logged metrics are finite",
        status="refused" if bad else ("passed" if run.metrics else "not judged"),
        told=told,
        evidence={"metrics": dict(run.metrics)},
    )


def takes_probabilities(gates: Sequence[Gate]) -> bool:
    """Whether scores must lie within 0 and 1 for the gates to make sense."""
    for gate in gates:
        if gate.kind in ("calibrated", "fair"):
            return True
        if gate.metric and parse_metric(gate.metric).takes_probabilities:
            return True
    return False


def made_up_rows(inputs: Schema, seed: int = 0) -> npt.NDArray[np.float64]:
    """Rows that the signature allows, shape (n, k): for a model that nobody has asked anything."""
    random = np.random.default_rng(seed)
    rows = np.empty((_MADE_UP, len(inputs.fields)))
    for index, field in enumerate(inputs.fields):
        rows[:, index] = _values(field, random)
    return rows


def _values(field: Field, random: np.random.Generator) -> npt.NDArray[np.float64]:
    allowed = [value for value in field.among if not isinstance(value, str)]
    if allowed:
        return random.choice(np.array(allowed, dtype=np.float64), _MADE_UP)
    low = field.ge if field.ge is not None else (0.0 if field.le is None else field.le - 1)
    high = field.le if field.le is not None else low + 1
    if field.type == "bool" or "int" in field.type:
        return random.integers(math.ceil(low), math.floor(high) + 1, _MADE_UP).astype(np.float64)
    return random.uniform(low, high, _MADE_UP)


def scores_case(
    loop: str,
    scorer: Scorer,
    rows: npt.NDArray[np.float64],
    *,
    kind: str,
    probabilities: bool,
) -> CiCase:
    """Whether the candidate gives one number per row, and a probability where it must be one.

    Args:
        rows: Shape (n, k), n >= 1.
        kind: What the rows are, for people: ``served`` or ``made-up``.
        probabilities: Whether scores must lie within 0 and 1.
    """
    evidence: dict[str, Any] = {"rows": len(rows), "kind": kind}
    try:
        scores = scorer.predict(rows)
    except EverloopError as error:  # of another shape, as the predictor says
        wrong, told = True, error.message
    except Exception as error:  # noqa: BLE001 - the user's model may raise anything
        wrong, told = True, f"{type(error).__name__}: {error}"
    else:
        bad = int(np.count_nonzero(~np.isfinite(scores)))
        outside = int(np.count_nonzero((scores < 0) | (scores > 1))) if probabilities else 0
        evidence |= {"not_finite": bad, "outside": outside}
        wrong = bool(bad or outside)
        if bad:
            told = f"{bad} of {len(rows)} scores are no numbers"
        elif outside:
            told = f"{outside} of {len(rows)} scores are no probabilities"
        else:
            evidence |= {"lowest": float(scores.min()), "highest": float(scores.max())}
            told = f"{len(rows)} scores from {scores.min():.4g} to {scores.max():.4g}"
    return CiCase(
        group="check",
        loop=loop,
        name="scores are numbers of the right shape and range",
        status="refused" if wrong else "passed",
        told=f"on {kind} rows: {told}",
        evidence=evidence,
    )


def learned_case(loop: str, gates: Sequence[Gate], rows: HoldOut, now: datetime) -> CiCase | None:
    """Whether the candidate says more of the hold-out than its mean does; None if that is no task.

    It is asked as the gates are: the mean stands where the champion would. A training that has not
    converged, or rows that lost their labels on the way, show here also on a sample.
    """
    specs = [parse_metric(gate.metric) for gate in gates if gate.kind in _WITH_METRIC]
    metric = "brier" if takes_probabilities(gates) else "mse"
    if metric == "mse" and task_of(specs) != "regression":
        return None
    mean = np.full(len(rows.y), rows.y.mean() if len(rows.y) else 0.0)
    gate = Gate(kind="beats_champion", metric=metric, days=max(gate.days for gate in gates))
    constant = dataclasses.replace(rows, champion_p=mean, champion_until=None)
    [found] = judge(
        [gate], model=loop, candidate=1, champion=1, rows=constant, now=now
    ).results  # fmt: skip
    status: CiStatus = "passed" if found.passed else "refused"
    told = found.reason
    if found.answer == "cannot tell":
        status = "not judged"
    elif len(rows.y) and (rows.y == rows.y[0]).all():  # the mean cannot be beaten
        status, told = "not judged", "all labels of the hold-out are the same"
    else:
        told = f"{metric} {'is' if found.passed else 'is not shown to be'} better than that of the"
        told += f" mean: {found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return CiCase(
        group="check",
        loop=loop,
        name="candidate has learned something",
        status=status,
        told=told,
        evidence={"rows": found.rows, **found.evidence},
    )


# --- gates ---------------------------------------------------------------------------------------


def gate_case(loop: str, result: GateResult) -> CiCase:
    """What a gate says of a commit.

    A candidate must beat the champion to take its place; a commit must only not be shown to make
    it worse. So ``beats_champion`` refuses here only if the whole interval lies below zero.
    """
    told = result.reason
    status: CiStatus = "passed" if result.passed else "refused"
    if result.answer == "cannot tell":
        status = "not judged"
    elif result.gate.kind == "beats_champion" and not result.passed:
        if math.isfinite(result.high) and result.high < 0:
            told = f"worse than the champion, by more than chance: {told}"
        else:
            status, told = (
                "passed",
                f"not worse beyond chance; the loop would not promote it: {told}",
            )
    numbers = {"estimate": result.estimate, "low": result.low, "high": result.high}
    evidence = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return CiCase(
        group="gate",
        loop=loop,
        name=result.gate.name,
        status=status,
        told=told,
        evidence={
            **evidence,
            "rows": result.rows,
            "in_the_loop": "passed" if result.passed else result.answer or "refused",
            **result.evidence,
        },
    )


def not_judged(loop: str, gates: Iterable[Gate], why: str) -> list[CiCase]:
    """Gates that were not judged, and why."""
    return [
        CiCase(group="gate", loop=loop, name=gate.name, status="not judged", told=why)
        for gate in gates
    ]
