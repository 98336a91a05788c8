"""``everloop data describe``, ``pii``, ``mask``, ``grant``: what people state, and who may see."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.personal import TERMS, DatasetTerms
from everloop.core.pii import SAMPLE
from everloop.errors import InvalidInput

__all__ = ["COMMANDS"]

#: Exit code of "the rule said no", as of a gate.
_REFUSED = 3


@click.command("describe")
@click.argument("name")
@click.option("--owner", help="Who answers for it.")
@click.option("--description", help="What it is, in a sentence.")
@click.option("--purpose", help="What it may be used for.")
@click.option("--licence", help="An SPDX identifier such as CC-BY-4.0, or a text.")
@click.option("--source", help="Where it comes from.")
@click.option("--sensitivity", help="Such as public, internal, confidential.")
@click.option("--retention", help="How long it is kept and why, in words.")
@click.option(
    "--pii", multiple=True, metavar="COLUMN=KIND",
    help="A column that holds personal data (may be given again); COLUMN= says that it holds none.",
)  # fmt: skip
@click.option("--history", is_flag=True, help="Everything that was ever stated.")
@common
def describe(
    name: str,
    pii: tuple[str, ...],
    history: bool,
    location: str | None,
    as_json: bool,
    **stated: str | None,
) -> None:
    """State what a dataset is for and what holds of it; without options, show what is stated."""
    tags = {}
    for item in pii:
        column, equals, kind = item.partition("=")
        if not equals or not column:
            raise InvalidInput(f"--pii {item!r} is not COLUMN=KIND")
        tags[column] = kind
    given = {key: text for key, text in stated.items() if text is not None}
    with open_workspace(location) as workspace:
        data = workspace.data
        if given or tags:
            found = data.describe(name, **given, pii=tags or None)
        else:
            found = data.terms(name)
        changes = data.terms_history(name) if history else []
        owner = next(d.owner for d in data.datasets() if d.name == name)
    if history:
        if as_json:
            return json_document(changes)
        return table(
            ("at", "by", "what", "stated"),
            [(c.at, c.actor, c.kind.partition(".")[2], _pairs(c.what)) for c in changes],
        )
    if as_json:
        return json_document(found)
    stands = [(key, getattr(found, key) or "not stated") for key in TERMS]
    key_values([("dataset", name), ("owner", owner or "not stated"), *stands, *_personal(found)])
    return None


def _personal(found: DatasetTerms) -> list[tuple[str, str]]:
    return [
        *(("personal data", f"{column} ({kind})") for column, kind in sorted(found.pii.items())),
        *(("mask", f"{column}: {mask}") for column, mask in sorted(found.masks.items())),
        *(
            ("may see", f"{g.to}: {', '.join(g.columns) or 'all'}{_for(g.reason)}")
            for g in found.grants
        ),
    ]


def _for(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _pairs(what: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {_told(value)}" for key, value in what.items())


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@click.command("pii")
@click.argument("name")
@click.option(
    "--rows", default=SAMPLE, show_default=True, help="Look at so many, evenly spread; 0 is all."
)
@click.option("--tag", is_flag=True, help="Tag what was found and is not tagged yet.")
@click.option("--all", "every", is_flag=True, help="Also show what matched too few values.")
@common
def pii(name: str, rows: int, tag: bool, every: bool, location: str | None, as_json: bool) -> None:
    """Look for personal data in the columns of a dataset; no value is shown.

    NAME may be NAME@2, NAME@TAG or NAME@TIME. Exits with 3 if a column without a tag has some.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        found = workspace.data.find_pii(version.dataset, version.number, rows=rows)
        news = {f.column: f.kind for f in reversed(found.untagged)}
        if tag and news:
            workspace.data.describe(version.dataset, pii=news)
    if as_json:
        json_document(found)
    else:
        key_values([("version", found.ref), ("rows", found.rows), ("looked at", found.looked_at)])
        shown = [f for f in found.findings if f.found or every]
        if shown:
            table(
                ("column", "kind", "share", "tag", "verdict", "reason"),
                [
                    (f.column, f.kind, f"{f.share:.1%}", f.tagged or "-",
                     _verdict(f.found, f.tagged), f.reason)
                    for f in shown
                ],
            )  # fmt: skip
    if tag and news:
        say(f"tagged: {', '.join(f'{column} ({kind})' for column, kind in sorted(news.items()))}")
    elif news:
        options = " ".join(f"--pii {column}={kind}" for column, kind in sorted(news.items()))
        say(f"to tag them: everloop data describe {version.dataset} {options}")
        sys.exit(_REFUSED)


def _verdict(found: bool, tagged: str) -> str:
    if not found:
        return "too few"
    return "tagged" if tagged else "not tagged"


@click.command("mask")
@click.argument("name")
@click.argument("column")
@click.argument("mask")
@common
def mask(name: str, column: str, mask: str, location: str | None, as_json: bool) -> None:
    """Say what whoever may not see COLUMN gets instead.

    MASK is redact, null, hash, bucket:WIDTH, bucket:month, bucket:year, shift:COLUMN or
    shift:COLUMN:DAYS; default takes back what was said here.
    """
    with open_workspace(location) as workspace:
        workspace.data.mask(name, column, "" if mask == "default" else mask)
        found = workspace.data.personal(name)
    _columns(found, as_json)


