"""Files of a source: which there are, which are new or changed, and reading those alone.

A file is known by size and time (on a server by its ETag), and where these differ by the digest of
its bytes. JSON lines that grew are read from where the last pull ended, if what was read then is
still what the file begins with; otherwise they were rotated or cut, and are read as a new file.
"""

from __future__ import annotations

import glob
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import msgspec
from blake3 import blake3

from everloop.core.source import DataSource, SourceFile, SourceState
from everloop.data.formats import Part, Types, batches, guess
from everloop.data.source_rules import scheme_of
from everloop.data.spool import Spool
from everloop.errors import BackendError, Fault, InvalidInput, NotAllowed, NotFound, StateError
from everloop.ports.source import FileServer

__all__ = ["Found", "read_files"]

#: A file that changed so shortly before it was looked at may change again within the same tick.
_RACY_NS = 2_000_000_000
_PIECE = 1 << 20


class Servers(Protocol):
    """Gives the server of a location."""

    def __call__(self, scheme: str) -> FileServer: ...


class Found(NamedTuple):
    """What a look at the files of a source found.

    Attributes:
        is_read: Whether rows were put into the spool, if only none; False if nothing is new.
        files: Those that were read.
        touched: Those with another time or name, and the bytes that they had.
        gone: Paths that are forgotten.
        notes: For whoever pulls.
    """

    is_read: bool
    files: tuple[SourceFile, ...]
    touched: tuple[SourceFile, ...]
    gone: tuple[str, ...]
    notes: tuple[str, ...]


class _Local(NamedTuple):
    """A file on this machine that has to be looked at."""

    path: str
    file: Path
    size: int
    mtime_ns: int
    etag: str = ""


class _Plan(NamedTuple):
    part: Part
    entry: SourceFile


def read_files(
    source: DataSource,
    state: SourceState,
    wanted: Types,
    spool: Spool,
    servers: Servers,
    folder: Path,
    *,
    full: bool,
    inside: Path | None,
) -> Found:
    """Put the rows that are new into `spool`.

    Args:
        source: Where the files are.
        state: What was read before.
        wanted: Types of columns that are known.
        spool: Takes the rows.
        servers: For files that are elsewhere.
        folder: Takes files that are fetched; the caller removes it.
        full: Read all of them.
        inside: Local files must lie in this folder, links followed; None for anywhere.

    Raises:
        NotFound: If no file is there.
        InvalidInput: With what is wrong in the files.
        StateError: If a file changed whose rows have no key to be updated by.
        BackendError: If a file cannot be had, or changes while it is read.
    """
    known = {file.path: file for file in state.files}
    everything = full or source.mode == "replace"
    here, paths, fetched = _look(source, {} if full else known, servers, folder, inside)
    gone = tuple(sorted(known.keys() - paths))
    fresh, same = _changed(here, {} if full else known)
    if source.mode == "replace" and (fresh or gone):
        rest = [path for path in paths if path not in {file.path for file in fresh}]
        fresh += [_again(path, fetched, servers, source, folder) for path in rest]
        fresh.sort(key=lambda file: file.path)
    if not fresh:
        same += _left(known, gone)
        return Found(False, (), tuple(same), (), _gone_notes(source, gone))
    notes = [*_gone_notes(source, gone)]
    same += _left(known, gone)
    lost = list(gone) if source.mode == "replace" else []
    plans = _plans(source, fresh, {} if everything else known, same, lost, notes)
    if not plans:
        return Found(False, (), tuple(same), tuple(lost), tuple(notes))
    parts = [plan.part for plan in plans if plan.entry.size]
    if not parts:
        if not known:
            raise InvalidInput(f"{plans[0].entry.path} is empty: no header, no rows")
        return Found(False, (), tuple(same), (), tuple(notes))
    types = wanted
    if source.format in ("csv", "jsonl"):
        types = guess(source, parts, wanted)
    entries = [_read(source, plan, types, spool) for plan in plans if plan.entry.size]
    if not spool.is_begun:  # blank lines, or one that is not finished
        return Found(False, (), (*same, *entries), tuple(lost), tuple(notes))
    empty = [plan.entry.path for plan in plans if not plan.entry.size]
    if empty:
        notes.append(f"{len(empty)} files are empty, and are looked at again: {empty[0]}")
    return Found(True, tuple(entries), tuple(same), tuple(lost), tuple(notes))


def _left(known: dict[str, SourceFile], gone: tuple[str, ...]) -> list[SourceFile]:
    """Entries of files that went: if one comes back, its time says nothing."""
    return [
        msgspec.structs.replace(known[path], mtime_ns=0) for path in gone if known[path].mtime_ns
    ]


