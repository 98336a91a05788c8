"""A flipped bit in every kind of object: named with what it hits, never served, and mended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

import everloop as ev
from everloop.backends.blobs.local import LocalBlobs
from everloop.backends.blobs.packs import _read
from everloop.cli.store import fsck as command
from everloop.core.artifact import ModelArtifact
from everloop.core.context import using
from everloop.data import scan
from everloop.data.chunks import chunks_of, parts_of
from everloop.data.tree import find
from everloop.errors import BackendError, EverloopError, InvalidInput
from everloop.workspace import Workspace
from tests.contracts.test_dataset_rows import KEYED, listed, table

ROWS = [(n, float(n), f"n{n}") for n in range(40)]
KINDS = {
    # kind: (what is hit, whether it can be made anew without another copy)
    "block": ("d@", False),
    "row hashes": ("d@", True),
    "layout": ("d@2", False),
    "tree": ("photos@1", False),
    "file": ("photos@1/small", False),
    "chunk list": ("photos@1/big", False),
    "chunk": ("photos@1/big", False),
    "model": ("model m/1", False),
    "artifact": ("file 1/notes.txt", False),
    "ledger": ("ledger of run:x, rule r", False),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an object of each kind."""
    place = tmp_path_factory.mktemp("whole")
    images = place / "images"
    images.mkdir()
    (images / "small").write_bytes(b"small")
    (images / "big").write_bytes(bytes(range(256)) * 2000)
    with (
        pytest.MonkeyPatch.context() as patch,
        ev.open(place / ".everloop", actor="tester") as ws,
        using(ws),
    ):
        patch.setattr(scan, "LARGE", 100_000)
        ev.commit("d", table(ROWS), schema=KEYED)
        ev.commit("d", table([(n, x + (n == 9), s) for n, x, s in ROWS]))
        ev.commit("photos", images)
        artifact = ModelArtifact(flavor="lightgbm", files={"m.txt": b"weights"}, data={"d": 1})
        ws.registry.register("m", artifact)
        ws.tracking.put_artifact("1/notes.txt", b"notes")
        ws.data.record_changes("run:x", "d", "r", "dropped", "why", "", pa.table({"id": [1]}))
    return place / ".everloop"


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Iterator[Workspace]:
    folder = tmp_path / ".everloop"
    shutil.copytree(first, folder)
    with ev.open(folder, actor="tester") as ws, using(ws):
        yield ws


def digest_of(ws: Workspace, kind: str) -> str:
    """An object of a kind."""
    version, root = ws.data.version("d", 2), ws.data.version("photos").root
    load = ws.blobs.get_many
    if kind in ("tree", "file", "chunk list", "chunk"):
        entry = find(load, root, b"small" if kind == "file" else b"big")
        assert entry is not None
        if kind == "chunk":
            return chunks_of(load, parts_of(load, entry.digest)[0])[0].content.hex()
        return root if kind == "tree" else entry.digest
    return {
        "block": version.blocks[0].digest,
        "row hashes": version.blocks[0].hashes,
        "layout": version.layout,
        "model": ws.registry.version("m", 1).files[0].digest,
        "artifact": LocalBlobs(ws.folder / "objects").put(b"notes")[0],
        "ledger": ws.data.changes(dataset="d")[0].detail,
    }[kind]


