"""Erases in forked processes that are killed, each one step later, and looks at what is left."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

import everloop as ev
from everloop.catalog.engine import Catalog
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.data import erasing
from tests.decoded import holding

SUBJECT = "zoe-quux-7"
SCHEMA = Schema((Field("id", "int64", nullable=False), Field("s", "string")), key=("id",))
_PRELOADED = ("everloop", "sqlalchemy", "alembic", "dateutil", "numpy", "pandas", "pyarrow")
_left = -1


def step() -> None:
    """One step of writing: here the process may die."""
    global _left
    if _left == 0:
        os._exit(9)
    _left -= _left > 0


def watch() -> None:
    """Count what is written from here on."""

    def hook(name: str, _: tuple[Any, ...]) -> None:
        # What is only opened is not there yet, or as it was: files come by a rename.
        if name in ("os.rename", "os.remove", "os.link"):
            step()

    sys.addaudithook(hook)
    write, scrub = Catalog.write, erasing.scrub

    @contextmanager
    def counted(self: Catalog, **given: Any) -> Iterator[Any]:
        with write(self, **given) as tx:
            yield tx
            step()
        step()

    def counted_scrub(*given: Any) -> str:
        step()
        found = scrub(*given)
        step()
        return found

    Catalog.write = counted  # type: ignore[method-assign]
    erasing.scrub = counted_scrub


def child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 (told, and never two processes)
            import traceback

            traceback.print_exception(error)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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


def erase(folder: Path, steps: int) -> None:
    """Erase, dying after so many steps."""
    global _left
    with ev.open(folder, actor="t") as ws:
        watch()
        _left = steps
        ws.data.erase({"id": 7})
        _left = -1


def check(folder: Path, told: Path) -> None:
    """All or nothing; and the next call makes it all."""
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
    with told.open("a") as file:
        file.write("after\n" if begun else "before\n")


def preload(place: Path) -> None:
    """Import here, once, what every fork would import; to run it here would start threads."""
    names = place / "modules"

    def tell() -> None:
        shutil.copytree(place / "first", place / "warm")
        erase(place / "warm", -1)
        check(place / "warm", place / "unused")
        names.write_text("\n".join(sorted(sys.modules)))

    assert child(tell) == 0
    for name in names.read_text().split():
        if name.partition(".")[0] in _PRELOADED:
            with suppress(ImportError):
                importlib.import_module(name)


def main(place: Path) -> None:
    """Prints how many of the kills came before the erasure was certain, and how many after."""
    first, folder, told = place / "first", place / "copy", place / "told"
    assert child(lambda: fill(first)) == 0
    preload(place)
    steps, status = 0, 9
    while status == 9:
        shutil.copytree(first, folder)
        status = child(partial(erase, folder, steps))
        assert status in (0, 9), f"step {steps} ended with {status}"
        assert child(lambda: check(folder, told)) == 0, f"killed at step {steps}"
        shutil.rmtree(folder)
        # Before it is certain there is little to tell one step from the next.
        steps += 1 if told.read_text().endswith("after\n") else 3
    lines = told.read_text().split()
    sys.stdout.write(f"{lines.count('before')} {lines.count('after')}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
