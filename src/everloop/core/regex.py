"""Patterns that every engine reads alike, and in linear time."""

from __future__ import annotations

import re

__all__ = ["regex_fault"]

_ESCAPE_OR_CLASS = re.compile(r"(\\[Z1-9])|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def regex_fault(regex: str) -> str:
    """Why `regex` cannot be taken; empty if it can."""
    # Frames are matched in linear time (Rust's regex, RE2), requests by Python's re: only what all
    # of them understand alike is allowed.
    for found in _ESCAPE_OR_CLASS.finditer(regex):
        within = re.sub(r"\\.", "x", found[0][1:-1], flags=re.DOTALL)
        if found[0][0] == "[" and re.search(r"\[|--|&&|\|\||~~", within):
            return f"{found[0]} means several things: write \\[, \\-, \\&, \\| or \\~ in a class"
    try:
        re.compile(regex)
    except re.error as error:
        return str(error)
    # What stands in a class or after a backslash means itself, save a back-reference and the end.
    bare = _ESCAPE_OR_CLASS.sub(lambda found: found[1] or "x", regex)
    if re.search(r"\(\?(?:=|!|<=|<!|P=)|\\[1-9]", bare):
        return "look-around and back-references are not supported"
    if re.search(r"\(\?[>#(]|[*+?}]\+|\\Z|\{,", bare):
        return "atomic groups, possessive repeats, comments, \\Z and {,n} are not supported"
    if re.search(r"\(\?[ims]*(?:-[ims]*)?[aLux]", bare):
        return "of the flags only i, m and s are supported"
    return ""
