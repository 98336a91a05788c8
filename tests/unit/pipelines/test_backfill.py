"""A backfill runs what is missing, each part once, whatever happened before."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from everloop.cli.main import main
from everloop.errors import InvalidInput
from everloop.pipelines.backfill import BACKFILL_TAG, spread
from everloop.pipelines.load import load_pipeline
from everloop.workspace import Workspace

FILE = Path(__file__).with_name("backfill_loop.py")
DAYS = [date(2013, 1, day) for day in (1, 2, 3)]


def test_what_is_stored_is_not_computed_again(ws: Workspace) -> None:
    daily = load_pipeline(f"{FILE}:daily")
    first = daily.backfill(day=DAYS[:2], concurrency=2)
    assert [part.outcome for part in first.parts] == ["ran", "ran"]
    again = daily.backfill(day=DAYS)
    assert [part.outcome for part in again.parts] == ["cached", "cached", "ran"]
    assert str(again) == "3 parts: 1 ran, 2 cached, 0 failed, 0 waiting"
    tag = ws.tracking.run(again.parts[2].run_id).tags[BACKFILL_TAG]
    assert tag == "day=2013-01-03"


def test_a_part_that_fails_stops_no_other(ws: Workspace) -> None:
    daily = load_pipeline(f"{FILE}:daily")
    done = daily.backfill(day=DAYS, region=["eu", "bad"], fixed={"rows": 2})
    assert [part.outcome for part in done.parts] == ["ran"] * 5 + ["failed"]
    [failed] = done.failed
    assert failed.values == {"day": DAYS[2], "region": "bad"}
    assert "ValueError" in failed.error
    assert ws.tracking.run(failed.run_id).state == "failed"


def test_a_wrong_backfill_runs_nothing(ws: Workspace) -> None:
    daily = load_pipeline(f"{FILE}:daily")
    for wrong in (
        {},
        {"day": []},
        {"day": ["no date"]},
        {"day": DAYS, "nothing": [1]},
        {"day": DAYS, "concurrency": 0},
        {"day": DAYS, "fixed": {"day": DAYS[0]}},
    ):
        with pytest.raises(InvalidInput):
            daily.backfill(**wrong)  # type: ignore[arg-type]
    assert ws.tracking.runs().runs == ()


def test_a_range_of_dates_or_numbers_and_a_list() -> None:
    assert spread("2013-01-30..2013-02-01", date) == ["2013-01-30", "2013-01-31", "2013-02-01"]
    assert spread("3..5", int) == ["3", "4", "5"]
    assert spread("a, b,c", str) == ["a", "b", "c"]
    for wrong in ("5..3", "a..b", "2013-02-30..2013-03-01", "1..2..3"):
        with pytest.raises(InvalidInput):
            spread(wrong, int)


def test_the_command_tells_of_each_part(tmp_path: Path) -> None:
    given = ["backfill", f"{FILE}:daily", "day=2013-01-02..2013-01-03", "region=eu,bad"]
    where = ["--dir", str(tmp_path / ".everloop"), "--json"]
    done = CliRunner().invoke(main, [*given, *where])
    assert done.exit_code == 1
    parts = json.loads(done.stdout)["parts"]
    assert [part["outcome"] for part in parts] == ["ran", "ran", "ran", "failed"]
