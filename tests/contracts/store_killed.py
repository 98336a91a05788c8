"""Breaks off what writes to a store at each step, by a kill and by a full disk, and looks.

``store_killed.py FOLDER CASE...`` tries every step of each case in each way, and
``... CASE:WAY:STEP`` that one. It prints a line for each: case, way, steps that were tried, and how
often nothing and all of the work was done.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.backends.blobs.packs import Packs
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.data import scan
from everloop.data.files import add
from everloop.errors import BackendError, Conflict, EverloopError
from everloop.workspace import Workspace
from tests.contracts.data_actor import KEYED, few_rows_are_many_blocks, listed, table
from tests.folders import make
from tests.killed import Case, Steps, child, preload, tried

START = datetime(2013, 1, 1, tzinfo=UTC)
ROWS: list[Any] = [(n, float(n), f"name-{n}") for n in range(40)]
KEPT = [b"kept %d " % n * 30 for n in range(2)]
State = dict[str, Any]


def _open(folder: Path, days: int = 30) -> Workspace:
    return ev.open(folder, actor="t", clock=ManualClock(START + timedelta(days=days)))


def _fill(folder: Path) -> None:
    """A table with deltas and a branch, a directory, and packs that are mostly rubbish."""
    with _open(folder, 0) as ws, using(ws):
        rows = list(ROWS)
        ws.data.commit("d", table(rows), schema=KEYED)
        for turn in range(2):
            rows[turn * 9] = (turn * 9, None, "changed")
            ws.data.commit("d", table(rows), mode="replace")
        ws.data.branch("d", "fix", at=2)
        fixed = [(n, x, "fixed" if n in (20, 21) else s) for n, x, s in ROWS]
        ws.data.commit("d", table(fixed), mode="replace", branch="fix")
        ws.data.tag("d", "first", 1)
        for version in range(4):
            ws.data.commit("old", table(ROWS[version * 3 :]), schema=KEYED, mode="replace")
        ws.data.keep("old", for_days=1, last=1)
        ws.blobs.put_many([*KEPT, *(b"rubbish %d " % n * 30 for n in range(9))])
        for n, kept in enumerate(KEPT):
            ws.tracking.put_artifact(f"kept/{n}", kept)
        ws.blobs.put_many([b"more rubbish %d" % n for n in range(3)])
        ws.blobs.put(b"rubbish alone")
        files = folder.parent / "files"
        make(files, {f"{n % 3}/{n}": b"file %d" % n for n in range(9)})
        add(ws, "files", files)
        make(files, {f"{n % 3}/{n}": b"changed %d" % n for n in range(0, 9, 4)})
        (folder.parent / "state").write_bytes(pickle.dumps(_state(ws)))


def _state(ws: Workspace) -> State:
    """All that can be read: versions with their rows or files, lines, tags, files of runs."""
    found: State = {}
    for dataset in ws.data.datasets():
        for version in ws.data.versions(dataset.name, branch=None):
            if version.kind == "table":
                rows: Any = listed(ws.data.read(dataset.name, version.number))
            else:
                rows = dict(ev.read(version.ref))
            found[version.ref] = rows
        found[dataset.name] = ws.data.version(dataset.name).number
        for line in ws.data.branches(dataset.name):
            found[line.ref] = line.number
        for tag in ws.data.tags(dataset.name):
            found[f"tag {tag.tag}"] = tag.number
    for n in range(len(KEPT)):
        found[f"kept/{n}"] = ws.tracking.artifact(f"kept/{n}")
    return found


# What is broken off


def _append(ws: Workspace, _: Path) -> None:
    ws.data.commit("d", table([(100 + n, 1.0, "late") for n in range(20)]), expect=3)


def _replace(ws: Workspace, _: Path) -> None:
    rows = [(n, x, "again" if n in (4, 33) else s) for n, x, s in ROWS if n != 12]
    ws.data.commit("d", table(rows), mode="replace", expect=3)


def _compact(ws: Workspace, _: Path) -> None:
    """More rows of most blocks change than are kept as deltas, so these are written anew."""
    rows = [(n, x, "anew" if n % 2 else s) for n, x, s in ROWS]
    ws.data.commit("d", table(rows), mode="replace", expect=3)


def _merge(ws: Workspace, _: Path) -> None:
    ws.data.merge("d", "fix", expect=3)


def _files(ws: Workspace, folder: Path) -> None:
    add(ws, "files", folder.parent / "files")


def _collect(ws: Workspace, _: Path) -> None:
    """Packs of which less than half is left move."""
    ws.objects.collect(grace="0")


def _expire(ws: Workspace, _: Path) -> None:
    ws.data.expire()
    ws.objects.collect(grace="0")


WORKS: dict[str, Callable[[Workspace, Path], None]] = {
    "append": _append,
    "replace": _replace,
    "compact": _compact,
    "merge": _merge,
    "files": _files,
    "collect": _collect,
    "expire": _expire,
}


def _break(name: str, folder: Path, steps: Steps, fails_at: int, is_full: bool) -> None:
    outcome = folder.parent / "outcome"
    outcome.write_text("killed")
    with _open(folder) as ws, using(ws):
        assert ws.data.datasets()  # the catalog is open, as it is in a process that works
        steps.begin(fails_at, is_full=is_full)
        said = ""
        try:
            WORKS[name](ws, folder)
        except BackendError as error:
            said = str(error)
        steps.end()
        outcome.write_text("failed" if said else "done")
        if said:
            assert "space" in said or "full" in said, said
            # With room again this very process goes on.
            ws.blobs.put_many([b"room again %d" % n for n in range(2)])
            ws.data.read("d")


def _check(name: str, folder: Path) -> str:
    before: State = pickle.loads((folder.parent / "state").read_bytes())
    outcome = (folder.parent / "outcome").read_text()
    with _open(folder) as ws, using(ws):
        told = _told(name, before, _state(ws), outcome)
        try:
            WORKS[name](ws, folder)
        except Conflict:
            assert told == "after"  # done already: its version is not the expected one any more
        ws.objects.collect(grace="0")
        left = ws.objects.collect(grace="0", dry_run=True)
        assert (left.objects, left.young, left.leftovers) == (0, 0, 0), left
        checked = ws.fsck(read_data=True)
        assert not checked.damaged, checked
        assert not checked.packs, checked
        made = pickle.dumps(sorted(_state(ws).items()))
    last = folder.parent / f"{name}.made"
    if last.exists():
        assert pickle.loads(made) == pickle.loads(last.read_bytes())
    last.write_bytes(made)
    _nothing_strays(folder / "objects")
    return told


def _told(name: str, before: State, found: State, outcome: str) -> str:
    """Whether it was done, where nothing else changed."""
    if name == "expire":
        told = "after" if "old@1" not in found else "before"
        gone = [f"old@{n}" for n in (1, 2, 3)] if told == "after" else []
        assert found == {key: rows for key, rows in before.items() if key not in gone}
        return told
    if name == "collect":
        assert found == before
        return "after" if outcome == "done" else "before"
    new = found.keys() - before.keys()
    told = "after" if new else "before"
    assert len(new) <= 1, new
    assert all(found[key] == rows for key, rows in before.items() if "@" in key)
    assert outcome == "killed" or (outcome == "done") == (told == "after"), (outcome, told)
    return told


def _nothing_strays(objects: Path) -> None:
    """No file that is no object, no list of removed objects without its pack."""
    assert not [*(objects / "tmp").iterdir()]
    packs = {file.name for file in (objects / "packs").iterdir()} - {"names"}
    whole = {name for name in packs if name.endswith(".pack")}
    assert packs - whole <= {f"{name}.gone" for name in whole}, packs
    assert not (objects / "quarantine").exists()
    found = Packs(objects / "packs", objects / "tmp")
    kept = sum(item.size for item in found.all())
    assert kept * 2 >= sum((objects / "packs" / name).stat().st_size for name in whole) - 1000


def main(place: Path, asked: list[str]) -> None:
    few_rows_are_many_blocks(pytest.MonkeyPatch())
    scan.SETTLED_NS = -1_000_000_000  # files count as settled at once
    preload(place, lambda: _everything(place / "warm"))
    assert child(lambda: _fill(place / "first")) == 0
    for name, *only in (one.split(":") for one in asked or WORKS):
        case = Case(name, partial(_break, name), partial(_check, name))
        attempt = partial(tried, place / "copy", case)
        if only:
            steps = {only[0]: [int(only[1])]}
        else:
            count, left = attempt("killed", -1)
            assert left == "after", name
            steps = {how: [*range(count)] for how in ("killed", "full")}
        for how, numbers in steps.items():
            found = [attempt(how, step)[1] for step in numbers]
            counts = f"{found.count('before')} {found.count('after')}"
            sys.stdout.write(f"{name} {how} {len(numbers)} {counts}\n")
            sys.stdout.flush()


def _everything(folder: Path) -> None:
    folder.mkdir()
    _fill(folder / "first")
    with _open(folder / "first") as ws, using(ws):
        for work in WORKS.values():
            with suppress(EverloopError):
                work(ws, folder / "first")
        ws.fsck(read_data=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(Path(sys.argv[1]), sys.argv[2:])
