"""``everloop data erase``, ``receipts``, ``verify-receipt``, ``hold``, ``release``, ``keep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.erase import Receipt
from everloop.errors import InvalidInput

__all__ = ["COMMANDS"]

_SHOWN = 20


@click.command("erase")
@click.argument("where", metavar="COLUMN=VALUE...", nargs=-1, required=True)
@click.option("--dataset", default="", help="Only the versions of this one; all if not given.")
@click.option("--reason", default="", help="Why; stands in the receipt.")
@click.option("--yes", is_flag=True, help="Do it; else it is only said what would be done.")
@common
def erase(
    where: tuple[str, ...],
    dataset: str,
    reason: str,
    yes: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Take a subject out of every version of every dataset, with a signed receipt.

    A row that has a value of each COLUMN is the subject's. COLUMN may be given again for more
    values, and COLUMN=@FILE reads one value a line.
    """
    sought = _where(where)
    with open_workspace(location) as workspace:
        found = workspace.data.erase(sought, dataset=dataset, reason=reason, dry_run=not yes)
    if as_json:
        return json_document(found)
    _show(found)
    if found.erased.is_empty:
        say("the subject was not found")
    elif not yes:
        say("nothing was changed; --yes erases it")
    return None


def _where(items: tuple[str, ...]) -> dict[str, list[Any]]:
    sought: dict[str, list[Any]] = {}
    for item in items:
        column, equals, value = item.partition("=")
        if not equals or not column:
            raise InvalidInput(f"{item!r} is not COLUMN=VALUE")
        values = sought.setdefault(column, [])
        if value.startswith("@"):
            try:
                lines = Path(value[1:]).read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"{value[1:]} cannot be read: {error}") from error
            values += [_value(line) for line in lines if line]
        else:
            values.append(_value(value))
    return sought


def _value(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    # 007 and 1e3 are texts: a number must be written as numbers are.
    return found if isinstance(found, str | bool) or found is None or str(found) == text else text


def _show(receipt: Receipt) -> None:
    erased = receipt.erased
    key_values(
        [
            ("receipt", receipt.id or "none, as this is a dry run"),
            ("subject", receipt.subject),
            ("columns", ", ".join(receipt.columns)),
            ("rows", erased.rows),
            ("versions", len(erased.versions)),
            ("objects", len(erased.objects)),
            *erased.counts.items(),
            *(("model of such data", name) for name in erased.models),
            *(("legal hold", name) for name in erased.holds),
        ]
    )
    if erased.versions:
        shown = erased.versions[:_SHOWN]
        table(
            ("version", "rows before", "rows after", "content"),
            [(v.ref, v.before, v.after, v.content[:12]) for v in shown],
        )
    for text in erased.unreached:
        say(f"out of reach: {text}")


@click.command("receipts")
@common
def receipts(location: str | None, as_json: bool) -> None:
    """The receipts of erasures, newest first."""
    with open_workspace(location) as workspace:
        found = workspace.data.receipts()
    if as_json:
        return json_document(found)
    table(
        ("receipt", "by", "done", "columns", "rows", "versions", "reason"),
        [
            (r.id, r.actor, r.done_at, ", ".join(r.columns), r.erased.rows,
             len(r.erased.versions), r.reason)
            for r in found
        ],
    )  # fmt: skip
    return None


@click.command("verify-receipt")
@click.argument("receipt", metavar="RECEIPT")
@click.argument("where", metavar="[COLUMN=VALUE...]", nargs=-1)
@common
def verify_receipt(
    receipt: str, where: tuple[str, ...], location: str | None, as_json: bool
) -> None:
    """Hold a receipt against the key of the workspace; exit code 1 if it is not good.

    RECEIPT is an id or a file as ``everloop data erase --json`` writes it. With COLUMN=VALUE also
    whether it is of that subject.
    """
    given: Receipt | str = receipt
    if Path(receipt).is_file():
        try:
            given = msgspec.json.decode(Path(receipt).read_bytes(), type=Receipt)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"{receipt} is no receipt: {error}") from error
    with open_workspace(location) as workspace:
        found = workspace.data.verify_receipt(given, where=_where(where) if where else None)
    if as_json:
        json_document(found)
    else:
        key_values(
            [
                ("signature", found.signature),
                *([] if found.matches is None else [("of this subject", found.matches)]),
                *(("there again", digest) for digest in found.present),
            ]
        )
    if not found.is_good:
        raise SystemExit(1)


@click.command("hold")
@click.argument("name")
@click.option("--reason", required=True, help="Why.")
@click.option("--dataset", default="", help="Only this one; all if not given.")
@common
def hold(name: str, reason: str, dataset: str, location: str | None, as_json: bool) -> None:
    """Legal hold: let nothing be erased or expire until ``release NAME``."""
    with open_workspace(location) as workspace:
        workspace.data.hold(name, reason, dataset=dataset)
        found = workspace.data.holds()
    _show_holds(found, as_json)


@click.command("release")
@click.argument("name")
@common
def release(name: str, location: str | None, as_json: bool) -> None:
    """End a legal hold."""
    with open_workspace(location) as workspace:
        workspace.data.release(name)
        found = workspace.data.holds()
    _show_holds(found, as_json)


@click.command("holds")
@common
def holds(location: str | None, as_json: bool) -> None:
    """The legal holds."""
    with open_workspace(location) as workspace:
        found = workspace.data.holds()
    _show_holds(found, as_json)


def _show_holds(found: list[Any], as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(
        ("hold", "dataset", "by", "at", "reason"),
        [(h.name, h.dataset or "all", h.actor, h.created_at, h.reason) for h in found],
    )
    return None


@click.command("keep")
@click.argument("name")
@click.option("--days", type=float, help="Versions younger than this stay.")
@click.option("--last", default=1, show_default=True, help="So many of the newest stay.")
@click.option("--all", "everything", is_flag=True, help="Remove the rule: all versions stay.")
@click.option("--reason", default="", help="Why.")
@common
def keep(
    name: str,
    days: float | None,
    last: int,
    everything: bool,
    reason: str,
    location: str | None,
    as_json: bool,
) -> None:
    """How long the versions of a dataset stay; ``everloop gc`` lets the others go."""
    if (days is None) != everything:
        raise InvalidInput("give --days, or --all for no rule")
    with open_workspace(location) as workspace:
        if days is None:
            workspace.data.keep_all(name)
        else:
            workspace.data.keep(name, for_days=days, last=last, reason=reason)
        rules = workspace.data.retention()
    if as_json:
        return json_document(rules)
    table(
        ("dataset", "days", "last", "by", "at", "reason"),
        [
            (r.dataset, f"{r.keep_us / 86_400e6:g}", r.keep_last, r.actor, r.updated_at, r.reason)
            for r in rules
        ],
    )
    return None


COMMANDS = (erase, receipts, verify_receipt, hold, release, holds, keep)
