"""How far a project has come on the way from work by hand to a loop that closes by itself.

Twelve items, each a few conditions that are judged on what is recorded and on nothing else: what
the records say is met or not met, and what they say nothing of is not known. The levels are those
of Google's paper.

Source:
    "MLOps: Continuous delivery and automation pipelines in machine learning", Google Cloud
    Architecture Center.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.deploy import Rollout
from everloop.core.events import (
    CI_FINISHED,
    PACKAGE_BUILT,
    PACKAGE_IMPORTED,
    PACKAGE_PROMOTED,
    Event,
)
from everloop.core.gate import GateKind, Verdict
from everloop.core.model import ModelVersion
from everloop.core.monitor import MonitorKind
from everloop.core.policy import LoopSpec
from everloop.core.run import Run
from everloop.core.time import span_text

__all__ = [
    "Condition",
    "Grade",
    "Item",
    "Maturity",
    "Records",
    "Trained",
    "TrainingData",
    "Watched",
    "grade",
]

Grade = Literal["met", "not met", "not known"]
LEVELS = ("manual", "pipeline automation", "CI/CD automation")
#: Items that make the first level; the second takes all of them.
_FIRST_LEVEL = frozenset({4, 5, 6, 7, 8, 11})
_PRODUCTION = "production"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One claim, and what is recorded of it.

    Attributes:
        evidence: Versions, runs, events and dates that it rests on.
        todo: What to do where it is not met or not known; empty where it is met.
    """

    claim: str
    grade: Grade
    evidence: tuple[str, ...] = ()
    todo: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One item: met if all its conditions are, not met if one is not, else not known."""

    number: int
    title: str
    grade: Grade
    conditions: tuple[Condition, ...]


class Maturity(msgspec.Struct, frozen=True, kw_only=True):
    """The grades of a loop.

    Attributes:
        level: 0, 1 or 2: the highest whose items are all met; `name` is what the paper calls it.
        lacks: Numbers of the items that the next level lacks.
    """

    loop: str
    level: int
    name: str
    lacks: tuple[int, ...]
    items: tuple[Item, ...]
    at: datetime


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the loop's pipeline: `trigger` is what started it (``alert auc``), empty by hand."""

    run: str
    trigger: str
    cause: str = ""
    code: str = ""
    at: datetime

    @property
    def kind(self) -> str:
        return self.trigger.partition(" ")[0]


class TrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version that the live model was trained on: how many rules its rows had to hold,
    of fields and of rows, and how many of them did not.
    """  # noqa: D205 - one sentence

    ref: str
    rules: int
    dropped: int


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A monitor with its windows that could be told."""

    monitor: str
    kind: MonitorKind
    windows: int
    last: datetime | None


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """All that is recorded of a loop and that grades rest on.

    Attributes:
        live: The version that serves, and `live_run` the run that made it.
        has_features: Whether the feature set of the live version is defined here.
        steps: Steps of that run.
        trainings: Runs that firings of the loop started, oldest first; `tried` are runs of the same
            pipeline that people started.
        events: Of CI, packages, rollouts, by kind, oldest first.
    """

    spec: LoopSpec
    at: datetime
    live: ModelVersion | None = None
    live_run: Run | None = None
    has_features: bool = False
    steps: int = 0
    data: tuple[TrainingData, ...] = ()
    trainings: tuple[Trained, ...] = ()
    tried: tuple[Trained, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    watched: tuple[Watched, ...] = ()
    events: dict[str, tuple[Event, ...]] = {}

    def of(self, *kinds: str) -> tuple[Event, ...]:
        """Events of these kinds, oldest first."""
        found = [event for kind in kinds for event in self.events.get(kind, ())]
        return tuple(sorted(found, key=lambda event: event.seq))

    @property
    def promoted(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts if r.state.stage == "promoted")

    @property
    def judged(self) -> tuple[Verdict, ...]:
        """Verdicts against a champion, oldest first."""
        return tuple(v for v in self.verdicts if v.champion and v.results)


def grade(records: Records) -> Maturity:
    """Grade a loop on its records."""
    items = tuple(
        _item(number, title, tuple(judge(records)))
        for number, (title, judge) in enumerate(_ITEMS, 1)
    )
    open_ = [item.number for item in items if item.grade != "met"]
    first = [number for number in open_ if number in _FIRST_LEVEL]
    level = 0 if first else 1 if open_ else 2
    lacks = tuple(first or open_)
    return Maturity(
        loop=records.spec.name, level=level, name=LEVELS[level], lacks=lacks, items=items,
        at=records.at,
    )  # fmt: skip


def _item(number: int, title: str, conditions: tuple[Condition, ...]) -> Item:
    grades = {condition.grade for condition in conditions}
    whole: Grade = "not met" if "not met" in grades else "not known"
    if grades == {"met"}:
        whole = "met"
    return Item(number=number, title=title, grade=whole, conditions=conditions)


def _condition(
    claim: str, holds: bool | None, evidence: Iterable[str] = (), *, todo: str
) -> Condition:
    """A condition that holds, does not hold, or of which nothing is recorded."""
    known: Grade = "not known" if holds is None else "met" if holds else "not met"
    return Condition(claim=claim, grade=known, evidence=tuple(evidence), todo="" if holds else todo)


# --- 1 to 3: code ---------------------------------------------------------------------------------


def _ci(records: Records) -> Iterable[Condition]:
    run = records.live_run
    commit = run.git.get("commit", "") if run is not None else ""
    dirty = run is not None and run.git.get("dirty") == "yes"
    told = [f"run {run.id}: commit {commit[:12]}"] if run is not None and commit else []
    if dirty and told:
        told = [f"{told[0]} with changes that were not committed"]
    yield _condition(
        "the live version was trained from a commit",
        not dirty if commit else None,
        told,
        todo="train from a clean checkout of a git repository",
    )
    outcomes = records.of(CI_FINISHED)
    code = run.code if run is not None else ""
    # CI of other code says nothing of this one; without code only that it is not known which.
    same = [event for event in outcomes if event.body.get("code") == code]
    last = (same or list(outcomes))[-1:]
    passed = bool(same) and same[-1].body.get("outcome") == "passed"
    yield _condition(
        "CI tested its code and passed",
        passed if outcomes and code else None,
        [f"{_said(e)}: {e.body.get('outcome')}, code {str(e.body.get('code'))[:12]}" for e in last],
        todo="everloop init --ci github, and have CI run: everloop ci",
    )


def _packages(records: Records) -> Iterable[Condition]:
    built = records.of(PACKAGE_BUILT, PACKAGE_IMPORTED)
    moves = records.of(PACKAGE_PROMOTED)
    yield _condition(
        "the pipeline is built as a package",
        True if built else None,
        [f"{_said(event)}: {_name(event)}" for event in built[-1:]],
        todo="everloop package build",
    )
    places = {str(event.body.get("environment", "")): event for event in moves}
    yield _condition(
        "packages go from environment to environment",
        len(places) > 1 or _PRODUCTION in places if built or moves else None,
        [f"{_said(event)}: {_name(event)} to {place}" for place, event in places.items()],
        todo="everloop package promote",
    )


def _delivery(records: Records) -> Iterable[Condition]:
    moves = records.of(PACKAGE_PROMOTED)
    here = [event for event in moves if event.body.get("environment") == _PRODUCTION][-1:]
    built = records.of(PACKAGE_BUILT, PACKAGE_IMPORTED, PACKAGE_PROMOTED)
    yield _condition(
        "a package of the pipeline was promoted to production",
        bool(here) if built else None,
        [f"{_said(event)}: {_name(event)}" for event in here],
        todo="everloop package promote, up to production",
    )
    created = records.of("deployment.Created")[:1]
    yield _condition(
        "a version that no server could load is refused before it is deployed",
        True if created else None,
        [f"{_said(event)}: version {event.body.get('version')} was loaded" for event in created],
        todo="deploy a version: everloop up",
    )
    fast = [v for v in records.verdicts if _has(v, "max_latency_ms", passed=True)][-1:]
    held = [r for r in records.promoted if r.plan.p99_ms][-1:]
    told = [f"verdict {v.id}: max_latency_ms" for v in fast]
    told += [f"rollout {r.id}: p99 below {r.plan.p99_ms:g} ms on real requests" for r in held]
    known = bool(records.verdicts or records.promoted)
    yield _condition(
        "the prediction service is held to a limit under load",
        bool(told) if known else None,
        told,
        todo='gate=[ev.max_latency_ms(20)], or abort_on=[ev.slo("p99_ms < 50")] in ev.canary',
    )


# --- 4 to 7: training -----------------------------------------------------------------------------


def _continuous(records: Records) -> Iterable[Condition]:
    by_kind: dict[str, list[Trained]] = {}
    for training in records.trainings:
        by_kind.setdefault(training.kind, []).append(training)
    told = [
        f"{kind}: {len(found)}, the last as run {found[-1].run} on {found[-1].at:%Y-%m-%d}"
        for kind, found in sorted(by_kind.items())
    ]
    yield _condition(
        "trainings in production were started by triggers, not by people",
        bool(by_kind.keys() - {"hand", "first"}) if by_kind else None,
        told,
        todo='retrain_on=[ev.alert("performance"), ev.schedule("0 3 1 * *")] in ev.loop',
    )


def _data(records: Records) -> Iterable[Condition]:
    bare = [d.ref for d in records.data if not d.rules]
    yield _condition(
        "all data that the live version was trained on were checked against a schema",
        not bare if records.data else None,
        [f"{d.ref}: {d.rules} rules, {d.dropped} rows dropped" for d in records.data],
        todo=f"commit {', '.join(bare) or 'the data'} with a Schema and read them with ev.read",
    )
    wanted: tuple[MonitorKind, ...] = ("quality", "feature_drift")
    yield _watching(
        records, "new values are compared with those it was trained on", wanted,
        "watch=[ev.quality(), ev.drift()] in ev.loop",
    )  # fmt: skip


def _watching(records: Records, claim: str, kinds: Sequence[MonitorKind], todo: str) -> Condition:
    mine = [watched for watched in records.watched if watched.kind in kinds]
    seen = [watched for watched in mine if watched.windows]
    holds = True if seen else None if mine else False
    told = [f"monitor {w.monitor}: {w.windows} windows, to {w.last:%Y-%m-%d}" for w in seen]
    if mine and not seen:
        todo = "have its predictions logged: everloop up serves and watches"
    return _condition(claim, holds, told, todo=todo)


_AGAINST: tuple[GateKind, ...] = ("beats_champion", "not_worse")
_SEGMENTS: tuple[GateKind, ...] = ("no_group_worse", "no_weak_slice", "fair")
_RUNNING: tuple[GateKind, ...] = ("max_latency_ms", "max_size_mb", "functionality")


def _validation(records: Records) -> Iterable[Condition]:
    passed = {verdict.id: verdict for verdict in records.verdicts if verdict.passed}
    without = [r for r in records.promoted if r.verdict not in passed]
    told = [
        f"rollout {r.id}: version {r.candidate} by verdict {r.verdict}"
        for r in records.promoted[-1:]
        if r.verdict in passed
    ]
    if not records.promoted:
        told = [f"verdict {v.id}: version {v.candidate}" for v in list(passed.values())[-1:]]
    told += [f"rollout {r.id}: version {r.candidate} without a verdict" for r in without]
    live = records.live is not None
    yield _condition(
        "every version that went live had passed the gates, and the verdict is kept",
        not without and bool(told) if live else None,
        told,
        todo="let the loop roll out, or give the verdict: ev.loop(gate=[...])",
    )
    for claim, kinds, todo in (
        ("candidates are tested against the champion", _AGAINST, 'ev.beats_champion("brier")'),
        ("candidates are tested over segments", _SEGMENTS, 'ev.no_group_worse("region", "brier")'),
    ):
        found = [v for v in records.judged if _has(v, *kinds)]
        yield _condition(
            claim,
            bool(found) if records.judged else None,
            [f"verdict {v.id}: version {v.candidate} against {v.champion}" for v in found[-1:]],
            todo=f"gate=[{todo}] in ev.loop",
        )
    shadow = [r for r in records.promoted if r.plan.shadow_s][-1:]
    ran = [v for v in records.verdicts if _has(v, *_RUNNING)][-1:]
    told = [f"rollout {r.id}: {span_text(r.plan.shadow_s)} in the shadow" for r in shadow]
    told += [f"verdict {v.id}: {', '.join(_kinds(v, _RUNNING))}" for v in ran]
    yield _condition(
        "candidates run as they will serve before they answer anybody",
        bool(told) if records.promoted or records.judged else None,
        told,
        todo='rollout=ev.canary(shadow="1d"), or gate=[ev.max_latency_ms(20)]',
    )


def _features(records: Records) -> Iterable[Condition]:
    live = records.live
    named = live is not None and bool(live.feature_set) and records.has_features
    yield _condition(
        "training and serving take their features from one definition",
        None if live is None else named,
        [f"{live.ref}: feature set {live.feature_set}"] if named and live is not None else [],
        todo="ev.model(feature_set=...) with ev.feature_set, see docs/guide/first-loop.md",
    )


# --- 8 to 12: what is kept, what goes live, what comes back --------------------------------------


def _metadata(records: Records) -> Iterable[Condition]:
    live, run = records.live, records.live_run
    if live is None:
        holds, told, missing = None, [], ["the live version"]
    elif run is None:
        holds, told, missing = False, [f"{live.ref} names no run that is recorded"], ["its run"]
    else:
        stated: dict[str, object] = {
            "code": run.code, "environment": run.environment, "steps": records.steps,
            "inputs": run.inputs, "metrics": run.metrics, "who": run.actor, "end": run.ended_at,
        }  # fmt: skip
        missing = [name for name, value in stated.items() if not value]
        holds = not missing
        told = [f"{live.ref}: run {run.id} of {run.started_at:%Y-%m-%d}, {records.steps} steps"]
        told += [f"{len(run.inputs)} inputs, code {run.code[:12]}"] if run.code else []
    yield _condition(
        "the run of the live version can be repeated: code, environment, inputs, metrics",
        holds,
        told,
        todo=f"not recorded: {', '.join(missing)}; train by a pipeline, see everloop rerun",
    )
    before = [r for r in records.promoted if r.champion][-1:]
    yield _condition(
        "the model before it is known, to go back to",
        True if before else None,
        [f"rollout {r.id}: version {r.champion} before {r.candidate}" for r in before],
        todo="there was no other yet",
    )


def _release(records: Records) -> Iterable[Condition]:
    started = {e.subject.partition(":")[2]: e for e in records.of("rollout.Started")}
    mine = [r for r in records.promoted if r.id in started]
    own = [r for r in mine if _by_itself(started[r.id])]
    yield _condition(
        "a verdict starts the rollout by itself",
        bool(own) if records.promoted else None,
        [f"rollout {r.id} on {r.started_at:%Y-%m-%d}, verdict {r.verdict}" for r in own[-1:]],
        todo="have a supervisor run the loop: everloop up",
    )
    stepped = [r for r in records.promoted if r.plan.shadow_s or len(r.plan.steps) > 1]
    yield _condition(
        "traffic moves in steps",
        bool(stepped) if records.promoted else None,
        [f"rollout {r.id}: {', '.join(f'{s:g} %' for s in r.plan.steps)}" for r in stepped[-1:]],
        todo="rollout=ev.canary(5, 25, 100) in ev.loop",
    )
    aborted = [r for r in records.rollouts if r.state.stage == "aborted"]
    plan = records.spec.rollout
    limits = [f"p99 below {plan.p99_ms:g} ms"] if plan.p99_ms else []
    limits += [f"error rate below {plan.error_rate:g}"] if plan.error_rate < 1 else []
    told = [f"rollout {r.id} was taken out: {r.reason}" for r in aborted[-1:]]
    told = told or ([f"declared: {' and '.join(limits)}; none was broken"] if limits else [])
    yield _condition(
        "a candidate that breaks an objective is taken out by itself",
        bool(told),
        told,
        todo='abort_on=[ev.slo("error_rate < 0.1%")] in ev.canary',
    )


def _closed(records: Records) -> Iterable[Condition]:
    yield _watching(
        records, "the quality of live answers is measured as labels come", ("performance",),
        "watch=[ev.performance()] in ev.loop, and tell it the labels",
    )  # fmt: skip
    fired = [training for training in records.trainings if training.kind == "alert"]
    declared = any(trigger.on == "alert" for trigger in records.spec.triggers)
    yield _condition(
        "an alert started a training without a person",
        True if fired else None if declared else False,
        [f"event {t.cause} -> {t.trigger} -> run {t.run} on {t.at:%Y-%m-%d}" for t in fired[-1:]],
        todo="none has yet" if declared else 'retrain_on=[ev.alert("performance")] in ev.loop',
    )


def _symmetry(records: Records) -> Iterable[Condition]:
    tried = records.tried
    yield _condition(
        "the pipeline is tried outside production, and that is tracked",
        True if tried else None,
        [f"run {t.run} on {t.at:%Y-%m-%d}" for t in tried[-1:]],
        todo="try changes with the loop's own pipeline: everloop run FILE:PIPELINE",
    )
    # CI runs the pipeline too, in a workspace of its own.
    codes = {
        str(event.body["code"]): _said(event)
        for event in records.of(CI_FINISHED)
        if event.body.get("outcome") == "passed" and event.body.get("code")
    }
    codes |= {t.code: f"run {t.run}" for t in tried if t.code}
    shared = [t for t in records.trainings if t.code in codes]
    known = bool(codes) and any(t.code for t in records.trainings)
    yield _condition(
        "production runs the code that was tried",
        bool(shared) if known else None,
        [f"{codes[t.code]} and run {t.run}: code {t.code[:12]}" for t in shared[-1:]],
        todo="run the pipeline by hand, or by CI, before it goes to production",
    )


def _hands(records: Records) -> Iterable[Condition]:
    last = records.promoted[-1:]
    acts = [
        event
        for rollout in last
        for event in records.of(
            "verdict.Given", "rollout.Started", "rollout.Advanced", "rollout.Promoted"
        )
        if event.subject in (f"rollout:{rollout.id}", f"verdict:{rollout.verdict}")
    ]
    people = [event for event in acts if not _by_itself(event)]
    told = [f"rollout {r.id}: version {r.candidate}, {len(acts)} acts" for r in last]
    told += [f"{_said(event)} by {event.actor}" for event in people]
    asked = records.of("loop.Asked")
    if asked:
        told.append(f"retrainings that people asked for: {len(asked)}, {_said(asked[-1])}")
    yield _condition(
        "from the verdict to the promotion the latest model needed nobody",
        not people if acts else None,
        told,
        todo="have a supervisor run the loop: everloop up",
    )


_ITEMS: tuple[tuple[str, Callable[[Records], Iterable[Condition]]], ...] = (
    ("Commits are tested by CI", _ci),
    ("Pipelines are packages that are promoted", _packages),
    ("Pipelines are delivered to where they run", _delivery),
    ("Models are trained in production, by triggers", _continuous),
    ("Data are validated before training", _data),
    ("Models are validated after training", _validation),
    ("Training and serving share their features", _features),
    ("Everything about a model is recorded", _metadata),
    ("Models go live, and back, by themselves", _release),
    ("Monitoring closes the loop", _closed),
    ("Experiments and production run the same code", _symmetry),
    ("People decide; they do not operate", _hands),
)


def _by_itself(event: Event) -> bool:
    return event.actor.startswith("loop:")


def _said(event: Event) -> str:
    return f"event {event.id} of {event.at:%Y-%m-%d}"


def _name(event: Event) -> str:
    return event.subject.partition(":")[2] or event.subject


def _kinds(verdict: Verdict, kinds: Sequence[GateKind]) -> list[str]:
    return [result.gate.kind for result in verdict.results if result.gate.kind in kinds]


def _has(verdict: Verdict, *kinds: GateKind, passed: bool = False) -> bool:
    return any(
        result.gate.kind in kinds and (result.passed or not passed) for result in verdict.results
    )
