"""A DVC repository comes over: its outputs by revision, out of a cache that is not trusted.

The cache is written here by its format (DVC 3, and that before it), so that no test needs DVC.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import everloop as ev
from everloop.errors import InvalidInput, NotFound
from everloop.transfer.report import TransferReport
from everloop.workspace import Workspace


class Repo:
    """A repository as ``dvc init``, ``add`` and ``repro`` make it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".dvc").mkdir(parents=True)
        self.cache = path / ".dvc/cache/files/md5"

    def put(self, data: bytes, end: str = "", *, md5: str = "") -> str:
        digest = md5 or hashlib.md5(data).hexdigest()
        file = self.cache / digest[:2] / (digest[2:] + end)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return digest + end

    def put_list(self, items: list[dict[str, Any]]) -> str:
        return self.put(json.dumps(items).encode(), ".dir")

    def add(self, path: str, what: bytes | dict[str, bytes], **more: Any) -> None:
        """What ``dvc add`` leaves: the cache, and the file that names it."""
        if isinstance(what, bytes):
            md5 = self.put(what)
        else:
            md5 = self.put_list([{"md5": self.put(d), "relpath": p} for p, d in what.items()])
        out = {"md5": md5, "hash": "md5", "path": os.path.basename(path), **more}
        self.write(f"{path}.dvc", {"outs": [out]})

    def write(self, name: str, document: Any) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(document))

    def git(self, *words: str) -> None:
        options = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *options, *words], cwd=self.path, check=True, capture_output=True)

    def commit(self, tag: str) -> None:
        self.git("add", "-A", ".")
        self.git("commit", "-qm", tag, "--allow-empty")
        self.git("tag", tag)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def counts(report: TransferReport) -> dict[str, tuple[int, int, int, int]]:
    return {c.kind: (c.found, c.imported, c.there, c.failed) for c in report.counts}


def test_revisions_become_versions_and_tags_stay_tags(home: Workspace, repo: Repo) -> None:
    big = os.urandom(5 << 20)
    (repo.path / ".gitignore").write_text(".dvc/cache\n")
    repo.git("init", "-q")
    repo.add("data/images", {"cats/1.jpg": b"one", "dogs/1.jpg": b"two"})
    repo.add("model.bin", big, isexec=True)
    repo.commit("v1")
    repo.add("data/images", {"cats/1.jpg": b"one", "cats/2.jpg": b"three"})
    features = [{"md5": repo.put(b"a,b\n"), "relpath": "part.csv"}]
    lock = {
        "schema": "2.0",
        "stages": {
            "prepare": {
                "cmd": "python prepare.py",
                "outs": [{"path": "out/features", "hash": "md5", "md5": repo.put_list(features)}],
            },
            "evaluate": {"cmd": "x", "outs": []},
        },
    }
    repo.write("dvc.lock", lock)
    repo.commit("v2")
    before = {p: p.stat().st_mtime_ns for p in repo.path.rglob("*")}
    report = home.import_dvc(repo.path, revisions=["v1", "v2"], names={"data/images": "photos"})
    assert report.refusals == ()
    assert counts(report) == {
        "output": (5, 0, 0, 0),
        "dataset version": (5, 4, 1, 0),
        "tag": (5, 5, 0, 0),
    }
    assert dict(ev.read("photos@v1")) == {"cats/1.jpg": b"one", "dogs/1.jpg": b"two"}
    assert dict(ev.read("photos@v2")) == {"cats/1.jpg": b"one", "cats/2.jpg": b"three"}
    assert dict(ev.read("model.bin")) == {"model.bin": big}
    assert dict(ev.read("out.features")) == {"part.csv": b"a,b\n"}
    kinds = {name: home.data.version(name).kind for name in ("photos", "model.bin")}
    assert kinds == {"photos": "directory", "model.bin": "file"}
    assert home.data.version("photos", 1).note.startswith("DVC data/images, ")
    assert home.files.verify().damaged == ()
    again = home.import_dvc(repo.path, revisions=["v1", "v2"], names={"data/images": "photos"})
    assert counts(again)["dataset version"] == (5, 0, 5, 0)
    assert [v.number for v in home.data.versions("photos")] == [1, 2]
    assert {p: p.stat().st_mtime_ns for p in repo.path.rglob("*")} == before, "nothing is written"
    # The working tree is what it is now.
    assert counts(home.import_dvc(repo.path, names={"data/images": "photos"}))[
        "dataset version"
    ] == (3, 0, 3, 0)
    with pytest.raises(NotFound, match="no revision 'v9'"):
        home.import_dvc(repo.path, revisions=["v1", "v9"])
    with pytest.raises(NotFound, match="no revision"):
        home.import_dvc(repo.path, revisions=["--output=x"])


