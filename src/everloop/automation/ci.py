"""ContinuousIntegration: tries the loops of a file at this commit; nothing that is live changes.

The pipelines run in workspaces of CI's own, which mirror data, champion and hold-out of the source:
first on a sample, which shows whether the code works, then on all rows, for only a model that
learned from all of them can be compared with the champion. ``docs/adr/0012`` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from everloop.automation.ci_loop import LoopTrial, Setup, message_of
from everloop.automation.ci_source import Mirror, Opponent, Source
from everloop.automation.triggers import collecting, declared
from everloop.core.ci import CiCase, CiModel, CiReport, CiStatus, CiSummary, counted, outcome_of
from everloop.core.context import using
from everloop.core.policy import LoopSpec
from everloop.core.time import monotonic_ns
from everloop.errors import EverloopError
from everloop.pipelines.load import load_module
from everloop.settings import without_password
from everloop.tracking.surroundings import environment_of, git_of

__all__ = ["ContinuousIntegration"]

_T = TypeVar("_T")


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
        sample_only: Do not run the pipelines on all rows.
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
        opponent = None if source is None else Opponent(source, whole)
        self._setup = Setup(root, whole, small, opponent, arguments, sample_only, tell)
        self._file = file
        self._source = source
        self._sample = sample
        self._strict = strict
        self._branch = branch
        self._everloop = everloop
        self._cases: list[CiCase] = []

    def run(self, trouble: EverloopError | None = None) -> CiReport:
        """Find out everything that can be found out; what goes wrong is a case, and not raised.

        Args:
            trouble: Why the source could not be opened.
        """
        began, at = monotonic_ns(), self._setup.whole.clock.now()
        models: list[CiModel] = []
        if self._guard("source", lambda: self._reach(trouble), False):
            specs: list[LoopSpec] = self._guard("import", self._load, [])
            for spec in specs:
                trial = LoopTrial(spec, self._setup)
                fallback = CiModel(loop=spec.name)
                models.append(self._guard("trial", trial.run, fallback, spec.name, trial.cases))
        return CiReport(
            outcome=outcome_of(self._cases, strict=self._strict),
            file=str(self._file),
            at=at,
            seconds=(monotonic_ns() - began) / 1e9,
            against=without_password(self._source.location) if self._source is not None else "",
            sample=self._sample,
            everloop=self._everloop,
            git=self._git(),
            environment=environment_of({}),
            models=tuple(models),
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
        places = [self._setup.whole.automation]
        if in_source and self._source is not None:
            places.append(self._source.automation)
        for model in report.models or (CiModel(loop=self._file.stem),):
            cases = [case for case in report.cases if case.loop in ("", model.loop)]
            summary = CiSummary(
                loop=model.loop,
                code=model.code,
                outcome=outcome_of(cases, strict=self._strict),
                report=digest,
                git=report.git,
                counts=counted(cases),
            )
            for place in places:
                place.record_ci(summary)

    def _reach(self, trouble: EverloopError | None) -> bool:
        if trouble is not None:
            raise trouble
        if self._source is not None:
            self._source.data.datasets()
        return True

    def _load(self) -> list[LoopSpec]:
        """The loops of the file; importing it declares nothing anywhere."""
        before = {spec.name: spec for spec in declared()}
        with using(self._setup.whole), collecting():
            load_module(self._file)
        specs = [spec for spec in declared() if isinstance(spec, LoopSpec)]
        found = [spec for spec in specs if before.get(spec.name) is not spec]
        status: CiStatus = "failed"
        told = "it declares no loop: there is nothing to judge (see ev.loop)"
        if found:
            status, told = "passed", f"it declares {', '.join(spec.name for spec in found)}"
        self._cases.append(CiCase(group="loop", name="import", status=status, told=told))
        return found

    def _git(self) -> dict[str, str]:
        found = git_of(self._file.resolve().parent)
        return found | ({"branch": self._branch} if found and self._branch else {})

    def _guard(
        self,
        name: str,
        act: Callable[[], _T],
        otherwise: _T,
        loop: str = "",
        cases: Sequence[CiCase] = (),
    ) -> _T:
        """What goes wrong becomes a case, after those that were found; and the others go on."""
        try:
            found = act()
        except (EverloopError, SystemExit) as error:
            told = message_of(error)
            failed = CiCase(group="loop", loop=loop, name=name, status="failed", told=told)
            self._cases += [*cases, failed]
            return otherwise
        self._cases += cases
        return found


def _plain(case: CiCase) -> CiCase:
    """Without halves of surrogate pairs, which a traceback may hold and no document can."""
    name, told = (text.encode(errors="replace").decode() for text in (case.name, case.told))
    return msgspec.structs.replace(case, name=name, told=told)
