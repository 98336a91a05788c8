"""The model card: what a version is for, where it came from, how it was judged, as Markdown.

What nobody stated is listed as not stated; nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from everloop.core.gate import Verdict
from everloop.core.model import Model, ModelVersion
from everloop.core.policy import LoopSpec, MeasuredLevel
from everloop.core.run import Run
from everloop.core.time import span_text
from everloop.governance.records import DatasetUse

__all__ = ["NOT_STATED", "make_card"]

NOT_STATED = "not stated"


def make_card(
    model: Model,
    version: ModelVersion,
    *,
    loop: LoopSpec | None,
    run: Run | None,
    verdicts: Sequence[Verdict],
    datasets: Sequence[DatasetUse],
    levels: Sequence[MeasuredLevel],
) -> str:
    """The card of `version`.

    Args:
        model: Its model.
        version: The version.
        loop: The loop of that name, or None.
        run: The run that trained it, or None where it is not known here.
        verdicts: On this version, oldest first.
        datasets: What it was trained on.
        levels: What the charter promises, with what was measured.
    """
    stated = _facts(model, version, loop, run)
    missing = [name for name, value in stated.items() if not value]
    parts = [
        f"# {version.ref}",
        version.description or model.description,
        _section("Purpose and owner", _pairs(stated, _PURPOSE)),
        _section("Promises", map(_level, levels)),
        _section("Training", _pairs(stated, _TRAINING)),
        _section("Data", [f"- {_dataset(item)}" for item in datasets]),
        _section(
            "Features",
            [
                f"- `{field.name}` {field.type}" + (f" ({field.unit})" if field.unit else "")
                for field in version.signature.inputs.fields
            ],
        ),
        _section(
            "Metrics at training",
            [f"- {name}: {value:.6g}" for name, value in sorted(version.metrics.items())],
        ),
        _section("Gate", [line for verdict in verdicts for line in _judged(verdict)]),
        _section("Format and environment", _pairs(stated, _FORMAT)),
        _section("Limits", _limits(version)),
        _section("Not stated", [f"- {name}" for name in missing] or ["- nothing is missing"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_PURPOSE = ("Problem", "Value", "Success", "Owner of the loop", "Owner of the model")
_TRAINING = (
    "State", "Registered", "Trained until", "Run", "Pipeline", "Code snapshot", "Commit",
    "Parameters",
)  # fmt: skip
_FORMAT = ("Format", "Content", "Feature set", "Environment")


def _facts(
    model: Model, version: ModelVersion, loop: LoopSpec | None, run: Run | None
) -> dict[str, str]:
    charter = loop.charter if loop is not None else None
    until = version.trained_until
    params = version.params or (run.params if run is not None else {})
    return {
        "Problem": charter.problem if charter else "",
        "Value": charter.value if charter else "",
        "Success": charter.success if charter else "",
        "Owner of the loop": loop.owner if loop is not None else "",
        "Owner of the model": model.owner or (charter.owner if charter else ""),
        "State": version.state,
        "Registered": f"{version.created_at:%Y-%m-%d %H:%M} UTC by {version.actor or NOT_STATED}",
        "Trained until": f"{until:%Y-%m-%d %H:%M} UTC" if until is not None else "",
        "Run": version.run_id,
        "Pipeline": run.pipeline if run is not None else "",
        "Code snapshot": version.code or (run.code if run is not None else ""),
        "Commit": run.git.get("commit", "") if run is not None else "",
        "Parameters": _listed(params),
        "Format": f"{version.flavor}, {version.tier}",
        "Content": version.digest,
        "Feature set": version.feature_set,
        "Environment": _listed(version.environment or (run.environment if run else {})),
    }


def _limits(version: ModelVersion) -> Iterable[str]:
    if version.trained_until is not None:
        yield f"- Nothing later than {version.trained_until:%Y-%m-%d} was seen in training."
    bounded = [f for f in version.signature.inputs.fields if f.ge is not None or f.le is not None]
    for field in bounded:
        yield f"- `{field.name}` from {field.ge} to {field.le}; other values were never seen."
    if version.tier == "needs-trust":
        yield "- The format runs code when it is loaded; load it only if you trust its author."
    if not version.reference:
        yield "- It has no reference: drift and bands cannot be judged for it."


def _judged(verdict: Verdict) -> Iterable[str]:
    against = f"version {verdict.champion}" if verdict.champion else "nobody: no champion yet"
    result = "passed" if verdict.passed else "refused"
    yield f"- {verdict.at:%Y-%m-%d}: {result} against {against} (verdict `{verdict.id}`)"
    for found in verdict.results:
        mark = "passed" if found.passed else "failed"
        # A size or a known answer has no interval.
        span = f" {found.estimate:+.5f} [{found.low:+.5f}, {found.high:+.5f}]"
        span = "" if math.isnan(found.low) else f"{span} on {found.rows} rows"
        yield f"  - {mark}: {found.gate.name}{span}. {found.reason}"
    if verdict.holdout.get("not_judged"):
        yield f"  - not judged: {', '.join(verdict.holdout['not_judged'])}"


def _level(level: MeasuredLevel) -> str:
    if level.measured_s is None:
        measured = "not measured yet"
    else:
        measured = f"measured {span_text(level.measured_s)}, {'kept' if level.kept else 'missed'}"
    return f"- {level.name}: at most {span_text(level.at_most_s)}; {measured}"


def _dataset(use: DatasetUse) -> str:
    role = f" as {use.role}" if use.role else ""
    owner, licence = use.owner or NOT_STATED, use.licence or NOT_STATED
    told = f"owner {owner}, purpose {use.purpose or NOT_STATED}, licence {licence}"
    return f"{use.name}@{use.version}{role}: {use.extent}, `{use.digest[:16]}`, {told}"


def _pairs(facts: dict[str, str], names: Sequence[str]) -> list[str]:
    return [f"- {name}: {facts[name] or NOT_STATED}" for name in names]


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines) or f"- {NOT_STATED}"
    return f"## {title}\n\n{body}"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
