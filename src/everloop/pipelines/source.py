"""Digests of code: of the syntax tree where the source still is the code that runs, else of it.

A file may have been edited since it was imported, and assertions or decorators may have rewritten
what runs. So the file is compiled again and the function's code object must be found in it,
equal but for positions; only then its syntax tree stands for it. Otherwise the bytecode does.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import linecache
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

from blake3 import blake3

__all__ = ["STARTED", "bytecode_digest", "code_digest", "code_of_file", "file_digest_of_syntax"]

#: Whether a file is still what was imported from it is only known if it is older than this process.
STARTED = time.time()

# Trees are shared and bared in place while they are digested: one thread at a time.
_trees = threading.Lock()

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Source(NamedTuple):
    nodes: dict[tuple[str, int], list[ast.AST]]
    codes: dict[str, list[CodeType]]


def _digest_of(code: CodeType, filename: str) -> tuple[str, bool]:
    source = _source(filename, _text(filename))
    if source is not None:
        for candidate in source.codes.get(code.co_qualname, ()):
            if not _same(candidate, code):
                continue
            nodes = source.nodes.get((candidate.co_name, candidate.co_firstlineno), [])
            if len(nodes) == 1:
                with contextlib.suppress(RecursionError):  # an expression of a thousand terms
                    return _syntax_digest(nodes[0]), True
            break  # several lambdas on one line: only the bytecode tells them apart
    return bytecode_digest(code), False


def code_digest(code: CodeType) -> tuple[str, bool]:
    """Digest of `code`, and whether it is of the syntax tree (else of the bytecode)."""
    with _trees:
        return _digest_of(code, code.co_filename)


def file_digest_of_syntax(filename: str) -> str:
    """Digest of a whole file without comments and docstrings; of its bytes if it is no source.

    Empty where there is no file, or where it was written after this process began, so that
    nobody can say whether it is what was imported.
    """
    try:
        if os.stat(filename).st_mtime > STARTED:
            return ""
        if filename.endswith(".py"):
            with _trees, contextlib.suppress(RecursionError):
                tree = ast.parse(_text(filename))
                for node in ast.walk(tree):
                    _drop_docstring(node)
                return _syntax_digest(tree)
        with open(filename, "rb") as file:
            return blake3(file.read()).hexdigest()[:32]
    except (OSError, SyntaxError, ValueError):
        return ""


def code_of_file(filename: str) -> CodeType | None:
    """The code of a whole Python file; None if it is none."""
    try:
        return compile(_text(filename), filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def _text(filename: str) -> str:
    linecache.checkcache(filename)
    return "".join(linecache.getlines(filename))


@functools.lru_cache(maxsize=256)
def _source(filename: str, text: str) -> _Source | None:
    if not text:
        return None
    try:
        tree = ast.parse(text)
        module = compile(tree, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return None
    nodes: dict[tuple[str, int], list[ast.AST]] = defaultdict(list)
    for node in ast.walk(tree):
        _drop_docstring(node)
        if isinstance(node, _Function):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            nodes[node.name, first].append(node)
        elif isinstance(node, ast.Lambda):
            nodes["<lambda>", node.lineno].append(node)
    codes: dict[str, list[CodeType]] = defaultdict(list)
    for code in _nested(module):
        codes[code.co_qualname].append(code)
    return _Source(nodes, codes)


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _shape(code: CodeType) -> tuple[object, ...]:
    # All that makes the code do what it does; nothing of where it stands.
    return (
        code.co_name, code.co_code, code.co_names, code.co_varnames, code.co_freevars,
        code.co_cellvars, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        code.co_flags, code.co_exceptiontable,
        tuple(_constant(constant) for constant in code.co_consts),
    )  # fmt: skip


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _shape(value)
    if isinstance(value, frozenset):
        return ("frozenset", tuple(sorted(repr(_constant(item)) for item in value)))
    if isinstance(value, tuple):
        return ("tuple", tuple(_constant(item) for item in value))
    return (type(value).__name__, repr(value))  # tells 1 from True, 0.0 from -0.0


def _same(left: CodeType, right: CodeType) -> bool:
    return _shape(left) == _shape(right)


def bytecode_digest(code: CodeType) -> str:
    """Digest of what the interpreter executes, wherever it stands."""
    text = repr((importlib.util.MAGIC_NUMBER, _shape(code)))
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _syntax_digest(node: ast.AST) -> str:
    """Digest of a tree without docstrings."""
    decorators = getattr(node, "decorator_list", None)
    try:
        if decorators:
            # What decorators did is followed on the live object: its wrapper and closure.
            node.decorator_list = []  # type: ignore[attr-defined]
        text = ast.dump(node, annotate_fields=False)
    finally:
        if decorators:
            node.decorator_list = decorators  # type: ignore[attr-defined]
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _drop_docstring(node: ast.AST) -> None:
    if isinstance(node, _Function | ast.ClassDef | ast.Module):
        first = node.body[0] if node.body else None
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            node.body = node.body[1:] or [ast.Pass()]
