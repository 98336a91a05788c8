"""The credit example: what is planted is found, and better data is worth more than a better model.

Over several plantings, so that none is picked.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import everloop as ev
from everloop.cli.demo_credit import document_of
from everloop.core.context import using

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "credit"


@contextlib.contextmanager
def example(*names: str) -> Iterator[list[Any]]:
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.mark.parametrize("planting", [0, 1, 2])
def test_better_data_beats_a_tuned_model_on_the_data_as_collected(
    planting: int, tmp_path: Path
) -> None:
    with (
        example("planted", "improve", "page") as (planted, improve, page),
        ev.open(tmp_path / ".everloop") as workspace,
        using(workspace),
    ):
        bank = planted.bank(planting)
        found = improve.improve(bank, seeds=3, blame=planting == 0)
        html = page.page(bank, found)

    # The biased sample: told apart from who applies, by what was left out.
    assert found.coverage.auc.low > 0.7
    assert {one.name for one in found.coverage.features[:2]} == {"age", "home"}

    # The label errors: most are flagged, and far more of the flagged are wrong than of all.
    wrong = sum(
        bank.paper[row["id"]] != row["status"]
        for part in (bank.sample, bank.archive)
        for row in part.to_arrow().select(["id", "status"]).to_pylist()
    )
    assert found.corrected > 0.7 * wrong
    assert found.corrected / len(found.issues) > 2.5 * planted.WRONG

    # What it is worth: more than the tuned model, each time and by more than chance.
    beside = found.duel.effect("outcomes reviewed")
    assert found.duel.report.against == "tuned on the first data"
    assert (beside.answer, beside.low > 0) == ("better", True)
    assert found.test.effect("filled up").answer == "better"
    assert found.test.effect("outcomes reviewed").answer == "better"
    assert found.test.effect("outcomes reviewed", "brier").answer == "better"
    best = {one.name: one.metrics[0].value for one in found.test.report.versions}
    assert max(best, key=lambda name: best[name] or 0) == "outcomes reviewed"

    # The clerk's corrections are in the ledger, with rule and owner.
    with ev.open(tmp_path / ".everloop") as workspace:
        [change] = workspace.data.changes(dataset="applications", rule="the paper says otherwise")
    assert (change.rows, change.owner) == (found.corrected, "back-office@example.org")
    assert change.scope == "dataset:applications@3"
    assert "15% of the outcomes were turned round" in html
    assert html.count("<svg") >= 4
    if planting == 0:
        blames = found.test.report.blames
        assert [blame.version for blame in blames] == ["filled up", "outcomes reviewed"]
        assert sum(g.worth.estimate or 0 for g in blames[0].groups) == pytest.approx(
            blames[0].total.estimate
        )
        assert msgspec.json.decode(msgspec.json.encode(document_of(found)))["test"]


def test_the_data_say_where_they_come_from() -> None:
    with example("planted") as (planted,):
        rows = planted.applications()
        one, other = planted.bank(0), planted.bank(0)
    assert len(rows) == 4454
    assert rows.filter("status = 'bad'").num_rows == 1254
    assert planted.DATA.stat().st_size < 300_000
    assert "MIT License" in (EXAMPLE / "data" / "LICENSE").read_text()
    assert "credit_data" in (EXAMPLE / "data" / "SOURCE.md").read_text()
    assert one.sample.equals(other.sample)
    kept = {name: set(getattr(one, name).column("id").to_pylist()) for name in one._fields[:2]}
    held = set(one.holdout.column("id").to_pylist())
    assert not (kept["sample"] | kept["archive"]) & held
    assert len(kept["sample"]) + len(kept["archive"]) + len(held) == 4454


def test_the_demo_refuses_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "everloop", "demo", "credit", "--dir", "file"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is a file, not a folder" in done.stderr
