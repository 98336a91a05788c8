"""ContinuousIntegration: runs the loops of a file at this commit, and changes nothing that is live.

The pipeline runs in a workspace of CI's own, which mirrors data, champion and hold-out of the
source: first on a sample, which shows whether the code works, then on all rows, for only a model
that learned from all of them can be compared with the champion. ``docs/adr/0012`` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from everloop.automation.ci_cases import (
    contract_case,
    finite_metrics,
    gate_case,
    made_up_rows,
    not_judged,
    scores_case,
    step_cases,
    takes_probabilities,
)
from everloop.automation.ci_source import (
    Champion,
    Days,
    Mirror,
    Opponent,
    Source,
    days_of,
    forget_champion,
)
from everloop.automation.declare import contracts_of
from everloop.automation.holdout import Scorer, subject_of
from everloop.automation.judging import judge_on_log
from everloop.automation.triggers import collecting, declared
from everloop.core.ci import CiCase, CiGroup, CiModel, CiReport, CiStatus, CiSummary, outcome_of
from everloop.core.context import using
from everloop.core.dataset import DatasetVersion
from everloop.core.gate import Gate, Verdict
from everloop.core.model import ModelVersion
from everloop.core.policy import LoopSpec
from everloop.core.schema import Schema
from everloop.core.time import monotonic_ns
from everloop.data.blocks import read_blocks
from everloop.errors import BackendError, EverloopError, NotAllowed, NotFound, RunWaiting
from everloop.evaluation.gates import ROWLESS, SUBJECT, first_verdict
from everloop.pipelines.load import load_module, load_pipeline
from everloop.registry.flavors import load_predictor
from everloop.tracking.surroundings import environment_of, git_of

if TYPE_CHECKING:
    from everloop.pipelines.api import Pipeline

__all__ = ["ContinuousIntegration"]

_RUN_TAG = "everloop.ci"
_T = TypeVar("_T")


class _Made(NamedTuple):
    """What a run of the pipeline came to."""

    run_id: str
    candidate: ModelVersion | None


class ContinuousIntegration:
    """One run of CI over the loops of a file.

    Args:
        file: The file that declares them.
        root: Folder that pipeline paths are relative to.
        whole: The workspace that mirrors all rows.
        small: The one that mirrors a sample, or None.
        source: What they mirror, or None.
        arguments: Those that a pipeline's function gets beside ``until``.
        sample: What the sample is called, for the report.
        sample_only: Do not run the pipeline on all rows.
        strict: What was not judged counts as refused.
        branch: As the CI calls it: what it checks out is often no branch.
        everloop: Version of this distribution.
        tell: Called with a line of progress now and then.
    """

    def __init__(
        self,
        file: Path,
        *,
        root: Path,
        whole: Mirror,
        small: Mirror | None,
        source: Source | None,
        arguments: Callable[[Any], dict[str, Any]] = lambda _: {},
        sample: str = "all",
        sample_only: bool = False,
        strict: bool = False,
        branch: str = "",
        everloop: str = "",
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._root = root
        self._whole = whole
        self._small = small
        self._source = source
        self._opponent = None if source is None else Opponent(source, whole)
        self._arguments = arguments
        self._sample = sample
        self._sample_only = sample_only
        self._strict = strict
        self._branch = branch
        self._everloop = everloop
        self._tell = tell
        self._cases: list[CiCase] = []
        self._models: list[CiModel] = []
        self._environment: dict[str, str] = {}

    def run(self, trouble: EverloopError | None = None) -> CiReport:
        """Find out everything that can be found out; what goes wrong is a case, and not raised.

        Args:
            trouble: Why the source could not be opened.
        """
        began, at = monotonic_ns(), self._whole.clock.now()
        if self._reached(trouble):
            for spec in self._load():
                self._guard("loop", spec.name, "source", partial(self._judge_loop, spec), None)
        return CiReport(
            outcome=outcome_of(self._cases, strict=self._strict),
            file=str(self._file),
            at=at,
            seconds=(monotonic_ns() - began) / 1e9,
            against=self._source.location if self._source is not None else "",
            sample=self._sample,
            everloop=self._everloop,
            git=self._git(),
            environment=self._environment or environment_of({}),
            models=tuple(self._models),
            cases=tuple(map(_plain, self._cases)),
        )

    def record(self, report: CiReport, digest: str, *, in_source: bool = False) -> None:
        """Keep in the event log that CI ran for this code; one fact for each loop.

        Args:
            digest: Of the report's bytes.
            in_source: Also where data and champion come from.

        Raises:
            NotAllowed: If the source may not be written to.
        """
        places = [self._whole.automation]
        if in_source and self._source is not None:
            places.append(self._source.automation)
        for model in report.models or (CiModel(loop=self._file.stem),):
            cases = [case for case in report.cases if case.loop in ("", model.loop)]
            counts = CiReport.counts(report) if not report.models else _counted(cases)
            summary = CiSummary(
                loop=model.loop,
                code=model.code,
                outcome=outcome_of(cases, strict=self._strict),
                report=digest,
                git=report.git,
                counts=counts,
            )
            for place in places:
                place.record_ci(summary)

    # --- what there is ---------------------------------------------------------------------------

    def _git(self) -> dict[str, str]:
        found = git_of(self._file.resolve().parent)
        return found | ({"branch": self._branch} if found and self._branch else {})

    def _reached(self, trouble: EverloopError | None) -> bool:
        def reach() -> bool:
            if trouble is not None:
                raise trouble
            if self._source is not None:
                self._source.data.datasets()
            return True

        return self._guard("loop", "", "source", reach, False)

    def _load(self) -> list[LoopSpec]:
        """The loops of the file; importing it declares nothing anywhere."""
        before = {spec.name: spec for spec in declared()}

        def load() -> list[LoopSpec]:
            with using(self._whole), collecting():
                load_module(self._file)
            specs = [spec for spec in declared() if isinstance(spec, LoopSpec)]
            found = [spec for spec in specs if before.get(spec.name) is not spec]
            told = "it declares no loop: there is nothing to judge (see ev.loop)"
            if found:
                told = f"it declares {', '.join(spec.name for spec in found)}"
            self._add("loop", "", "import", "passed" if found else "failed", told)
            return found

        return self._guard("loop", "", "import", load, [])

    # --- one loop --------------------------------------------------------------------------------

    def _judge_loop(self, spec: LoopSpec) -> None:
        champion, days = None, days_of(spec, self._whole.clock.now())
        if self._opponent is not None:
            champion, days = self._opponent.champion(spec), self._opponent.days(spec)
        stated = contracts_of(spec.name)
        self._tell(f"{spec.name}: data contracts")
        for name, schema in stated.items():
            self._contract(spec, name, schema)
        ran: dict[str, _Made] = {}
        learned_until = days.since if champion is not None and days.is_served else None
        for phase, place in self._phases():
            if champion is not None and self._opponent is not None:
                self._opponent.copy(place, champion)
            else:
                forget_champion(place, spec.name)
            self._tell(
                f"{spec.name}: the pipeline on {'all rows' if phase == 'all' else 'a sample'}"
            )
            ran[phase] = made = self._pipeline(spec, phase, place, learned_until, days.until)
            for name, schema in place.data.stated.items():
                if name not in stated:
                    stated = {**stated, name: schema}
                    self._contract(spec, name, schema)
            if made.candidate is None:
                break
        self._unstated(spec, stated)
        last, made = list(ran.items())[-1]
        place = self._place(ran)
        verdict = ""
        if made.candidate is None:
            why = "there is no candidate: the pipeline did not end well"
            self._cases += not_judged(spec.name, spec.gates, why)
        else:
            self._tell(f"{spec.name}: model tests")
            verdict = self._candidate(spec, place, made, last, champion, days)
        self._models.append(self._model(spec, champion, ran, made, learned_until, verdict))

    def _phases(self) -> Iterator[tuple[str, Mirror]]:
        if self._small is not None:
            yield "sample", self._small
        if self._small is None or not self._sample_only:
            yield "all", self._whole

    def _place(self, ran: Mapping[str, _Made]) -> Mirror:
        """Where the last run was."""
        return self._small if self._small is not None and "all" not in ran else self._whole

    def _model(
        self,
        spec: LoopSpec,
        champion: Champion | None,
        ran: Mapping[str, _Made],
        made: _Made,
        until: datetime | None,
        verdict: str,
    ) -> CiModel:
        place, code = self._place(ran), ""
        if made.run_id:
            run = place.tracking.run(made.run_id)
            code = run.code
            self._environment |= run.environment
        return CiModel(
            loop=spec.name,
            candidate=made.candidate.ref if made.candidate is not None else "",
            champion=champion.version.ref if champion is not None else "",
            digest=made.candidate.digest if made.candidate is not None else "",
            code=code,
            runs={phase: one.run_id for phase, one in ran.items()},
            until=until,
            verdict=verdict,
        )

    # --- contracts -------------------------------------------------------------------------------

    def _contract(self, spec: LoopSpec, name: str, schema: Schema) -> None:
        """Hold the newest version of the source against what this code says of it."""

        def hold() -> None:
            began = monotonic_ns()
            found = self._newest(name)
            if found is None:
                told = "the source has no such dataset: there are no rows to hold against it"
                self._add("contract", spec.name, name, "not judged", told)
                return
            rows = read_blocks(self._whole.blobs, found.blocks, found.schema, found.schema.names)
            case = contract_case(spec.name, schema, found, rows, owner=self._owner(name))
            self._cases.append(_timed(case, began))

        self._guard("contract", spec.name, name, hold, None)

    def _newest(self, name: str) -> DatasetVersion | None:
        try:
            self._whole.data.version(name)  # brings it here
        except NotFound:
            return None
        return self._whole.data.asked.get(name)

    def _owner(self, name: str) -> str:
        assert self._source is not None  # else there was no version
        return next((d.owner for d in self._source.data.datasets() if d.name == name), "")

    def _unstated(self, spec: LoopSpec, stated: Mapping[str, Schema]) -> None:
        told = "this code states no schema for it; the one it was committed with held then"
        for name in self._whole.data.asked:
            if name not in stated:
                self._add("contract", spec.name, name, "not judged", told)

    # --- the pipeline ----------------------------------------------------------------------------

    def _pipeline(
        self,
        spec: LoopSpec,
        phase: str,
        place: Mirror,
        learned_until: datetime | None,
        until: datetime,
    ) -> _Made:
        began = monotonic_ns()
        result: object = None
        status, told, pipeline = "passed", "", None
        with using(place), collecting():
            try:
                pipeline = load_pipeline(str(self._root / spec.pipeline))
                pipeline.run_id = ""
                given = self._arguments(pipeline.function)
                given = _with_until(pipeline, given, learned_until, until) | given
                result = pipeline.run(**given)
            except RunWaiting as waits:
                status, told = "not judged", f"it waits, and CI answers nobody: {waits.message}"
            except (EverloopError, SystemExit) as error:
                status, told = "failed", _told(error)
        run_id = pipeline.run_id if pipeline is not None else ""
        candidate = result if isinstance(result, ModelVersion) else None
        if status == "passed" and (candidate is None or candidate.name != spec.name):
            got = candidate.ref if candidate is not None else type(result).__name__
            status = "failed"
            told = f"it must return a version of {spec.name!r}, got {got}"
            candidate = None
        steps = place.pipelines.steps(run_id) if run_id else []
        if not told:
            ran = sum(step.outcome == "ran" for step in steps)
            told = f"{ran} steps ran, {len(steps) - ran} were cached"
        case = CiCase(
            group="step",
            loop=spec.name,
            name=f"{phase}: {spec.pipeline}",
            status=status,  # type: ignore[arg-type]
            told=told,
            evidence={"run": run_id},
        )
        self._cases.append(_timed(case, began))
        self._cases += step_cases(spec.name, phase, steps)
        if run_id:
            place.tracking.set_tag(run_id, _RUN_TAG, status)
        return _Made(run_id, candidate)

    # --- model tests -----------------------------------------------------------------------------

    def _candidate(
        self,
        spec: LoopSpec,
        place: Mirror,
        made: _Made,
        phase: str,
        champion: Champion | None,
        days: Days,
    ) -> str:
        """Judge what the pipeline made; the id of the verdict, or empty."""
        assert made.candidate is not None
        version, loop = made.candidate, spec.name
        self._cases.append(finite_metrics(loop, place.tracking.run(made.run_id)))
        log = None
        if self._opponent is not None and champion is not None and days.is_served:
            log = self._opponent.holdout(spec, days)
        scorer = self._scorer(place, version)
        if scorer is None:
            self._cases += not_judged(loop, spec.gates, "the candidate does not load")
            return ""
        rows = subject_of(version, scorer, log).rows
        kind = "served" if len(rows) else "made-up"
        rows = rows if len(rows) else made_up_rows(version.signature.inputs)
        case = scores_case(
            loop, scorer, rows,
            kind=kind, probabilities=takes_probabilities(spec.gates),
        )  # fmt: skip
        self._cases.append(case)
        if case.status != "passed":
            why = "the candidate's scores are not what gates can judge"
            self._cases += not_judged(loop, spec.gates, why)
            return ""
        return self._gates(spec, place, made, phase, champion, log, scorer)

    def _scorer(self, place: Mirror, version: ModelVersion) -> Scorer | None:
        files = place.registry.files(version.name, version.version)
        name = "candidate loads from its files"
        try:
            scorer = load_predictor(version, files, registry=place.registry)
        except EverloopError as error:
            self._add("check", version.name, name, "refused", _told(error))
            return None
        size = sum(file.size for file in version.files)
        told = f"{version.flavor}, {size / 1e6:.2f} MB, digest {version.digest[:12]}"
        changed = version.compatibility.backward if version.compatibility is not None else ()
        if changed:
            told += f"; not as the champion's signature: {', '.join(map(str, changed))}"
        self._add("check", version.name, name, "passed", told)
        return scorer

    def _gates(
        self,
        spec: LoopSpec,
        place: Mirror,
        made: _Made,
        phase: str,
        champion: Champion | None,
        log: pa.Table | None,
        scorer: Scorer,
    ) -> str:
        assert made.candidate is not None
        version, now = made.candidate, self._whole.clock.now()
        if champion is None or log is None:
            why = "there is no champion" if champion is None else "the champion was asked nothing"
            if self._source is None:
                why = "there is no source to compare with: give --against"
            verdict = first_verdict(
                spec.gates,
                version,
                subject=lambda: subject_of(version, scorer),
                now=now,
                run_id=made.run_id,
            )
            left = [gate for gate in spec.gates if gate.kind not in ROWLESS]
            return self._keep(spec, place, verdict, left, why)
        left = []
        gates = spec.gates
        why = "the candidate learned from a sample; only one that learned from all can be compared"
        if phase != "all":
            left = [gate for gate in gates if gate.kind not in SUBJECT]
            gates = tuple(gate for gate in gates if gate.kind in SUBJECT)
        if not gates:
            self._cases += not_judged(spec.name, left, why)
            return ""
        try:
            verdict = self._verdict(gates, log, version, scorer, champion, now, made.run_id)
        except (EverloopError, ArithmeticError) as error:
            self._cases += not_judged(spec.name, spec.gates, _told(error))
            return ""
        return self._keep(spec, place, verdict, left, why)

    def _verdict(
        self,
        gates: tuple[Gate, ...],
        log: pa.Table,
        version: ModelVersion,
        scorer: Scorer,
        champion: Champion,
        now: datetime,
        run_id: str,
    ) -> Verdict:
        assert self._opponent is not None  # there is a champion
        opponent, name = self._opponent, version.name
        copy = opponent.copy(self._whole, champion)
        loaded = load_predictor(copy, champion.artifact.files, registry=self._whole.registry)
        return judge_on_log(
            gates,
            log,
            candidate=(version, scorer),
            champion=(champion.version, loaded),
            version_of=lambda number: opponent.version(name, number),
            now=now,
            run_id=run_id,
        ).verdict

    def _keep(
        self, spec: LoopSpec, place: Mirror, verdict: Verdict, left: list[Gate], why: str
    ) -> str:
        self._cases += [gate_case(spec.name, result) for result in verdict.results]
        self._cases += not_judged(spec.name, left, why)
        return place.evaluation.record(verdict).id

    # --- inside ----------------------------------------------------------------------------------

    def _add(self, group: CiGroup, loop: str, name: str, status: CiStatus, told: str) -> None:
        case = CiCase(group=group, loop=loop, name=name, status=status, told=told)
        self._cases.append(case)

    def _guard(
        self, group: CiGroup, loop: str, name: str, act: Callable[[], _T], otherwise: _T
    ) -> _T:
        """What goes wrong becomes a case, and the others go on."""
        try:
            return act()
        except (EverloopError, SystemExit) as error:
            self._add(group, loop, name, "failed", _told(error))
            return otherwise


def _with_until(
    pipeline: Pipeline[Any, Any],
    given: Mapping[str, Any],
    learned_until: datetime | None,
    until: datetime,
) -> dict[str, Any]:
    """``until``, as the loop gives it: before the hold-out, where there is one."""
    if "until" in given or not pipeline.takes("until"):
        return {}
    if learned_until is not None:
        return {"until": learned_until}
    parameter = pipeline.signature.parameters["until"]
    return {"until": until} if parameter.default is parameter.empty else {}


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the code ended the process: sys.exit({error.code!r})"
    if isinstance(error, EverloopError):
        kind = ""
        if isinstance(error, NotAllowed):
            kind = "not allowed: "
        elif isinstance(error, BackendError):
            kind = "out of reach: "
        return f"{kind}{error}"
    return f"{type(error).__name__}: {error}"


def _plain(case: CiCase) -> CiCase:
    """Without halves of surrogate pairs, which a traceback may hold and no document can."""
    name, told = (text.encode(errors="replace").decode() for text in (case.name, case.told))
    return msgspec.structs.replace(case, name=name, told=told)


def _timed(case: CiCase, began: int) -> CiCase:
    return msgspec.structs.replace(case, seconds=(monotonic_ns() - began) / 1e9)


def _counted(cases: list[CiCase]) -> dict[str, int]:
    found: dict[str, int] = {}
    for case in cases:
        found[case.status] = found.get(case.status, 0) + 1
    return found
