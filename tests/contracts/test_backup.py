"""A backup of a store that is being written: whole, incremental, and opened as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import everloop as ev
from everloop.backends.blobs.local import LocalBlobs
from everloop.cli.store import backup as command
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.data import backup as backups
from everloop.errors import BackendError, InvalidInput, StateError
from everloop.workspace import Workspace
from tests.contracts.conftest import START
from tests.contracts.test_dataset_rows import KEYED, listed, table

ROWS = [(n, float(n), f"name-{n}") for n in range(40)]
_CHUNK = 300_000


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    location = str(tmp_path / "home" / ".everloop")
    if request.param == "postgres":
        location = request.getfixturevalue("postgres_database")
        monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    with ev.open(location, clock=ManualClock(START), actor="tester") as ws, using(ws):
        monkeypatch.delenv("EVERLOOP_OBJECTS", raising=False)
        ev.commit("d", table(ROWS), schema=KEYED)
        ev.commit("d", table([(n, x + (n == 9), s) for n, x, s in ROWS]))
        ws.tracking.put_artifact("1/big.bin", bytes(_CHUNK))
        ws.tracking.put_artifact("1/small.txt", b"small")
        yield ws


def test_a_backup_opens_and_the_next_one_copies_what_is_new(
    home: Workspace, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    images = tmp_path / "images"
    images.mkdir()
    (images / "a").write_bytes(b"an image")
    ev.commit("photos", images)
    first = home.backup(place)
    assert (first.copied, first.missing) == (first.objects, ())
    ev.commit("d", table(ROWS[:20]))
    again = home.backup(place)
    assert 0 < again.copied < 6
    assert home.backup(place).copied == 0
    with ev.open(place) as restored, using(restored):
        assert [v.number for v in restored.data.versions("d")] == [1, 2, 3]
        assert listed(restored.data.read("d", 1)) == ROWS
        assert restored.tracking.artifact("1/big.bin") == bytes(_CHUNK)
        assert ev.read("photos")["a"] == b"an image"
        assert restored.fsck(read_data=True).damaged == ()
        restored.data.commit("d", table(ROWS[:3]), mode="replace")  # it is a workspace
        kinds = [e.kind for e in restored.lineage.events(kind="workspace.BackedUp")]
        assert len(kinds) == 2
    assert home.backup(place).copied == 0
    with ev.open(place) as restored:
        assert len(restored.data.versions("d")) == 3


def test_an_erasure_names_the_backup_and_the_next_one_forgets(
    home: Workspace, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    home.backup(place)
    done = home.data.erase({"id": 7})
    assert any(text.startswith(f"backup {place}") for text in done.erased.unreached)
    old = LocalBlobs(place / "objects")
    assert any(old.exists(o.before) for o in done.erased.objects)
    assert home.backup(place).removed >= 2
    fresh = LocalBlobs(place / "objects")
    assert not any(fresh.exists(o.before) for o in done.erased.objects)
    with ev.open(place) as restored:
        assert 7 not in restored.data.read("d", 1)["id"].to_pylist()
        assert restored.data.verify_receipt(done).signature == "valid"


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_killed_at_any_point_the_earlier_backup_is_whole(
    home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that writes fails once; what is there opens, with all of its objects."""
    place = tmp_path / "backup"
    home.backup(place)
    ev.commit("d", table(ROWS[:20]))
    home.tracking.put_artifact("1/other.bin", bytes(_CHUNK + 1))
    home.data.erase({"id": 3})

    class Killed(BaseException):
        """Nothing catches it."""

    step, done = 0, False
    while not done:
        left = iter(range(step))
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "fsync", "unlink"):
                patch.setattr(os, name, _counted(getattr(os, name), left, Killed))
            try:
                home.backup(place)
                done = True
            except Killed:
                pass
        with ev.open(place) as restored:
            numbers = [v.number for v in restored.data.versions("d")]
            assert numbers in ([1, 2], [1, 2, 3])
            assert restored.fsck(read_data=True).is_good
            assert (3 in restored.data.read("d", 1)["id"].to_pylist()) == (numbers == [1, 2])
        step += 1
    assert step > 5


def _counted(work: Any, left: Any, error: type[BaseException]) -> Any:
    def counted(*given: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise error
        return work(*given, **named)

    return counted


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_beside_writers_collections_and_erasures(
    home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the backup is one state, whatever happens between the catalog and the objects."""
    place = tmp_path / "backup"
    taken, refused, turns = backups.snapshot, [], iter(range(100))

    def snapshot(*given: Any) -> None:
        taken(*given)
        turn = next(turns)
        if turn < 2:
            home.data.erase({"id": turn})
        ev.commit("d", table([(100 + turn, 0.0, "late")]), mode="append")
        try:
            home.objects.collect(grace="0")
        except StateError as error:
            refused.append(error)

    monkeypatch.setattr(backups, "snapshot", snapshot)
    done = home.backup(place)
    assert done.missing == ()
    assert len(refused) == next(turns) == 3
    with ev.open(place) as restored:
        assert restored.fsck(read_data=True).is_good
        ids = restored.data.read("d")["id"].to_pylist()
        assert {0, 1} & set(ids) == set()
    home.objects.collect(grace="0")


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_a_place_that_is_none_is_refused(home: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    cases = {
        tmp_path / "mine": "neither empty nor a backup",
        tmp_path / "mine" / "letter": "is a file",
        home.folder: "lie within each other",
        home.folder / "backup": "lie within each other",
    }
    for place, said in cases.items():
        with pytest.raises(InvalidInput, match=said):
            home.backup(place)
    with backups._alone(tmp_path / "b"), pytest.raises(StateError, match="under way"):
        home.backup(tmp_path / "b")


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_what_is_damaged_is_told_and_not_copied(
    home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = LocalBlobs(home.folder / "objects").put(bytes(_CHUNK))[0]
    file = home.folder / "objects" / digest[:2] / digest[2:]
    file.write_bytes(b"another")
    monkeypatch.setenv("EVERLOOP_DIR", str(home.folder))
    done = CliRunner().invoke(command, [str(tmp_path / "backup")])
    assert done.exit_code == 1
    assert digest in done.output
    assert not LocalBlobs(tmp_path / "backup" / "objects").exists(digest)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("everloop.data.backup.os.replace", full)
    with pytest.raises(BackendError, match="No space left"):
        home.backup(tmp_path / "backup")