def test_what_cannot_be_had_whole_makes_no_version(home: Workspace, repo: Repo) -> None:
    repo.add("good", {"a": b"1"})
    repo.add("rotten", {"a": b"2", "b": b"3"})
    repo.put(b"33", md5=hashlib.md5(b"3").hexdigest())
    repo.add("gone", b"4")
    [file] = (repo.cache / hashlib.md5(b"4").hexdigest()[:2]).iterdir()
    file.unlink()
    hostile = {
        "up": [{"md5": repo.put(b"x"), "relpath": "../evil"}],
        "root": [{"md5": repo.put(b"x"), "relpath": "/etc/evil"}],
        "none": [{"md5": repo.put(b"x"), "relpath": ""}],
        "nul": [{"md5": repo.put(b"x"), "relpath": "a\0b"}],
        "both": [{"md5": repo.put(b"x"), "relpath": p} for p in ("a", "a/b")],
        "twice": [{"md5": repo.put(b"x"), "relpath": "a"}] * 2,
        "path": [{"md5": "../../../../etc/passwd", "relpath": "a"}],
        "shape": [["a"]],
    }
    for name, items in hostile.items():
        md5 = repo.put_list(items)  # type: ignore[arg-type]
        repo.write(f"{name}.dvc", {"outs": [{"md5": md5, "path": name}]})
    md5 = repo.put(b"x")
    repo.write("above.dvc", {"outs": [{"md5": md5, "path": "../../above"}]})
    repo.write("wdir.dvc", {"wdir": "..", "outs": [{"md5": md5, "path": "above"}]})
    repo.write("abs.dvc", {"outs": [{"md5": md5, "path": "/etc/passwd"}]})
    repo.write("s3.dvc", {"outs": [{"etag": "x", "path": "s3"}]})
    repo.write("metrics.dvc", {"outs": [{"md5": md5, "path": "m.json", "cache": False}]})
    repo.write("odd.dvc", ["no", "mapping"])
    (repo.path / "bad.dvc").write_text("outs: [")
    repo.write("one/x.dvc", {"outs": [{"md5": md5, "path": "x"}]})
    repo.write("one.x.dvc", {"outs": [{"md5": md5, "path": "one.x"}]})
    report = home.import_dvc(repo.path)
    assert {d.name for d in home.data.datasets()} == {"good", "one.x"}
    told = {refusal.name: refusal.reason for refusal in report.refusals}
    assert "1 files cannot be had (b: the cache has other bytes" in told["rotten"]
    assert "is not in the cache" in told["gone"]
    assert "dvc fetch" in told["gone"]
    for name in ("up", "root", "none", "nul"):
        assert "what no directory holds" in told[name]
    assert "is a file and a directory" in told["both"]
    assert "names one twice" in told["twice"]
    assert "is no MD5" in told["path"]
    assert "its list of files is none" in told["shape"]
    for name in ("above.dvc: ../../above", "wdir.dvc: ../above", "abs.dvc: /etc/passwd"):
        assert told[name] == "lies outside of the repository"
    assert "has no MD5" in told["s3.dvc: s3"]
    assert "kept by Git" in told["metrics.dvc: m.json"]
    assert "is no file of DVC" in told["odd.dvc: "]
    assert "is no YAML" in told["bad.dvc"]
    assert "has this name too" in told["one/x"]
    with pytest.raises(InvalidInput, match="no repository of DVC"):
        home.import_dvc(repo.path / "one")
    with pytest.raises(InvalidInput, match="no repository of Git"):
        home.import_dvc(repo.path, revisions=["v1"])


def test_an_older_cache_and_one_elsewhere_are_read(
    home: Workspace, repo: Repo, tmp_path: Path
) -> None:
    # DVC before 3: no folder files/md5, and the MD5 of text with Unix line ends.
    repo.cache = tmp_path / "shared"
    (repo.path / ".dvc/config").write_text(
        "[cache]\n    dir = ../../shared\n['remote \"origin\"']\n    url = s3://bucket\n"
    )
    text = b"a\r\nb\r\n" * 10
    md5 = repo.put(text, md5=hashlib.md5(text.replace(b"\r\n", b"\n")).hexdigest())
    repo.write("notes.txt.dvc", {"outs": [{"md5": md5, "path": "notes.txt"}]})
    long = b"\r\n" * (3 << 20)
    md5 = repo.put(long, md5=hashlib.md5(long.replace(b"\r\n", b"\n")).hexdigest())
    repo.write("long.txt.dvc", {"outs": [{"md5": md5, "path": "long.txt"}]})
    report = home.import_dvc(repo.path)
    assert report.refusals == ()
    assert ev.read("notes.txt")["notes.txt"] == text
    assert ev.read("long.txt")["long.txt"] == long
