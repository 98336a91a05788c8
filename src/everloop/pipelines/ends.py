"""What is kept of a step's end, by whoever commits it: the driver, or a worker of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from everloop.core.pipeline import Memo, StepKey, StoredValue
from everloop.core.reads import Read
from everloop.core.run import Metric
from everloop.pipelines.reads import read_parts

__all__ = ["memo_of", "record_changes"]


def memo_of(
    key: StepKey,
    stored: StoredValue,
    run_id: str,
    *,
    tables: Iterable[tuple[str, Any, Any]] = (),
    reads: Iterable[Read] = (),
    logged: Iterable[Metric] = (),
) -> Memo:
    """A stored result with what belongs to it: sources, reads and metrics.

    A later run that takes the result from the store has the same inputs and metrics.
    """
    beside: dict[str, Any] = {}
    for _, sources, _ in tables:
        beside.setdefault("sources", []).extend(list(source) for source in sources)
    reads, logged = list(reads), list(logged)
    if reads:
        beside["reads"] = [list(read) for read in reads]
    if logged:
        beside["logged"] = [[p.key, repr(p.value), p.step] for p in logged]
    if beside:
        stored = msgspec.structs.replace(stored, meta={**stored.meta, **beside})
    key.parts.update(read_parts(reads))
    return Memo(key=key, value=stored, run_id=run_id, created_at=datetime.now(UTC))


def record_changes(data: Any, scope: str, changes: Iterable[Any]) -> None:
    """Put what a step did to rows into the ledger; the same again is recorded once."""
    for change in changes:
        data.record_changes(
            scope,
            change.dataset,
            change.rule,
            change.action,
            change.reason,
            change.owner,
            change.rows,
        )
