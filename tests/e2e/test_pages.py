"""The pages in a real Chromium, over a loop with a past that the real services made."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection
from urllib.parse import urlsplit

import msgspec
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

import everloop as ev
from everloop.core.policy import Charter
from everloop.core.time import ManualClock
from everloop.governance.maturity import Maturity
from everloop.ui import views
from everloop.workspace import Workspace
from tests.e2e.history import NAME, START, make_history
from tests.servers import Answer, serve

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    clock = ManualClock(START)
    folder = tmp_path_factory.mktemp("pages") / ".everloop"
    with ev.open(folder, clock=clock, actor="tester") as opened:
        make_history(opened, clock)
        yield opened


@pytest.fixture(scope="module")
def url(workspace: Workspace) -> Iterator[str]:
    with serve(workspace) as address:
        yield address


@pytest.fixture
def messages(browser_page: Page) -> Iterator[list[ConsoleMessage]]:
    """What the page says on the console; it must say nothing."""
    said: list[ConsoleMessage] = []
    browser_page.on("console", lambda message: said.append(message))
    yield said
    assert [message.text for message in said] == []


def get(url: str) -> Answer:
    """Ask by HTTP: Playwright's loop occupies this thread, so that none can be run beside it."""
    parts = urlsplit(url)
    with contextlib.closing(HTTPConnection(parts.netloc, timeout=30)) as connection:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())


@pytest.mark.usefixtures("messages")
def test_from_the_overview_to_the_drawn_charts(browser_page: Page, url: str) -> None:
    browser_page.goto(url)
    card = browser_page.locator("a.card")
    assert "Will a flight arrive more than 15 minutes late?" in card.inner_text()
    card.click()
    browser_page.wait_for_selector("figure[data-drawn=yes]")
    assert browser_page.locator("figure.chart").count() == 2
    assert browser_page.locator("figure[data-drawn=yes] canvas").count() == 2
    legend = browser_page.locator(".legend").inner_text()
    assert "alert open" in legend
    assert "candidate refused by the gate" in legend
    assert "candidate promoted" in legend
    assert "aborted" not in legend
    story = browser_page.locator(".timeline").inner_text()
    for kind in ("alert.Fired", "trigger.Fired", "verdict.Given", "rollout.Promoted"):
        assert kind in story


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_have_their_colours_in_both_schemes(browser: Browser, url: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(f"{url}/loops/{NAME}")
    page.wait_for_selector("figure[data-drawn=yes]")
    page.wait_for_timeout(100)
    found = page.evaluate(
        """() => {
            const canvas = document.querySelector("figure canvas");
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            let [red, green, blue] = [0, 0, 0];
            for (let i = 0; i < data.length; i += 4) {
                const [r, g, b, a] = data.slice(i, i + 4);
                if (a < 200) continue;
                if (r > g + 60 && r > b + 60) red++;
                if (g > r + 40 && g > b + 15) green++;
                if (b > r + 60) blue++;
            }
            return { red, green, blue };
        }"""
    )
    page.close()
    assert min(found.values()) > 50, found


@pytest.mark.parametrize("path", ["/", f"/loops/{NAME}"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(browser: Browser, url: str, path: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(url + path)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_it_reads_without_javascript(browser: Browser, url: str) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{url}/loops/{NAME}")
    assert page.locator("h1").inner_text().startswith(NAME)
    page.locator("summary").first.click()
    cells = page.locator("details[open] tbody tr").first.locator("td").all_inner_texts()
    assert re.fullmatch(r"2013-04-\d\d", cells[0])
    assert 0.5 < float(cells[1]) < 1
    assert page.locator(".timeline li").count() > 10
    page.context.close()


def test_json_twin_is_what_the_page_shows(workspace: Workspace, url: str) -> None:
    twin = msgspec.json.decode(get(f"{url}/loops/{NAME}.json").body)
    assert twin == msgspec.json.decode(msgspec.json.encode(views.loop_page(workspace, NAME)))
    html = get(f"{url}/loops/{NAME}").text
    for line in twin["story"]:
        assert line["kind"] in html
    for series in twin["series"]:
        assert len(series["at"]) == len(series["values"]) == len(series["bounds"])
        assert f"{series['values'][-1]:.4g}" in html
    assert {mark["kind"] for mark in twin["marks"]} == {"alert", "passed", "refused", "promoted"}
    overview = msgspec.json.decode(get(f"{url}/overview.json").body, type=views.Overview)
    assert [row.name for row in overview.loops] == [NAME]
    assert overview.loops[0].firings == 2


@pytest.mark.parametrize("path", ["/", f"/loops/{NAME}", "/loops/nothing"])
def test_security_headers(url: str, path: str) -> None:
    answer = get(url + path)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert not re.search(r"<script>|\son\w+=|style=", answer.text)


def test_unknown_loop_names_the_nearest(url: str) -> None:
    page = get(f"{url}/loops/flight-delay")
    assert page.status == 404
    assert "did you mean &#39;flights-delay&#39;?" in page.text
    twin = get(f"{url}/loops/flight-delay.json")
    assert (twin.status, twin.json()["error_code"]) == (404, "not_found")


def test_hostile_texts_are_only_text(
    browser_page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ev.open(tmp_path_factory.mktemp("hostile"), actor=HOSTILE) as workspace:
        spec = views.LoopSpec(
            name="loop & <b>",
            owner=HOSTILE,
            pipeline="loop.py:retrain",
            charter=Charter(problem=HOSTILE, value=HOSTILE, owner=HOSTILE),
            gates=(ev.beats_champion("brier", on="latest 14 days"),),
            created_at=START,
            updated_at=START,
        )
        workspace.automation.declare(spec)
        workspace.tracking.create_run("Default", name=HOSTILE, actor=HOSTILE)
        with serve(workspace) as url:
            browser_page.goto(url)
            assert browser_page.title() == "Everloop"
            assert HOSTILE in browser_page.locator("a.card").inner_text()
            browser_page.locator("a.card").click()
            browser_page.wait_for_load_state("networkidle")
            assert browser_page.title() == "loop & <b> - Everloop"
            assert HOSTILE in browser_page.locator(".charter").inner_text()


@pytest.mark.usefixtures("messages")
def test_an_empty_workspace_says_how_to_begin(
    browser_page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ev.open(tmp_path_factory.mktemp("empty")) as workspace, serve(workspace) as url:
        browser_page.goto(url)
        text = browser_page.locator("main").inner_text()
    assert "everloop init" in text
    assert "everloop up" in text


def test_a_page_of_a_long_past_stays_small(workspace: Workspace, url: str) -> None:
    page = views.loop_page(workspace, NAME)
    days = (page.series[0].at[-1] - page.series[0].at[0]) / timedelta(days=1).total_seconds()
    size = len(get(f"{url}/loops/{NAME}").body)
    assert size / days * 365 < 1_000_000


def test_the_grades_of_a_loop_are_a_page_and_a_document(url: str) -> None:
    page = get(f"{url}/loops/{NAME}/maturity")
    assert page.status == 200
    document = msgspec.json.decode(get(f"{url}/loops/{NAME}/maturity.json").body, type=Maturity)
    assert len(document.items) == 12
    for item in document.items:
        assert item.title in page.body.decode()
    assert f"/loops/{NAME}/maturity" in get(f"{url}/loops/{NAME}").body.decode()
    assert get(f"{url}/loops/nobody/maturity").status == 404
