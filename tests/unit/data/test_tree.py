"""Directories as trees of objects: one form for one content, whatever they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from everloop.data.tree import (
    EMPTY,
    LEAF,
    Change,
    Entry,
    changes,
    encode,
    find,
    link_fault,
    listed,
    totals,
)
from everloop.errors import BackendError


def file(name: bytes, text: bytes = b"", kind: str = "f") -> Entry:
    return Entry(name, kind, blake3(text).digest(), len(text), 1)  # type: ignore[arg-type]


class Objects(dict[str, bytes]):
    """A store that counts what is read from it."""

    read = 0

    def load(self, digests: Sequence[str]) -> list[bytes]:
        self.read += len(digests)
        return [self[digest] for digest in digests]

    def tree(self, files: dict[bytes, bytes]) -> str:
        """Store a directory of files by path; a path that ends with / is an empty directory."""
        entries, below = [], {}
        for path, text in files.items():
            name, slash, rest = path.partition(b"/")
            if slash:
                below.setdefault(name, {})[rest] = text
            elif name:
                entries.append(file(name, text))
        for name, inner in below.items():
            digest = self.tree(inner)
            entries.append(Entry(name, "d", bytes.fromhex(digest), *totals(self.load, digest)))
        made = encode(entries)
        self |= made.objects
        return made.digest


def texts(found: list[Change]) -> dict[bytes, tuple[bytes | None, bytes | None]]:
    return {
        c.path + b"/" * any(e is not None and e.kind == "d" for e in c[1:]): tuple(
            e and e.content
            for e in c[1:]  # type: ignore[misc]
        )
        for c in found
    }


NAMES = st.sampled_from([b"a", b"b", b"\xff", *(b"n%d" % n for n in range(3 * LEAF))])
# A name is a file or a directory, by its first sign, so that the paths of one tree fit together.
PATHS = st.lists(NAMES, min_size=0, max_size=2).map(
    lambda names: b"".join(b"D" + name + b"/" for name in names)
)
TREES = st.dictionaries(
    st.tuples(PATHS, NAMES).map(b"".join), st.sampled_from([b"1", b"2"]), max_size=4 * LEAF
)


@given(TREES, TREES)
def test_trees_differ_where_their_files_do(
    one: dict[bytes, bytes], two: dict[bytes, bytes]
) -> None:
    store = Objects()
    old, new = store.tree(one), store.tree(two)
    assert (old == new) == (one == two)
    wanted = {
        path: tuple(files[path] and blake3(files[path]).digest() if path in files else None
                    for files in (one, two))
        for path in one.keys() | two.keys()
        if one.get(path) != two.get(path)
    }  # fmt: skip
    assert texts(list(changes(store.load, old, new))) == wanted
    assert {c.path for c in changes(store.load, "", new)} == two.keys()
    assert totals(store.load, new) == (len(two), len(two))
    shuffled = dict(reversed(two.items()))
    assert Objects().tree(shuffled) == new
    for path, text in two.items():
        entry = find(store.load, new, path)
        assert entry is not None
        assert entry.content == blake3(text).digest()
    assert find(store.load, new, b"Dabsent/x") is None
    assert [e.name for e in listed(store.load, new)] == sorted({p.split(b"/")[0] for p in two})


def test_one_change_in_many_is_an_object_a_level() -> None:
    store = Objects()
    many = {b"%06d" % n: b"x" for n in range(20_000)}
    old = store.tree(many)
    assert max(map(len, store.values())) < 4096, "a large directory is never one object"
    before = len(store)
    new = store.tree(many | {b"012345": b"y"})
    assert len(store) - before <= 5
    store.read = 0
    assert [c.path for c in changes(store.load, old, new)] == [b"012345"]
    assert store.read <= 10


def test_empty_directories_are_told_and_the_others_are_not() -> None:
    store = Objects()
    old = store.tree({b"gone/": b"", b"filled/": b"", b"kept/x": b"1", b"emptied/x": b"1"})
    new = store.tree({b"come/": b"", b"filled/x": b"1", b"kept/x": b"1", b"emptied/": b""})
    found = {c.path: (c.old is None, c.new is None) for c in changes(store.load, old, new)}
    assert found == {
        b"gone": (False, True), b"come": (True, False), b"filled/x": (True, False),
        b"emptied/x": (False, True),
    }  # fmt: skip
    assert store.tree({}) == EMPTY


def test_the_form_does_not_change() -> None:
    """Versions that are stored must be found equal by every later release."""
    store = Objects()
    assert EMPTY == "e47cfa54a53ebdcfd39bcc6c8ba56dc7ab060dca096ad52eeea25710e72cfe6d"
    small = store.tree({b"a.txt": b"one", b"sub/b": b"two", b"empty/": b""})
    large = store.tree({b"%d" % n: b"%d" % n for n in range(100)})
    assert small == "fe47b8303d41f9d65094a6681be847bbb9dee23fe9f7625bed6be71889446305"
    assert large == "dfeee8340f8d1ec508d877c9d1c02052620061376b01d4068d60794ec207c8ae"


def leaf(*entries: object) -> bytes:
    return msgspec.msgpack.encode(["everloop-tree-1", list(entries)])


def row(name: object, kind: object = "f", content: object = bytes(32), size: int = 1) -> object:
    return [name, kind, content, size, 1]


PART = [1, bytes(32), 1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (leaf(row(b"..")), "is no name of a file"),
        (leaf(row(b".")), "is no name"),
        (leaf(row(b"")), "is no name"),
        (leaf(row(b"/etc/passwd")), "is no name"),
        (leaf(row(b"a/../../b")), "is no name"),
        (leaf(row(b"a\0b")), "is no name"),
        (leaf(row(b"n" * 256)), "is no name"),
        (leaf(row(b"b"), row(b"a")), "out of order"),
        (leaf(row(b"a"), row(b"a")), "out of order"),
        (leaf(row(b"a", "p")), "is no directory"),
        (leaf(row(b"a", content=b"short")), "has no digest"),
        (leaf(row(b"a", size=-1)), "has no digest"),
        (leaf(row(b"a", "l", b"/etc/passwd")), "absolute"),
        (leaf(row(b"a", "l", b"../out")), "out of the directory"),
        (leaf(["a"]), "is no directory"),
        (b"", "is no directory"),
        (b"{}", "is no directory"),
        (msgspec.msgpack.encode(["everloop-split-1", [PART, PART]]), "out of order"),
        (msgspec.msgpack.encode(["everloop-split-1", [[16, bytes(32), 1, 1]]]), "out of order"),
        (msgspec.msgpack.encode(["everloop-split-1", [[1, b"", 1, 1]]]), "parts are wrong"),
    ],
)
def test_what_no_directory_can_hold_is_refused(data: bytes, message: str) -> None:
    root = blake3(data).hexdigest()
    with pytest.raises(BackendError, match=message) as refused:
        list(changes(lambda digests: [data for _ in digests], "", root))
    assert refused.value.details == {"digest": root}


def test_a_name_in_the_wrong_part_is_refused() -> None:
    """Else one directory could hold a name twice."""
    store = Objects()
    wrong = leaf(row(b"a"))
    digest = blake3(wrong).digest()
    slot = (int(blake3(b"a").hexdigest()[0], 16) + 1) % 16
    split = msgspec.msgpack.encode(["everloop-split-1", [[slot, digest, 1, 1]]])
    root = blake3(split).hexdigest()
    store |= {root: split, digest.hex(): wrong}
    with pytest.raises(BackendError, match="wrong part"):
        list(changes(store.load, "", root))


@pytest.mark.parametrize(
    ("path", "target", "message"),
    [
        (b"a", b"b", ""),
        (b"a/l", b"../b/c", ""),
        (b"a/l", b"./b/", ""),
        (b"l", b"absent", ""),
        (b"l", b"/etc", "absolute"),
        (b"l", b"", "nothing"),
        (b"l", b"a\0b", "nothing"),
        (b"l", b"..", "out of the directory"),
        (b"a/l", b"../../b", "out of the directory"),
        (b"a/l", b"b/../../..", "goes up after"),
        (b"a/l", b"b/../c", "goes up after"),
        (b"l", b".", "never ends"),
        (b"l", b"l", "never ends"),
        (b"a/b/l", b"..", "never ends"),
        (b"a/b/l", b"../../a", "never ends"),
    ],
)
def test_links_stay_within_and_lead_to_an_end(path: bytes, target: bytes, message: str) -> None:
    fault = link_fault(path, target)
    assert message in fault if message else fault == ""
