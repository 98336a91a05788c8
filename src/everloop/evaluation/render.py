"""A verdict as Markdown: everything it stands on, for whoever asks a year later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from everloop.core.gate import GateResult, Verdict

__all__ = ["verdict_markdown"]

_MOST_LINES = 20


def verdict_markdown(verdict: Verdict) -> str:
    """The verdict with its evidence, gate by gate."""
    return "\n".join(_lines(verdict)) + "\n"


def _lines(verdict: Verdict) -> Iterator[str]:
    how = "passed" if verdict.passed else "refused"
    against = f"version {verdict.champion}" if verdict.champion else "nobody: no champion yet"
    yield f"# {verdict.model}/{verdict.candidate}: {how} against {against}"
    yield ""
    yield f"Verdict `{verdict.id}`, given on {verdict.at:%Y-%m-%d %H:%M} UTC."
    holdout = verdict.holdout
    if holdout.get("reason"):
        yield f"Reason: {holdout['reason']}."
    if holdout.get("not_judged"):
        yield f"Not judged: {', '.join(holdout['not_judged'])}."
    yield from _models(holdout.get("models") or ())
    if "rows" in holdout:
        yield from _holdout(holdout)
    if verdict.results:
        yield from ("", "## Gates", "")
        yield from _table(
            ("gate", "answer", "estimate", "interval", "rows"),
            ([f"`{r.gate.name}`", _answer(r), _number(r.estimate), _span(r), r.rows]
             for r in verdict.results),
        )  # fmt: skip
    for result in verdict.results:
        yield from _result(result)
    yield from _beside(holdout)


def _answer(result: GateResult) -> str:
    return result.answer or ("passed" if result.passed else "refused")


def _span(result: GateResult) -> str:
    if math.isnan(result.low):
        return ""
    level = result.evidence.get("level") or result.gate.level
    return f"{_number(result.low)} to {_number(result.high)} ({1 - 2 * level:.4g})"


def _models(models: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        [one["version"], f"`{str(one['digest'])[:16]}`", one["run"] or "", one["trained_until"]]
        for one in models
    ]
    if rows:
        yield from ("", "## Models", "")
        yield from _table(("version", "digest", "run", "trained until"), rows)


def _holdout(holdout: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Hold-out", "")
    span = f" from {holdout['from'][:16]} to {holdout['to'][:16]}" if "from" in holdout else ""
    yield f"- {holdout['rows']} rows on {holdout.get('days', 'unknown')} days{span}"
    if "positives" in holdout:
        yield f"- {holdout['positives']} positives"
    yield f"- left out, as a model was trained on them: {holdout.get('not_later', 0)} rows"
    if "digest" in holdout:
        yield f"- digest `{holdout['digest']}`"
    if "use" in holdout:
        times = "once" if holdout["use"] == 1 else f"{holdout['use']} times"
        yield f"- this hold-out (rows of these days) was used {times}, this time included"
        yield (
            f"- attempt {holdout['attempt']} within a year: were no candidate any better, one would"
            f" have passed a test of the kind by now with a chance of up to {holdout['luck']:.0%}"
        )


def _result(result: GateResult) -> Iterator[str]:
    yield from ("", f"### {result.gate.name}: {_answer(result)}", "")
    yield f"{result.reason}."
    evidence = result.evidence
    if evidence.get("candidate") is not None and evidence.get("champion") is not None:
        yield (
            f"Candidate {_number(evidence['candidate'])}, champion {_number(evidence['champion'])},"
            f" on {evidence.get('days')} days as blocks."
        )
    if evidence.get("detectable") is not None:
        yield (
            f"With {evidence['power']:.0%} power these rows show a true difference of"
            f" {_number(evidence['detectable'])} and more (tested at {evidence['level']:.2g})."
        )
    for name in ("delong", "mcnemar"):
        if name in evidence:
            told = ", ".join(f"{key} {_number(value)}" for key, value in evidence[name].items())
            yield f"By {name}: {told}."
    yield from _groups(evidence)
    yield from _gaps(evidence.get("gaps") or ())
    if isinstance(evidence.get("found"), list):
        yield from _slices(evidence["found"])
    yield from _bins(evidence.get("bins") or ())
    yield from _broken(evidence.get("worst") or ())


def _groups(evidence: Mapping[str, Any]) -> Iterator[str]:
    groups = evidence.get("groups") or {}
    if groups:
        yield ""
        yield from _table(
            ("group", "answer", "change", "interval", "margin", "detectable"),
            (
                [
                    name, one.get("answer", ""), _number(one["estimate"]),
                    f"{_number(one['low'])} to {_number(one['high'])}",
                    _number(one.get("margin")), _number(one.get("detectable")),
                ]
                for name, one in groups.items()
            ),
        )  # fmt: skip
    for key, told in (("too_small", "Too small to tell"), ("undefined", "Not defined for")):
        if isinstance(evidence.get(key), list) and evidence[key]:
            yield from ("", f"{told}: {', '.join(evidence[key])}.")


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if gaps:
        yield ""
        yield from _table(
            ("group", "rate", "answer", "group's", "others'", "gap", "interval", "rows"),
            (
                [
                    one["group"], one["rate"], one["answer"], _number(one["inside"]),
                    _number(one["outside"]), _number(one["gap"]),
                    f"{_number(one['low'])} to {_number(one['high'])}", one["rows"],
                ]
                for one in gaps[:_MOST_LINES]
            ),
        )  # fmt: skip


def _slices(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if found:
        yield ""
        yield from _table(
            ("slice", "rows", "there", "elsewhere", "worse by", "interval", "adjusted p"),
            (
                [
                    one["name"], one["rows"], _number(one["inside"]), _number(one["outside"]),
                    _number(one["effect"]), f"{_number(one['low'])} to {_number(one['high'])}",
                    _number(one["adjusted_p"]),
                ]
                for one in found[:_MOST_LINES]
            ),
        )  # fmt: skip


def _bins(bins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if bins:
        yield ""
        yield from _table(
            ("scores", "rows", "mean score", "rate", "interval"),
            (
                [
                    f"{_number(one['low'])} to {_number(one['high'])}", one["rows"],
                    _number(one["score"]), _number(one["rate"]),
                    f"{_number(one['rate_low'])} to {_number(one['rate_high'])}",
                ]
                for one in bins
            ),
        )  # fmt: skip


def _broken(worst: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if worst:
        yield from ("", "Rows that broke it, the worst first:", "")
    for one in worst:
        told = [f"{key} {_plain(one[key])}" for key in one if key != "features"]
        yield f"- {', '.join(told)}; features: {_plain(one['features'])}"


def _beside(holdout: Mapping[str, Any]) -> Iterator[str]:
    slices = holdout.get("slices")
    if slices:
        yield from ("", "## Weakest slices of the candidate (no gate)", "")
        yield (
            f"{slices['tried']} slices were tried by {slices['metric']}, corrected for that;"
            f" {slices['too_small']} were too small."
        )
        yield from _slices(slices["found"])
    calibration = holdout.get("calibration")
    if calibration:
        error, slope = calibration["error"], calibration["slope"]
        yield from ("", "## Calibration of the candidate (no gate)", "")
        yield (
            f"Off by {_number(error['estimate'])} ({_number(error['low'])} to"
            f" {_number(error['high'])}); slope {_number(slope['estimate'])}, intercept"
            f" {_number(calibration['intercept']['estimate'])}."
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(value: Any) -> str:
    # A group may be called anything; it must not open a column or a line of its own.
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("\r", " ")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_number(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(_number(item) for item in value)
    return value if isinstance(value, str) else _number(value)


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not known"
    return f"{value:.4g}"
