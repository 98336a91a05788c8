"""Reads MLflow's ``meta.yaml``: a flat mapping of names to scalars, some to a small mapping.

That is a corner of YAML, written by one program in one style. A reader of it is less than a
dependency; what lies outside the corner is refused and not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from everloop.errors import InvalidInput

__all__ = ["Meta", "read_meta", "read_tree"]

Scalar = str | int | bool | None
Meta = dict[str, Scalar | dict[str, Scalar]]

_KEY = re.compile(
    r"""('(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^\s'"#\[{&*!|>%@`?-][^#]*?|-?\d+):(?=\s|$)"""
)
_ODD_BREAK = re.compile("[\r\x85\u2028\u2029](?!\n)")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?")
_ODD_NUMBERS = {".nan": "nan", ".inf": "inf", "-.inf": "-inf"}
_ITEM = re.compile(r"-(?:\s|$)")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "on"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "off"), False),
}
_ESCAPES = {
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "t": "\t",
    "\t": "\t",
    "n": "\n",
    "v": "\v",
    "f": "\f",
    "r": "\r",
    "e": "\x1b",
    " ": " ",
    '"': '"',
    "/": "/",
    "\\": "\\",
    "N": "\x85",
    "_": "\xa0",
    "L": "\u2028",
    "P": "\u2029",
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def read_meta(text: str) -> Meta:
    """The fields of a ``meta.yaml``.

    Raises:
        InvalidInput: With the line that is not understood.
    """
    if odd := _ODD_BREAK.search(text):
        raise InvalidInput(f"it holds the line break {odd[0]!r}, which is not understood")
    found: Meta = {}
    for number, key, head, more in _entries(text.replace("\r\n", "\n").split("\n")):
        if not head and more and any(line.strip() for line in more):
            indent = min(len(line) - len(line.lstrip()) for line in more if line.strip())
            inner = [line[indent:] for line in more]
            found[key] = {
                name: _scalar(at + number, value, rest)
                for at, name, value, rest in _entries(inner, first=number)
            }
        else:
            found[key] = {} if head in ("{}", "[]") else _scalar(number, head, more)
    if not found:
        raise InvalidInput("there is no field in it")
    return found


def read_tree(text: str) -> dict[str, Any]:
    """The fields of a file of deeper mappings and lists, with numbers as numbers.

    Raises:
        InvalidInput: With the line that is not understood.
    """
    if odd := _ODD_BREAK.search(text):
        raise InvalidInput(f"it holds the line break {odd[0]!r}, which is not understood")
    found = _node(text.replace("\r\n", "\n").split("\n"), 0)
    if not isinstance(found, dict) or not found:
        raise InvalidInput("there is no field in it")
    return found


def _node(lines: list[str], first: int) -> Any:
    """The mapping or list that these lines are, of which `first` are before them."""
    head = next((line for line in lines if line.strip()), "")
    if _ITEM.match(head):
        return [_value(first + at, "", item) for at, item in _items(lines)]
    return {
        key: _value(first + at, said, more) for at, key, said, more in _entries(lines, first=first)
    }


def _items(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The items of a list, each as lines of its own, in from the dash by two."""
    index = 0
    while index < len(lines):
        if not _ITEM.match(lines[index]):
            if lines[index].strip():
                raise _bad(index, lines[index])
            index += 1
            continue
        start = index
        index += 1
        while index < len(lines) and not _ITEM.match(lines[index]):
            index += 1
        yield start, [line[2:] for line in lines[start:index]]


def _value(number: int, head: str, more: list[str]) -> Any:
    if head in ("{}", "[]"):
        return {} if head == "{}" else []
    below = [line for line in more if line.strip()]
    if not head and below:
        indent = min(len(line) - len(line.lstrip(" ")) for line in below)
        inner = [line[indent:] for line in more]
        first = next(line for line in inner if line.strip())
        if first in ("{}", "[]"):
            return {} if first == "{}" else []
        if _ITEM.match(first) or _KEY.match(first):
            return _node(inner, number)
        head, more = first, inner[inner.index(first) + 1 :]
    found = _scalar(number, head, more)
    if isinstance(found, str) and not head.startswith(("'", '"')):
        if word := _ODD_NUMBERS.get(found.lower()):
            return float(word)
        if _FLOAT.fullmatch(found):
            return float(found)
    return found


def _entries(lines: list[str], first: int = 0) -> Iterator[tuple[int, str, str, list[str]]]:
    """Each field: the number of its line, its name, what follows it there, the lines below."""
    index = 0
    while index < len(lines):
        line = lines[index]
        if not line.strip() or line.lstrip().startswith("#") or line == "---":
            index += 1
            continue
        key = _KEY.match(line)
        if key is None:
            raise _bad(first + index, line)
        start = index
        index += 1
        # The items of a list below a key may stand at the same indent as the key.
        ends = " \t" if line[key.end() :].strip(" ") else " \t-"
        while index < len(lines) and (not lines[index].strip() or lines[index][0] in ends):
            index += 1
        name = _scalar(first + start, key[1], [])
        yield (
            start,
            str(key[1] if name is None else name),
            line[key.end() :].strip(" "),
            lines[start + 1 : index],
        )


def _scalar(number: int, head: str, more: list[str]) -> Scalar:
    whole = "\n".join([head, *more]).rstrip()
    if head.startswith("'"):
        if not re.fullmatch(r"'(?:[^']|'')*'", whole):
            raise _bad(number, head)
        return _folded(whole[1:-1]).replace("''", "'")
    if head.startswith('"'):
        if not re.fullmatch(r'"(?:[^"\\]|\\.)*"', whole, flags=re.DOTALL):
            raise _bad(number, head)
        return _unescaped(whole[1:-1])
    if (
        head[:1] in tuple("|>[{&*!%@`")
        or re.match(r"[-?:](\s|$)", head)
        or re.search(r" #|:\s", whole)
    ):
        raise _bad(number, head)
    plain = _folded(whole)
    if plain in _WORDS:
        return _WORDS[plain]
    return int(plain) if _INTEGER.fullmatch(plain) else plain


def _folded(text: str) -> str:
    """Lines as one: a break is a space, and n breaks are n - 1 breaks."""
    return re.sub(r"[ \t]*\n((?:[ \t]*\n)*)[ \t]*", lambda m: "\n" * m[1].count("\n") or " ", text)


def _unescaped(text: str) -> str:
    # An escaped break joins two lines; the blanks at the head of the second do not count.
    joined = re.sub(r"(?<!\\)((?:\\\\)*)\\\n[ \t]*", r"\1", text)
    return _ESCAPE.sub(_character, _folded(joined))


def _character(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        return chr(int(code, 16))
    if match[4] not in _ESCAPES:
        raise InvalidInput(f"unknown escape \\{match[4]}")
    return _ESCAPES[match[4]]


def _bad(number: int, line: str) -> InvalidInput:
    return InvalidInput(f"line {number + 1} is not understood: {line[:60]!r}")
