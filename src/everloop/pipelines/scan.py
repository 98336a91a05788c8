"""What a code object refers to: globals, closure variables and imports, with the attributes read.

Works on bytecode, so it needs no source and knows a global from a local. ``helper.clean(x)`` gives
the path ``("helper", "clean")``; a name used by itself gives a path of one.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
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

__all__ = ["Reference", "Use", "climbs", "names_of", "references", "texts_of", "uses"]


_HAS_DOCSTRING = 0x4000000  # a flag of code since 3.13


class Reference(NamedTuple):
    """A name that code reads and the attributes read of it.

    Attributes:
        kind: Where the first name is found: among the globals, in the closure, or by importing.
        path: The first name (for an import the absolute or relative module name), then attributes.
    """

    kind: Literal["global", "closure", "import"]
    path: tuple[str, ...]


class Use(NamedTuple):
    """One read of a name, with what the code does with it next where that is plain.

    Attributes:
        path: The name as it stands in the code, then the attributes read of it.
        how: ``call``, ``item`` (``environ["X"]``), ``in`` (``"X" in environ``), ``/``
            (``HERE / "X"``), or empty.
        text: The constant text that it is done with; None if it is something else.
        name: The global name in the place of such a text.
    """

    path: tuple[str, ...]
    how: str
    text: str | None
    name: str | None


# Local variables that hold a module or a name of one, and all that imports bind to each.
_Imported = dict[str, frozenset[tuple[str, ...]]]


@functools.cache
def references(code: CodeType) -> tuple[Reference, ...]:
    """All references of `code` and of the code nested in it, sorted.

    Only right for code without unknown instructions; ask `unknown_instructions` first.
    """
    return tuple(sorted(set(_scan(code, {}))))


@functools.cache
def uses(code: CodeType) -> tuple[Use, ...]:
    """Every read of a name in `code` and in the code nested in it."""
    steps = [step for step in instructions_of(code) if step.opname not in ("PUSH_NULL", "PRECALL")]
    found = []
    for index, step in enumerate(steps):
        if step.opname in GLOBALS or step.opname in LOCALS:
            attributes = _attributes(steps, index)
            found.append(_use((_names(step)[-1], *attributes), steps, index + len(attributes)))
    nested = (uses(item) for item in code.co_consts if isinstance(item, CodeType))
    return tuple(itertools.chain(found, *nested))


def _use(path: tuple[str, ...], steps: list[dis.Instruction], last: int) -> Use:
    after = [*steps[last + 1 : last + 3], None, None]
    beside, then = after[0], after[1]
    if beside is not None and beside.opname == "CONTAINS_OP" and last:
        how, beside = "in", steps[last - len(path)]
    elif steps[last].opname == "LOAD_METHOD" or "NULL" in steps[last].argrepr:
        how = "call"
    elif then is not None and then.opname == "BINARY_SUBSCR":
        how = "item"
    else:
        how = "/" if then is not None and then.argrepr == "/" else ""
    if beside is None or not how:
        return Use(path, how, None, None)
    is_text = beside.opname == "LOAD_CONST" and isinstance(beside.argval, str)
    name = str(beside.argval) if beside.opname in GLOBALS else None
    return Use(path, how, beside.argval if is_text else None, name)


@functools.cache
def climbs(code: CodeType) -> int:
    """How many folders up from a file the code may go, by the names that it reads."""
    ups = {"parent": 1, "dirname": 1, "parents": 3}
    found = sum(ups.get(str(step.argval), 0) for step in instructions_of(code))
    found += sum(str(item).count("..") for item in code.co_consts if isinstance(item, str))
    return found + sum(climbs(item) for item in code.co_consts if isinstance(item, CodeType))


@functools.cache
def names_of(code: CodeType) -> frozenset[str]:
    """Names of all globals and attributes in `code` and in the code nested in it."""
    nested = (names_of(item) for item in code.co_consts if isinstance(item, CodeType))
    return frozenset(code.co_names).union(*nested)


def _has_docstring(code: CodeType) -> bool:
    """Whether the first constant is documentation; before 3.13 functions had that or None."""
    if sys.version_info >= (3, 13):
        return bool(code.co_flags & _HAS_DOCSTRING)
    is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
    return bool(is_function and code.co_consts and isinstance(code.co_consts[0], str))


@functools.cache
def texts_of(code: CodeType) -> frozenset[str]:
    """Constant texts in `code` and in the code nested in it, without docstrings."""
    found: set[str] = set()
    for item in code.co_consts[_has_docstring(code) :]:
        if isinstance(item, CodeType):
            found |= texts_of(item)
        elif isinstance(item, str):
            found.add(item)
        elif isinstance(item, tuple | frozenset):
            found.update(part for part in item if isinstance(part, str))
    return frozenset(found)


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
