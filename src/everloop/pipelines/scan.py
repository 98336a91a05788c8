"""What a code object refers to: globals, closure variables and imports, with the attributes read.

Works on bytecode, so it needs no source and knows a global from a local. ``helper.clean(x)`` gives
the path ``("helper", "clean")``; a name used by itself gives a path of one.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType
from typing import Literal, NamedTuple

__all__ = ["Reference", "references"]


class Reference(NamedTuple):
    """A name that code reads and the attributes read of it.

    Attributes:
        kind: Where the first name is found: among the globals, in the closure, or by importing.
        path: The first name (for an import the absolute or relative module name), then attributes.
    """

    kind: Literal["global", "closure", "import"]
    path: tuple[str, ...]


_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_LOCALS = frozenset({"LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF"})
_STORES = frozenset({"STORE_FAST", "STORE_DEREF", "STORE_NAME"})


@functools.cache
def references(code: CodeType) -> tuple[Reference, ...]:
    """All references of `code` and of the code nested in it, sorted."""
    return tuple(sorted(set(_scan(code, {}))))


def _scan(code: CodeType, imported: dict[str, tuple[str, ...]]) -> Iterator[Reference]:
    # `imported`: local variables that hold a module or a name of one, of this and outer functions.
    imported = dict(imported)
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "NOP")]
    own = set(code.co_varnames) | set(code.co_cellvars)
    module: tuple[str, ...] = ()
    index = 0
    while index < len(instructions):
        step = instructions[index]
        index += 1
        name = str(step.argval)
        if step.opname == "IMPORT_NAME":
            module = _imported_module(instructions, index - 1, name)
            if instructions[index].opname in _STORES:
                imported[str(instructions[index].argval)] = module
                yield Reference("import", module)  # its code runs by being imported
        elif step.opname == "IMPORT_FROM":
            target = (*module, name)
            yield Reference("import", target)
            if instructions[index].opname in _STORES:
                imported[str(instructions[index].argval)] = target
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            attributes, index = _attributes(instructions, index)
            yield Reference("global", (name, *attributes))
        elif step.opname in _LOCALS:
            if name in imported:
                attributes, index = _attributes(instructions, index)
                yield Reference("import", (*imported[name], *attributes))
            elif step.opname != "LOAD_FAST" and name not in own:
                attributes, index = _attributes(instructions, index)
                yield Reference("closure", (name, *attributes))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _scan(constant, imported)


def _attributes(instructions: list[dis.Instruction], index: int) -> tuple[tuple[str, ...], int]:
    names = []
    while index < len(instructions) and instructions[index].opname in _ATTRIBUTES:
        names.append(str(instructions[index].argval))
        index += 1
    return tuple(names), index


def _imported_module(instructions: list[dis.Instruction], index: int, name: str) -> tuple[str, ...]:
    # Before IMPORT_NAME stand the level (dots) and the names imported from it.
    level, names = instructions[index - 2].argval, instructions[index - 1].argval
    dots = "." * level if isinstance(level, int) else ""
    if names is None and not dots:
        # `import a.b` gives a; its parts are read as attributes
        return (name.partition(".")[0],)
    return (dots + name,)
