"""Data tests in every kind of workspace, and as a command and a page show them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page
from starlette.testclient import TestClient

import everloop as ev
from everloop.core.context import using
from everloop.core.data_test import DataTestReport
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
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    with ev.open(tmp_path / ".everloop") as workspace, using(workspace):
        fill()
    return tmp_path


def everloop(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "everloop", "data", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def test_the_command_says_what_is_better_and_why_one_failed(project: Path) -> None:
    how = ("--holdout", "held", "--label", "bad", "--seeds", "3")
    two = ("test", "train.py:fit", "loans@1", "loans@2", *how)
    done = everloop(project, *two, "--must-improve", "--blame", "--html", "page.html")
    assert "loans@2 is better than loans@1 by +" in done.stdout
    assert "misread (250 rows)" in done.stdout
    assert "/data-tests/" in done.stderr
    assert "misread" in (project / "page.html").read_text()
    worse = ("test", "train.py:fit", "loans@2", "loans@1", *how, "--must-improve", "--json")
    report = msgspec.json.decode(everloop(project, *worse, status=3).stdout, type=DataTestReport)
    assert report.versions[1].metrics[0].effect is not None
    assert report.versions[1].metrics[0].effect.answer == "worse"
    told = everloop(project, "test", "train.py:fit", "loans@2", "loans@3", *how, status=1).stdout
    assert "an income cannot be so low" in told
    assert "loans@2 (300 rows)" in told
    wrong = everloop(project, "test", "train.py:fitt", "loans@2", *how, status=5).stderr
    assert "did you mean 'fit'" in wrong
    alone = everloop(project, "test", "train.py:fit", "loans@2", *how, "--must-improve", status=2)
    assert "a second version" in alone.stderr
    listed = json.loads(everloop(project, "tests", "--json").stdout)
    assert [bool(row["headline"]) for row in listed] == [True] * 3
    shown = everloop(project, "tests", report.id).stdout
    assert shown.startswith("no version is better than loans@2")


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
