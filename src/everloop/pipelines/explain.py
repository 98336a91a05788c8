"""Why a step ran or not: what differs between its key and the nearest stored one."""

from __future__ import annotations

from typing import Protocol

from everloop.core.pipeline import Explanation, Memo, PartChange
from everloop.core.run import StepRun

__all__ = ["changes", "explain"]


class _Nearest(Protocol):
    def __call__(
        self, step: str, *, before: str = "", parts: dict[str, str] | None = None
    ) -> Memo | None: ...


def changes(before: dict[str, str], now: dict[str, str]) -> tuple[PartChange, ...]:
    """The parts in which two keys differ, sorted; an absent part is empty."""
    return tuple(
        PartChange(part=part, before=before.get(part, ""), now=now.get(part, ""))
        for part in sorted(before.keys() | now.keys())
        if before.get(part) != now.get(part)
    )


def explain(row: StepRun, memo: Memo | None, nearest: _Nearest) -> Explanation:
    """Explain one call of a step.

    Args:
        row: The call.
        memo: The stored result under its key, if any.
        nearest: Finds the stored result that differs least.
    """
    if memo is None:
        reason = f"it {row.outcome}, and no result is stored for it"
        return Explanation(step=row.step, seq=row.seq, outcome=row.outcome, reason=reason)
    if row.outcome == "cached":
        reason = f"every part equals that of run {memo.run_id}"
        return _explanation(row, memo, reason, compared=memo, differ=())
    other = nearest(row.step, before=memo.key.digest, parts=memo.key.parts)
    if memo.run_id != row.run_id:
        reason = f"run {memo.run_id} stored the same result first"
        return _explanation(row, memo, reason, compared=memo, differ=())
    if other is None:
        return _explanation(row, memo, "no result of this step was stored before", None, ())
    differ = changes(other.key.parts, memo.key.parts)
    names = ", ".join(change.part for change in differ[:5])
    more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
    return _explanation(row, memo, f"differs in {names}{more}", other, differ)


def _explanation(
    row: StepRun,
    memo: Memo,
    reason: str,
    compared: Memo | None,
    differ: tuple[PartChange, ...],
) -> Explanation:
    return Explanation(
        step=row.step,
        seq=row.seq,
        outcome=row.outcome,
        reason=reason,
        changes=differ,
        compared_run=compared.run_id if compared else "",
        notes=memo.key.notes,
        parts=memo.key.parts,
    )
