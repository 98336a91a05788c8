"""What ``everloop ci`` finds out about a commit: cases, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

__all__ = [
    "CiCase",
    "CiGroup",
    "CiModel",
    "CiReport",
    "CiStatus",
    "CiSummary",
    "counted",
    "outcome_of",
]

CiGroup = Literal["loop", "contract", "step", "check", "gate"]
#: ``refused``: something was shown not to hold. ``failed``: it could not be found out, for
#: something broke. ``not judged``: there was nothing to judge by; neither a yes nor a no.
CiStatus = Literal["passed", "refused", "failed", "not judged"]


class CiCase(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was asked, and the answer.

    Attributes:
        group: ``loop`` (the file, the source, the record), ``contract`` (a dataset against the
            schema of this code), ``step`` (of the pipeline), ``check`` (of the candidate) or
            ``gate`` (as the loop declares it).
        loop: Whose; empty for what belongs to the file.
        name: Within group and loop.
        seconds: How long it took; 0 where that means nothing.
        told: The sentence for people.
        evidence: What the sentence stands on.
    """

    group: CiGroup
    name: str
    status: CiStatus
    told: str
    loop: str = ""
    seconds: float = 0.0
    evidence: dict[str, Any] = {}


class CiModel(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate of one loop.

    Attributes:
        candidate: ``name/version`` in the workspace of CI; empty if none came about.
        champion: ``name/version`` in the source; empty if there is none.
        digest: Of the candidate's files.
        code: Digest of the code snapshot that the pipeline ran.
        environment: Python, platform, and the versions of the distributions that this code reaches.
        runs: Run in the workspace of CI, by what it ran on: ``sample`` and ``all``.
        until: Last instant that the candidate could learn from, where the pipeline takes one.
        verdict: Id of the verdict in the workspace of CI, or empty.
    """

    loop: str
    candidate: str = ""
    champion: str = ""
    digest: str = ""
    code: str = ""
    environment: dict[str, str] = {}
    runs: dict[str, str] = {}
    until: datetime | None = None
    verdict: str = ""


class CiReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run of CI. The file ``report.json`` is this, as JSON.

    Attributes:
        format: Of this document; a field that changes its meaning raises it.
        outcome: ``passed``, ``refused`` (exit status 3) or ``failed`` (exit status 1).
        against: Where data and champion come from; empty for nowhere.
        sample: What was asked for, such as ``10%``; ``all`` for no sample.
        git: ``commit``, ``branch`` and ``dirty``; empty outside a repository.
        environment: Python and platform.
        files: Written beside this one.
    """

    format: int = 1
    outcome: CiStatus
    file: str
    at: datetime
    seconds: float
    against: str = ""
    sample: str = ""
    everloop: str = ""
    git: dict[str, str] = {}
    environment: dict[str, str] = {}
    models: tuple[CiModel, ...] = ()
    cases: tuple[CiCase, ...] = ()
    files: tuple[str, ...] = ("report.md", "report.json", "junit.xml")

    def counts(self) -> dict[str, int]:
        """How many cases had which answer."""
        return counted(self.cases)


class CiSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the event log keeps of a run of CI, for one loop.

    Attributes:
        loop: Name of the loop; empty where the file did not get so far.
        code: Digest of the code snapshot; empty where the pipeline did not run.
        report: blake3 of ``report.json``.
        counts: Cases by answer.
    """

    loop: str
    code: str
    outcome: CiStatus
    report: str
    git: dict[str, str] = {}
    counts: dict[str, int] = {}


def counted(cases: Iterable[CiCase]) -> dict[str, int]:
    """How many cases had which answer."""
    found = dict.fromkeys(("passed", "refused", "failed", "not judged"), 0)
    for case in cases:
        found[case.status] += 1
    return found


def outcome_of(cases: Sequence[CiCase], *, strict: bool = False) -> CiStatus:
    """The outcome of all: what failed weighs most, then what was refused.

    Args:
        strict: What was not judged counts as refused.
    """
    found = {case.status for case in cases}
    if "failed" in found:
        return "failed"
    if "refused" in found or (strict and "not judged" in found):
        return "refused"
    return "passed"
