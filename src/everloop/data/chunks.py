"""Large files in chunks that are cut by content, so that an insertion stores itself alone.

FastCDC (2020) with the parameters below cuts; ADR 14 says why it is the library's. The list of a
file's chunks is cut by content as well: parts of some 64 chunks each, and one object that names
them. It says which cutter made it: two that cut alike give equal digests for equal files.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from everloop.data.tree import Load
from everloop.errors import BackendError

__all__ = ["CUTTER", "LARGE", "ChunkedFile", "Put", "chunked", "chunks_of", "parts_of", "stream"]

#: Files of more bytes are cut.
LARGE = 4 << 20
#: Smallest, aimed at and largest chunk, in bytes; a change of any is another cutter.
MIN, AVERAGE, MAX = 16 << 10, 64 << 10, 256 << 10
#: What made a list of chunks.
CUTTER = f"fastcdc-2020:{MIN}:{AVERAGE}:{MAX}"
#: So much of a file is read at a time, into one of so many buffers.
_BLOCK, _BUFFERS = 16 << 20, 3
#: A part of a list ends after a chunk whose digest begins with a byte below this, or when full.
_PART_ENDS, _FULL_PART = 4, 4096

#: Stores pieces, or only digests them; the digest and size of each come later.
Put = Callable[[list[Any]], Future[list[tuple[str, int]]]]


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk, or a part of a list, by its digest; bytes of the file that it stands for."""

    content: bytes
    size: int


class Chunks(msgspec.Struct, frozen=True, array_like=True, tag="everloop-chunks-1", gc=False):
    """A part of a file's list: chunks in order."""

    pieces: list[Piece]


class ChunkList(msgspec.Struct, frozen=True, array_like=True, tag="everloop-file-1", gc=False):
    """A file: its parts in order, and what cut it."""

    cutter: str
    size: int
    parts: list[Piece]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunks | ChunkList).decode


def chunked(handle: int, put: Put) -> tuple[str, int]:
    """Put the chunks of an open file and what lists them; the list's digest and the file's size.

    In memory are three blocks of 16 MB, whatever the size of the file.
    """
    pieces: list[Piece] = []
    pending: list[Future[list[tuple[str, int]]]] = []
    buffers = [bytearray(MAX + _BLOCK) for _ in range(_BUFFERS)]
    rest = memoryview(b"")
    for turn in itertools.count():
        if turn >= _BUFFERS:  # what was cut out of this buffer is stored
            pieces += [Piece(bytes.fromhex(d), n) for d, n in pending.pop(0).result()]
        view = memoryview(buffers[turn % _BUFFERS])
        view[: len(rest)] = rest
        end = len(rest) + _fill(handle, view[len(rest) :])
        is_last = end < len(view)
        cuts, rest = _cut(view[:end], is_last=is_last)
        pending.append(put(cuts))
        if is_last:
            break
    for stored in pending:
        pieces += [Piece(bytes.fromhex(d), n) for d, n in stored.result()]
    parts = [Chunks(list(part)) for part in _parts(pieces)]
    listed = put([_encode(part) for part in parts]).result()
    sizes = [sum(piece.size for piece in part.pieces) for part in parts]
    size = sum(sizes)
    heads = [Piece(bytes.fromhex(d), n) for (d, _), n in zip(listed, sizes, strict=True)]
    [(digest, _)] = put([_encode(ChunkList(CUTTER, size, heads))]).result()
    return digest, size


def _fill(handle: int, view: memoryview) -> int:
    size = 0
    while size < len(view):
        got = os.readv(handle, [view[size:]])
        if not got:
            break
        size += got
    return size


def _cut(view: memoryview, *, is_last: bool) -> tuple[list[memoryview], memoryview]:
    """Cut a block; the rest is what could be cut otherwise if more followed."""
    from pyfastcdc import FastCDC

    cutter = FastCDC(AVERAGE, min_size=MIN, max_size=MAX)
    cuts, end = [], 0
    for found in cutter.cut_buf(view):
        if not is_last and len(view) - found.offset < MAX:
            break
        cuts.append(found.data)
        end = found.offset + found.length
    return cuts, view[end:]


def _parts(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    start = 0
    for at, piece in enumerate(pieces, 1):
        if piece.content[0] < _PART_ENDS or at - start == _FULL_PART or at == len(pieces):
            yield pieces[start:at]
            start = at


# Reading


def parts_of(load: Load, digest: str) -> list[Piece]:
    """The parts of a file's list; raises BackendError if the object is none."""
    found: ChunkList = _read(load, digest, ChunkList)
    if sum(part.size for part in found.parts) != found.size:
        raise _wrong(digest)
    return found.parts


def chunks_of(load: Load, part: Piece) -> list[Piece]:
    """The chunks of a part; raises BackendError if the object is none, or of another size."""
    found: Chunks = _read(load, part.content.hex(), Chunks)
    if sum(piece.size for piece in found.pieces) != part.size:
        raise _wrong(part.content.hex())
    return found.pieces


def stream(load: Load, digest: str) -> Iterator[bytes]:
    """The bytes of a file in pieces of some megabytes, each checked."""
    for part in parts_of(load, digest):
        pieces = chunks_of(load, part)
        for start in range(0, len(pieces), 64):
            some = pieces[start : start + 64]
            data = load([piece.content.hex() for piece in some])
            if any(len(d) != piece.size for d, piece in zip(data, some, strict=True)):
                raise _wrong(digest)
            yield from data


class ChunkedFile(io.RawIOBase):
    """A file in chunks, to be read from any place; a chunk at a time is in memory."""

    def __init__(self, load: Load, digest: str) -> None:
        self._load = load
        self._parts = parts_of(load, digest)
        self._starts = [0, *itertools.accumulate(part.size for part in self._parts)]
        self._at = 0
        self._part = -1
        self._pieces: list[Piece] = []
        self._begins: list[int] = []
        self._piece = -1
        self._data = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the file begins")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any) -> int:
        if self._at >= self._starts[-1]:
            return 0
        number = bisect.bisect_right(self._starts, self._at) - 1
        if number != self._part:
            self._pieces = chunks_of(self._load, self._parts[number])
            sizes = itertools.accumulate(piece.size for piece in self._pieces)
            self._begins = [self._starts[number] + at for at in (0, *sizes)]
            self._part, self._piece = number, -1
        wanted = bisect.bisect_right(self._begins, self._at) - 1
        if wanted != self._piece:
            piece = self._pieces[wanted]
            [self._data] = self._load([piece.content.hex()])
            if len(self._data) != piece.size:
                raise _wrong(piece.content.hex())
            self._piece = wanted
        start = self._at - self._begins[wanted]
        view = memoryview(target).cast("B")
        size = min(len(view), len(self._data) - start)
        view[:size] = self._data[start : start + size]
        self._at += size
        return size


def _read(load: Load, digest: str, kind: type[Any]) -> Any:
    try:
        found = _decode(load([digest])[0])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _wrong(digest) from None
    if not isinstance(found, kind):
        raise _wrong(digest)
    pieces = found.parts if isinstance(found, ChunkList) else found.pieces
    if any(len(piece.content) != 32 or piece.size < 1 for piece in pieces):
        raise _wrong(digest)
    return found


def _wrong(digest: str) -> BackendError:
    return BackendError(
        f"object {digest} is no list of a file's chunks, or does not fit them",
        details={"digest": digest},
    )
