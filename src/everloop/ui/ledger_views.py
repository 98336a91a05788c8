"""What the pages of the row ledger and of work lists show, as data."""

from __future__ import annotations

import msgspec

from everloop.core.dataset import RowChange, RowChangeSummary
from everloop.core.work import LedgerTotal, WorkList
from everloop.workspace import Workspace

__all__ = ["LedgerPage", "WorkPage", "ledger_page", "work_page"]

_ENTRIES, _ROWS, _ITEMS = 100, 50, 200


class LedgerPage(msgspec.Struct, frozen=True, kw_only=True):
    """What rules did to the rows of a dataset.

    Attributes:
        entries: The newest; `more` are not shown.
        rows: Of the newest entries; personal data is masked.
        open_items: How much of it somebody has yet to correct.
    """

    dataset: str
    owner: str
    versions: int
    totals: list[LedgerTotal]
    entries: list[RowChangeSummary]
    more: int
    rows: list[RowChange]
    open_items: int


class WorkPage(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner must correct, or everybody."""

    owner: str
    work: WorkList


def ledger_page(workspace: Workspace, name: str) -> LedgerPage:
    """The ledger of a dataset.

    Raises:
        NotFound: If there is no such dataset.
    """
    data = workspace.data
    latest = data.version(name)
    totals = data.change_totals(dataset=name)
    entries = data.changes(dataset=name, limit=_ENTRIES)
    known = {dataset.name: dataset.owner for dataset in data.datasets()}
    return LedgerPage(
        dataset=name,
        owner=known.get(name, ""),
        versions=latest.number,
        totals=totals,
        entries=entries,
        more=sum(total.entries for total in totals) - len(entries),
        rows=data.changed_rows(dataset=name, limit=_ROWS),
        open_items=data.work(dataset=name, limit=0).total,
    )


def work_page(workspace: Workspace, owner: str) -> WorkPage:
    """The work list of an owner; of everybody for an empty one."""
    return WorkPage(owner=owner, work=workspace.data.work(owner=owner, limit=_ITEMS))
