"""One way to judge a candidate against the champion that serves, for the loop and for CI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from everloop.automation.holdout import Scorer, build_holdout, reference_of, subject_of
from everloop.core.gate import Gate, Uses, Verdict
from everloop.core.model import ModelVersion
from everloop.evaluation.gates import HoldOut, judge, needs_subject

__all__ = ["Judged", "judge_on_log"]


class Judged(NamedTuple):
    """A verdict with the rows that it stands on.

    Attributes:
        same_features: Versions whose answers could be used.
    """

    verdict: Verdict
    candidate: ModelVersion
    rows: HoldOut
    log: pa.Table
    same_features: frozenset[int]

    def reference(self) -> bytes:
        """What monitors compare the candidate's life with, from the same rows."""
        return reference_of(self.log, self.candidate, self.rows, self.same_features)


def judge_on_log(
    gates: Sequence[Gate],
    log: pa.Table,
    *,
    candidate: tuple[ModelVersion, Scorer],
    champion: tuple[ModelVersion, Scorer],
    version_of: Callable[[int], ModelVersion],
    now: datetime,
    run_id: str = "",
    uses: Uses | None = None,
) -> Judged:
    """Judge a candidate on the labelled answers of a log.

    Args:
        gates: The loop's.
        log: Predictions with labels, of the days that the gates look at.
        candidate: The version, and it loaded.
        champion: The version that serves, as the log numbers it, and it loaded.
        version_of: A version by the number that the log has.
        now: When the verdict is given.
        run_id: The run that made the candidate.
        uses: How often the hold-out was used before; not counted if not given.

    Raises:
        StateError: If the log lacks a feature of one of the two.
        InvalidInput: If a score is no number, or no probability where it must be one.
    """
    made, holder = candidate[0], champion[0]
    wanted = set(made.signature.inputs.names) | set(holder.signature.inputs.names)
    served = {int(number) for number in pc.unique(log.column("version")).to_pylist()}
    same = frozenset(
        number for number in served if wanted <= set(version_of(number).signature.inputs.names)
    ) | {holder.version}
    rows, facts = build_holdout(
        log,
        champion=champion,
        candidate=candidate,
        groups=[gate.group for gate in gates if gate.group],
        same_features=same,
    )
    verdict = judge(
        gates,
        model=made.name,
        candidate=made.version,
        champion=holder.version,
        rows=rows,
        now=now,
        run_id=run_id,
        subject=subject_of(made, candidate[1], log) if needs_subject(gates) else None,
        uses=uses,
        versions=(made, holder),
    )
    verdict = msgspec.structs.replace(verdict, holdout=verdict.holdout | facts)
    return Judged(verdict, made, rows, log, same)