def flip(folder: Path, digest: str) -> None:
    """Flip one bit of the object, in its own file or in its pack."""
    own = folder / "objects" / digest[:2] / digest[2:]
    if own.exists():
        own.chmod(0o600)
        data = own.read_bytes()
        own.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for pack in (folder / "objects" / "packs").glob("*.pack"):
        if (at := _read(pack).get(bytes.fromhex(digest))) is not None:
            data, (offset, _) = pack.read_bytes(), at
            pack.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_named_and_repaired(home: Workspace, first: Path, kind: str) -> None:
    assert home.fsck(read_data=True).damaged == ()
    hit, is_remade = KINDS[kind]
    digest = digest_of(home, kind)
    flip(home.folder, digest)
    with ev.open(home.folder) as ws:
        if kind not in ("tree", "chunk list"):
            assert ws.fsck().damaged == ()  # it is there; only its bytes are wrong
        found = ws.fsck(read_data=True)
        [bad] = found.damaged
        assert bad.digest == digest
        assert any(place.startswith(hit) for place in bad.places), bad.places
        assert not found.is_good
        assert bad.rows == (40 if kind == "block" else 0)
        if kind in ("block", "model"):
            assert found.models == ("m/1",)
        with pytest.raises(BackendError):
            ws.blobs.get(digest)
        alone = ws.fsck(read_data=True, repair=True)
        assert alone.is_good == is_remade
        assert list((home.folder / "objects" / "quarantine").iterdir())
        if not is_remade:
            assert not ws.blobs.exists(digest)
            assert [bad.digest for bad in ws.fsck().damaged] == [digest]
            mended = ws.fsck(read_data=True, repair=True, origin=first)
            assert mended.damaged[0].repaired == "from the other workspace"
        assert ws.fsck(read_data=True).damaged == ()
        assert listed(ws.data.read("d", 1)) == ROWS


def test_a_second_copy_is_taken(home: Workspace) -> None:
    digest = digest_of(home, "artifact")
    data = home.blobs.get(digest)
    own = home.folder / "objects" / digest[:2] / digest[2:]
    if own.exists():
        own.unlink()
    home.blobs.put_many([data, b"beside it"])
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"not it")
    with ev.open(home.folder) as ws:
        [bad] = ws.fsck(read_data=True, repair=True).damaged
        assert bad.repaired == "from another copy in this store"
        assert ws.tracking.artifact("1/notes.txt") == data


@pytest.mark.parametrize("place", [-1, -9, -20, -40, -60, -100])
def test_a_damaged_list_of_a_pack_is_read_as_far_as_it_is_right(tmp_path: Path, place: int) -> None:
    folder = tmp_path / ".everloop"
    items = [b"item %d" % n * (n + 1) for n in range(6)]
    with ev.open(folder) as ws:
        digests = [digest for digest, _ in ws.blobs.put_many(items)]
        ws.blobs.delete(digests[2])
    [pack] = (folder / "objects" / "packs").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[place] ^= 1
    pack.write_bytes(bytes(data))
    with ev.open(folder) as ws:
        assert [text.partition(":")[0] for text in ws.fsck().packs] == [pack.name]
        assert len(ws.fsck(read_data=True, repair=True).packs) == 1
        there = [ws.blobs.exists(digest) for digest in digests]
        assert there[2] is False
        assert sum(there) >= (4 if place < -48 else 5)
        for digest, item, is_there in zip(digests, items, there, strict=True):
            if is_there:
                assert ws.blobs.get(digest) == item
        assert ws.fsck().packs == ()


def test_the_command_exits_by_what_it_found(
    home: Workspace, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_DIR", str(home.folder))
    assert CliRunner().invoke(command, []).exit_code == 0
    flip(home.folder, digest_of(home, "block"))
    done = CliRunner().invoke(command, ["--read-data"])
    assert done.exit_code == 1
    assert "d@1 (40 rows)" in done.output
    done = CliRunner().invoke(command, ["--repair", "--from", str(first), "--json"])
    assert done.exit_code == 0
    assert '"repaired":"from the other workspace"' in done.output.replace('": "', '":"')
    with pytest.raises(InvalidInput, match="no objects in it"):
        home.fsck(origin=first / "nothing")


def test_a_repair_without_rights_says_so(home: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(home.folder, digest_of(home, "artifact"))

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("everloop.backends.blobs.local.os.rename", refused)
    with ev.open(home.folder) as ws, pytest.raises(EverloopError, match="could not mend"):
        ws.fsck(repair=True, read_data=True)
