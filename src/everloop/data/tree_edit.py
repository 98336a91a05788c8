"""A directory with some of its paths changed: only the directories above them are written anew."""

from __future__ import annotations

from collections.abc import Mapping

from everloop.data.tree import EMPTY, Entry, Load, Tree, encode, listed

__all__ = ["edited"]

Edits = Mapping[bytes, Entry | None]


def edited(load: Load, root: str, edits: Edits) -> Tree:
    """The directory `root` with what stands at each of these paths replaced.

    A directory that has nothing left in it goes too, unless it stands in `edits` itself.

    Args:
        load: Reads objects.
        root: Its digest; empty for a directory of nothing.
        edits: Path to entry, whose name does not count; None is nothing. No path is within another.

    Returns:
        The new directory, with the objects that were made for it.
    """
    objects: dict[str, bytes] = {}
    made = _edited(load, root, b"", edits, objects)
    return Tree(made.digest, made.size, made.files, objects)


def _edited(load: Load, digest: str, path: bytes, edits: Edits, objects: dict[str, bytes]) -> Tree:
    entries = {entry.name: entry for entry in listed(load, digest, path)} if digest else {}
    below: dict[bytes, dict[bytes, Entry | None]] = {}
    for where, entry in edits.items():
        name, inner, rest = where.partition(b"/")
        if inner:
            below.setdefault(name, {})[rest] = entry
        elif entry is None:
            entries.pop(name, None)
        else:
            entries[name] = Entry(name, entry.kind, entry.content, entry.size, entry.files)
    for name, inside in below.items():
        here = entries.get(name)
        known = here.digest if here is not None and here.kind == "d" else ""
        made = _edited(load, known, path + b"/" + name if path else name, inside, objects)
        if made.digest == EMPTY:
            entries.pop(name, None)
        else:
            content = bytes.fromhex(made.digest)
            entries[name] = Entry(name, "d", content, made.size, made.files)
    made = encode(entries.values())
    objects.update(made.objects)
    return made
