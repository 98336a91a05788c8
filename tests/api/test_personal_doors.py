"""Every door of datasets, asked by one who may not see personal data: no planted value comes out.

The methods are taken from the services themselves: one that is new, and that nobody gave arguments
here, fails the test, and so does one that forgets the mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

import everloop as ev
from everloop.access.roles import is_allowed
from everloop.access.service import actions_of
from everloop.access.wire import HEAD_LENGTH, encode_call
from everloop.core.source import PullDraft
from everloop.core.time import ManualClock
from everloop.server import make_app
from everloop.workspace import AREAS, Workspace
from tests.servers import Answer, ask
from tests.workspaces import START

#: Areas whose every method must have arguments here.
AREAS_OF_DATA = ("objects", "data", "files")
#: What must never come out, as text...
TEXTS = ("planted-mail", "planted-note", "planted-alias", "73917391", "1973-09-13")
#: ... and as Arrow has it.
MOMENT = datetime(1973, 9, 13, tzinfo=UTC)
NUMBERS = [73917391, int(MOMENT.timestamp() * 1e6)]
SECRETS = [text.encode() for text in TEXTS] + [n.to_bytes(8, "little") for n in NUMBERS]

SCHEMA = ev.Schema(
    (
        ev.Field("id", "int64", nullable=False),
        ev.Field("mail", "string", pii="email", regex=".*@.*", on_fail="quarantine"),
        ev.Field("salary", "int64", le=10**9, on_fail="drop"),
        ev.Field("born", "timestamp", mask="bucket:year"),
        ev.Field("note", "string"),
        ev.Field("town", "string", among=("Oslo", "Rome"), on_fail="warn"),
    ),
    checks=(
        ev.Check("highest", kind="max", columns=("salary",), le=5, on_fail="warn"),
        ev.Check("fresh", kind="freshness", columns=("born",), le=60, on_fail="warn"),
        ev.Check("no note", "note = ''", on_fail="warn"),
    ),
    key=("id",),
)


def rows(*numbers: int, mail: str = "planted-mail-{}@example.org", town: str = "Oslo") -> pa.Table:
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "mail": [mail.format(n) for n in numbers],
            "salary": pa.array([73917391] * len(numbers), pa.int64()),
            "born": pa.array([MOMENT] * len(numbers), pa.timestamp("us", "UTC")),
            "note": [f"planted-note-{n}" for n in numbers],
            "town": [town] * len(numbers),
        }
    )


class Place(NamedTuple):
    """A workspace full of personal data, its server, and who asks."""

    ws: Workspace
    app: ASGIApp
    login: dict[str, str]

    def post(self, area: str, method: str, **arguments: Any) -> Answer:
        body, head = encode_call(arguments)
        headers = {**self.login, HEAD_LENGTH: str(head)}
        return ask(self.app, "POST", f"/api/v1/{area}/{method}", body, headers=headers)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop", clock=ManualClock(START), actor="server") as ws:
        ws.access.create_user("ann", "admin")
        ws.access.create_user("bob", "contributor")
        _fill(ws)
        token = ws.access.create_token("bob").secret
        yield Place(ws, make_app(ws), {"Authorization": f"Bearer {token}"})


def _fill(ws: Workspace) -> None:
    data = ws.data
    data.commit("people", rows(1, 2, 3), schema=SCHEMA, owner="ann")
    wrong = rows(4, 5, mail="planted-mail-{}")  # set aside
    data.commit("people", pa.concat_tables([rows(6, town="planted-town"), wrong]))
    high = rows(7).set_column(2, "salary", pa.array([10**10]))
    data.commit("people", high)  # dropped
    data.describe("people", pii={"salary": "salary", "note": "free text"})
    data.mask("people", "salary", "bucket:1000")
    data.branch("people", "side")
    data.commit("people", rows(1, mail="planted-mail-side-{}@x"), branch="side", mode="replace")
    data.commit("people", rows(1, 2, mail="planted-mail-main-{}@x"), mode="replace")
    changed = pa.table({"id": [1], "mail.new": ["planted-mail-new"], "made_of": ["planted-alias"]})
    data.record_changes("run:1/clean", "people", "alias", "changed", "tidy", "ann", changed)
    data.record_changes("run:1/join", "", "join", "changed", "tidy", "ann", changed)
    # A schema without the tags does not uncover what an earlier one tagged.
    bare = ev.Schema(tuple(ev.Field(f.name, f.type) for f in SCHEMA.fields), key=("id",))
    last = rows(1, 2, 3, mail="planted-mail-six-{}@x")
    data.commit("people", last, schema=bare, mode="replace")


def digests_of(ws: Workspace) -> list[str]:
    found = []
    for name in ("people", "people.quarantine"):
        for version in ws.data.versions(name, branch=None):
            found += [d for block in version.blocks for d in (block.digest, block.hashes) if d]
    return [*found, *(change.detail for change in ws.data.changes())]


ASK = ev.Check("ask", "mail LIKE 'plant%-1@%' AND salary BETWEEN 73917390 AND 73917392")
BARE = ev.Schema((ev.Field("mail", "string", regex="x"), ev.Field("salary", "int64", le=1)))
REFERS = ev.Schema(
    (ev.Field("guess", "string"),),
    checks=(ev.Check("is one", kind="references", columns=("guess",), to="people/mail"),),
)


def calls(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Arguments for each method; several where several answers are of interest."""
    digests = digests_of(ws)
    names: list[dict[str, Any]] = [{"name": "people"}, {"name": "people.quarantine"}]
    numbered = [{"name": "people", "number": n} for n in range(1, 7)]
    guess = pa.table({"guess": ["planted-mail-1@example.org".replace("planted", "other")]})
    waiting = ws.data.read("people.quarantine")
    items = [item.id for item in ws.data.work(dataset="people").items]
    fixed = waiting.set_column(
        waiting.column_names.index("mail"), "mail", pa.array(["no"] * waiting.num_rows)
    )
    return {
        "objects.get": [{"digest": digest} for digest in digests],
        "objects.get_many": [{"digests": digests}, *({"digests": [d]} for d in digests)],
        "objects.keep": [{"digest": digests[0]}],
        "objects.keep_many": [{"digests": digests}],
        "objects.put": [{"data": b"x"}],
        "objects.put_many": [{"data": [b"x"]}],
        "files.commit": [{"name": "stolen", "root": digest} for digest in digests[:2]],
        "files.verify": [{}, {"name": "people"}],
        "files.version": names,
        "files.versions": names,
        "data.branch": [{"name": "people", "branch": "other"}],
        "data.branches": names,
        "data.changed_rows": [
            {"dataset": "people"}, {"dataset": "people.quarantine"}, {"dataset": ""},
            {"dataset": "people", "where": {"id": 7}},
            {"dataset": "people", "where": {"note": "x"}},
            {"dataset": "people", "where": {"id": "planted"[:3]}},
        ],
        "data.changes": [{}, {"dataset": "people"}],
        "data.check": [
            *names, *numbered,
            *({"name": "people", "number": n, "contract": c}
              for n in (1, 6) for c in ([ASK], BARE, [ev.Check("low", kind="max",
              columns=("salary",), le=1)], [ev.Check("cast", "CAST(note AS INT) > 1")])),
        ],
        "data.commit": [
            {"name": "guesses", "rows": guess, "schema": REFERS},
            {"name": "people", "rows": rows(1, mail="no"), "owner": "bob"},
            {"name": "people", "rows": pa.table({"id": [1]})},
        ],
        "data.commit_pull": [
            {"name": "people", "rows": None, "draft": PullDraft(generation=0)}
        ],
        "data.datasets": [{}],
        "data.delete_branch": [{"name": "people", "branch": "none"}],
        "data.describe": [
            {"name": "people", "purpose": "to look"}, {"name": "people", "owner": "bob"},
            {"name": "people", "pii": {"mail": "", "note": "", "born": ""}},
        ],
        "data.diff": [
            {"name": "people", "old": a, "new": b, "rows": 50}
            for a, b in ((1, 2), (1, 4), (4, 5), (5, 6), (6, 1))
        ],
        "data.find": [{"ref": ref} for ref in ("people", "people@1", "people@side", "people@x")],
        "data.holds": [{}],
        "data.merge": [
            {"name": "people", "branch": "side"},
            {"name": "people", "branch": "side", "strategy": "ours"},
        ],
        "data.note_export": [{"name": "people", "number": 1, "format": "delta", "to": "/tmp/x"}],
        "data.profile": [*names, *numbered],
        "data.pulls": names,
        "data.read": [
            *names, *numbered, {"name": "people", "number": 1, "columns": ["note", "born"]},
            {"name": "people", "number": 1, "columns": ["planted"]},
        ],
        "data.receipts": [{}],
        "data.record_changes": [
            {"scope": "run:2/x", "dataset": "people", "rule": "r", "act": "changed",
             "reason": "", "owner": "", "rows": pa.table({"id": [1]})}
        ],
        "data.fix_rows": [
            {"name": "people", "rows": fixed},
            {"name": "people", "rows": pa.table({"quarantine_id": ["x"]})},
            {"name": "people", "rows": pa.table({"work_id": ["x"], "mail": ["no"]})},
        ],
        "data.add_work": [
            {"dataset": "people", "rows": [{"id": 1, "rule": "r", "reason": "look"}]},
            {"dataset": "people", "rows": [{"id": 77, "rule": "r", "reason": "look"}]},
        ],
        "data.dismiss": [
            {"name": "people", "ids": ["x"], "reason": "no fault"},
            {"name": "people", "ids": items[:1], "reason": "no fault"},
        ],
        "data.work": [
            {}, {"dataset": "people"}, {"owner": "ann"}, {"dismissed": True},
        ],
        "data.work_rows": names,
        "data.change_totals": [{}, {"dataset": "people"}],
        "data.changed_page": [
            {"dataset": change.dataset, "detail": change.detail} for change in ws.data.changes()
        ],
        "data.why_absent": [
            *({"name": "people", "where": {"id": n}} for n in range(1, 8)),
            *({"name": "people", "where": {"id": n}, "number": 1} for n in range(1, 8)),
            {"name": "people", "where": {"mail": "planted"[:3]}},
            {"name": "people", "where": {"note": "x"}},
            {"name": "people", "where": {"planted": 1}},
        ],
        "data.retention": [{}],
        "data.source": names,
        "data.source_state": names,
        "data.sources": [{}],
        "data.tag": [{"name": "people", "tag": "t", "number": 1}],
        "data.tags": names,
        "data.terms": names,
        "data.terms_history": names,
        "data.access_log": names,
        "data.note_access": [{"name": "people", "number": 1, "door": "scan"}],
        "data.masked": names,
        "data.personal": names,
        "data.find_pii": [*names, *numbered],
        "data.k_anonymity": [
            {"name": "people", "columns": ["salary", "born"]},
            {"name": "people", "columns": ["note", "planted"]},
        ],
        "data.preview": [*names, *numbered],
        "data.untag": [{"name": "people", "tag": "t"}],
        "data.verify_receipt": [{"receipt": "none", "where": {"id": 1}}],
        "data.version": [*names, *numbered],
        "data.version_at": [{"name": "people", "at": "2013-04-02"}],
        "data.versions": [{"name": "people", "branch": None}, *names],
    }  # fmt: skip


