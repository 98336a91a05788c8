"""Erases in forked processes that are killed, each one step later, and looks at what is left."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.data import erasing
from tests.decoded import holding
from tests.killed import Case, Steps, child, preload, tried

SUBJECT = "zoe-quux-7"
SCHEMA = Schema((Field("id", "int64", nullable=False), Field("s", "string")), key=("id",))


def fill(folder: Path) -> None:
    """Versions, a pack with a block's neighbours, and a value in the catalog."""
    with ev.open(folder, actor="t") as ws, using(ws):
        rows = [{"id": n, "s": SUBJECT if n == 7 else f"name-{n}"} for n in range(20)]
        ev.commit("d", pa.Table.from_pylist(rows), schema=SCHEMA)
        rows[3]["s"] = "changed"
        ev.commit("d", pa.Table.from_pylist(rows))
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
        ws.blobs.put_many([sink.getvalue().to_pybytes(), b"a neighbour"])
        ws.tracking.put_artifact("a.csv", f"id,s\n7,{SUBJECT}\n1,x\n".encode())


def erase(folder: Path, steps: Steps, fails_at: int, is_full: bool) -> None:
    """Erase, dying after so many steps."""
    with ev.open(folder, actor="t") as ws:
        scrub = erasing.scrub

        def counted(*given: Any) -> str:
            steps.step()
            found = scrub(*given)
            steps.step()
            return found

        erasing.scrub = counted
        steps.begin(fails_at, is_full=is_full)
        ws.data.erase({"id": 7})
        steps.end()
        erasing.scrub = scrub


def check(folder: Path) -> str:
    """All or nothing, and which; and the next call makes it all."""
    with ev.open(folder, actor="t") as ws:
        sizes = [ws.data.read("d", n).num_rows for n in (1, 2)]
        lines = ws.tracking.artifact("a.csv").count(b"\n")
        assert (sizes, lines) in (([20, 20], 3), ([19, 19], 2)), (sizes, lines)
        begun = sizes[0] == 19
        if begun:
            ws.data.finish_erasures()
        else:
            ws.data.erase({"id": 7})
        for n in (1, 2):
            assert pc.all(pc.not_equal(ws.data.read("d", n)["id"], 7)).as_py()
        assert [r.erased.rows for r in ws.data.receipts()][-1] >= 2
        assert not ws.files.verify().damaged
        assert ws.blobs.get_many(list(ws.blobs.digests()))
    found = holding(folder, folder / "objects", [SUBJECT], ("id", 7))
    assert not found, found
    return "after" if begun else "before"


def everything(place: Path) -> None:
    """All that is imported, once, so that no fork has to."""
    shutil.copytree(place / "first", place / "warm")
    erase(place / "warm", Steps(), -1, False)
    check(place / "warm")


def main(place: Path) -> None:
    """Prints how many of the kills came before the erasure was certain, and how many after."""
    assert child(lambda: fill(place / "first")) == 0
    preload(place, lambda: everything(place))
    attempt = partial(tried, place / "copy", Case("erase", erase, check), "killed")
    count, left = attempt(-1)
    assert left == "after"
    found: list[str] = []
    # Before it is certain there is little to tell one step from the next.
    for step in sorted({*range(0, count, 6), *range(count - 16, count, 2)}):
        found.append(attempt(step)[1])
    sys.stdout.write(f"{found.count('before')} {found.count('after')}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
