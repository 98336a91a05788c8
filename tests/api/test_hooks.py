"""Webhooks of others: what is forged, replayed or old is refused; what is right is one event."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import everloop as ev
from everloop.core.webhook import signature
from everloop.workspace import Workspace
from tests.servers import serve

SECRET = "correct horse"
BODY = '{"branch": "main", "rows": 3}'


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("RETRAIN_SECRET", SECRET)
    with ev.open(tmp_path / ".everloop", actor="tester") as workspace:
        trigger = ev.webhook(
            "retrain", secret="env:RETRAIN_SECRET", where={"payload.branch": "main"}
        )
        workspace.automation.automate(ev.on(trigger, name="on-push").run("loop.py:retrain"))
        yield workspace


def post(url: str, body: str = BODY, name: str = "retrain", **changes: Any) -> httpx.Response:
    given = {"id": "d1", "at": str(int(time.time())), "secret": SECRET, **changes}
    signed = signature(given["secret"], given["id"], given["at"], changes.get("signed", body))
    headers = {"webhook-id": given["id"], "webhook-timestamp": given["at"]}
    headers |= {"webhook-signature": f"v1,AAAA {signed}"}
    return httpx.post(f"{url}/hooks/{name}", content=body, headers=headers)


def test_a_signed_delivery_is_one_event_however_often_it_comes(ws: Workspace) -> None:
    ws.access.create_user("admin", "admin", password="a long password")  # nobody logs in for a hook
    with serve(ws) as url:
        first = post(url)
        assert (first.status_code, first.json()["duplicate"]) == (202, False)
        again = post(url)
        assert (again.status_code, again.json()["duplicate"]) == (200, True)
        assert post(url, '{"branch": "other"}', id="d2").status_code == 202
    assert ws.catalog is not None
    events = ws.catalog.events(kind="webhook.Received")
    assert [event.body["payload"]["branch"] for event in events] == ["main", "other"]
    assert [f.cause for f in ws.automation.decide()] == [events[0].id]


def test_what_is_forged_old_or_unknown_is_refused_alike(ws: Workspace) -> None:
    now = int(time.time())
    with serve(ws) as url:
        refused = [
            post(url, secret="wrong"),
            post(url, signed="another body"),
            post(url, at=str(now - 400)),
            post(url, at=str(now + 400)),
            post(url, at="soon"),
            post(url, at="1" * 30),
            post(url, id="a b"),
            post(url, name="nobody"),
            httpx.post(f"{url}/hooks/retrain", content=BODY),
        ]
        assert {answer.status_code for answer in refused} == {401}
        assert len({answer.json()["message"] for answer in refused}) == 1
        assert post(url, "no json").status_code == 400
        assert post(url, "x" * 300_000).status_code == 413
        assert post(url, "", id="d9").status_code == 202
    assert ws.catalog is not None
    assert len(ws.catalog.events(kind="webhook.Received")) == 1


def test_a_secret_that_is_not_set_opens_nothing(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RETRAIN_SECRET")
    with serve(ws) as url:
        assert post(url, secret="").status_code == 401


def test_a_secret_of_the_specification_and_our_own_headers_are_taken(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = b"0123456789abcdef"
    monkeypatch.setenv("RETRAIN_SECRET", f"whsec_{base64.b64encode(key).decode()}")
    at = str(int(time.time()))
    made = hmac.digest(key, f"d1.{at}.{BODY}".encode(), hashlib.sha256)
    headers = {"X-MLflow-Delivery-Id": "d1", "X-MLflow-Timestamp": at}
    headers |= {"X-MLflow-Signature": f"v1,{base64.b64encode(made).decode()}"}
    with serve(ws) as url:
        answer = httpx.post(f"{url}/hooks/retrain", content=BODY, headers=headers)
    assert answer.status_code == 202


def test_the_first_page_shows_what_waits_and_what_happens_by_itself(ws: Workspace) -> None:
    run = ws.pipelines.start("p", owner="somebody")
    ws.approvals.ask(run.id, run.fence, "promote?", "<b>promote?</b>", four_eyes=True)
    with serve(ws) as url:
        page = httpx.get(url).text
        twin = httpx.get(f"{url}/overview.json").json()
    assert f"/approvals/{run.id}" in page
    assert "&lt;b&gt;promote?" in page
    assert "on-push" in page
    assert [asked["question"] for asked in twin["waiting"]] == ["<b>promote?</b>"]
