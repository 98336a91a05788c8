"""The form that answers what a run waits for: by role, once, and not from other sites."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.types import ASGIApp

import everloop as ev
from everloop.access import secrets
from everloop.core.context import using
from everloop.errors import RunWaiting
from everloop.pipelines.load import load_pipeline
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask
from tests.unit.pipelines.test_approvals import FILE

PASSWORD = "correct horse battery"


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setattr(secrets, "_LOG_N", 4)  # a quick hash: how slow it is is not tried here
    with ev.open(tmp_path / ".everloop", actor="server") as workspace:
        for name, role in (("ann", "admin"), ("bob", "contributor"), ("vic", "viewer")):
            workspace.access.create_user(name, role, password=PASSWORD)
        yield workspace


@pytest.fixture
def app(ws: Workspace) -> ASGIApp:
    return make_app(ws)


def login(name: str) -> dict[str, str]:
    pair = base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def waiting(ws: Workspace, name: str) -> str:
    with using(ws), pytest.raises(RunWaiting) as waits:
        load_pipeline(f"{FILE}:ask").run(name=name)
    return str(waits.value.details["run"])


def post(
    app: ASGIApp, run_id: str, who: str, headers: dict[str, str] | None = None, **fields: str
) -> Answer:
    form = {"Content-Type": "application/x-www-form-urlencoded", **login(who), **(headers or {})}
    return ask(app, "POST", f"/approvals/{run_id}", urlencode(fields).encode(), headers=form)


def test_whoever_may_answers_on_the_page_and_once(ws: Workspace, app: ASGIApp) -> None:
    run_id, other = waiting(ws, "a"), waiting(ws, "<script>")
    page = ask(app, "GET", "/", headers=login("vic")).text
    assert f'action="/approvals/{run_id}"' in page
    found = rf'approvals/{run_id}"><input type="hidden" name="name" value="([^"]+)"'
    [name] = re.findall(found, page)
    yes = {"answer": "approve", "note": "looks good", "name": name}
    assert post(app, run_id, "vic", **yes).status == 403
    assert post(app, run_id, "bob", **yes).status == 403
    for forged in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert post(app, run_id, "ann", forged, **yes).status == 403
    assert ask(app, "GET", f"/approvals/{run_id}", headers=login("ann")).status == 405
    assert post(app, run_id, "ann", name=name).status == 400
    assert len(ws.approvals.approvals(state="asked")) == 2
    done = post(app, run_id, "ann", {"Sec-Fetch-Site": "same-origin"}, **yes)
    assert (done.status, done.headers["location"]) == (303, "/")
    [given] = ws.approvals.approvals(run_id)
    assert (given.state, given.actor, given.note) == ("approved", "ann", "looks good")
    assert post(app, run_id, "ann", **yes).status == 409
    assert post(app, other, "ann", answer="refuse").status == 400  # it takes a reason
    assert post(app, other, "ann", answer="refuse", note="the data is old").status == 303
    assert ws.tracking.run(other).state == "failed"
    assert post(app, other, "ann", answer="approve", note="x" * 70_000).status == 400
