"""The data sheet as Markdown. No rule and no look-up here."""

from __future__ import annotations

from collections.abc import Iterable

from everloop.governance.card import NOT_STATED
from everloop.governance.sheet import DataSheet, SheetColumn, SheetRule

__all__ = ["sheet_text"]


def sheet_text(sheet: DataSheet) -> str:
    """The sheet, Markdown; what nobody stated is listed as not stated."""
    parts = [
        f"# {sheet.ref}",
        sheet.stated["description"],
        _section("Warnings", [f"- {one}" for one in sheet.warnings]) if sheet.warnings else "",
        _section("Purpose and owner", _purpose(sheet)),
        _section("Composition", _composition(sheet)),
        _section("Provenance", _provenance(sheet)),
        _section("Personal data", _personal(sheet)),
        _section("Quality", _quality(sheet)),
        _section("Kept and erased", _kept(sheet)),
        _section("Uses", [f"- {kind}: {', '.join(names)}" for kind, names in sheet.uses.items()]
                 or ["- nothing that is recorded came of it"]),
        _section("Not stated", [f"- {one}" for one in sheet.not_stated]
                 or ["- nothing is missing"]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _purpose(sheet: DataSheet) -> Iterable[str]:
    stated = sheet.stated
    for title, text in (
        ("Purpose", stated["purpose"]),
        ("Licence", stated["licence"]),
        ("Sensitivity", stated["sensitivity"]),
        ("Owner", sheet.owner),
    ):
        yield f"- {title}: {text or NOT_STATED}"


def _composition(sheet: DataSheet) -> Iterable[str]:
    if sheet.kind != "table":
        yield f"- {sheet.files} files, {sheet.bytes} bytes"
        return
    yield f"- {sheet.rows} rows, {len(sheet.columns)} columns, {sheet.bytes} bytes stored"
    yield f"- Key: {', '.join(sheet.key) or NOT_STATED}"
    yield ""
    yield "| column | type | unit | missing | description | owner | personal data |"
    yield "|---|---|---|---|---|---|---|"
    for c in sheet.columns:
        cells = (
            c.name, c.type, c.unit, str(c.missing), c.description or NOT_STATED, c.owner, c.pii,
        )  # fmt: skip
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") or "-"


def _provenance(sheet: DataSheet) -> Iterable[str]:
    by = ", ".join(sheet.authors) or NOT_STATED
    yield f"- Source: {sheet.stated['source'] or NOT_STATED}"
    yield f"- Version {sheet.number} of {sheet.created_at:%Y-%m-%d %H:%M} UTC by " + (
        sheet.author or NOT_STATED
    )
    count = f"{sheet.versions} version{'s' if sheet.versions > 1 else ''}"
    yield f"- {count} since {sheet.first_at:%Y-%m-%d}, by {by}"
    if sheet.note:
        yield f"- Note: {sheet.note}"
    if sheet.run:
        yield f"- Run: {sheet.run}" + (f" of {sheet.pipeline}" if sheet.pipeline else "")
    yield from (f"- Made of: {one}" for one in sheet.sources)
    yield f"- Content: `{sheet.digest}`"


def _personal(sheet: DataSheet) -> Iterable[str]:
    marked = [c for c in sheet.columns if c.pii or c.detected]
    if not marked:
        yield f"- none is stated, and none was found in {sheet.looked_at} rows"
        return
    yield from (_marked(column) for column in marked)
    yield from (f"- Granted, beside the role admin and the owner: {one}" for one in sheet.grants)
    yield f"- Recognisers looked at {sheet.looked_at} rows"


def _marked(column: SheetColumn) -> str:
    parts = [f"stated as {column.pii}" if column.pii else "not tagged"]
    if column.detected:
        parts.append(f"found: {', '.join(column.detected)}")
    if column.mask:
        parts.append(f"others get `{column.mask}`")
    return f"- `{column.name}`: {'; '.join(parts)}"


def _quality(sheet: DataSheet) -> Iterable[str]:
    broken = [rule for rule in sheet.rules if rule.broken]
    if not sheet.rules:
        yield f"- rules: {NOT_STATED}"
    else:
        yield f"- {len(sheet.rules)} rules, {len(broken)} broken by this version"
    yield from (_rule(rule) for rule in sheet.rules if rule.broken or rule.unjudged)
    for total in sheet.ledger:
        by = f", owner {total.owner}" if total.owner else ""
        yield f"- ledger: {total.rule} {total.action} {total.rows} rows in all{by}"


def _rule(rule: SheetRule) -> str:
    owner = f", owner {rule.owner}" if rule.owner else ""
    if rule.unjudged:
        return f"- {rule.name}: not judged, {rule.unjudged}{owner}"
    return f"- {rule.name}: {rule.failed} rows, on fail {rule.on_fail}{owner}"


def _kept(sheet: DataSheet) -> Iterable[str]:
    yield f"- Retention: {sheet.stated['retention'] or NOT_STATED}"
    yield f"- Rule: {sheet.retention or 'every version stays'}"
    yield from (f"- Held: {one}" for one in sheet.holds)
    yield from (f"- Erased: {one}" for one in sheet.erasures)


def _section(title: str, lines: Iterable[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines)
