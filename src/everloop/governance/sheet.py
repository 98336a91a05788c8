"""The data sheet of a dataset: everything known of one version, and what nobody stated.

Its headings follow Gebru et al., Datasheets for Datasets (2021): motivation, composition,
provenance, uses, distribution, maintenance. No value of a row is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from everloop.core.dataset import Dataset, DatasetVersion, RowChangeSummary
from everloop.core.erase import Hold, Receipt
from everloop.core.lineage import Edge
from everloop.core.personal import TERMS, DatasetTerms, PersonalColumn
from everloop.core.pii import PiiReport
from everloop.core.profile import Profile
from everloop.core.quality import QualityReport
from everloop.core.retention import RetentionRule
from everloop.core.run import Run

__all__ = ["DataSheet", "LedgerTotal", "SheetColumn", "SheetRule", "make_sheet"]

#: What came of a dataset is told by these kinds, in this order.
_USES = ("model", "logged_model", "feature_view", "feature_set", "deployment", "dataset", "run")


class SheetColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One column.

    Attributes:
        missing: Values that are not there; None where the version is no table.
        pii: What kind of personal data it is stated to hold.
        detected: What recognisers found in it.
        mask: What whoever may not see it gets.
    """

    name: str
    type: str
    unit: str = ""
    meaning: str = ""
    description: str = ""
    owner: str = ""
    nullable: bool = True
    missing: int | None = None
    pii: str = ""
    detected: tuple[str, ...] = ()
    mask: str = ""


class SheetRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule with who answers for it, and how many rows of this version break it."""

    name: str
    owner: str = ""
    on_fail: str = ""
    failed: int = 0
    broken: bool = False
    unjudged: str = ""


class LedgerTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that one rule dropped, changed, set aside or warned of, in all commits and steps."""

    rule: str
    action: str
    rows: int
    owner: str = ""


class DataSheet(msgspec.Struct, frozen=True, kw_only=True):
    """The data sheet of one version.

    Attributes:
        stated: What people said of the dataset, by ``TERMS``; empty where nobody did.
        sources: What the version was made of directly.
        uses: What came of it, by kind of thing.
        looked_at: Rows that recognisers looked at.
        warnings: What somebody should see to.
        not_stated: What nobody said.
    """

    ref: str
    dataset: str
    number: int
    kind: str
    digest: str
    created_at: datetime
    author: str
    note: str
    rows: int
    files: int
    bytes: int
    owner: str
    stated: dict[str, str]
    columns: tuple[SheetColumn, ...]
    key: tuple[str, ...]
    versions: int
    first_at: datetime
    authors: tuple[str, ...]
    run: str
    pipeline: str
    sources: tuple[str, ...]
    rules: tuple[SheetRule, ...]
    ledger: tuple[LedgerTotal, ...]
    looked_at: int
    grants: tuple[str, ...]
    retention: str
    holds: tuple[str, ...]
    erasures: tuple[str, ...]
    uses: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    not_stated: tuple[str, ...]


def make_sheet(
    dataset: Dataset,
    version: DatasetVersion,
    *,
    terms: DatasetTerms,
    personal: Sequence[PersonalColumn],
    versions: Sequence[DatasetVersion],
    profile: Profile | None,
    report: QualityReport | None,
    pii: PiiReport | None,
    run: Run | None,
    changes: Sequence[RowChangeSummary],
    rule: RetentionRule | None,
    holds: Sequence[Hold],
    receipts: Sequence[Receipt],
    before: Sequence[Edge],
    after: Sequence[Edge],
) -> DataSheet:
    """Put together what is known; nothing is made up.

    Args:
        profile, report, pii: Of this version; None where it is no table.
        run: That made it, or None where none did or it is not known.
        changes: Of the dataset, in commits and steps.
        rule, holds, receipts: Those that are about this dataset.
        before, after: Edges of the lineage to and from the version.
    """
    columns = _columns(version, personal, profile, pii)
    rules = _rules(version, report)
    stated = {name: getattr(terms, name) for name in TERMS}
    stated["description"] = stated["description"] or dataset.description
    retention = _retention(rule)
    return DataSheet(
        ref=version.ref,
        dataset=version.dataset,
        number=version.number,
        kind=version.kind,
        digest=version.holds,
        created_at=version.created_at,
        author=version.author,
        note=version.note,
        rows=version.rows,
        files=version.files,
        bytes=version.size or sum(block.size for block in version.blocks),
        owner=dataset.owner,
        stated=stated,
        columns=columns,
        key=version.schema.key,
        versions=len(versions),
        first_at=min(v.created_at for v in versions),
        authors=tuple(dict.fromkeys(v.author for v in versions if v.author)),
        run=version.run_id,
        pipeline=run.pipeline if run is not None else "",
        sources=tuple(dict.fromkeys(edge.source for edge in before)),
        rules=rules,
        ledger=_ledger(changes),
        looked_at=pii.looked_at if pii is not None else 0,
        grants=tuple(_grant(terms)),
        retention=retention,
        holds=tuple(f"{hold.name}: {hold.reason}" for hold in holds),
        erasures=tuple(_erasure(receipt) for receipt in receipts),
        uses=_uses(version.ref, after),
        warnings=tuple(_warnings(columns, rules)),
        not_stated=tuple(_not_stated(dataset, stated, columns, version, rules, retention)),
    )


