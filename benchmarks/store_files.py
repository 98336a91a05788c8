"""Directories and large files as versions: rows for ``benchmarks.area_store``.

All sides work within one process, the peers too: none pays for its start. What must be on disk
before a version may be named is waited for by ours and by the limit; the peers do not wait.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

import everloop as ev
from benchmarks.harness import Context, Missing, Row, in_turns, timed
from everloop.core.context import using
from everloop.data.files import add, checkout, difference, status
from everloop.workspace import Workspace

__all__ = ["large_file_rows", "small_file_rows"]

_PEERS = (("dvc", "dvc==3.67.1"), ("oxen", "oxenai==0.65.1"))
_SIZE = 4096
#: Files changed just now are read again; see ``everloop.data.stamps``.
_SETTLED_S = 2.1


def small_file_rows(context: Context) -> list[Row]:
    """20,000 files of 4 KB in 100 directories: added, added again, looked at, checked out."""
    count, turns = context.size(20_000, 2_000), context.repeats(5)
    what = f"{count} files of 4 KB"
    peers = _peers(context, "small", count)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as place:
        base = Path(place)
        source = _make_small(base / "source", count)
        time.sleep(_SETTLED_S)
        first = _Sides(base, source)
        added = in_turns(
            {"everloop": first.ours, "limit": timed(first.pack)}, repeats=turns, warm_up=1
        )
        rows = [
            _row(
                f"add {what}", added, "read, blake3, one pack and an index in SQLite, fsynced",
                turns, peers("add"), first.digests() == first.packed,
            )
        ]  # fmt: skip
        with ev.open(base / "kept") as workspace:
            add(workspace, "photos", source)
            rows.append(_status(workspace, source, what, turns, peers("status")))
            rows += _again(workspace, source, count, turns, peers)
            rows.append(_checkout(workspace, base, source, what, turns, peers("checkout")))
    return rows


def large_file_rows(context: Context) -> list[Row]:
    """A file of 1 GB: added, added again with 1 % inserted in its middle, checked out."""
    size, turns = context.size(1 << 30, 32 << 20), context.repeats(5)
    what = f"a file of {size >> 20} MB"
    peers = _peers(context, "large", size)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as place:
        base = Path(place)
        source, inserted = base / "source/large.bin", size // 100
        _make_large(source, size)
        time.sleep(_SETTLED_S)
        sides = _Sides(base, source)
        added = in_turns(
            {"everloop": sides.ours, "limit": timed(lambda: _copy(source, base / "copy"))},
            repeats=turns,
        )
        with ev.open(base / "kept") as workspace:
            version = add(workspace, "large", source)
            rows = [
                _row(
                    f"add {what}", added, "cp, fsynced", turns, peers("add"),
                    version.size == size,
                )
            ]  # fmt: skip
            before = _stored(workspace)
            _insert(source, size // 2, inserted)
            start = time.perf_counter()
            add(workspace, "large", source)
            again = {"everloop": time.perf_counter() - start}
            grown = _stored(workspace) - before
            start = time.perf_counter()
            digest = _digest(source)
            again["limit"] = time.perf_counter() - start
            checkout(workspace, "large", None, base / "out")
            is_equal = _digest(base / "out/large.bin") == digest
            rows += [
                _row(
                    f"add {what} again, 1 % inserted", again, "read and blake3", 1,
                    peers("again"), is_equal,
                ),
                _row(
                    f"stored by 1 % inserted into {what}",
                    {"everloop": grown, "limit": inserted}, "the insertion", 1,
                    peers("again_bytes"), is_equal, unit="bytes",
                ),
            ]  # fmt: skip
            out = _fresh(base / "out", lambda to: checkout(workspace, "large", None, to))
            taken = in_turns(
                {"everloop": out, "limit": timed(lambda: shutil.copyfile(source, base / "copy"))},
                repeats=turns,
            )
            rows.append(_row(f"check out {what}", taken, "cp", turns, peers("checkout"), is_equal))
    return rows


# Parts of the work


class _Sides:
    """An add into a new store: ours, and the limit."""

    def __init__(self, base: Path, source: Path) -> None:
        self._base = base
        self._source = source
        self.packed: set[bytes] = set()

    def ours(self) -> float:
        shutil.rmtree(self._base / "store", ignore_errors=True)
        with ev.open(self._base / "store") as workspace:
            start = time.perf_counter()
            add(workspace, "photos", self._source)
            return time.perf_counter() - start

    def digests(self) -> set[bytes]:
        """Of the files of the last add, as a reader gets them."""
        with ev.open(self._base / "store") as workspace, using(workspace):
            files = ev.read("photos")
            return {blake3(files[path]).digest() for path in files}

    def pack(self) -> None:
        index, at = [], 0
        with open(self._base / "pack", "wb") as pack:
            for here, _, names in os.walk(self._source):
                for name in names:
                    with open(f"{here}/{name}", "rb") as file:
                        data = file.read()
                    index.append((blake3(data).digest(), at, len(data)))
                    at += len(data)
                    pack.write(data)
            pack.flush()
            os.fsync(pack.fileno())
        (self._base / "index.sqlite").unlink(missing_ok=True)
        connection = sqlite3.connect(self._base / "index.sqlite")
        with connection:
            connection.execute("CREATE TABLE object (digest BLOB PRIMARY KEY, at INT, size INT)")
            connection.executemany("INSERT OR IGNORE INTO object VALUES (?, ?, ?)", index)
        connection.close()
        self.packed = {digest for digest, _, _ in index}


def _status(
    workspace: Workspace, source: Path, what: str, turns: int, peers: Mapping[str, float | Missing]
) -> Row:
    found = in_turns(
        {
            "everloop": timed(lambda: status(workspace, source, "photos")),
            "limit": timed(lambda: _walk(source)),
        },
        repeats=turns,
    )
    is_equal = status(workspace, source, "photos") == []
    return _row(
        f"status of {what}, none changed", found, "a walk with stat", turns, peers, is_equal
    )


def _again(
    workspace: Workspace,
    source: Path,
    count: int,
    turns: int,
    peers: Callable[[str], Mapping[str, float | Missing]],
) -> list[Row]:
    """1 % of the files changed, anywhere, each turn others."""
    random_ = random.Random(2)
    files = sorted(source.rglob("*.bin"))
    ours, limit, grown, is_equal = [], [], 0, True
    for _ in range(turns):
        for file in random_.sample(files, count // 100):
            file.write_bytes(random_.randbytes(_SIZE))
        time.sleep(_SETTLED_S)
        before = _stored(workspace)
        start = time.perf_counter()
        version = add(workspace, "photos", source)
        ours.append(time.perf_counter() - start)
        grown = _stored(workspace) - before
        start = time.perf_counter()
        _walk(source)
        limit.append(time.perf_counter() - start)
        told = difference(workspace, "photos", version.number - 1, version.number)
        is_equal = is_equal and len(told) == count // 100
    middle = turns // 2
    times = {"everloop": sorted(ours)[middle], "limit": sorted(limit)[middle]}
    sizes = {"everloop": grown, "limit": count // 100 * _SIZE}
    what = f"{count} files of 4 KB"
    return [
        _row(f"add {what} again, 1 % changed", times, "a walk with stat", turns, peers("again"),
             is_equal),
        _row(f"stored by 1 % of {what}", sizes, "the changed files", turns, peers("again_bytes"),
             is_equal, unit="bytes"),
    ]  # fmt: skip


def _checkout(
    workspace: Workspace,
    base: Path,
    source: Path,
    what: str,
    turns: int,
    peers: Mapping[str, float | Missing],
) -> Row:
    contents = [
        (path.relative_to(source), path.read_bytes()) for path in sorted(source.rglob("*.bin"))
    ]

    def create(to: Path) -> None:
        for folder in {path.parent for path, _ in contents}:
            (to / folder).mkdir(parents=True)
        for path, data in contents:
            with open(f"{to}/{path}", "wb") as file:
                file.write(data)

    taken = in_turns(
        {
            "everloop": _fresh(base / "out", lambda to: checkout(workspace, "photos", None, to)),
            "limit": _fresh(base / "made", create),
        },
        repeats=turns,
    )
    is_equal = all((base / "out" / path).read_bytes() == data for path, data in contents)
    name = f"check out {what} to nowhere"
    return _row(name, taken, "create and write each", turns, peers, is_equal)


def _peers(context: Context, shape: str, size: int) -> Callable[[str], dict[str, float | Missing]]:
    """Runs all peers now; the answer gives the figures of one kind of work."""
    said = {}
    for name, requirement in _PEERS:
        env = context.peer_env(name, [requirement])
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as place:
            source = Path(place) / "repository/data"
            if env.fault is None:
                if shape == "small":
                    _make_small(source, size)
                else:
                    _make_large(source / "large.bin", size)
            answer = env.run("peer_files.py", name, shape, place, timeout_s=900)
        said[requirement.replace("==", " ")] = answer

    def figures(work: str) -> dict[str, float | Missing]:
        return {name: _figure(answer, work) for name, answer in said.items()}

    return figures


def _figure(answer: dict[str, Any] | Missing, work: str) -> float | Missing:
    if isinstance(answer, Missing):
        return answer
    figure = answer.get(work)
    return Missing(f"no {work}") if figure is None else float(figure)


# Files


def _make_small(folder: Path, count: int) -> Path:
    random_ = random.Random(1)
    for number in range(count):
        here = folder / f"{number // (count // 100):02d}"
        here.mkdir(parents=True, exist_ok=True)
        (here / f"{number:06d}.bin").write_bytes(random_.randbytes(_SIZE))
    return folder


def _make_large(file: Path, size: int) -> None:
    file.parent.mkdir(parents=True)
    random_ = random.Random(1)
    with open(file, "wb") as target:
        for _ in range(size >> 20):
            target.write(random_.randbytes(1 << 20))


def _insert(file: Path, at: int, size: int) -> None:
    beside = file.with_suffix(".new")
    with open(file, "rb") as source, open(beside, "wb") as target:
        target.write(source.read(at))
        target.write(random.Random(2).randbytes(size))
        shutil.copyfileobj(source, target, 1 << 20)
    beside.rename(file)


def _walk(folder: Path) -> None:
    for here, _, names in os.walk(folder):
        for name in names:
            os.stat(f"{here}/{name}")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _digest(file: Path) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    with open(file, "rb") as source:
        while piece := source.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _stored(workspace: Workspace) -> int:
    objects = workspace.folder / "objects"
    return sum(file.stat().st_size for file in objects.rglob("*") if file.is_file())


def _fresh(target: Path, call: Callable[[Path], object]) -> Callable[[], float]:
    def turn() -> float:
        shutil.rmtree(target, ignore_errors=True)
        start = time.perf_counter()
        call(target)
        return time.perf_counter() - start

    return turn


def _row(
    work: str,
    figures: Mapping[str, float],
    limit_name: str,
    repeats: int,
    peers: Mapping[str, float | Missing],
    answers_equal: bool,
    unit: str = "s",
) -> Row:
    return Row(
        area="store",
        work=work,
        unit=unit,
        everloop=figures["everloop"],
        limit=figures["limit"],
        limit_name=limit_name,
        answers_equal=answers_equal,
        repeats=repeats,
        peers=peers,
    )