def leaks(answer: Answer) -> list[bytes]:
    """What is in an answer that must not be: a planted value, or a Parquet file."""
    everything = answer.body + repr(answer.headers).encode()
    return [secret for secret in (*SECRETS, b"PAR1") if secret in everything]


def test_no_door_of_datasets_gives_a_planted_value_out(place: Place) -> None:
    given = calls(place.ws)
    found, asked, answered = [], 0, set()
    for area in AREAS_OF_DATA:
        for method, right in actions_of(type(place.ws.service(area))).items():
            if not is_allowed("contributor", right):
                continue
            assert f"{area}.{method}" in given, f"tell here how to ask {area}.{method}"
            for arguments in given[f"{area}.{method}"]:
                answer = place.post(area, method, **arguments)
                asked += 1
                assert answer.status < 500, (area, method, arguments, answer.text)
                answered |= {f"{area}.{method}"} if answer.status == 200 else set()
                found += [(area, method, arguments, leak) for leak in leaks(answer)]
    assert not found
    assert asked > 100
    assert {"data.read", "data.diff", "data.check", "data.profile", "data.changed_rows"} <= answered


def test_the_other_areas_and_every_page_give_none_out_either(place: Place) -> None:
    ws = place.ws
    digests = digests_of(ws)
    ws.lineage.upstream("dataset:people@6")
    found = []
    words: dict[str, Any] = {
        "name": "people", "subject": "dataset:people@6", "ref": "people", "digest": digests[0],
        "path": f"a/{digests[0]}", "size": 1, "limit": 1000, "rows": rows(9, mail="no"),
        "id": ws.lineage.events(kind="dataset.VersionCommitted")[0].id, "model": "people",
    }  # fmt: skip
    words["event_id"] = words["id"]
    for area in AREAS:
        if area in AREAS_OF_DATA:
            continue
        service = type(ws.service(area))
        for method in actions_of(service):
            names = inspect.signature(getattr(service, method)).parameters
            arguments = {name: words[name] for name in names if name in words}
            answer = place.post(area, method, **arguments)
            found += [(area, method, leak) for leak in leaks(answer)]
    pages = [r.path for r in _routes(place.app) if "GET" in (r.methods or ())]
    assert {"/datasets/{name}/profile", "/datasets/{name}/sheet"} <= set(pages)
    for path in pages:
        for name in ("people", "people@1", "people.quarantine", "people@side", "nobody"):
            target = path.replace("{name}", name).replace("{name:path}", name)
            if "{" in target:
                continue
            answer = ask(place.app, "GET", target, headers=place.login)
            found += [(target, leak) for leak in leaks(answer)]
    assert not found


