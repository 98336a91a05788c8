"""What a code object refers to: globals, closure variables and imports, with the attributes read.

Works on bytecode, so it needs no source and knows a global from a local. ``helper.clean(x)`` gives
the path ``("helper", "clean")``; a name used by itself gives a path of one.
"""

from __future__ import annotations

import dis
import functools
import itertools
from collections.abc import Iterator
from types import CodeType
from typing import Literal, NamedTuple

from everloop.pipelines.instructions import (
    ATTRIBUTES,
    GLOBALS,
    LOCALS,
    STORES,
    instructions_of,
)

__all__ = ["Reference", "references"]


class Reference(NamedTuple):
    """A name that code reads and the attributes read of it.

    Attributes:
        kind: Where the first name is found: among the globals, in the closure, or by importing.
        path: The first name (for an import the absolute or relative module name), then attributes.
    """

    kind: Literal["global", "closure", "import"]
    path: tuple[str, ...]


# Local variables that hold a module or a name of one, and all that imports bind to each.
_Imported = dict[str, frozenset[tuple[str, ...]]]


@functools.cache
def references(code: CodeType) -> tuple[Reference, ...]:
    """All references of `code` and of the code nested in it, sorted.

    Only right for code without unknown instructions; ask `unknown_instructions` first.
    """
    return tuple(sorted(set(_scan(code, {}))))


def _scan(code: CodeType, imported: _Imported) -> Iterator[Reference]:
    imported = dict(imported)  # what it holds already, outer functions imported
    steps = instructions_of(code)
    read = {name for step in steps if step.opname in LOCALS for name in _names(step)}
    for name in set(code.co_freevars) - read:  # before 3.12 super() reads __class__ unseen
        yield Reference("closure", (name,))
    for index, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            yield from _imports(steps, index, imported)
        elif step.opname in GLOBALS:
            yield Reference("global", (str(step.argval), *_attributes(steps, index)))
        elif step.opname in LOCALS:
            *others, last = _names(step)
            for name in others:
                yield from _variable(name, (), code, imported)
            yield from _variable(last, _attributes(steps, index), code, imported)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _scan(constant, imported)


def _variable(
    name: str, attributes: tuple[str, ...], code: CodeType, imported: _Imported
) -> Iterator[Reference]:
    for target in imported.get(name, ()):
        yield Reference("import", (*target, *attributes))
    # It may be a local too: since 3.12 a comprehension's own variable of the same name is one.
    if name in code.co_freevars:
        yield Reference("closure", (name, *attributes))


def _names(step: dis.Instruction) -> tuple[str, ...]:
    return step.argval if isinstance(step.argval, tuple) else (str(step.argval),)


def _attributes(steps: list[dis.Instruction], index: int) -> tuple[str, ...]:
    """The attributes read, one from the other, of what the instruction at `index` loads."""
    rest = itertools.islice(steps, index + 1, None)
    reads = itertools.takewhile(lambda step: step.opname in ATTRIBUTES, rest)
    return tuple(str(step.argval) for step in reads)


def _imports(steps: list[dis.Instruction], index: int, imported: _Imported) -> Iterator[Reference]:
    """What the import at `index` brings; the variables that hold it are put into `imported`."""
    # Before IMPORT_NAME stand the level (dots) and the names imported from the module.
    level, names = steps[index - 2].argval, steps[index - 1].argval
    module = "." * level + str(steps[index].argval)
    after = steps[index + 1 :]
    if names is None:
        # `import a.b.c` runs all three. It binds a, whose parts are then read as attributes, and
        # `import a.b.c as d` binds c, fetched from a and b by IMPORT_FROM.
        parts = tuple(itertools.accumulate(module.split("."), "{}.{}".format))
        yield from (Reference("import", (part,)) for part in parts)
        store = next(step for step in after if step.opname in STORES)
        held = module if after[0].opname == "IMPORT_FROM" else parts[0]
        _hold(imported, store, (held,))
        return
    for fetch, store in zip(after[::2], after[1::2], strict=False):
        if fetch.opname != "IMPORT_FROM":
            break
        target = (module, str(fetch.argval))
        yield Reference("import", target)
        _hold(imported, store, target)


def _hold(imported: _Imported, store: dis.Instruction, target: tuple[str, ...]) -> None:
    name = _names(store)[0]
    imported[name] = imported.get(name, frozenset()) | {target}
