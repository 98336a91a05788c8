"""The form of a directory in the store: small objects, the same for the same content.

A directory is a list of entries sorted by the bytes of their names. Up to `LEAF` of them are one
object; more are split by the next four bits of blake3(name), and each part again. So what one
change writes anew is one object for each level, whatever the size of the directory, and two
directories are compared without looking at what they share. Which entries there are decides the
form alone: no order of changes, no time and no machine does.

Objects are MessagePack. A name is bytes, as the file system has it. What was read from a store is
not trusted: every name, link and place is checked before anybody uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
from blake3 import blake3

from everloop.errors import BackendError

__all__ = [
    "EMPTY",
    "Change",
    "Entry",
    "Load",
    "Tree",
    "changes",
    "encode",
    "find",
    "link_fault",
    "listed",
    "shown",
    "totals",
]

#: Most entries of one object.
LEAF = 32
_DIGEST = 32
_NAME = re.compile(rb"(?!\.{1,2}\Z)[^/\0]{1,255}").fullmatch
_LONGEST_LINK = 4095


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name in a directory.

    Attributes:
        kind: ``f`` a file, ``x`` one that may be executed, ``F`` and ``X`` the same with their
            bytes in chunks, ``l`` a symbolic link, ``d`` a directory.
        content: Digest of the bytes, of the list of chunks or of the directory's object; of a link
            where it points.
        size: Bytes, of a directory those of all files below it.
        files: Files and links: 1, of a directory those below it.
    """

    name: bytes
    kind: Literal["f", "x", "F", "X", "l", "d"]
    content: bytes
    size: int
    files: int

    @property
    def digest(self) -> str:
        """The object that `content` names."""
        return self.content.hex()


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a directory that was split."""

    slot: int
    content: bytes
    size: int
    files: int


class Leaf(msgspec.Struct, frozen=True, array_like=True, tag="everloop-tree-1", gc=False):
    """Entries by name."""

    entries: list[Entry]


class Split(msgspec.Struct, frozen=True, array_like=True, tag="everloop-split-1", gc=False):
    """Parts by the next four bits of the names' hashes; empty ones are left out."""

    parts: list[Part]


Node = Leaf | Split
#: Reads the objects of digests, in order.
Load = Callable[[Sequence[str]], Sequence[bytes]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Node).decode


class Tree(NamedTuple):
    """A directory's objects by digest, its own among them, and what is below it."""

    digest: str
    size: int
    files: int
    objects: dict[str, bytes]


