"""What is stated of datasets, who sees personal data, who saw it: here and through a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import everloop as ev
from everloop.core.access import Principal, Role
from everloop.core.context import authenticated, using
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput, NotAllowed, NotFound
from everloop.workspace import Workspace
from tests.servers import serve

MAIL = ev.Field("mail", "string", pii="email", mask="hash", description="where to write")
SCHEMA = ev.Schema(
    (
        ev.Field("id", "int64", nullable=False),
        MAIL,
        ev.Field("age", "int64", unit="year"),
        ev.Field("visit", "timestamp"),
    ),
    key=("id",),
)


def rows(n: int = 4) -> pa.Table:
    return pa.table(
        {
            "id": list(range(n)),
            "mail": [f"p{k}@example.org" for k in range(n)],
            "age": [20 + k for k in range(n)],
            "visit": pa.array(
                [datetime(2024, 1, 1 + k, tzinfo=UTC) for k in range(n)], pa.timestamp("us", "UTC")
            ),
        }
    )


@contextmanager
def seen_by(name: str, role: Role) -> Iterator[None]:
    with authenticated(Principal(name, role)):
        yield


@pytest.fixture
def here(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """A workspace whose services are called as a door calls them: with somebody logged in."""
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop", clock=clock, actor="server") as opened, using(opened):
        opened.data.commit("people", rows(), schema=SCHEMA, owner="ann")
        yield opened


def mails(ws: Workspace, name: str = "people", number: int | None = None) -> list[str]:
    return ws.data.read(name, number, columns=["mail"]).column("mail").to_pylist()  # type: ignore[no-any-return]


class TestStatements:
    """Through every way that a workspace is had."""

    def test_what_is_stated_is_kept_with_its_history(self, ws: Workspace) -> None:
        ev.commit("people", rows(), schema=SCHEMA, purpose="beds", licence="CC-BY-4.0")
        ws.data.describe("people", purpose="plan of beds", owner="ann@example.org")
        ws.data.describe("people", purpose="plan of beds")  # nothing new
        found = ws.data.terms("people")
        assert (found.purpose, found.licence, found.source) == ("plan of beds", "CC-BY-4.0", "")
        assert [d.owner for d in ws.data.datasets()] == ["ann@example.org"]
        stated = [c.what for c in ws.data.terms_history("people") if c.kind == "dataset.Described"]
        assert stated == [
            {"purpose": "beds", "licence": "CC-BY-4.0"},
            {"purpose": "plan of beds", "owner": "ann@example.org"},
        ]

    def test_masks_and_grants_are_stated_and_taken_back(self, ws: Workspace) -> None:
        ev.commit("people", rows(), schema=SCHEMA)
        ws.data.mask("people", "age", "bucket:10")
        ws.data.mask("people", "visit", "shift:id:30")
        found = {c.name: (c.kind, c.mask) for c in ws.data.personal("people")}
        assert found == {
            "mail": ("email", "hash"), "age": ("masked", "bucket:10"),
            "visit": ("masked", "shift:id:30"),
        }  # fmt: skip
        ws.data.mask("people", "age", "")
        assert [c.name for c in ws.data.personal("people")] == ["mail", "visit"]
        ws.data.grant("people", "bob", columns=["mail"], reason="letters")
        ws.data.grant("people", "role:contributor")
        given = [(g.to, g.columns, g.reason) for g in ws.data.terms("people").grants]
        assert given == [("bob", ("mail",), "letters"), ("role:contributor", (), "")]
        assert [g.to for g in ws.data.revoke("people", "bob").grants] == ["role:contributor"]

    def test_what_cannot_be_stated_is_refused(self, ws: Workspace) -> None:
        ev.commit("people", rows(), schema=SCHEMA)
        with pytest.raises(InvalidInput, match="a keyed hash is of text"):
            ws.data.mask("people", "visit", "hash")
        with pytest.raises(NotFound, match="did you mean 'age'"):
            ws.data.mask("people", "agee", "bucket:10")
        with pytest.raises(NotFound):
            ws.data.mask("people", "visit", "shift:patient")
        with pytest.raises(InvalidInput, match="nobody"):
            ws.data.grant("people", "role:boss")
        with pytest.raises(NotFound, match="bob"):
            ws.data.revoke("people", "bob")
        with pytest.raises(NotFound):
            ws.data.describe("poeple", purpose="x")
        with pytest.raises(InvalidInput, match="longer than"):
            ws.data.describe("people", purpose="x" * 3000)
        with pytest.raises(TypeError, match="licence"):
            ev.commit("people", rows(), license="MIT")

    def test_reading_keeps_an_hourly_log_of_personal_columns_alone(
        self, ws: Workspace, clock: ManualClock
    ) -> None:
        ev.commit("people", rows(), schema=SCHEMA)
        ev.commit("planes", {"id": [1]})
        for _ in range(50):
            ev.read("people", purpose="training")
            ev.read("planes")
            ev.read("people", columns=["age"])
        [entry] = ws.data.access_log("people")
        assert (entry.who, entry.version, entry.columns) == ("tester", 1, ("mail",))
        assert (entry.masked, entry.door, entry.purpose) == ((), "read", "training")
        assert ws.data.access_log("planes") == []
        clock.advance(hours=1)
        ev.read("people", purpose="training")
        ev.read("people", purpose="a look")
        assert [a.purpose for a in ws.data.access_log("people")] == [
            "a look", "training", "training",
        ]  # fmt: skip
        assert ws.data.access_log("people", who="nobody") == []
        assert "example.org" not in str(ws.lineage.events())

    def test_a_run_is_its_own_purpose(self, ws: Workspace) -> None:
        ev.commit("people", rows(), schema=SCHEMA)

        @ev.pipeline
        def look() -> None:
            ev.read("people")

        look.run()
        [run] = ws.tracking.runs().runs
        assert [a.purpose for a in ws.data.access_log("people")] == [f"run:{run.id}"]

    def test_the_sheet_lists_what_nobody_stated(self, ws: Workspace) -> None:
        table = rows().append_column("phone", pa.array([f"+49 30 90182{n}" for n in range(4)]))
        fields = (*SCHEMA.fields, ev.Field("phone", "string"))
        ev.commit("people", table, schema=ev.Schema(fields, key=("id",)), purpose="plan of beds")
        sheet = ws.governance.data_sheet("people")
        assert (sheet.rows, sheet.owner, sheet.stated["purpose"]) == (4, "", "plan of beds")
        assert {c.name: (c.pii, c.detected, c.mask) for c in sheet.columns} == {
            "id": ("", (), ""), "mail": ("email", ("email (100%)",), "hash"), "age": ("", (), ""),
            "visit": ("", (), ""), "phone": ("", ("phone (100%)",), ""),
        }  # fmt: skip
        assert sheet.warnings == ("phone holds what looks like phone (100%), and is not tagged",)
        assert set(sheet.not_stated) >= {"owner", "licence", "source", "sensitivity", "retention"}
        assert "description of id, age, visit, phone" in sheet.not_stated
        ws.data.describe(
            "people", owner="ann", licence="MIT", source="ward", sensitivity="high",
            description="who came", pii={"phone": "phone"},
        )  # fmt: skip
        ws.data.keep("people", for_days=30)
        sheet = ws.governance.data_sheet("people")
        assert sheet.warnings == ()
        assert sheet.not_stated == ("description of id, age, visit, phone",)
        assert sheet.retention == "versions younger than 30 days, and the last 1"


def test_who_sees_what(here: Workspace) -> None:
    plain = mails(here)
    here.data.grant("people", "bob")
    here.data.grant("people", "role:maintainer", columns=["mail"])
    sees: dict[tuple[str, Role], bool] = {
        ("ann", "viewer"): True,  # the owner
        ("cy", "admin"): True,
        ("bob", "viewer"): True,
        ("di", "maintainer"): True,
        ("di", "contributor"): False,
        ("di", "viewer"): False,
    }
    for (name, role), is_seen in sees.items():
        with seen_by(name, role):
            assert (mails(here) == plain) is is_seen, (name, role)
    here.data.revoke("people", "bob")
    with seen_by("bob", "viewer"):
        assert mails(here) != plain
        assert here.data.masked("people") == ["mail"]
        with pytest.raises(NotAllowed, match="admin"):
            here.data.grant("people", "bob")
        with pytest.raises(NotAllowed, match="admin"):
            here.data.mask("people", "mail", "")


def test_one_value_has_one_hash_in_all_datasets_of_a_workspace(here: Workspace) -> None:
    other = pa.table({"address": ["p2@example.org", None]})
    field = ev.Field("address", "string", pii="email", mask="hash")
    here.data.commit("letters", other, schema=ev.Schema((field,)))
    with seen_by("bob", "viewer"):
        hashed = here.data.read("letters").column("address").to_pylist()
        assert hashed == [mails(here)[2], None]


def test_a_later_schema_without_the_tag_uncovers_nothing(here: Workspace) -> None:
    bare = ev.Schema(tuple(ev.Field(f.name, f.type) for f in SCHEMA.fields), key=("id",))
    with seen_by("bob", "contributor"):
        here.data.commit("people", rows(5).slice(4), schema=bare)
        assert set(mails(here)) == {"(masked)"}  # the mask went with the schema, the tag did not
        with pytest.raises(NotAllowed):
            here.data.describe("people", pii={"mail": ""})
        with pytest.raises(NotAllowed):  # nor before there is one
            here.data.describe("people", pii={"visit": ""})
        here.data.describe("people", pii={"age": "age"})  # to hide more is anybody's right
        assert here.data.masked("people") == ["age", "mail"]
    here.data.describe("people", pii={"mail": ""})
    with seen_by("bob", "contributor"):
        assert mails(here)[4] == "p4@example.org"


def test_a_mask_goes_before_an_earlier_word_that_there_is_nothing_to_hide(here: Workspace) -> None:
    here.data.describe("people", pii={"age": ""})
    here.data.mask("people", "age", "null")
    with seen_by("bob", "viewer"):
        assert here.data.masked("people") == ["age", "mail"]


def test_nobody_makes_themselves_an_owner_to_see(here: Workspace) -> None:
    with seen_by("bob", "contributor"):
        for act in (
            lambda: here.data.describe("people", owner="bob"),
            lambda: here.data.commit("people", rows(6).slice(5), owner="bob"),
        ):
            with pytest.raises(NotAllowed, match="a new owner would see"):
                act()
        here.data.commit("people", rows(6).slice(5), owner="ann")  # who is it already
        here.data.commit("mine", rows(), owner="bob", schema=SCHEMA)
        assert mails(here, "mine")[0] == "p0@example.org"


def test_masked_rows_do_not_take_the_place_of_the_values(here: Workspace) -> None:
    with seen_by("bob", "contributor"):
        masked = here.data.read("people")
        with pytest.raises(InvalidInput, match="masks in place of the values"):
            here.data.commit("people", masked, mode="replace")
    assert mails(here)[0] == "p0@example.org"


def test_rows_that_wait_are_corrected_by_whoever_may_not_see_them(here: Workspace) -> None:
    old = ev.Field("age", "int64", le=30, on_fail="quarantine")
    schema = ev.Schema((SCHEMA.fields[0], MAIL, old, SCHEMA.fields[3]), key=("id",))
    wrong = pa.table({"id": [7, 8], "mail": ["p7@example.org", None], "age": [99, 98],
                      "visit": rows(2).column("visit")})  # fmt: skip
    here.data.commit("people", wrong, schema=schema)
    with seen_by("bob", "contributor"):
        waiting = here.data.read("people.quarantine")
        assert waiting.column("mail").to_pylist() != ["p7@example.org", None]
        at = waiting.column_names.index("age")
        here.data.fix_rows("people", waiting.set_column(at, "age", pa.array([29, 28])))
    stored = here.data.read("people").to_pylist()[-2:]
    assert [(row["mail"], row["age"]) for row in stored] == [("p7@example.org", 29), (None, 28)]


def test_rules_that_somebody_brings_see_what_they_see(here: Workspace) -> None:
    ask = [ev.Check("ask", "mail = 'p1@example.org'", on_fail="warn")]
    assert here.data.check("people", ask).broken[0].failed == 3
    with seen_by("bob", "viewer"):
        report = here.data.check("people", ask)
    assert report.broken[0].failed == 4
    assert "mail masked" in report.unjudged["personal data"]


def test_a_guess_against_a_column_that_is_not_seen_is_refused(here: Workspace) -> None:
    refers = ev.Check("known", kind="references", columns=("guess",), to="people/mail")
    schema = ev.Schema((ev.Field("guess", "string"),), checks=(refers,))
    guess = pa.table({"guess": ["p1@example.org"]})
    with seen_by("bob", "contributor"), pytest.raises(NotAllowed, match="values of mail"):
        here.data.commit("guesses", guess, schema=schema)
    here.data.commit("guesses", guess, schema=schema)


def test_blocks_are_guarded_on_postgresql_too(
    postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    with ev.open(postgres_database) as ws:
        ws.data.commit("people", rows(), schema=SCHEMA)
        ws.data.commit("planes", pa.table({"id": [1]}))
        personal, other = (ws.data.version(n).blocks[0].digest for n in ("people", "planes"))
        with seen_by("bob", "viewer"):
            with pytest.raises(NotAllowed, match="mail would come unmasked"):
                ws.objects.get_many([other, personal])
            assert ws.objects.get(other)[:4] == b"PAR1"


def test_the_log_says_what_came_masked(here: Workspace) -> None:
    with seen_by("bob", "viewer"):
        here.data.read("people")
    with seen_by("ann", "viewer"):
        here.data.read("people", columns=["mail"], purpose="letters")
        here.objects.get(here.data.version("people").blocks[0].digest)
    blocks, ann, bob = here.data.access_log("people")
    assert (bob.who, bob.columns, bob.masked) == ("bob", ("mail",), ("mail",))
    assert (ann.who, ann.columns, ann.masked, ann.purpose) == ("ann", ("mail",), (), "letters")
    assert (blocks.who, blocks.door, blocks.masked) == ("ann", "blocks", ())


def test_blocks_in_place_are_in_the_log_too(here: Workspace) -> None:
    ev.scan("people").collect()
    ev.export("people", "out")
    assert [(a.door, a.columns) for a in here.data.access_log("people")] == [
        ("export", ("mail",)), ("scan", ("mail",)),
    ]  # fmt: skip


def test_an_erasure_leaves_no_block_behind_that_is_not_guarded(here: Workspace) -> None:
    with seen_by("bob", "viewer"), pytest.raises(NotAllowed):
        here.objects.get(here.data.version("people").blocks[0].digest)
    here.data.erase({"id": 1}, reason="asked")
    digest = here.data.version("people").blocks[0].digest
    with seen_by("bob", "viewer"), pytest.raises(NotAllowed, match="stored bytes of people"):
        here.objects.get(digest)


def test_through_a_server_without_the_right(here: Workspace, tmp_path: Path) -> None:
    here.access.create_user("cy", "admin")
    here.access.create_user("bob", "contributor")
    token = here.access.create_token("bob").secret
    plain = mails(here)

    @ev.step
    def domains(rows: ev.Table) -> list[str]:
        return [mail.partition("@")[2] for mail in rows.column("mail").to_pylist()]

    @ev.step
    def direct() -> list[str]:
        return ev.read("people").column("mail").to_pylist()  # type: ignore[no-any-return]

    @ev.pipeline
    def look() -> list[str]:
        domains(ev.read("people"))
        return direct()

    with serve(here) as url:
        assert look.run() == plain
        with ev.open(url, token=token) as remote, using(remote):
            table = ev.read("people")
            assert set(table.column("mail").to_pylist()).isdisjoint(plain)
            # Whose rows came masked gets no stored result of whoever saw them, nor the reverse.
            hidden = look.run()
            assert hidden == table.column("mail").to_pylist()
            for refused in (ev.paths, ev.scan):
                with pytest.raises(NotAllowed, match="everloop data grant people --to bob") as told:
                    refused("people")
                assert told.value.exit == 4
            made = ev.export("people", tmp_path / "out")
            written = pq.read_table(next(made.glob("*.parquet"))).column("mail").to_pylist()
            assert written == hidden
            assert '"masked": [' in (made / "_everloop.json").read_text()
        assert look.run() == plain
        here.data.grant("people", "bob", reason="training")
        with ev.open(url, token=token) as remote, using(remote):
            assert mails(remote) == plain
            assert sorted(ev.scan("people").collect()["mail"].to_list()) == sorted(plain)
