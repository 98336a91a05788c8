"""What people must correct: the items of a work list, and where a row of a dataset got to."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.core.dataset import RowChange, Value

__all__ = ["LedgerTotal", "Station", "WhyAbsent", "WorkCount", "WorkItem", "WorkList"]

WorkKind = Literal["quarantined", "warned", "found", "rule"]
WorkState = Literal["open", "dismissed"]


class WorkItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody must correct.

    Attributes:
        id: What it is handed back, or dismissed, by.
        kind: ``quarantined`` row that waits; row that a rule ``warned`` of; row that somebody
            ``found`` to be wrong; or a ``rule`` that is broken by no single row, or by more rows
            (`rows`) than anybody corrects one by one.
        rule, reason: Why; of a quarantined row those of all its rules, with ``; `` between.
        owner: Whose it is: of the rule or column, else of the dataset.
        key: Values of the key columns; of a dataset without a key those of all columns, for a row
            that waits. Times are ISO 8601 text, bytes hexadecimal, personal data is masked.
        since: When it came up; None for rows in quarantine, whose versions tell it.
        note, by: Of a dismissed one why, and who said so.
    """

    id: str
    dataset: str
    kind: WorkKind
    state: WorkState = "open"
    rule: str
    reason: str
    owner: str
    suggestion: str = ""
    key: dict[str, Value] = {}
    rows: int = 1
    since: datetime | None = None
    note: str = ""
    by: str = ""


class WorkCount(msgspec.Struct, frozen=True, kw_only=True):
    """How much one owner has to do because of one rule."""

    owner: str
    dataset: str
    kind: WorkKind
    rule: str
    items: int


class WorkList(msgspec.Struct, frozen=True, kw_only=True):
    """What must be corrected.

    Attributes:
        total: All items; `items` has the first of them.
        counts: By owner, dataset, kind and rule, the most first; they add up to `total`.
    """

    total: int
    counts: tuple[WorkCount, ...]
    items: tuple[WorkItem, ...]


class LedgerTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule did in all to the rows of one dataset, over its versions and over runs.

    Attributes:
        entries: Commits and steps in which it did.
        rows: Rows of all of them; a row that two runs dropped counts twice.
    """

    dataset: str
    rule: str
    action: str
    owner: str
    entries: int
    rows: int
    first_at: datetime
    last_at: datetime


class Station(msgspec.Struct, frozen=True, kw_only=True):
    """One place that a row was looked for in, or one thing that was done to it.

    Attributes:
        place: ``name@number``, or ``run:id/step``.
        what: What was found there.
        told: The same as a sentence.
        change: What the ledger says of it, where it does.
    """

    place: str
    what: Literal[
        "there", "not there", "dropped", "changed", "warned", "quarantined", "waiting", "fixed",
        "dismissed", "found", "erased", "maybe erased", "not followed",
    ]  # fmt: skip
    told: str
    at: datetime | None = None
    change: RowChange | None = None


class WhyAbsent(msgspec.Struct, frozen=True, kw_only=True):
    """Where a row got to, station by station.

    Attributes:
        where: Values that it was sought by; those of personal data are masked.
        ref: The version that it was sought in.
        run: The run whose steps it was followed through, or empty.
        rows: How many rows of the version were meant.
        present: Whether it is at the end of the way; None if that cannot be said.
        answer: One sentence.
    """

    where: dict[str, Any]
    ref: str
    run: str = ""
    rows: int
    present: bool | None
    answer: str
    stations: tuple[Station, ...]
