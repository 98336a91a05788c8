"""Packages as files: the same package is the same file, and no hostile one is taken in."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.core.package import to_bytes
from everloop.core.schema import canonical_json
from everloop.errors import BackendError, EverloopError, InvalidInput, NotFound, TooLarge
from everloop.packages import archive as archives
from everloop.packages.archive import export_package, import_package
from everloop.workspace import Workspace
from tests.unit.packages.test_promotion import package, where

ABOUT = "package.json"
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with ev.open(folder / ".everloop") as there:
        found = package(there, "x = 1\n" * 200, lock=there.blobs.put(b"numpy==2")[0])
        there.packages.promote(found.ref, "staging", reason="r")
        export_package(there, "delay@staging", folder / "delay.elpkg")
    return folder / "delay.elpkg"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return ev.open(tmp_path / ".everloop")


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(file: Path, found: Members) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in found.items():
            archive.writestr(name, data)
    return file


def test_a_package_is_the_same_on_the_other_side(
    exported: Path, ws: Workspace, tmp_path: Path
) -> None:
    with ws:
        taken = import_package(ws, exported)
        assert import_package(ws, exported) == taken
        assert (taken.builder, taken.reached) == ("ann", ("dev", "staging"))
        assert ws.blobs.get(taken.digest) == to_bytes(taken.manifest)
        assert where(ws) == {}
        again = tmp_path / "again.elpkg"
        export_package(ws, taken.ref, again)
        assert again.read_bytes() == exported.read_bytes()
        with pytest.raises(BackendError, match="cannot be written"):
            export_package(ws, taken.ref, tmp_path / "no" / "folder.elpkg")
        [event] = [e for e in ws.lineage.events() if e.kind == "package.Imported"]
        assert event.body["origin"] == exported.name
    assert not list(tmp_path.glob(".again*"))


def about(change: Callable[[dict[str, object]], object]) -> Callable[[Members], object]:
    def changed(found: Members) -> None:
        said = msgspec.json.decode(found[ABOUT])
        change(said)
        found[ABOUT] = msgspec.json.encode(said)

    return changed


def first_object(found: Members) -> str:
    return next(name for name in found if name != ABOUT)


def renamed_tree(found: Members) -> None:
    """The digests are right, and a file leads out."""
    said = msgspec.json.decode(found[ABOUT])
    manifest = msgspec.json.decode(found.pop(f"objects/{said['digest']}"))
    tree = msgspec.json.decode(found.pop(f"objects/{manifest['code']}"))
    [digest] = tree.values()
    data = canonical_json({"../../loop.py": digest})
    manifest["code"] = blake3(data).hexdigest()
    whole = canonical_json(manifest)
    said["digest"] = blake3(whole).hexdigest()
    found |= {f"objects/{manifest['code']}": data, f"objects/{said['digest']}": whole}
    found[ABOUT] = msgspec.json.encode(said)


HOSTILE: dict[str, tuple[Callable[[Members], object], str]] = {
    "a path that leads out": (lambda f: f.update({"../../evil": b"x"}), "has no place"),
    "an absolute path": (lambda f: f.update({"/etc/evil": b"x"}), "has no place"),
    "another file": (lambda f: f.update({"objects/loop.py": b"x"}), "has no place"),
    "wrong bytes": (lambda f: f.update({first_object(f): b"x"}), "is not what its digest says"),
    "an object too many": (
        lambda f: f.update({f"objects/{blake3(b'x').hexdigest()}": b"x"}),
        "is not of this package",
    ),
    "an object too few": (lambda f: f.pop(list(f)[-1]), "is missing"),
    "no description": (lambda f: f.pop(ABOUT), "package.json: is missing"),
    "a description of rubbish": (lambda f: f.update({ABOUT: b"\xff{"}), "package.json"),
    "another package's digest": (about(lambda a: a.update(digest="0" * 64)), "is missing"),
    "no digest": (about(lambda a: a.update(digest="../../etc")), "is missing"),
    "a later format": (about(lambda a: a.update(format="everloop package 9")), "has format"),
    "code that leads out": (renamed_tree, "leads out of the folder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_of_it_stays(
    case: str, exported: Path, ws: Workspace, tmp_path: Path
) -> None:
    change, told = HOSTILE[case]
    found = members(exported)
    change(found)
    with ws, pytest.raises(InvalidInput) as error:
        import_package(ws, written(tmp_path / "hostile.elpkg", found))
    assert told in str(error.value)
    assert "hostile.elpkg" in str(error.value)
    assert not (tmp_path / ".everloop" / "objects").exists() or not list(ws.blobs.digests())
    assert {path.name for path in tmp_path.iterdir()} <= {".everloop", "hostile.elpkg"}


def test_links_doubles_bombs_and_what_is_no_zip_are_refused(
    exported: Path, ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hostile.elpkg"
    link = zipfile.ZipInfo(f"objects/{'a' * 64}")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(written(file, members(exported)), "a") as archive:
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(ABOUT, b"{}")
    with ws:
        with pytest.raises(InvalidInput, match="is a link") as error:
            import_package(ws, file)
        assert "package.json: is there twice" in str(error.value)
        # One that says it is small, and unpacks to more than that.
        data = bytearray(written(file, {ABOUT: b"x" * 50_000_000}).read_bytes())
        for at in (22, data.rindex(b"PK\x01\x02") + 24):  # the size, in both of its places
            data[at : at + 4] = (10).to_bytes(4, "little")
        file.write_bytes(data)
        with pytest.raises(InvalidInput, match="is no whole package"):
            import_package(ws, file)
        monkeypatch.setattr(archives, "_MOST", 10_000)
        with pytest.raises(TooLarge, match="1 things of 0 MB"):
            import_package(ws, written(file, {ABOUT: b"x" * 10_001}))
        file.write_bytes(bytes(10_001))
        with pytest.raises(TooLarge, match="no package is"):
            import_package(ws, file)
        with pytest.raises(NotFound):
            import_package(ws, tmp_path / "none.elpkg")
        assert ws.packages.packages() == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flip=st.integers(0, 255))
def test_no_damage_is_taken_in(
    cut: float, flip: int, exported: Path, ws: Workspace, tmp_path: Path
) -> None:
    whole = exported.read_bytes()
    at = min(int(cut * len(whole)), len(whole) - 1)
    for data in (whole[:at], whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]):
        file = tmp_path / "damaged.elpkg"
        file.write_bytes(data)
        try:
            import_package(ws, file)
        except EverloopError:
            continue
        # What a zip says beside its content may be damaged; what was taken in is not.
        assert {k: v for k, v in members(file).items() if k != ABOUT} == {
            k: v for k, v in members(exported).items() if k != ABOUT
        }