def encode(entries: Iterable[Entry]) -> Tree:
    """The objects of a directory with these entries, in any order."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    objects: dict[str, bytes] = {}
    if len(ordered) <= LEAF:
        return _store(Leaf(ordered), ordered, objects)
    hashes = [blake3(entry.name).hexdigest() for entry in ordered]
    return _split(list(zip(hashes, ordered, strict=True)), 0, objects)


def _split(entries: list[tuple[str, Entry]], depth: int, objects: dict[str, bytes]) -> Tree:
    if len(entries) <= LEAF:
        found = [entry for _, entry in entries]
        return _store(Leaf(found), found, objects)
    slots: dict[str, list[tuple[str, Entry]]] = {}
    for item in entries:
        slots.setdefault(item[0][depth], []).append(item)
    parts = []
    for slot in sorted(slots):
        part = _split(slots[slot], depth + 1, objects)
        parts.append(Part(int(slot, 16), bytes.fromhex(part.digest), part.size, part.files))
    return _store(Split(parts), parts, objects)


def _store(node: Node, items: Sequence[Entry | Part], objects: dict[str, bytes]) -> Tree:
    data = _encode(node)
    digest = blake3(data).hexdigest()
    objects[digest] = data
    return Tree(digest, sum(i.size for i in items), sum(i.files for i in items), objects)


#: The digest of a directory without entries.
EMPTY = encode([]).digest


# What was read from a store


class _Place(NamedTuple):
    """Where a node stands: path of its directory, and the slots that lead to it there."""

    path: bytes
    slots: str


def _read(data: bytes, digest: str, place: _Place) -> Node:
    """Decode and check one node.

    Raises:
        BackendError: If it is none, or names what no directory can hold.
    """
    try:
        node: Node = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(digest, place, f"it is no directory: {error}") from None
    if isinstance(node, Split):
        slots = [part.slot for part in node.parts]
        if slots != sorted(set(slots)) or not all(0 <= slot < 16 for slot in slots):
            raise _wrong(digest, place, "its parts are out of order")
        if len(place.slots) >= 2 * _DIGEST or any(len(p.content) != _DIGEST for p in node.parts):
            raise _wrong(digest, place, "its parts are wrong")
        return node
    before = b""
    for entry in node.entries:
        is_file = entry.kind != "l" and len(entry.content) == _DIGEST and entry.size >= 0
        is_plain = is_file and not place.slots and _NAME(entry.name) is not None
        fault = "" if is_plain else _fault(entry, place)  # thousands are plain
        if fault or entry.name <= before:
            shown_ = ascii(entry.name[:80])[1:]
            raise _wrong(digest, place, f"{shown_} {fault or 'is out of order'}")
        before = entry.name
    return node


def _fault(entry: Entry, place: _Place) -> str:
    name = entry.name
    if _NAME(name) is None:
        return "is no name of a file"
    if place.slots and not blake3(name).hexdigest().startswith(place.slots):
        return "stands in the wrong part"
    if entry.kind == "l":
        return link_fault(_join(place.path, name), entry.content)
    return "" if len(entry.content) == _DIGEST and entry.size >= 0 else "has no digest"


def link_fault(path: bytes, target: bytes) -> str:
    """Why a link at `path` within a directory may not point to `target`; empty if it may."""
    if not 0 < len(target) <= _LONGEST_LINK or b"\0" in target:
        return "is a link to nothing that can be"
    if target.startswith(b"/"):
        return f"is a link to an absolute path, {shown(target)}"
    here, descends = path.split(b"/")[:-1], False
    for part in target.split(b"/"):
        if part == b"..":
            if descends:  # what lies above a link's own target may be anywhere
                return f"is a link that goes up after it went down, {shown(target)}"
            if not here:
                return f"is a link out of the directory, to {shown(target)}"
            here.pop()
        elif part not in (b"", b"."):
            here.append(part)
            descends = True
    if path.split(b"/")[: len(here)] == here:
        return f"is a link to a directory that it is in, {shown(target)}: who follows it never ends"
    return ""


def _wrong(digest: str, place: _Place, message: str) -> BackendError:
    where = f"the directory {shown(place.path)!r}" if place.path else "the directory"
    return BackendError(
        f"object {digest} is not {where} that it should be: {message}",
        hint="it was not made by Everloop, or not on this store",
        details={"digest": digest},
    )


def shown(path: bytes) -> str:
    """A path for people: bytes that are no UTF-8 stand in hexadecimal digits."""
    return path.decode("utf-8", "backslashreplace")


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


# One directory


def totals(load: Load, root: str) -> tuple[int, int]:
    """Bytes and number of all files below a directory."""
    node = _read(load([root])[0], root, _Place(b"", ""))
    items = node.entries if isinstance(node, Leaf) else node.parts
    return sum(item.size for item in items), sum(item.files for item in items)


def listed(load: Load, digest: str, path: bytes = b"") -> list[Entry]:
    """The entries of one directory, which is at `path`, by name."""
    place = _Place(path, "")
    found = _side(load, _read(load([digest])[0], digest, place), place)
    return [found[name] for name in sorted(found)]


def find(load: Load, root: str, path: bytes) -> Entry | None:
    """The entry at a path below the directory `root`; None if there is none."""
    digest, here = root, b""
    names = path.split(b"/")
    for depth, name in enumerate(names, 1):
        entry = _entry(load, digest, here, name)
        if entry is None or (depth < len(names) and entry.kind != "d"):
            return None
        digest, here = entry.digest, _join(here, name)
    return entry


def _entry(load: Load, digest: str, path: bytes, name: bytes) -> Entry | None:
    slots = ""
    while True:
        node = _read(load([digest])[0], digest, _Place(path, slots))
        if isinstance(node, Leaf):
            return next((entry for entry in node.entries if entry.name == name), None)
        slots += blake3(name).hexdigest()[len(slots)]
        part = next((part for part in node.parts if part.slot == int(slots[-1], 16)), None)
        if part is None:
            return None
        digest = part.content.hex()


# Comparison


class Change(NamedTuple):
    """A path at which two directories differ: a file, a link or an empty directory.

    Attributes:
        path: From the directory down, with ``/`` between names.
        old: What was there, None if nothing was.
        new: What is there, None if nothing is.
    """

    path: bytes
    old: Entry | None
    new: Entry | None


class _Pair(NamedTuple):
    place: _Place
    old: str
    new: str


Side = Mapping[bytes, Entry]


def changes(
    load: Load,
    old: str,
    new: str,
    *,
    seen: Callable[[str], bool] = lambda _: False,
    lost: Callable[[bytes, str, BackendError], None] | None = None,
) -> Iterator[Change]:
    """Where the directories `old` and `new` differ; an empty digest is nothing at all.

    What they share is not read. Paths come by depth, in no order beyond that.

    Args:
        load: Reads objects; called once for each level of both trees.
        old: Digest of a directory.
        new: Digest of another.
        seen: Told of every node of `new` that is read; if it says True, the node is left out.
        lost: Told of every node that is none, with the path of its directory; else that raises.

    Raises:
        BackendError: If an object is damaged, or is no directory.
    """
    level = [_Pair(_Place(b"", ""), old, new)]
    while level:
        wanted = [pair for pair in level if pair.old != pair.new]
        wanted = [pair for pair in wanted if not (pair.new and seen(pair.new))]
        digests = dict.fromkeys(d for pair in wanted for d in (pair.old, pair.new) if d)
        data = dict(zip(digests, load(list(digests)), strict=True))
        level = []
        for pair in wanted:
            try:
                before = _read(data[pair.old], pair.old, pair.place) if pair.old else Leaf([])
                after = _read(data[pair.new], pair.new, pair.place) if pair.new else Leaf([])
            except BackendError as error:
                if lost is None:
                    raise
                lost(pair.place.path, pair.new, error)
                continue
            if all(isinstance(node, Split) or not node.entries for node in (before, after)):
                level += _parts(pair.place, before, after)
                continue
            yield from _entries(
                pair.place.path,
                _side(load, before, pair.place, seen),
                _side(load, after, pair.place, seen),
                level,
            )


def _parts(place: _Place, before: Node, after: Node) -> Iterator[_Pair]:
    sides = [
        {part.slot: part.content.hex() for part in node.parts} if isinstance(node, Split) else {}
        for node in (before, after)
    ]
    for slot in sides[0].keys() | sides[1].keys():
        inner = _Place(place.path, f"{place.slots}{slot:x}")
        yield _Pair(inner, sides[0].get(slot, ""), sides[1].get(slot, ""))


def _side(
    load: Load, node: Node, place: _Place, seen: Callable[[str], bool] = lambda _: False
) -> Side:
    """All entries of a node; of one that is split where the other is not, few."""
    if isinstance(node, Leaf):
        return {entry.name: entry for entry in node.entries}
    found: dict[bytes, Entry] = {}
    for part in node.parts:
        digest = part.content.hex()
        seen(digest)
        inner = _Place(place.path, f"{place.slots}{part.slot:x}")
        found |= _side(load, _read(load([digest])[0], digest, inner), inner, seen)
    return found


def _entries(path: bytes, before: Side, after: Side, level: list[_Pair]) -> Iterator[Change]:
    for name in before.keys() | after.keys() if before else after:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        inner = _join(path, name)
        above = old.digest if old is not None and old.kind == "d" else ""
        below = new.digest if new is not None and new.kind == "d" else ""
        if above or below:
            level.append(_Pair(_Place(inner, ""), above, below))
        if above and below:
            continue
        old = old if above in ("", EMPTY) else None
        new = new if below in ("", EMPTY) else None
        if old is not None or new is not None:
            yield Change(inner, old, new)
