"""Data tests in every kind of workspace, and as a command and a page show them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page
from starlette.testclient import TestClient

import everloop as ev
from everloop.cli.main import main
from everloop.core.context import using
from everloop.core.data_test import DataTestReport
from everloop.errors import EverloopError
from everloop.evaluation.data_tests.stored import data_tests_done, report_of
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import serve
from tests.unit.evaluation.test_data_test import SCHEMA, fitted, loans, spoiled

TRAIN = """
import numpy as np

COLUMNS = ["age", "income"]

def fit(rows, seed):
    if rows.to_numpy(["income"]).min() < -10:
        raise ValueError("an income cannot be so low")
    picked = np.random.default_rng(seed).integers(0, len(rows), len(rows))
    inputs = np.column_stack([np.ones(len(rows)), rows.to_numpy(COLUMNS)])[picked]
    weights, *_ = np.linalg.lstsq(inputs, rows.to_numpy(["bad"])[picked, 0], rcond=None)
    return lambda held: np.column_stack([np.ones(len(held)), held.to_numpy(COLUMNS)]) @ weights
"""


def fill(purpose: str = "car") -> None:
    good = loans(300)
    good["purpose"][:] = purpose
    ev.commit("loans", spoiled(good, 250), schema=SCHEMA)
    raw = ev.read("loans")
    fixed = raw.set_where("misread", "bad", "1 - bad", "id < 250", reason="the form was misread")
    ev.commit("loans", fixed, mode="replace")
    ev.commit("loans", spoiled(good, 0, 50), mode="replace")
    ev.commit("held", loans(400, 10_000), schema=SCHEMA)


def test_a_test_and_its_blame_in_every_workspace(ws: Workspace) -> None:
    fill()
    versions = ["loans@1", "loans@2"]
    more: dict[str, Any] = {"holdout": "held", "label": "bad", "seeds": 3, "metrics": "auc"}
    done = ev.data_test(fitted, versions, **more)
    assert done.best == "loans@2"
    found = done.blame()
    assert (found.by, [one.name for one in found.groups]) == ("rule", ["misread"])
    assert found.groups[0].worth.estimate == pytest.approx(done.effect("loans@2").estimate)
    again = ev.data_test(fitted, versions, **more)
    assert (again.report.trained, again.report.cached) == (0, 7)
    assert report_of(ws.tracking, done.id) == done.report
    assert {row.id for row in data_tests_done(ws.tracking)} == {again.id, done.id}


@pytest.fixture
def everloop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[str, str]]]:
    """`everloop data ...` in a folder with loans and a training: what it wrote, to both streams."""
    (tmp_path / "loan_training.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop") as workspace, using(workspace):
        fill()
    before = list(sys.path)

    def call(*arguments: str, status: int = 0) -> tuple[str, str]:
        told, code = "", 0
        try:
            main(["data", *arguments], standalone_mode=False)
        except SystemExit as error:
            code = int(error.code or 0)
        except EverloopError as error:
            told, code = str(error), error.exit
        out, err = capsys.readouterr()
        assert code == status, err + told
        return out, err + told

    yield call
    sys.path[:] = before
    sys.modules.pop("loan_training", None)


def test_the_command_says_what_is_better_and_why_one_failed(
    everloop: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    how = ("--holdout", "held", "--label", "bad", "--seeds", "3")
    run = ("test", "loan_training.py:fit")
    out, err = everloop(
        *run, "loans@1", "loans@2", *how, "--must-improve", "--blame", "--html", "page.html"
    )
    assert "loans@2 is better than loans@1 by +" in out
    assert "misread (250 rows)" in out
    assert "/data-tests/" in err
    assert "misread" in (tmp_path / "page.html").read_text()
    out, _ = everloop(*run, "loans@2", "loans@1", *how, "--must-improve", "--json", status=3)
    report = msgspec.json.decode(out, type=DataTestReport)
    effect = report.versions[1].metrics[0].effect
    assert effect is not None
    assert effect.answer == "worse"
    out, _ = everloop(*run, "loans@2", "loans@3", *how, status=1)
    assert "an income cannot be so low" in out
    assert "loans@2 (300 rows)" in out
    _, err = everloop("test", "loan_training.py:fitt", "loans@2", *how, status=5)
    assert "did you mean 'fit'" in err
    _, err = everloop(*run, "loans@2", *how, "--must-improve", status=2)
    assert "a second version" in err
    _, err = everloop(*run, "loans@2", *how, "--slice", "a=age > 4", "--slice", "age", status=2)
    assert "not both" in err
    out, _ = everloop("tests", "--json")
    assert [bool(row["headline"]) for row in json.loads(out)] == [True] * 3
    out, _ = everloop("tests", report.id)
    assert out.startswith("no version is better than loans@2")


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_the_page_is_read_without_script_and_lets_nothing_in(
    ws: Workspace, browser_page: Page, tmp_path: Path
) -> None:
    hostile = "<script>document.title = 'owned'</script>"
    fill(hostile)
    more: dict[str, Any] = {"holdout": "held", "label": "bad", "seeds": 3, "metrics": "auc"}
    versions = {hostile: "loans@1", "good": "loans@2"}
    done = ev.data_test(fitted, versions, slices={hostile: "age > 40"}, **more)
    done.blame("good", by="purpose")
    with TestClient(make_app(ws), base_url="http://127.0.0.1") as client:
        twin = client.get(f"/data-tests/{done.id}.json").content
        assert msgspec.json.decode(twin, type=DataTestReport) == done.report
        assert client.get("/data-tests.json").json()[0]["best"] == "good"
        assert client.get("/data-tests/nothing").status_code == 404
    said: list[str] = []
    browser_page.on("console", lambda message: said.append(message.text))
    (tmp_path / "page.html").write_text(done.to_html())
    with ev.open(tmp_path / ".everloop") as served, serve(served) as url:
        for place in (f"{url}/data-tests/{done.id}", (tmp_path / "page.html").as_uri()):
            browser_page.goto(place)
            assert "good is better than <script>" in browser_page.title()
            assert browser_page.locator("svg circle").count() >= 3
            assert browser_page.locator("script").count() == 0
            assert re.search(r"\+0\.\d+ \[", browser_page.locator("svg").first.inner_html())
            wide = browser_page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
            assert wide
        browser_page.goto(f"{url}/data-tests")
        browser_page.get_by_role("link", name="good is better").click()
        assert browser_page.locator("h1").inner_text().startswith("good is better")
    assert said == []