def _routes(app: Any) -> list[Route]:
    """The routes of the framework, however many layers of ASGI lie around it."""
    waiting = [app]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Starlette):
            return [route for route in inner.routes if isinstance(route, Route)]
        waiting += list(getattr(inner, "__dict__", {}).values())
    raise AssertionError("there is no framework in the application")


def test_who_may_see_gets_the_values_and_the_blocks(place: Place) -> None:
    secret = place.ws.access.create_token("ann").secret
    ann = place._replace(login={"Authorization": f"Bearer {secret}"})
    assert b"planted-mail-1@example.org" in ann.post("data", "read", name="people", number=1).body
    digest = place.ws.data.version("people", 1).blocks[0].digest
    assert b"PAR1" in ann.post("objects", "get", digest=digest).body


def test_bytes_past_the_mask_are_refused_by_every_way_that_names_a_digest(place: Place) -> None:
    digest = place.ws.data.version("people", 1).blocks[0].digest
    refused = place.post("objects", "get", digest=digest)
    assert refused.status == 403
    assert "everloop data grant people --to bob" in refused.json()["hint"]
    # As an artifact of one's own, and as a file of a dataset, it is the same object.
    linked = place.post("tracking", "link_artifact", path="a/b", digest=digest, size=1)
    assert linked.status == 200, linked.text
    assert place.post("tracking", "artifact", path="a/b").status == 403
    served = ask(place.app, "GET", "/api/2.0/mlflow-artifacts/artifacts/a/b", headers=place.login)
    assert served.status == 403, served.text
    assert not leaks(served)