def _gone_notes(source: DataSource, gone: tuple[str, ...]) -> tuple[str, ...]:
    if not gone or source.mode == "replace":
        return ()
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return (f"{gone[0]}{more} is no longer there; its rows stay",)


# --- which files there are -----------------------------------------------------------------------


def _look(
    source: DataSource,
    known: dict[str, SourceFile],
    servers: Servers,
    folder: Path,
    inside: Path | None,
) -> tuple[list[_Local], set[str], dict[str, _Local]]:
    """Files to be looked into, the paths of all, and those that were fetched."""
    here: list[_Local] = []
    paths: set[str] = set()
    fetched: dict[str, _Local] = {}
    for location in source.locations:
        scheme = scheme_of(location)
        if scheme in ("", "file"):
            found = list(_local(location, inside))
            here += [file for file in found if file.path not in paths]
            paths.update(file.path for file in found)
            continue
        server = servers(scheme)
        for remote in server.find(location):
            before = known.get(remote.path)
            paths.add(remote.path)
            if before is not None and remote.etag and remote.etag == before.etag:
                continue
            to = folder / f"{len(fetched)}"
            with open(to, "wb") as file:
                got = server.fetch(remote, before.etag if before else "", file)
            if got is not None:
                size = to.stat().st_size
                fetched[got.path] = _Local(got.path, to, size, 0, got.etag)
                here.append(fetched[got.path])
            else:
                to.unlink()
    if not paths:
        raise NotFound(
            f"no file is at {', '.join(source.locations)}",
            hint="check the path or pattern; relative ones begin where the pull runs",
        )
    return here, paths, fetched


def _again(
    path: str, fetched: dict[str, _Local], servers: Servers, source: DataSource, folder: Path
) -> _Local:
    """A file that did not change, for a source whose files are all read if one changed."""
    scheme = scheme_of(path)
    if not scheme:
        return _stated(path)
    server = servers(scheme)
    to = folder / f"again-{len(os.listdir(folder))}"
    with open(to, "wb") as file:
        got = server.fetch(server.find(path)[0], "", file)
    assert got is not None, "it was asked for without a condition"
    return _Local(path, to, to.stat().st_size, 0, got.etag)


def _local(location: str, inside: Path | None) -> Iterator[_Local]:
    path = unquote(urlsplit(location).path) if scheme_of(location) else location
    path = os.path.expanduser(path)
    # A file whose name has signs of a pattern is meant itself.
    names = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    faults = []
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            faults.append(Fault(ascii(name), "the name is no UTF-8"))
            continue
        if inside is not None and not Path(name).resolve().is_relative_to(inside.resolve()):
            raise NotAllowed(
                f"{name} lies outside the folder that this process works in",
                hint="a source that was declared through a server reads only what is in it",
            )
        try:
            mode = os.stat(name).st_mode
        except OSError as error:
            faults.append(Fault(name, error.strerror or str(error)))
            continue
        if stat.S_ISDIR(mode):
            if name == path:
                faults.append(Fault(name, "is a folder; write a pattern such as FOLDER/*.parquet"))
            continue
        if not stat.S_ISREG(mode):
            faults.append(Fault(name, "is no regular file"))
            continue
        yield _stated(name)
    if faults:
        raise InvalidInput(f"{len(faults)} paths at {location} cannot be read", faults)


def _stated(name: str) -> _Local:
    try:
        now = os.stat(name)
    except OSError as error:
        raise BackendError(f"{name} cannot be read: {error.strerror}") from error
    return _Local(name, Path(name), now.st_size, now.st_mtime_ns)


# --- which of them are new -----------------------------------------------------------------------


def _changed(
    here: list[_Local], known: dict[str, SourceFile]
) -> tuple[list[_Local], list[SourceFile]]:
    """Those with other bytes than before, and entries of those whose time alone changed."""
    fresh, same = [], []
    for file in here:
        before = known.get(file.path)
        if before is None:
            fresh.append(file)
            continue
        alike = file.size == before.size
        unmoved = alike and file.mtime_ns and file.mtime_ns == before.mtime_ns
        if unmoved and before.mtime_ns < before.seen_ns - _RACY_NS:
            continue
        if alike and before.read == before.size and _digest(file.file, file.size) == before.digest:
            same.append(_entry(file, before.digest, before.read, before.rows))
            continue
        fresh.append(file)
    return fresh, same


def _entry(file: _Local, digest: str, read: int, rows: int) -> SourceFile:
    return SourceFile(
        path=file.path,
        size=file.size,
        mtime_ns=file.mtime_ns,
        etag=file.etag,
        digest=digest,
        read=read,
        rows=rows,
        seen_ns=time.time_ns(),
    )