def _columns(found: Any, as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(("column", "personal data", "mask"), [(c.name, c.kind, c.mask) for c in found])
    return None


@click.command("preview")
@click.argument("name")
@click.option("--rows", default=5, show_default=True, help="How many.")
@common
def preview(name: str, rows: int, location: str | None, as_json: bool) -> None:
    """The first rows of a dataset as whoever may not see personal data gets them.

    NAME may be NAME@2, NAME@TAG or NAME@TIME.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        found = workspace.data.preview(version.dataset, version.number, rows=rows)
    if as_json:
        return json_document(found.to_pylist())
    table(found.column_names, [tuple(row.values()) for row in found.to_pylist()])
    return None


@click.command("grant")
@click.argument("name")
@click.option("--to", required=True, metavar="USER|role:ROLE", help="Who may see.")
@click.option("--column", "columns", multiple=True, help="Only this one (may be given again).")
@click.option("--reason", default="", help="What for; kept with the event.")
@click.option("--off", is_flag=True, help="Take it back.")
@common
def grant(
    name: str,
    to: str,
    columns: tuple[str, ...],
    reason: str,
    off: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Let somebody see the personal data of a dataset, or of some of its columns."""
    with open_workspace(location) as workspace:
        if off:
            found = workspace.data.revoke(name, to)
        else:
            found = workspace.data.grant(name, to, columns=list(columns), reason=reason)
    if as_json:
        return json_document(found.grants)
    table(
        ("to", "columns", "reason", "by", "since"),
        [(g.to, ", ".join(g.columns) or "all", g.reason, g.by, g.at) for g in found.grants],
    )
    return None


@click.command("access-log")
@click.argument("name")
@click.option("--who", default="", help="Only this caller.")
@click.option("--limit", default=1000, show_default=True, help="Most entries, the newest first.")
@common
def access_log(name: str, who: str, limit: int, location: str | None, as_json: bool) -> None:
    """Who read personal data of a dataset: when, which, masked or not, and what for."""
    with open_workspace(location) as workspace:
        found = workspace.data.access_log(name, who=who, limit=limit)
    if as_json:
        return json_document(found)
    table(
        ("at", "who", "version", "door", "seen", "masked", "purpose"),
        [
            (a.at, a.who, a.version or "-", a.door,
             ", ".join(c for c in a.columns if c not in a.masked) or "-",
             ", ".join(a.masked) or "-", a.purpose)
            for a in found
        ],
    )  # fmt: skip
    return None


@click.command("anonymity")
@click.argument("name")
@click.argument("columns", nargs=-1, required=True)
@click.option("--k", default=5, show_default=True, help="Rows that a group should have at least.")
@click.option("--sensitive", default="", help="A column whose values should differ in each group.")
@click.option("--masked", is_flag=True, help="As whoever may not see personal data gets the rows.")
@common
def anonymity(
    name: str,
    columns: tuple[str, ...],
    k: int,
    sensitive: str,
    masked: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """How many rows of a dataset share their values in COLUMNS (k-anonymity).

    NAME may be NAME@2, NAME@TAG or NAME@TIME. Exits with 3 if a row hides among fewer than k.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        found = workspace.data.k_anonymity(
            version.dataset, list(columns), version.number, k=k, sensitive=sensitive, masked=masked
        )
    if as_json:
        json_document(found)
    else:
        share = f" ({found.unique / found.rows:.1%})" if found.rows else ""
        key_values(
            [
                ("version", found.ref),
                ("rows", found.rows),
                ("groups", found.groups),
                ("smallest group", found.smallest),
                (f"rows in groups under {found.k}", found.under),
                ("rows that are alone", f"{found.unique}{share}"),
                *([("masked", ", ".join(found.masked))] if found.masked else []),
                *([(f"fewest values of {sensitive}", found.distinct_sensitive)] if sensitive
                  else []),
            ]
        )  # fmt: skip
        table(
            ("column", "values", f"rows under {found.k} without it"),
            [(w.name, w.distinct, w.without) for w in found.weights],
        )
    if not found.ok:
        sys.exit(_REFUSED)


@click.command("sheet")
@click.argument("name")
@click.option("--html", "form", flag_value="html", help="As a page.")
@click.option("--md", "form", flag_value="md", default=True, help="As Markdown (the default).")
@click.option("--output", type=click.Path(dir_okay=False), help="Write it to this file.")
@common
def sheet(name: str, form: str, output: str | None, location: str | None, as_json: bool) -> None:
    """The data sheet of a dataset: all that is known of it, and what nobody stated.

    NAME may be NAME@2, NAME@TAG or NAME@TIME.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        found = workspace.governance.data_sheet(version.dataset, version.number)
    if as_json:
        return json_document(found)
    if form == "html":
        from everloop.ui.pages import sheet_html

        text = sheet_html(found)
    else:
        from everloop.governance.sheet_text import sheet_text

        text = sheet_text(found)
    if output:
        Path(output).write_text(text)
    else:
        click.echo(text, nl=False)
    return None


COMMANDS = (describe, pii, mask, preview, grant, access_log, anonymity, sheet)