def _columns(
    version: DatasetVersion,
    personal: Sequence[PersonalColumn],
    profile: Profile | None,
    pii: PiiReport | None,
) -> tuple[SheetColumn, ...]:
    marked = {column.name: column for column in personal}
    nulls = {column.name: column.nulls for column in profile.columns} if profile else {}
    found: dict[str, list[str]] = {}
    for one in pii.findings if pii else ():
        if one.found:
            how = f"{one.share:.0%}" if one.matched else "by its name"
            found.setdefault(one.column, []).append(f"{one.kind} ({how})")
    return tuple(
        SheetColumn(
            name=f.name,
            type=f.type,
            unit=f.unit,
            meaning=f.semantic,
            description=f.description,
            owner=f.owner,
            nullable=f.nullable,
            missing=nulls.get(f.name),
            pii=marked[f.name].kind if f.name in marked else "",
            detected=tuple(found.get(f.name, ())),
            mask=marked[f.name].mask if f.name in marked else "",
        )
        for f in version.schema.fields
    )


def _rules(version: DatasetVersion, report: QualityReport | None) -> tuple[SheetRule, ...]:
    if report is None:
        return ()
    broken = {one.rule: one for one in report.broken}
    owners = {check.name: check.owner for check in version.schema.checks}
    fields = {field.name: field for field in version.schema.fields}
    on_fail = {check.name: str(check.on_fail) for check in version.schema.checks}
    names = dict.fromkeys([*report.rules, *report.unjudged])
    made = []
    for name in names:
        field = fields.get(name.rpartition(".")[0])
        result = broken.get(name)
        made.append(
            SheetRule(
                name=name,
                owner=owners.get(name) or (field.owner if field is not None else ""),
                on_fail=on_fail.get(name) or (str(field.on_fail) if field is not None else "fail"),
                failed=result.failed if result is not None else 0,
                broken=result is not None,
                unjudged=report.unjudged.get(name, ""),
            )
        )
    return tuple(made)


def _ledger(changes: Sequence[RowChangeSummary]) -> tuple[LedgerTotal, ...]:
    totals: dict[tuple[str, str, str], int] = {}
    for change in changes:
        key = (change.rule, change.action, change.owner)
        totals[key] = totals.get(key, 0) + change.rows
    return tuple(
        LedgerTotal(rule=rule, action=action, rows=rows, owner=owner)
        for (rule, action, owner), rows in sorted(totals.items())
    )


def _grant(terms: DatasetTerms) -> Iterable[str]:
    for grant in terms.grants:
        columns = ", ".join(grant.columns) or "all"
        yield f"{grant.to}: {columns}" + (f" ({grant.reason})" if grant.reason else "")


def _retention(rule: RetentionRule | None) -> str:
    if rule is None:
        return ""
    days = rule.keep_us / 86_400_000_000
    reason = f" ({rule.reason})" if rule.reason else ""
    return f"versions younger than {days:g} days, and the last {rule.keep_last}{reason}"


def _erasure(receipt: Receipt) -> str:
    reason = f": {receipt.reason}" if receipt.reason else ""
    return f"{receipt.id}, {receipt.asked_at:%Y-%m-%d}, by {receipt.actor}{reason}"


def _uses(ref: str, after: Sequence[Edge]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for edge in after:
        kind, _, name = edge.target.partition(":")
        if name != ref and name not in found.setdefault(kind, []):
            found[kind].append(name)
    order = [*(kind for kind in _USES if kind in found), *(k for k in found if k not in _USES)]
    return {kind: tuple(found[kind]) for kind in order}


def _warnings(columns: Sequence[SheetColumn], rules: Sequence[SheetRule]) -> Iterable[str]:
    for column in columns:
        if column.detected and not column.pii:
            kinds = ", ".join(column.detected)
            yield f"{column.name} holds what looks like {kinds}, and is not tagged"
    for rule in rules:
        if rule.broken:
            rows = f"{rule.failed} rows break it" if rule.failed else "it is broken"
            yield f"rule {rule.name}: {rows}"


def _not_stated(
    dataset: Dataset,
    stated: dict[str, str],
    columns: Sequence[SheetColumn],
    version: DatasetVersion,
    rules: Sequence[SheetRule],
    retention: str,
) -> Iterable[str]:
    if not dataset.owner:
        yield "owner"
    yield from (
        name
        for name, text in stated.items()
        if not text and not (name == "retention" and retention)
    )
    for what, names in (
        ("description", [c.name for c in columns if not c.description]),
        ("owner", [c.name for c in columns if not c.owner and not dataset.owner]),
        ("unit", [c.name for c in columns if not c.unit and _is_measure(c)]),
    ):
        if names:
            yield f"{what} of {', '.join(names)}"
    if version.kind == "table" and not version.schema.key:
        yield "key"
    if version.kind == "table" and not rules:
        yield "rules"
    if ownerless := [rule.name for rule in rules if not rule.owner and not dataset.owner]:
        yield f"owner of rule {', '.join(ownerless)}"
    if not version.author:
        yield "author"


def _is_measure(column: SheetColumn) -> bool:
    is_name = column.meaning in ("id", "categorical", "target") or column.pii
    return column.type.startswith("float") and not is_name
