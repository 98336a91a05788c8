"""Large files in chunks: the same cuts for ever, little stored again, read from any place."""

from __future__ import annotations

import os
import random
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from pyfastcdc.py import FastCDC as PlainFastCDC

from everloop.data import chunks
from everloop.data.chunks import CUTTER, ChunkedFile, chunked, stream
from everloop.errors import BackendError

DATA = blake3(b"seed").digest(3_000_000)


class Objects(dict[str, bytes]):
    """A store; what was there is not stored again."""

    stored = 0

    def put(self, data: list[Any]) -> Future[list[tuple[str, int]]]:
        found = []
        for item in data:
            digest = blake3(item).hexdigest()
            if digest not in self:
                self.stored += len(item)
            self[digest] = bytes(item)
            found.append((digest, len(item)))
        future: Future[list[tuple[str, int]]] = Future()
        future.set_result(found)
        return future

    def load(self, digests: Any) -> list[bytes]:
        return [self[digest] for digest in digests]

    def add(self, folder: Path, data: bytes) -> str:
        path = folder / "file"
        path.write_bytes(data)
        handle = os.open(path, os.O_RDONLY)
        try:
            digest, size = chunked(handle, self.put)
        finally:
            os.close(handle)
        assert size == len(data)
        return digest


def test_cuts_are_those_that_were_always_made() -> None:
    """Else every file that is added again would be stored again."""
    assert CUTTER == "fastcdc-2020:16384:65536:262144"
    cuts, rest = chunks._cut(memoryview(DATA), is_last=True)
    lengths = [len(cut) for cut in cuts]
    assert (sum(lengths), len(rest)) == (len(DATA), 0)
    assert lengths[:8] == [73922, 80511, 54268, 39538, 39169, 18236, 92864, 22788]
    plain = PlainFastCDC(chunks.AVERAGE, min_size=chunks.MIN, max_size=chunks.MAX)
    head = DATA[: sum(lengths[:5])]
    assert [cut.length for cut in plain.cut_buf(head)] == lengths[:5]


def test_blocks_do_not_move_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Objects().add(tmp_path, DATA)
    for block in (300_001, 1 << 20, len(DATA) - chunks.MAX, len(DATA)):
        monkeypatch.setattr(chunks, "_BLOCK", block)
        store = Objects()
        assert store.add(tmp_path, DATA) == whole
        assert b"".join(stream(store.load, whole)) == DATA


def test_the_list_of_a_file_does_not_change(tmp_path: Path) -> None:
    store = Objects()
    whole = "8d61c47626a8aa4f78519b791dc47600ac8f3b9996490972658a60cea898d639"
    assert store.add(tmp_path, DATA) == whole
    zeros = "08b294ff8914dd1621ebc082e83f3ed44956f25ad07e47dec3b5163d1ecaf0d7"
    assert store.add(tmp_path, bytes(1_000_000)) == zeros


def test_an_insertion_stores_itself(tmp_path: Path) -> None:
    store, random_ = Objects(), random.Random(1)
    data = random_.randbytes(20_000_000)
    store.add(tmp_path, data)
    before = store.stored
    store.add(tmp_path, data[:9_999_999] + random_.randbytes(200_000) + data[9_999_999:])
    assert store.stored - before < 200_000 + 2 * chunks.MAX


def test_a_file_is_read_from_any_place(tmp_path: Path) -> None:
    store, random_ = Objects(), random.Random(2)
    file = ChunkedFile(store.load, store.add(tmp_path, DATA))
    for _ in range(50):
        start, size = random_.randrange(len(DATA) + 10), random_.randrange(200_000)
        assert file.seek(start) == file.tell() == start
        found = b""
        while len(found) < size and (piece := file.read(size - len(found))):
            found += piece
        assert found == DATA[start : start + size]
    assert file.seek(-5, os.SEEK_END) == len(DATA) - 5
    assert file.read() == DATA[-5:]
    assert file.read() == b""
    with pytest.raises(ValueError, match="before the file"):
        file.seek(-1)


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = Objects()
    digest = store.add(tmp_path, DATA)
    tag, cutter, size, parts = msgspec.msgpack.decode(store[digest])
    [(first, held), *_] = parts
    _, pieces = msgspec.msgpack.decode(store[first.hex()])
    wrong = [
        [tag, cutter, size + 1, parts],
        [tag, cutter, size, [[b"short", size]]],
        [tag, cutter, held, [[pieces[0][0], held]]],
        ["everloop-chunks-1", [[first, -1]]],
        ["other", 1],
    ]
    for node in wrong:
        [(bad, _)] = store.put([msgspec.msgpack.encode(node)]).result()
        with pytest.raises(BackendError, match="no list"):
            list(stream(store.load, bad))
    # Chunks of other lengths than the list says.
    swapped = [[pieces[1][0], pieces[0][1]], [pieces[0][0], pieces[1][1]], *pieces[2:]]
    [(part, _)] = store.put([msgspec.msgpack.encode(["everloop-chunks-1", swapped])]).result()
    head = [tag, cutter, held, [[bytes.fromhex(part), held]]]
    [(bad, _)] = store.put([msgspec.msgpack.encode(head)]).result()
    with pytest.raises(BackendError, match="does not fit"):
        list(stream(store.load, bad))
    with pytest.raises(BackendError, match="does not fit"):
        ChunkedFile(store.load, bad).read(10)
