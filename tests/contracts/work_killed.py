"""Hands corrected rows back in forked processes that die, each a step later, and looks at it."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

import everloop as ev
from everloop.core.schema import Field, Schema
from everloop.errors import Conflict
from everloop.workspace import Workspace
from tests.killed import Case, Steps, child, preload, tried

SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("t", "float64", le=60, on_fail="quarantine"),
        Field("w", "float64", ge=0, on_fail="warn"),
    ),
    key=("id",),
)
TABLE = {"id": list(range(20)), "t": [99.0, 98.0] + [1.0] * 18, "w": [1.0] * 18 + [-1.0, -2.0]}


def fill(folder: Path) -> None:
    """Two rows that wait, two that a rule warned of, one that somebody found."""
    with ev.open(folder, actor="t") as ws:
        ws.data.commit("d", pa.table(TABLE), schema=SCHEMA)
        ws.data.add_work("d", [{"id": 5, "rule": "label", "reason": "odd"}])


def handed(ws: Workspace) -> pa.Table:
    """The first row that waits, the first that was warned of, and what was found."""
    rows = ws.data.work_rows("d").to_pylist()
    wanted = [row for row in rows if row["id"] in (0, 18, 5)]
    return pa.Table.from_pylist([{**row, "t": 2.0, "w": 3.0} for row in wanted])


def fix(folder: Path, steps: Steps, fails_at: int, is_full: bool) -> None:
    """Hand them back, dying after so many steps."""
    with ev.open(folder, actor="t") as ws:
        rows = handed(ws)
        steps.begin(fails_at, is_full=is_full)
        ws.data.fix_rows("d", rows, note="by hand")
        steps.end()


def check(folder: Path) -> str:
    """All or nothing, and which; done again it is all, and once."""
    with ev.open(folder, actor="t") as ws:
        left = sorted(item.key["id"] for item in ws.data.work().items)  # type: ignore[type-var]
        begun = left == [1, 19]
        assert begun or left == [0, 1, 5, 18, 19], left
        assert ws.data.version("d").number == (2 if begun else 1)
        assert bool(ws.data.changes(act="fixed")) == begun
        if begun:
            for again in (0, 18, 5):
                assert again not in left
        else:
            rows = handed(ws)
            ws.data.fix_rows("d", rows, note="by hand")
            with pytest.raises(Conflict, match="fixed by t"):
                ws.data.fix_rows("d", rows)
        ids = ws.data.read("d").column("id").to_pylist()
        assert sorted(ids) == [0, *range(2, 20)], ids
        assert sum(entry.rows for entry in ws.data.changes(act="fixed")) == 3
        assert ws.data.read("d.quarantine").column("id").to_pylist() == [1]
        assert not ws.files.verify().damaged
    return "after" if begun else "before"


def everything(place: Path) -> None:
    """All that is imported, once, so that no fork has to."""
    shutil.copytree(place / "first", place / "warm")
    fix(place / "warm", Steps(), -1, False)
    check(place / "warm")


def main(place: Path) -> None:
    """Prints how many of the kills came before the fix was certain, and how many after."""
    assert child(lambda: fill(place / "first")) == 0
    preload(place, lambda: everything(place))
    attempt = partial(tried, place / "copy", Case("fix", fix, check), "killed")
    count, left = attempt(-1)
    assert left == "after"
    every = "all" in sys.argv
    steps = range(count) if every else sorted({count // 2, count - 2, count - 1})
    found = [attempt(step)[1] for step in steps]
    sys.stdout.write(f"{count} {found.count('before')} {found.count('after')}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
