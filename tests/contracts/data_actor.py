"""Does things to a workspace, for the state machine: in its own process, or in a child over a pipe.

Whatever it returns is plain, so that both say the same in the same words.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.data import blocks, replace
from everloop.errors import EverloopError
from everloop.workspace import Workspace

KEYED = Schema(
    (Field("id", "int64", nullable=False), Field("x", "float64"), Field("s", "string")),
    key=("id",),
)
Row = tuple[int, float | None, str | None]


class Refused(Exception):
    """What the workspace did not do: the name of the error, and what it said."""


class Look:
    """Everything that can be read of a dataset."""

    def __init__(self, ws: Workspace, name: str) -> None:
        versions = ws.data.versions(name, branch=None)
        self.rows = {v.number: listed(ws.data.read(name, v.number)) for v in versions}
        self.counts = {v.number: v.rows for v in versions}
        self.digests = {v.number: v.digest for v in versions}
        self.tags = {tag.tag: tag.number for tag in ws.data.tags(name)}
        self.branches = {line.branch: (line.base, line.number) for line in ws.data.branches(name)}
        self.latest = ws.data.version(name).number


def listed(found: pa.Table) -> list[Row]:
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


def table(rows: list[Row]) -> pa.Table:
    ids, xs, texts = zip(*rows, strict=True) if rows else ((), (), ())
    columns = [pa.array(ids, pa.int64()), pa.array(xs, pa.float64()), pa.array(texts, pa.string())]
    return pa.table(columns, names=["id", "x", "s"])


def few_rows_are_many_blocks(patch: pytest.MonkeyPatch) -> None:
    for module in (blocks, replace):
        patch.setattr(module, "BLOCK_ROWS", 8)
    patch.setattr(replace, "DIRTY", 2)
    patch.setattr(replace, "MOST_DELTAS", 2)


class Actor:
    """One process that has the workspace open."""

    def __init__(self) -> None:
        self.ws: Workspace
        self.clock: ManualClock

    def open(self, location: str, now: datetime) -> None:
        self.clock = ManualClock(now)
        self.ws = ev.open(location, clock=self.clock, actor="machine")

    def close(self) -> None:
        self.ws.close()

    def do(self, act: str, now: datetime, *given: Any) -> Any:
        self.clock.set(now)
        try:
            return getattr(self, act)(*given)
        except EverloopError as error:
            raise Refused(type(error).__name__, str(error)) from None

    def save(self, ref: str, rows: list[Row], mode: Any, expect: int | None) -> int:
        name, _, branch = ref.partition("@")
        return self.ws.data.commit(
            name, table(rows), schema=KEYED, mode=mode, expect=expect, branch=branch or "main"
        ).number

    def tag(self, name: str, tag: str, number: int) -> None:
        self.ws.data.tag(name, tag, number)

    def untag(self, name: str, tag: str) -> None:
        self.ws.data.untag(name, tag)

    def branch(self, name: str, branch: str, at: int) -> None:
        self.ws.data.branch(name, branch, at=at)

    def delete_branch(self, name: str, branch: str) -> None:
        self.ws.data.delete_branch(name, branch)

    def merge(self, name: str, branch: str, into: str, strategy: Any) -> tuple[int, int, int]:
        done = self.ws.data.merge(name, branch, into=into, strategy=strategy)
        return done.version.number, done.base, done.conflicted

    def expire(self, name: str, days: float, last: int) -> list[str]:
        self.ws.data.keep(name, for_days=days, last=last)
        going = list(self.ws.data.expire().going)
        self.ws.data.keep_all(name)
        return going

    def collect(self) -> tuple[int, int]:
        """How many objects went, and how many are left that nothing names."""
        gone = self.ws.objects.collect(grace="0").objects
        left = self.ws.objects.collect(grace="0", dry_run=True)
        return gone, left.objects + left.young

    def erase(self, name: str, ids: list[int]) -> tuple[int, bool]:
        """How many rows went out of versions, and whether the receipt holds."""
        receipt = self.ws.data.erase({"id": ids}, dataset=name)
        if receipt.erased.is_empty:
            return 0, True
        return receipt.erased.rows, self.ws.data.verify_receipt(receipt).signature == "valid"

    def look(self, name: str) -> Look:
        return Look(self.ws, name)

    def diff(self, name: str, old: int, new: int) -> list[tuple[str, int, Any, Any]]:
        found = self.ws.data.diff(name, old, new, rows=1000)
        return [(row.kind, row.key["id"], row.old, row.new) for row in found.rows]

    def at(self, ref: str, at: datetime) -> int:
        name, _, branch = ref.partition("@")
        return self.ws.data.version_at(name, at.isoformat(), branch=branch or "main").number

    def paths(self, name: str, number: int) -> list[str]:
        with using(self.ws):
            return ev.paths(name, number)

    def damaged(self) -> list[str]:
        """What a check of every byte finds."""
        found = self.ws.fsck(read_data=True)
        verified = self.ws.files.verify()
        return [str(bad) for bad in (*found.damaged, *found.packs, *verified.damaged)]


class Child:
    """An actor in another process."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: Any = self._process.stdin
        self._from: Any = self._process.stdout

    def __getattr__(self, act: str) -> Any:
        return lambda *given: self._call(act, *given)

    def _call(self, act: str, *given: Any) -> Any:
        _put(self._to, (act, given))
        fault, found = next(_messages(self._from))
        if fault is not None:
            raise fault
        return found

    def end(self) -> None:
        self._to.close()
        assert self._process.wait(60) == 0
        self._from.close()


def _put(to: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message)
    to.write(struct.pack("<I", len(data)) + data)
    to.flush()


def _messages(source: BinaryIO) -> Iterator[Any]:
    while head := source.read(4):
        yield pickle.loads(source.read(struct.unpack("<I", head)[0]))


@contextmanager
def child() -> Iterator[Child]:
    """An actor in another process, ended in the end."""
    made = Child()
    try:
        yield made
    finally:
        made.end()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    few_rows_are_many_blocks(pytest.MonkeyPatch())
    actor = Actor()
    for act, given in _messages(sys.stdin.buffer):
        try:
            _put(answers, (None, getattr(actor, act)(*given)))
        except Exception as error:  # noqa: BLE001 (told to whoever asked)
            _put(answers, (error, None))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    # Under its own name: what is pickled here is found there.
    from tests.contracts import data_actor

    data_actor.main()
