"""``everloop data check``: a dataset beside what must hold of it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.quality import SHOWN_ROWS
from everloop.core.schema import Check, Schema
from everloop.errors import InvalidInput, UserCodeError

__all__ = ["COMMANDS"]

#: Exit code of "the rule said no", as of a gate.
_REFUSED = 3
#: Rows that are looked through for personal data without a tag.
_LOOKED_AT = 10_000


@click.command("check")
@click.argument("name")
@click.option(
    "--with",
    "contract",
    metavar="FILE[:NAME]",
    help="A Python file with an ev.Schema, a list of ev.Check or a Pandera schema in it (CHECKS if "
    "not named), or a suite of Great Expectations (.json).",
)
@click.option(
    "--rows", default=SHOWN_ROWS, show_default=True, help="Most failing rows of each rule."
)
@common
def check(name: str, contract: str | None, rows: int, location: str | None, as_json: bool) -> None:
    """Hold a dataset against its rules, and against those of a file.

    NAME may be NAME@2, NAME@TAG or NAME@TIME. Exits with 3 if a rule is broken that forbids a
    version.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        wanted = None if contract is None else _contract(contract, version.schema)
        report = workspace.data.check(version.dataset, wanted, version.number, rows=rows)
        found = workspace.data.find_pii(version.dataset, version.number, rows=_LOOKED_AT)
    if as_json:
        json_document(report)
    else:
        judged = f"{len(report.rules)} rules, {len(report.broken)} broken"
        key_values(
            [("version", report.ref), ("rows", report.rows), ("judged", judged)]
            + [("column", fault) for fault in report.faults]
            + [("not judged", f"{name}: {why}") for name, why in report.unjudged.items()]
        )
        if report.broken:
            table(
                ("rule", "rows", "on fail", "reason", "owner", "such as"),
                [
                    (r.rule, r.failed, r.on_fail, r.reason, r.owner,
                     ", ".join(_shown(row.key or {"row": row.row}) for row in r.rows[:3]))
                    for r in report.broken
                ],
            )  # fmt: skip
    for one in found.untagged:
        say(f"warning: {one.column} looks like {one.kind} and is not tagged ({one.reason})")
    if not report.ok:
        sys.exit(_REFUSED)


def _shown(key: dict[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in key.items())


def _contract(given: str, like: Schema) -> Schema | list[Check]:
    if given.lower().endswith(".json"):
        from everloop.data.schema_from import schema_from

        return schema_from(given, like=like)
    found, what = _named_in(given, "CHECKS")
    if isinstance(found, list | tuple):
        return list(found)
    if isinstance(found, Schema):
        return found
    if not _is_foreign(found):
        raise InvalidInput(
            f"{what} is no ev.Schema, list of ev.Check or Pandera schema",
        )
    from everloop.data.schema_from import schema_from

    return schema_from(found, like=like)


def _is_foreign(found: Any) -> bool:
    from everloop.data.from_pandera import is_pandera

    return found is not None and is_pandera(found)


def _named_in(given: str, usual: str) -> tuple[Any, str]:
    """What stands under a name in a Python file, and how to call it."""
    file, _, name = given.partition(":")
    if not Path(file).is_file():
        raise InvalidInput(f"there is no file {file}")
    try:
        names = runpy.run_path(file, run_name="checks")
    except InvalidInput:
        raise
    except Exception as error:  # the user's file may raise anything
        raise UserCodeError.caught(file, error) from error
    if (name or usual) not in names:
        raise InvalidInput(f"{file} has no {name or usual}")
    return names[name or usual], f"{name or usual} of {file}"


@click.command("import-checks")
@click.argument("rules", metavar="SUITE.json|FILE.py:NAME")
@click.option("--like", metavar="DATASET", help="Where the types of the columns are told.")
@common
def import_checks(rules: str, like: str | None, location: str | None, as_json: bool) -> None:
    """Print rules of Great Expectations or Pandera as Everloop code, to be edited.

    Give a suite's JSON, or the name of a Pandera schema in a Python file (SCHEMA if not named).
    What cannot be said is listed in a comment, and on standard error.
    """
    from everloop.data.schema_code import schema_code
    from everloop.data.schema_from import translated

    given = rules if rules.lower().endswith(".json") else _named_in(rules, "SCHEMA")[0]
    known = None
    if like is not None:
        with open_workspace(location) as workspace:
            known = workspace.data.find(like).schema
    found = translated(given, known)
    if as_json:
        return json_document({"schema": found.schema, "untranslated": found.untranslated})
    title = f"The rules of {rules}."
    code = schema_code(found.schema, title=title, untranslated=found.untranslated)
    click.echo(code, nl=False)
    for fault in found.untranslated:
        click.echo(f"not translated: {fault}", err=True)
    return None


@click.command("profile")
@click.argument("name")
@click.option("--infer", is_flag=True, help="Print a schema in Python that it meets, to edit.")
@common
def profile(name: str, infer: bool, location: str | None, as_json: bool) -> None:
    """What a dataset holds, column by column.

    NAME may be NAME@2, NAME@TAG or NAME@TIME.
    """
    with open_workspace(location) as workspace:
        version = workspace.data.find(name)
        found = workspace.data.profile(version.dataset, version.number)
    if infer:
        from everloop.data.profile import inferred  # Polars, which no other command here needs

        return click.echo(inferred(found), nl=False)
    if as_json:
        return json_document(found)
    key_values([("version", found.ref), ("rows", found.rows)])
    table(
        ("column", "type", "missing", "distinct", "low", "median", "high", "mean", "most frequent"),
        [
            (
                c.name, c.type, c.nulls, f"{'~' if c.is_approximate else ''}{c.distinct}", c.low,
                c.quantiles[2] if c.quantiles else None, c.high, c.mean,
                ", ".join(f"{value} ({count})" for value, count in c.top[:3]),
            )
            for c in found.columns
        ],
    )  # fmt: skip
    return None


COMMANDS = (check, import_checks, profile)
