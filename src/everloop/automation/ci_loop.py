"""LoopTrial: what CI finds out about one loop: contracts, pipeline, the candidate, its gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from everloop.automation.ci_cases import (
    contract_case,
    finite_metrics,
    gate_case,
    learned_case,
    made_up_rows,
    not_judged,
    scores_case,
    step_cases,
    takes_probabilities,
)
from everloop.automation.ci_source import Champion, Days, Mirror, Opponent, days_of, forget_champion
from everloop.automation.declare import contracts_of
from everloop.automation.holdout import Scorer, subject_of
from everloop.automation.judging import Judged, judge_on_log
from everloop.automation.triggers import collecting
from everloop.core.ci import CiCase, CiGroup, CiModel, CiStatus
from everloop.core.context import using
from everloop.core.dataset import DatasetVersion
from everloop.core.gate import Gate, Verdict
from everloop.core.model import ModelVersion
from everloop.core.policy import LoopSpec
from everloop.core.schema import Schema
from everloop.core.time import monotonic_ns
from everloop.data.rows import read_rows
from everloop.errors import EverloopError, NotFound, RunWaiting, StateError
from everloop.evaluation.gates import ROWLESS, SUBJECT, first_verdict
from everloop.pipelines.load import load_pipeline
from everloop.registry.flavors import load_predictor

if TYPE_CHECKING:
    from everloop.pipelines.api import Pipeline

__all__ = ["LoopTrial", "Setup", "message_of"]

_RUN_TAG = "everloop.ci"


class Setup(NamedTuple):
    """Where loops are tried, and how.

    Attributes:
        root: Folder that pipeline paths are relative to.
        whole: The workspace that mirrors all rows.
        small: The one that mirrors a sample, or None.
        opponent: What candidates are compared with, or None where there is no source.
        arguments: Those that a pipeline's function gets beside ``until``.
        sample_only: Do not run the pipeline on all rows.
        tell: Called with a line of progress now and then.
    """

    root: Path
    whole: Mirror
    small: Mirror | None
    opponent: Opponent | None
    arguments: Callable[[Any], dict[str, Any]]
    sample_only: bool
    tell: Callable[[str], None]


class _Made(NamedTuple):
    """What a run of the pipeline came to, and on what it ran: ``sample`` or ``all``."""

    phase: str
    place: Mirror
    run_id: str = ""
    until: datetime | None = None
    candidate: ModelVersion | None = None


class LoopTrial:
    """One loop at this commit.

    Attributes:
        cases: What was found out so far, in order.
    """

    def __init__(self, spec: LoopSpec, setup: Setup) -> None:
        self.cases: list[CiCase] = []
        self._spec = spec
        self._setup = setup
        self._champion: Champion | None = None
        self._days: Days = days_of(spec, setup.whole.clock.now())
        self._contracts: set[str] = set()

    def run(self) -> CiModel:
        """Find out everything; what goes wrong with contracts and pipeline is a case.

        Raises:
            EverloopError: If the source fails in the middle.
        """
        spec, setup = self._spec, self._setup
        if setup.opponent is not None:
            self._champion, self._days = setup.opponent.champion(spec), setup.opponent.days(spec)
        setup.tell(f"{spec.name}: data contracts")
        self._hold(contracts_of(spec.name))
        asked = set(setup.whole.data.asked) - self._contracts
        runs: dict[str, str] = {}
        made = _Made("", setup.whole)
        for phase, place in self._phases():
            made = self._pipeline(phase, place)
            runs[phase] = made.run_id
            self._hold(place.data.stated)
            if made.candidate is None:
                break
        self._unstated(asked)
        setup.tell(f"{spec.name}: model tests")
        verdict = self._candidate(made)
        run = made.place.tracking.run(made.run_id) if made.run_id else None
        return CiModel(
            loop=spec.name,
            candidate=made.candidate.ref if made.candidate is not None else "",
            champion=self._champion.version.ref if self._champion is not None else "",
            digest=made.candidate.digest if made.candidate is not None else "",
            code=run.code if run is not None else "",
            environment=run.environment if run is not None else {},
            runs=runs,
            until=made.until,
            verdict=verdict,
        )

    def _phases(self) -> Iterator[tuple[str, Mirror]]:
        if self._setup.small is not None:
            yield "sample", self._setup.small
        if self._setup.small is None or not self._setup.sample_only:
            yield "all", self._setup.whole

    # --- contracts -------------------------------------------------------------------------------

    def _hold(self, stated: Mapping[str, Schema]) -> None:
        """Hold the newest versions of the source against what this code says of them."""
        for name, schema in list(stated.items()):
            if name in self._contracts:
                continue
            self._contracts.add(name)
            try:
                self._contract(name, schema)
            except EverloopError as error:
                self._add("contract", name, "failed", message_of(error))

    def _contract(self, name: str, schema: Schema) -> None:
        began = monotonic_ns()
        found = self._newest(name)
        if found is None:
            told = "the source has no such dataset: there are no rows to hold against it"
            self._add("contract", name, "not judged", told)
            return
        whole = self._setup.whole
        rows = read_rows(whole.blobs, found, found.schema.names)
        owner = whole.data.owner_there(name)
        case = contract_case(
            self._spec.name, schema, found, rows, owner=owner, values_of=self._values_of
        )
        self.cases.append(_timed(case, began))

    def _values_of(self, dataset: str, column: str) -> pl.Series:
        found = self._newest(dataset)
        if found is None:
            raise NotFound(f"the source has no dataset {dataset!r}")
        found.schema.field(column)
        rows = pl.from_arrow(read_rows(self._setup.whole.blobs, found, [column]))
        assert isinstance(rows, pl.DataFrame)
        return rows.to_series()

    def _newest(self, name: str) -> DatasetVersion | None:
        try:
            self._setup.whole.data.version(name)  # brings it here
        except NotFound:
            return None
        return self._setup.whole.data.asked.get(name)

    def _unstated(self, before: set[str]) -> None:
        told = "this code states no schema for it; the one it was committed with held then"
        for name in self._setup.whole.data.asked:
            if name not in self._contracts | before:
                self._add("contract", name, "not judged", told)

    # --- the pipeline ----------------------------------------------------------------------------

    def _pipeline(self, phase: str, place: Mirror) -> _Made:
        spec, setup, began = self._spec, self._setup, monotonic_ns()
        setup.tell(f"{spec.name}: the pipeline on {'all rows' if phase == 'all' else 'a sample'}")
        if self._champion is not None and setup.opponent is not None:
            setup.opponent.copy(place, self._champion)
        else:
            forget_champion(place, spec.name)
        place.data.refresh()
        status: CiStatus = "passed"
        result, told, given, pipeline = None, "", dict[str, Any](), None
        with using(place), collecting():
            try:
                pipeline = load_pipeline(str(setup.root / spec.pipeline))
                pipeline.run_id = ""
                given = setup.arguments(pipeline.function)
                given = self._until(pipeline, given) | given
                result = pipeline.run(**given)
            except RunWaiting as waits:
                status, told = "not judged", f"it waits, and CI answers nobody: {waits.message}"
            except (EverloopError, SystemExit) as error:
                status, told = "failed", message_of(error)
        run_id = pipeline.run_id if pipeline is not None else ""
        candidate = result if isinstance(result, ModelVersion) else None
        if status == "passed" and (candidate is None or candidate.name != spec.name):
            got = candidate.ref if candidate is not None else type(result).__name__
            status, candidate = "failed", None
            told = f"it must return a version of {spec.name!r}, got {got}"
        steps = place.pipelines.steps(run_id) if run_id else []
        if not told:
            ran = sum(step.outcome == "ran" for step in steps)
            told = f"{ran} steps ran, {len(steps) - ran} were cached"
        rows = {name: place.data.version(name).rows for name in place.data.asked}
        evidence = {"run": run_id, "rows": rows}
        self._add("step", f"{phase}: {spec.pipeline}", status, told, began=began, evidence=evidence)
        self.cases += step_cases(spec.name, phase, steps)
        if run_id:
            place.tracking.set_tag(run_id, _RUN_TAG, status)
        until = given.get("until")
        until = until if isinstance(until, datetime) else None
        return _Made(phase, place, run_id, until, candidate)

    def _until(self, pipeline: Pipeline[Any, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """``until``, as the loop gives it: before the hold-out, where there is one."""
        if "until" in given or not pipeline.takes("until"):
            return {}
        if self._champion is not None and self._days.is_served:
            return {"until": self._days.since}
        parameter = pipeline.signature.parameters["until"]
        return {"until": self._days.until} if parameter.default is parameter.empty else {}

    # --- the candidate ---------------------------------------------------------------------------

    def _candidate(self, made: _Made) -> str:
        """Judge what the pipeline made; the id of the verdict, or empty."""
        gates, loop = self._spec.gates, self._spec.name
        if made.candidate is None:
            why = "there is no candidate: the pipeline did not end well"
            self.cases += not_judged(loop, gates, why)
            return ""
        self.cases.append(finite_metrics(loop, made.place.tracking.run(made.run_id)))
        scorer = self._scorer(made.place, made.candidate)
        if scorer is None:
            self.cases += not_judged(loop, gates, "the candidate does not load")
            return ""
        log = None
        if self._setup.opponent is not None and self._champion is not None and self._days.is_served:
            log = self._setup.opponent.holdout(self._spec, self._days)
        rows, kind = _rows(made.candidate, scorer, log)
        probable = takes_probabilities(gates)
        case = scores_case(loop, scorer, rows, kind=kind, probabilities=probable)
        self.cases.append(case)
        if case.status != "passed":
            why = "the candidate's scores are not what gates can judge"
            self.cases += not_judged(loop, gates, why)
            return ""
        try:
            verdict, left, why = self._verdict(made, made.candidate, scorer, log)
        except EverloopError as error:  # a gate that asks for what there is not
            self._add("gate", "gates", "failed", message_of(error))
            self.cases += not_judged(loop, gates, "the gates cannot be asked")
            return ""
        self.cases += [gate_case(loop, result) for result in verdict.results]
        self.cases += not_judged(loop, left, why)
        return made.place.evaluation.record(verdict).id

    def _scorer(self, place: Mirror, version: ModelVersion) -> Scorer | None:
        files = place.registry.files(version.name, version.version)
        name = "candidate loads from its files"
        try:
            scorer = load_predictor(version, files, registry=place.registry)
        except EverloopError as error:
            self._add("check", name, "refused", message_of(error))
            return None
        size = sum(file.size for file in version.files)
        told = f"{version.flavor}, {size / 1e6:.2f} MB, digest {version.digest[:12]}"
        changed = version.compatibility.backward if version.compatibility is not None else ()
        if changed:
            told += f"; not as the champion's signature: {', '.join(map(str, changed))}"
        self._add("check", name, "passed", told)
        return scorer

    # --- gates -----------------------------------------------------------------------------------

    def _verdict(
        self, made: _Made, version: ModelVersion, scorer: Scorer, log: pa.Table | None
    ) -> tuple[Verdict, list[Gate], str]:
        """The verdict, the gates that were not judged, and why they were not."""
        gates, now = self._spec.gates, self._setup.whole.clock.now()
        judged: Sequence[Gate] = gates
        why = self._obstacle(log)
        if not why and made.phase != "all":
            why = "the candidate learned from a sample; only one that learned from all is compared"
            judged = [gate for gate in gates if gate.kind in SUBJECT]
        if log is not None and judged:
            try:
                found = self._on_log(judged, made, version, scorer, log, now)
                learned = learned_case(self._spec.name, gates, found.rows, now)
                self.cases += [] if learned is None else [learned]
                return found.verdict, [gate for gate in gates if gate not in judged], why
            except StateError as error:  # such as a new feature, which nobody was asked with
                why = message_of(error)
        verdict = first_verdict(
            gates, version, subject=lambda: subject_of(version, scorer), now=now, run_id=made.run_id
        )
        return verdict, [gate for gate in gates if gate.kind not in ROWLESS], why

    def _obstacle(self, log: pa.Table | None) -> str:
        if self._setup.opponent is None:
            return "there is no source to compare with: give --against"
        if self._champion is None:
            return "there is no champion"
        return "the champion was asked nothing" if log is None else ""

    def _on_log(
        self,
        gates: Sequence[Gate],
        made: _Made,
        version: ModelVersion,
        scorer: Scorer,
        log: pa.Table,
        now: datetime,
    ) -> Judged:
        opponent, champion = self._setup.opponent, self._champion
        assert opponent is not None  # there is a log
        assert champion is not None
        return judge_on_log(
            gates,
            log,
            candidate=(version, scorer),
            champion=(champion.version, opponent.load(champion)),
            version_of=lambda number: opponent.version(version.name, number),
            now=now,
            run_id=made.run_id,
        )

    def _add(
        self,
        group: CiGroup,
        name: str,
        status: CiStatus,
        told: str,
        *,
        began: int = 0,
        evidence: dict[str, Any] | None = None,
    ) -> None:
        case = CiCase(
            group=group,
            loop=self._spec.name,
            name=name,
            status=status,
            told=told,
            evidence=evidence or {},
        )
        self.cases.append(_timed(case, began) if began else case)


def message_of(error: BaseException) -> str:
    """What an error says, for a report."""
    if isinstance(error, SystemExit):
        return f"the code ended the process: sys.exit({error.code!r})"
    return str(error)


def _rows(
    version: ModelVersion, scorer: Scorer, log: pa.Table | None
) -> tuple[npt.NDArray[Any], str]:
    """Rows to score: of what was served, or made up where nothing was that fits."""
    rows = subject_of(version, scorer, log).rows
    if len(rows):
        return rows, "served"
    return made_up_rows(version.signature.inputs), "made-up"


def _timed(case: CiCase, began: int) -> CiCase:
    return msgspec.structs.replace(case, seconds=(monotonic_ns() - began) / 1e9)
