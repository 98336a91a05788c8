"""The pages of the row ledger, of work lists and of profiles in a real Chromium."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page

import everloop as ev
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from tests.servers import serve

START = datetime(2013, 4, 1, tzinfo=UTC)
DESK, OPS = "desk@example.org", "ops@example.org"
HOSTILE = '<img src=x onerror="document.title=1">'
SCHEMA = Schema(
    (
        Field("flight", "int64", nullable=False),
        Field("scheduled", "timestamp"),
        Field("arrived_at_the_gate", "timestamp"),
        Field("delay", "float64", ge=-60, on_fail="warn", owner=DESK),
        Field("temp", "float64", le=130, on_fail="quarantine", owner="weather@example.org"),
        Field("mail", "string", pii="email"),
        Field("note", "string", max_length=50, on_fail="drop"),
    ),
    key=("flight",),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rows = [
        {
            "flight": 1500 + n, "scheduled": START + timedelta(minutes=n, microseconds=n),
            "arrived_at_the_gate": START + timedelta(hours=n), "delay": -62.0 + n / 2,
            "temp": 123.0 + n, "mail": f"secret-{n}@example.org",
            "note": HOSTILE * (2 if n == 6 else 1),
        }
        for n in range(20)
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("ledger") / ".everloop"
    with ev.open(folder, clock=ManualClock(START), actor="tester") as ws:
        ws.data.commit("flights", pa.Table.from_pylist(rows), schema=SCHEMA, owner=OPS)
        finding = {"flight": 1503, "rule": "label", "reason": HOSTILE, "suggestion": "look again"}
        ws.data.add_work("flights", [finding])
        with serve(ws) as address:
            yield address


def shoot(page: Page, name: str) -> None:
    """Keep a picture where EVERLOOP_TEST_PICTURES says, for whoever wants to look."""
    if folder := os.environ.get("EVERLOOP_TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_the_ledger_page_leads_to_the_work_of_an_owner(browser_page: Page, url: str) -> None:
    browser_page.goto(f"{url}/datasets/flights/ledger")
    text = browser_page.locator("main").inner_text()
    for wanted in ("temp.le", "quarantined", "delay.ge", "warned", "note.max_length", "label", OPS):
        assert wanted in text
    shoot(browser_page, "ledger")
    browser_page.locator("a", has_text="of these rows wait").click()
    assert "17 to correct" in browser_page.locator("h1").inner_text()
    browser_page.locator("a", has_text=DESK).first.click()
    assert browser_page.locator("h1").inner_text().startswith(DESK)
    text = browser_page.locator("main").inner_text()
    assert "delay is below -60" in text
    assert "temp.le" not in text
    assert browser_page.title() != "1"  # what rows hold is text
    shoot(browser_page, "work")


def test_pages_have_json_twins_and_hide_personal_data(url: str) -> None:
    paths = (
        "/datasets/flights/ledger",
        "/worklist",
        f"/worklist/{DESK}",
        "/datasets/flights/profile",
    )
    for path in paths:
        for end in ("", ".json"):
            with urlopen(url + path + end) as answer:
                text = answer.read().decode()
            assert "secret" not in text
    with urlopen(f"{url}/worklist/{DESK}.json") as answer:
        assert json.load(answer)["work"]["total"] == 4


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_them(browser: Browser, url: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    for name in ("datasets/flights/ledger", "datasets/flights/profile", "worklist"):
        page.goto(f"{url}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        shoot(page, f"{name.replace('/', '-')}-{width}")
        if width == 1280 and name != "datasets/flights/ledger":
            boxes = page.locator("section").all()
            inner = [box.evaluate("s => s.scrollWidth - s.clientWidth") for box in boxes]
            assert max(inner) <= 0, name
    page.close()