def _digest(path: Path, size: int) -> str:
    """blake3 of the first `size` bytes."""
    hashed, left = blake3(), size
    try:
        with open(path, "rb") as file:
            while left > 0 and (data := file.read(min(_PIECE, left))):
                hashed.update(data)
                left -= len(data)
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror}") from error
    return hashed.hexdigest()


def _plans(
    source: DataSource,
    fresh: list[_Local],
    known: dict[str, SourceFile],
    same: list[SourceFile],
    lost: list[str],
    notes: list[str],
) -> list[_Plan]:
    """What to read of each file; a StateError for those whose old rows cannot be found."""
    plans, faults = [], []
    moved = {(file.read, file.digest): file for file in known.values() if file.read}
    for file in fresh:
        before = known.get(file.path)
        if source.format == "jsonl" and not file.path.endswith(".gz"):
            plans.append(_stream(file, before, moved, notes))
            continue
        digest = _digest(file.file, file.size)
        if before is None and (file.size, digest) in moved:
            old = moved[file.size, digest]
            notes.append(f"{file.path} has the bytes of {old.path}: not read again")
            same.append(_entry(file, digest, file.size, old.rows))
            if not os.path.lexists(old.path) and not old.etag:
                lost.append(old.path)  # its name may be given to another file
            continue
        if before is not None and source.mode == "append":
            faults.append(Fault(file.path, "changed after it was read"))
            continue
        plans.append(_Plan(Part(file.file, file.path), _entry(file, digest, file.size, 0)))
    if faults:
        raise StateError(
            f"{len(faults)} files of {source.dataset} changed, and without a key their old rows"
            f" cannot be told from new ones: {', '.join(fault.path for fault in faults[:5])}",
            hint='give the source a key=, or mode="replace"',
        )
    return plans


def _stream(
    file: _Local,
    before: SourceFile | None,
    moved: dict[tuple[int, str], SourceFile],
    notes: list[str],
) -> _Plan:
    """What to read of JSON lines: from where the last pull ended, to the last whole line."""
    end = _end_of_lines(file)
    start, rows = 0, 0
    grown = before is not None and 0 < before.read <= file.size
    if before is not None and grown and _digest(file.file, before.read) == before.digest:
        start, rows = before.read, before.rows
    if before is None:
        # A log that was rotated: what it was called before says how far it was read.
        for (read, digest), old in moved.items():
            if read <= file.size and _digest(file.file, read) == digest:
                start, rows = read, old.rows
                notes.append(f"{file.path} is what {old.path} was: read from byte {read} on")
                break
    elif not start and before.read:
        notes.append(
            f"{file.path} was rotated or cut: read from its beginning; what came after byte "
            f"{before.read} of the old one and is nowhere else was not seen"
        )
    if end < file.size:
        notes.append(f"{file.path}: {file.size - end} bytes of a line that is not finished wait")
    part = Part(file.file, file.path, start, end)
    return _Plan(part, _entry(file, _digest(file.file, end), end, rows))


def _end_of_lines(file: _Local) -> int:
    """Where the last line ends that is finished: by a line end, or as an object that is whole."""
    at, tail = file.size, b""
    with open(file.file, "rb") as stream:
        while at > 0 and b"\n" not in tail:
            step = min(_PIECE, at)
            at -= step
            stream.seek(at)
            tail = stream.read(step) + tail
    begin = tail.rfind(b"\n") + 1
    last = tail[begin:]
    if last.strip():
        try:
            if isinstance(msgspec.json.decode(last.removeprefix(b"\xef\xbb\xbf")), dict):
                return file.size
        except (msgspec.DecodeError, UnicodeError):
            return at + begin
    return file.size


# --- reading -------------------------------------------------------------------------------------


def _read(source: DataSource, plan: _Plan, types: Types, spool: Spool) -> SourceFile:
    part, entry = plan
    rows = spool.rows
    spool.mark(entry.path)
    for batch in batches(source, part, types):
        spool.begin(batch.schema)
        spool.add(batch)
    if not entry.etag and scheme_of(entry.path) == "":
        _refuse_change(source, part, entry)
    return msgspec.structs.replace(entry, rows=entry.rows + spool.rows - rows)


def _refuse_change(source: DataSource, part: Part, entry: SourceFile) -> None:
    """Refuse a file that is another one than when the pull began; a stream may have grown."""
    now = _stated(entry.path)
    if (now.size, now.mtime_ns) == (entry.size, entry.mtime_ns):
        return
    grown = source.format == "jsonl" and now.size >= entry.read
    if not grown or _digest(part.file, entry.read) != entry.digest:
        raise BackendError(
            f"{entry.path} changed while it was read", hint="nothing was kept; pull again"
        )
