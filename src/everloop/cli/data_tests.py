"""``everloop data test``: the same training on several versions of the data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.errors import InvalidInput, NotFound

__all__ = ["COMMANDS"]

_FAILED, _REFUSED = 1, 3


@click.command("test")
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.argument("versions", nargs=-1, required=True, metavar="VERSION...")
@click.option("--holdout", required=True, metavar="NAME", help="The rows to judge on.")
@click.option("--label", required=True, metavar="COLUMN", help="What is to be predicted.")
@click.option(
    "--metric", "metrics", multiple=True, default=("auc",), help="The first decides; default auc."
)
@click.option("--seeds", default=5, show_default=True, help="How many.")
@click.option(
    "--slice", "slices", multiple=True, metavar="COLUMN or NAME=SQL", help="Parts of the hold-out."
)
@click.option("--positive", default=None, help="The value of a text label that counts as 1.")
@click.option("--key", multiple=True, metavar="COLUMN", help="Columns that name a row.")
@click.option("--at", default="", metavar="COLUMN", help="Times of the hold-out: draw its days.")
@click.option("--drop-overlap", is_flag=True, help="Do not train on rows of the hold-out.")
@click.option("--workers", default=1, show_default=True, help="Trainings at once.")
@click.option("--blame", is_flag=True, help="Also: which changed rows make the difference.")
@click.option("--must-improve", is_flag=True, help="Exit with 3 if no version is better.")
@click.option(
    "--html", metavar="FILE", default=None, type=click.Path(dir_okay=False), help="Write a page."
)
@common
def test(
    target: str,
    versions: tuple[str, ...],
    slices: tuple[str, ...],
    drop_overlap: bool,
    blame: bool,
    must_improve: bool,
    html: str | None,
    location: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the same code with the same seeds on each VERSION, and compare.

    FUNCTION takes rows (and a seed) and gives what predicts. VERSION is NAME@3, NAME@TAG or NAME;
    all are held against the first. Exits with 1 if a version could not be trained.
    """
    from everloop.core.context import using
    from everloop.evaluation.data_tests.api import data_test

    if must_improve and len(versions) < 2:
        raise InvalidInput("--must-improve needs a second version to hold against the first")
    with open_workspace(location) as workspace, using(workspace):
        done = data_test(
            _function(target),
            list(versions),
            slices=_slices(slices),
            overlap="drop" if drop_overlap else "error",
            **options,
        )
        if blame and (done.best or len(done.report.versions) > 1):
            done.blame(done.best or "")
    if html is not None:
        Path(html).write_text(done.to_html(), encoding="utf-8")
    if as_json:
        json_document(done.report)
    else:
        print(done.summary())
        say(f"\nkept as {done.id}; a server has its page at /data-tests/{done.id}")
    if must_improve and done.best is None:
        sys.exit(_REFUSED)
    if any(one.error for one in done.report.versions):
        sys.exit(_FAILED)


def _function(target: str) -> Any:
    from everloop.pipelines.load import load_module

    path, colon, name = target.rpartition(":")
    if not colon or not path:
        raise InvalidInput(f"{target!r} names no function", hint="write it as train.py:fit")
    module = load_module(path)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise NotFound.named(f"function in {path}", name, known)
    return getattr(module, name)


def _slices(given: tuple[str, ...]) -> Any:
    named = [one.partition("=") for one in given if "=" in one]
    if named and len(named) < len(given):
        raise InvalidInput(
            "--slice takes columns, or NAME=SQL, not both",
            [("--slice", one) for one in given if "=" not in one],
        )
    return {name: sql for name, _, sql in named} if named else given


@click.command("tests")
@click.argument("id", required=False, metavar="[ID]")
@common
def tests(id: str | None, location: str | None, as_json: bool) -> None:
    """The data tests that were done, newest first; or what one of them found."""
    from everloop.evaluation.data_tests.stored import data_tests_done, report_of
    from everloop.evaluation.data_tests.text import summary_of

    with open_workspace(location) as workspace:
        if id is not None:
            report = report_of(workspace.tracking, id)
            return json_document(report) if as_json else print(summary_of(report))
        found = data_tests_done(workspace.tracking)
    if as_json:
        return json_document(found)
    table(
        ("id", "at", "training", "versions", "found"),
        [(t.id, t.at, t.train, ", ".join(t.versions), t.headline or t.state) for t in found],
    )


COMMANDS = (test, tests)
