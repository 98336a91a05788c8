"""A subject is taken out of every version: what is left, what is told, and what is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.artifact import ModelArtifact
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.data.objects import ObjectService
from everloop.data.service import DataService
from everloop.errors import (
    BackendError,
    Conflict,
    EverloopError,
    InvalidInput,
    NotFound,
    StateError,
)
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.workspace import Workspace
from tests.contracts.test_dataset_rows import KEYED, _shrink, listed, table
from tests.decoded import holding

ROWS = [(n, float(n), f"name-{n}") for n in range(40)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "a key that only this test has")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _shrink(monkeypatch)


def _history(data: DataService) -> dict[tuple[str, int], list[tuple[Any, ...]]]:
    """Versions of a keyed table in blocks and deltas, and of one without a key."""
    rows = list(ROWS)
    data.commit("d", table(rows), schema=KEYED)
    for turn in range(5):
        rows = [(n, x + 1 if n % 7 == turn else x, s) for n, x, s in rows if n != 30 + turn]
        data.commit("d", table(rows), mode="replace")
    data.commit("d", table([(100, 1.0, "late"), (101, 2.0, "name-7")]))
    plain = Schema(KEYED.fields)
    data.commit("u", table(ROWS), schema=plain)
    data.commit("u", table(ROWS[:9]), mode="append")
    versions = [*data.versions("d"), *data.versions("u")]
    return {(v.dataset, v.number): listed(data.read(v.dataset, v.number)) for v in versions}


def test_every_version_opens_without_the_subject(data: DataService, small_blocks: None) -> None:
    before = _history(data)
    digests = {v.ref: v.digest for v in data.versions("d")}
    dry = data.erase({"id": 7}, dry_run=True)
    for (name, number), rows in before.items():
        assert listed(data.read(name, number)) == rows
    assert (dry.id, dry.done_at, dry.dry_run) == ("", None, True)
    done = data.erase({"id": 7}, reason="art. 17")
    assert done.erased.rows == dry.erased.rows > 0
    assert [v.ref for v in done.erased.versions] == [v.ref for v in dry.erased.versions]
    assert done.erased.objects == dry.erased.objects
    assert len(done.erased.versions) == len(before)
    for (name, number), rows in before.items():
        assert listed(data.read(name, number)) == [row for row in rows if row[0] != 7], number
        assert data.version(name, number).rows == len(data.read(name, number))
    for version in data.versions("d"):
        assert version.digest == digests[version.ref] != version.content
    assert data.diff("d", 1, 6).removed == 5
    assert (done.actor, done.reason, done.columns) == ("tester", "art. 17", ("id",))
    assert data.receipts() == [done]
    # What is saved as it is now makes no version, and the next change goes on from it.
    latest = data.versions("d")[-1].number
    assert data.commit("d", data.read("d"), mode="replace").number == latest
    assert data.commit("d", data.read("d").slice(1), mode="replace").number == latest + 1
    again = data.erase({"id": 7})
    assert again.erased.is_empty
    assert again.subject == done.subject
    assert [r.id for r in data.receipts()] == [again.id, done.id]


def test_values_of_several_columns_must_all_be_there(data: DataService) -> None:
    before = _history(data)
    done = data.erase({"id": ["7", 101], "s": "name-7"}, dataset="d")
    assert {v.ref.partition("@")[0] for v in done.erased.versions} == {"d"}
    for (name, number), rows in before.items():
        left = [r for r in rows if name == "u" or not (r[0] in (7, 101) and r[2] == "name-7")]
        assert listed(data.read(name, number)) == left


def test_a_whole_dataset_may_go_row_by_row(data: DataService, small_blocks: None) -> None:
    """A hundred thousand subjects in one request; versions without rows are versions."""
    before = _history(data)
    done = data.erase({"id": list(range(100_000))})
    assert done.values == 100_000
    assert done.subjects == ()
    assert all(version.after == 0 for version in done.erased.versions)
    for name, number in before:
        assert data.read(name, number).num_rows == 0
    assert data.commit("d", table(ROWS[:3]), mode="replace").rows == 3


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({}, "where: is empty"),
        ({"id": None}, "null names nobody"),
        ({"id": [1, float("nan"), ""]}, r"where.id\[1\].*null names nobody"),
        ({"id": []}, "no value"),
        ({"id": {"deep": 1}}, "no value of a column"),
    ],
)
def test_what_names_nobody_is_refused(data: DataService, where: Any, said: str) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    with pytest.raises(InvalidInput, match=said):
        data.erase(where)


def test_who_is_nowhere_is_said_to_be(data: DataService) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    for values in (4711, "no number", True, [0.5, 2.5], "2013-01-01"):
        done = data.erase({"id": values})
        assert done.erased.is_empty
        assert done.done_at is not None
    assert listed(data.read("d")) == ROWS
    with pytest.raises(NotFound, match="did you mean 'id'"):
        data.erase({"idd": 7})
    with pytest.raises(NotFound, match="dataset"):
        data.erase({"id": 7}, dataset="e")


def test_a_hold_refuses_by_its_name(data: DataService) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    data.hold("case 12", "litigation", dataset="d")
    assert data.erase({"id": 7}, dry_run=True).erased.holds == ("case 12",)
    with pytest.raises(StateError, match="case 12"):
        data.erase({"id": 7})
    assert listed(data.read("d")) == ROWS
    assert data.erase({"id": 4711}).erased.is_empty
    with pytest.raises(NotFound, match="did you mean 'case 12'"):
        data.release("case 21")
    data.release("case 12")
    assert data.erase({"id": 7}).erased.rows == 1
    with pytest.raises(InvalidInput, match="reason: is empty"):
        data.hold("x", " ")


def test_a_receipt_proves_itself(data: DataService, monkeypatch: pytest.MonkeyPatch) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    done = data.erase({"id": [7, 8]})
    assert b"name-7" not in msgspec.json.encode(done)
    assert data.verify_receipt(done.id, where={"id": [8, 7]}).is_good
    assert data.verify_receipt(done, where={"id": "7"}).matches is True
    assert data.verify_receipt(done, where={"id": 9}).matches is False
    forged = msgspec.structs.replace(done, reason="another")
    assert data.verify_receipt(forged).signature == "invalid"
    unsigned = msgspec.structs.replace(done, mac="")
    assert data.verify_receipt(unsigned).signature == "invalid"
    with pytest.raises(NotFound, match="receipt"):
        data.verify_receipt("01J")
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "another")
    assert data.verify_receipt(done).signature == "unknown key"


# Beside writers


class Between:
    """Erases once, in the middle of a commit of another."""

    def __init__(self, data: DataService, blobs: LocalBlobs, at: int = 0) -> None:
        self.data, self.blobs, self.left = data, blobs, at
        self._put = blobs.put
        blobs.put = self.put  # type: ignore[method-assign, assignment]

    def put(self, content: Any) -> tuple[str, int]:
        done = self._put(content)
        if self.left == 0 and self.blobs.put == self.put:
            self.blobs.put = self._put  # type: ignore[method-assign]
            self.data.erase({"id": 7})
        self.left -= 1
        return done


def test_a_replacement_that_began_before_is_refused(
    data: DataService, blobs: LocalBlobs, small_blocks: None
) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    changed = [(n, x + (n > 30), s) for n, x, s in ROWS]
    Between(data, blobs)
    with pytest.raises(Conflict, match="a subject was erased from d@1"):
        data.commit("d", table(changed), mode="replace")
    assert [row[0] for row in listed(data.read("d"))] == [n for n in range(40) if n != 7]
    # What is given now is given anew.
    assert data.commit("d", table(changed), mode="replace").rows == 40
    assert data.erase({"id": 7}).erased.rows == 1
    assert data.commit("d", table(changed), mode="replace").rows == 40


def test_an_append_that_began_before_brings_nothing_back(
    data: DataService, blobs: LocalBlobs, small_blocks: None
) -> None:
    data.commit("d", table(ROWS), schema=KEYED)
    old = {block.digest for block in data.version("d").blocks}
    Between(data, blobs)
    made = data.commit("d", table([(50, 0.0, "new")]))
    assert 7 not in data.read("d")["id"].to_pylist()
    assert made.rows == 40
    gone = old - {block.digest for block in data.version("d", 1).blocks}
    assert len(gone) == 1
    assert not any(blobs.exists(digest) for digest in gone)


def test_bytes_that_were_erased_may_be_stored_anew(
    data: DataService, blobs: LocalBlobs, objects: ObjectService
) -> None:
    """A commit in whose middle its own block is erased, as another version has it too."""
    data.commit("other", table(ROWS), schema=Schema(KEYED.fields))
    Between(data, blobs)
    data.commit("new", table(ROWS), schema=Schema(KEYED.fields), mode="append")
    assert listed(data.read("new")) == ROWS
    assert 7 not in data.read("other")["id"].to_pylist()
    assert data.erase({"id": 7}).erased.rows == 1
    objects.collect(grace="0")
    assert data.read("new").num_rows == 39


def test_a_reader_that_looked_before_reads_what_is_left(
    catalog: Catalog, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataService(catalog, blobs, EmbeddedAuthorizer())
    data.commit("d", table(ROWS), schema=KEYED)
    found = DataService.version

    def late(self: DataService, name: str, number: int | None = None) -> Any:
        version = found(self, name, number)
        monkeypatch.setattr(DataService, "version", found)
        data.erase({"id": 7})
        return version

    monkeypatch.setattr(DataService, "version", late)
    assert 7 not in data.read("d")["id"].to_pylist()


@settings(max_examples=12)
@given(
    saves=st.lists(
        st.tuples(
            st.sampled_from(["replace", "append", "erase"]),
            st.lists(st.integers(0, 30), unique=True, max_size=12),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_saves_and_erasures_are_what_plain_lists_say(
    saves: list[tuple[Any, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    catalog, blobs = Catalog(f"sqlite:///{folder}/c.sqlite"), LocalBlobs(folder / "objects")
    data = DataService(catalog, blobs, EmbeddedAuthorizer())
    versions: list[list[tuple[Any, ...]]] = []
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        patch.setenv("EVERLOOP_SIGNING_KEY", "k")
        for turn, (act, keys) in enumerate(saves):
            rows = [(n, float(turn % 2), "s") for n in keys]
            if act == "erase":
                if versions and keys:
                    data.erase({"id": keys})
                    versions = [[r for r in v if r[0] not in keys] for v in versions]
                continue
            try:
                made = data.commit("d", table(rows), schema=KEYED, mode=act)
            except InvalidInput:
                continue
            if made.number > len(versions):
                both = sorted([*versions[-1], *rows]) if act == "append" and versions else rows
                versions.append(both)
        for number, wanted in enumerate(versions, 1):
            assert sorted(listed(data.read("d", number))) == sorted(wanted)
    catalog.close()


# Everything else that holds rows

#: Joined, so that the snapshot of this file, which runs of it keep, does not have it.
SUBJECT = "-".join(("zoe", "quux", "4711"))
_AT = datetime(2013, 3, 1, tzinfo=UTC)


@ev.step
def report(rows: ev.Table) -> dict[str, Any]:
    """A result with the subject in its text, and one in a table."""
    return {"rows": rows, "first": rows.to_arrow().to_pylist()[-1]}


@ev.pipeline
def looks(id: int) -> Any:
    """Reads and reports."""
    return report(ev.read("people@4"))


def _filled(ws: Any) -> None:
    people = Schema(
        (Field("id", "int64", nullable=False), Field("name", "string"),
         Field("age", "int64", le=120, on_fail="drop")),
        key=("id",),
    )  # fmt: skip
    rows = [{"id": n, "name": f"person-{n}", "age": 30} for n in range(4700, 4720)]
    rows[11]["name"] = SUBJECT
    ev.commit("people", pa.Table.from_pylist(rows), schema=people)
    for turn in range(3):
        rows[turn]["age"] = 31 + turn
        rows[11]["age"] = 40 + turn
        ev.commit("people", pa.Table.from_pylist(rows))
    rows[11]["age"] = 400
    ev.commit("people", pa.Table.from_pylist(rows))  # dropped: the ledger has the row
    looks.run(id=4711)
    small = pa.table({"id": [4711, 1], "name": [SUBJECT, "b"]})
    asked = [
        {"id": f"PREDICTION{n}", "request_id": f"R{n}", "at": _AT, "version": 1, "value": 0.5,
         "f.id": float(4700 + n), "request": msgspec.json.encode({"name": row["name"]}).decode()}
        for n, row in enumerate(rows)
    ]  # fmt: skip
    ws.predictions.log("live", pa.Table.from_pylist(asked))
    labels = [{"request_id": f"R{n}", "label": 1.0, "known_at": _AT} for n in range(20)]
    ws.predictions.labels("live", pa.Table.from_pylist(labels))
    sink = pa.BufferOutputStream()
    pq.write_table(small, sink)
    ws.tracking.put_artifact("r/rows.parquet", sink.getvalue().to_pybytes())
    ws.tracking.put_artifact("r/rows.csv", f"id,name\n4711,{SUBJECT}\n1,b\n".encode())
    ws.tracking.put_artifact(
        "r/rows.jsonl", f'{{"id":4711,"name":"{SUBJECT}"}}\n{{"id":1}}\n'.encode()
    )
    ws.tracking.put_artifact("r/one.json", f'{{"who":{{"id":4711,"name":"{SUBJECT}"}}}}'.encode())
    other = pa.table({"id": [4711], "name": [f"{SUBJECT} again"]})
    ws.blobs.put_many([_parquet(other), _parquet(small.slice(1))])  # of a commit that died


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def test_no_byte_of_the_subject_is_left_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / ".everloop"
    with ev.open(folder, actor="tester") as ws, using(ws):
        _filled(ws)
        at = (folder, folder / "objects", [SUBJECT], ("id", 4711))
        assert len(holding(*at)) > 8
        ws.data.branch("people", "side", at=2)
        copies = [path for n in range(1, 6) for path in ev.paths(f"people@{n}")]
        dry = ws.data.erase({"id": 4711}, dry_run=True)
        done = ws.data.erase({"id": 4711}, reason="art. 17")
        # The name of a person is another column: it stands alone in the requests.
        ws.data.erase({"name": [SUBJECT, f"{SUBJECT} again"]})
        left = holding(*at)
        assert left == []
        assert not any(Path(path).exists() for path in copies)
        assert ws.data.find("people@side").rows == 19
        kinds = {o.kind for o in done.erased.objects}
        assert kinds == {o.kind for o in dry.erased.objects}
        assert kinds >= {
            "block", "row hashes", "ledger", "predictions", "labels", "artifact", "result",
            "unnamed",
        }  # fmt: skip
        assert done.erased.counts["results of steps"] == 1
        assert done.erased.counts["values in runs.arguments"] == 1
        assert len(ws.data.versions("people")) == 5
        assert all(ws.data.read("people", v.number).num_rows == 19
                   for v in ws.data.versions("people"))  # fmt: skip
        assert ws.tracking.artifact("r/rows.csv") == b"id,name\n1,b\n"
        assert ws.predictions.count("live")["predictions"] == 19
        assert ws.predictions.count("live")["labels"] == 19
        with pytest.raises(NotFound):
            ws.predictions.get("PREDICTION11")
        until = datetime(2013, 3, 2, tzinfo=UTC)
        read = ws.predictions.read("live", since=_AT, until=until, labelled=True)
        assert read["label"].null_count == 0
        looks.run(id=1)  # is made anew
        assert not ws.files.verify().damaged


def test_values_of_the_catalog_go_on_every_database(ws: Workspace) -> None:
    run = ws.tracking.create_run(params={"id": "4711", "other": "4711"})
    ws.tracking.create_run(params={"id": "1"})
    ws.data.commit("d", table(ROWS), schema=KEYED)
    done = ws.data.erase({"id": 4711}, reason="it is in a parameter alone")
    assert done.erased.counts == {"values in run_params": 1}
    assert done.erased.versions == ()
    assert ws.tracking.run(run.id).params == {"id": "(erased)", "other": "4711"}
    assert ws.data.erase({"id": 4711}).erased.is_empty


def test_what_is_out_of_reach_is_named(tmp_path: Path) -> None:
    with ev.open(tmp_path / ".everloop", actor="tester") as ws, using(ws):
        ev.commit("d", table(ROWS), schema=KEYED)
        (tmp_path / "images").mkdir()
        ev.commit("photos", tmp_path / "images")
        later = source("not-yet", time="at")
        view = feature_view(
            "late", entity="id", source=later, features={"n": agg.mean(col.x, "1d")}
        )
        ws.features.apply(feature_set("of-d", view, time="at", request={"id": int}))
        artifact = ModelArtifact(flavor="lightgbm", files={"m.txt": b"m"}, data={"d": 1})
        ws.registry.register("m", artifact)
        ws.tracking.put_artifact("1/letter.txt", b"of name-7 to all")
        ws.data.declare_source(ev.data_source("d", "people/*.csv", key="id", mode="replace"))
        erased = ws.data.erase({"id": 7}).erased
        assert erased.models == ("m/1",)
        told = "\n".join(erased.unreached)
        assert "entities of view late" in told
        assert "files of photos" in told
        assert "people/*.csv, which the next pull of d may bring back" in told
        assert "letter.txt" not in told  # 7 alone tells nothing
        told = "\n".join(ws.data.erase({"s": "name-7"}, dry_run=True).erased.unreached)
        assert "letter.txt" in told
        # What is named by something that is not changed stays, and is told of.
        old = ws.data.version("d").blocks[0].digest
        ws.tracking.put_artifact("1/block.bin", ws.blobs.get(old))
        (tmp_path / "images" / "block").write_bytes(ws.blobs.get(old))
        ev.commit("photos", tmp_path / "images")
        erased = ws.data.erase({"id": 8}).erased
        assert any("stay as something else names them" in text for text in erased.unreached)
        assert ws.blobs.exists(old)
        assert ev.read("photos")["block"]


def test_lists_in_stored_results_are_searched(tmp_path: Path) -> None:
    from everloop.data.seek import Sought

    rows = pa.table({"id": [[1, 2], [3], None], "d": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert Sought({"id": 2}).mask(rows).tolist() == [True, False, False]  # type: ignore[union-attr]
    assert Sought({"d": "b"}).mask(rows).tolist() == [False, True, False]  # type: ignore[union-attr]
    assert Sought({"id": "x"}).mask(rows).tolist() == [False] * 3  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / ".everloop"
    with ev.open(folder, actor="tester") as ws, using(ws):
        ev.commit("d", table(ROWS), schema=KEYED)
        before = ws.data.version("d")

        def refused(*_: Any, **__: Any) -> Any:
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr("everloop.backends.blobs.local.write_durably", refused)
            with pytest.raises(BackendError, match="Read-only file system"):
                ws.data.erase({"id": 7})
        assert ws.data.version("d") == before
        assert ws.data.receipts() == []
        with monkeypatch.context() as patch:
            patch.setattr(LocalBlobs, "erase", _fails)
            with pytest.raises(EverloopError, match="no right"):
                ws.data.erase({"id": 7})
        assert 7 not in ws.data.read("d")["id"].to_pylist()
        assert ws.data.receipts() == []  # it is not done: the old bytes are there
        assert ws.blobs.exists(before.blocks[0].digest)
        assert len(ws.data.finish_erasures()) == 1
        assert not ws.blobs.exists(before.blocks[0].digest)
        assert ws.data.receipts()[0].erased.rows == 1


def _fails(self: LocalBlobs, digests: Any) -> None:
    raise BackendError("no right to remove")


# Killed


def test_killed_at_any_step_it_is_whole_or_not_begun(tmp_path: Path) -> None:
    """In one process that forks for each step, as a kill must not run any clean-up."""
    script = Path(__file__).with_name("erase_killed.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True,
        timeout=300, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (int(n) for n in done.stdout.split()[-2:])
    assert before >= 3
    assert after >= 5


# The store


def test_an_erased_object_leaves_its_neighbours_and_no_byte(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    items = [b"object %d of the pack" % n * 9 for n in range(9)]
    digests = [digest for digest, _ in blobs.put_many(items)]
    own, _ = blobs.put(b"object alone in a file")
    blobs.delete(digests[3])  # only struck off: its bytes are in the pack
    other = LocalBlobs(tmp_path)
    other.erase([digests[3], digests[5], own, "0" * 64])
    other.erase([digests[3], digests[5], own])
    for n, digest in enumerate(digests):
        assert blobs.exists(digest) == (n not in (3, 5))
        if n not in (3, 5):
            assert blobs.get(digest) == items[n]
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not any(b"object %d of" % n in kept for n in (3, 5))
    assert b"alone" not in kept
    assert sorted(set(blobs.digests())) == sorted(
        d for n, d in enumerate(digests) if n not in (3, 5)
    )
