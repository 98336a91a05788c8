"""What a function does, as digests: its code and all of the project that it reaches.

From a function we follow, on the live objects, every name that its code reads: helpers, constants,
closures, defaults, classes with their bases and methods, attributes of modules, what decorators
and ``functools.partial`` wrapped. Installed distributions count by version. The result is a set of
named parts, so that two of them can be compared and the difference told.

What cannot be followed (an object without a canonical form, ``eval``) is covered by the module
in which it stands, as a whole, and noted. Where even that fails the code is not cacheable; nor is
bytecode of a Python whose instructions we do not know, for it could import from anywhere.

A result is remembered together with every binding that was read on the way. It is used again only
if all of them still hold, so that a monkeypatch or a new notebook cell is seen.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import inspect
import platform
import sys
from collections import deque
from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any

import msgspec
from blake3 import blake3

from everloop.core.project import distribution_of, is_project, module_file, module_name
from everloop.pipelines.constants import NotCanonical, canonical, snapshot
from everloop.pipelines.instructions import unknown_instructions
from everloop.pipelines.scan import references
from everloop.pipelines.source import code_digest, file_digest_of_syntax

__all__ = ["CodePrint", "fingerprint"]

PYTHON = "{}.{}".format(*platform.python_version_tuple()[:2])

#: Constants with a text up to this length are shown in the key as they are.
_SHOWN = 40

_MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
_REACH_ANYTHING = (builtins.eval, builtins.exec, builtins.globals, builtins.locals, builtins.vars)
_IMPORT_ANYTHING = (builtins.__import__, importlib.import_module, importlib.reload, sys.modules)

# Members of every class that say nothing about what it does.
_NOT_BEHAVIOUR = frozenset(
    {
        "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__abstractmethods__",
        "_abc_impl", "__annotations__", "__match_args__", "__parameters__", "__orig_bases__",
        "__firstlineno__", "__static_attributes__", "__struct_fields__", "__slots__",
        "__slotnames__",  # pickling notes it there
        "__struct_encode_fields__", "__struct_config__", "__struct_defaults__",
        "__msgspec_cache__", "_member_map_", "_value2member_map_", "_member_names_",
        "__new_member__", "_hashable_values_", "_unhashable_values_",
    }
)  # fmt: skip


class CodePrint:
    """The parts of a piece of code.

    Attributes:
        parts: ``{"code:module.name": digest, "const:module.NAME": digest, "dist:numpy": version}``.
        digest: blake3 over the parts.
        notes: What could not be followed and what was used instead.
        files: Project files reached, ``{module name: file}``.
        cacheable: Whether the parts are all there is.
    """

    __slots__ = ("_checks", "cacheable", "digest", "files", "notes", "parts")

    def __init__(self, walk: _Walk) -> None:
        self.parts = dict(sorted(walk.parts.items()))
        self.digest = blake3(msgspec.json.encode(self.parts)).hexdigest()
        self.notes = tuple(dict.fromkeys(walk.notes))
        self.files = walk.files
        self.cacheable = walk.cacheable
        self._checks = walk.checks

    @property
    def distributions(self) -> dict[str, str]:
        """The version of every distribution that the code reaches."""
        parts = self.parts.items()
        return {part.removeprefix("dist:"): v for part, v in parts if part.startswith("dist:")}

    def holds(self) -> bool:
        """Whether every binding that was read is still the same."""
        return all(check() for check in self._checks)


_memo: dict[int, tuple[Any, CodePrint]] = {}


def fingerprint(root: Any) -> CodePrint:
    """The parts of a function or class; remembered while every binding in them holds."""
    found = _memo.get(id(root))
    if found is not None and found[0] is root and found[1].holds():
        return found[1]
    walk = _Walk()
    walk.root(root)
    made = CodePrint(walk)
    _memo[id(root)] = (root, made)
    return made


class _Walk:
    """One walk over everything that a root reaches, breadth first, in an order that is stable."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {"python": PYTHON}
        self.notes: list[str] = []
        self.files: dict[str, str] = {}
        self.checks: list[Callable[[], bool]] = []
        self.cacheable = True
        self._labels: dict[int, str] = {}
        self._keep: list[Any] = []  # ids stay unique while their objects live
        self._todo: deque[Callable[[], None]] = deque()

    def root(self, value: Any) -> None:
        self.token(value, "root", getattr(value, "__module__", "") or "")
        while self._todo:
            self._todo.popleft()()

    def token(self, value: Any, where: str, module: str) -> str:
        """A text that stands for `value`, found at `where`; what it does becomes parts.

        Args:
            value: Anything that code can refer to.
            where: Name of the place that refers to it, unique within the walk.
            module: Project module to fall back to if the value cannot be followed.
        """
        self._warned(value, module, where)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, MethodType):
            owner = self.token(value.__self__, f"{where}.__self__", module)
            return f"method({self.token(value.__func__, where, module)},{owner})"
        if isinstance(value, functools.partial):
            inner = (value.func, value.args, value.keywords)
            return f"partial({self._constant(inner, where, module)})"
        if isinstance(value, staticmethod | classmethod):
            return f"{type(value).__name__}({self.token(value.__func__, where, module)})"
        if isinstance(value, property):
            accessors = (value.fget, value.fset, value.fdel)
            return f"property({self._constant(accessors, where, module)})"
        if isinstance(value, BuiltinFunctionType):
            self._distribution(value.__module__ or "")
            return f"builtin:{value.__module__}.{value.__qualname__}"
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, FunctionType | type):  # our steps, functools.cache, singledispatch
            self._distribution(type(value).__module__)
            return f"{type(value).__qualname__}({self.token(wrapped, where, module)})"
        return self._named_constant(value, where, module)

    # Functions

    def _function(self, function: FunctionType) -> str:
        if not is_project(function.__module__ or "") and not _is_of_project(function):
            return self._installed(function)
        known = self._labels.get(id(function))
        if known is not None:
            return known
        label = self._label(f"code:{_name(function)}", function)
        self._todo.append(lambda: self._function_body(function, label))
        return label

    def _function_body(self, function: FunctionType, label: str) -> None:
        code, defaults, keywords = function.__code__, function.__defaults__, function.__kwdefaults__
        self.checks.append(
            lambda: (
                function.__code__ is code
                and function.__defaults__ is defaults
                and function.__kwdefaults__ is keywords
            )
        )
        module = function.__module__ or ""
        self._file(module)
        digest, is_syntax = code_digest(code)
        if not is_syntax and code.co_filename != "<string>":  # as dataclasses make their methods
            self.notes.append(f"{label}: by its bytecode, as its source is not what runs")
        bound = [digest, *self._references(function, label)]
        if defaults or keywords:
            bound.append("defaults=" + self._constant((defaults, keywords), f"{label}()", module))
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            bound.append("wraps=" + self.token(wrapped, f"{label}.__wrapped__", module))
        self.parts[label] = _digest("\n".join(bound))

    def _references(self, function: FunctionType, label: str) -> list[str]:
        unknown = unknown_instructions(function.__code__)
        if unknown:
            names = ", ".join(sorted(unknown))
            self._give_up(f"{label} has instructions of Python {PYTHON} not known here ({names})")
            return []
        bound = []
        for reference in references(function.__code__):
            found = self._reference(function, reference.kind, reference.path, label)
            bound.append(f"{'.'.join(reference.path)}={found}")
        return bound

    def _reference(
        self, function: FunctionType, kind: str, path: tuple[str, ...], label: str
    ) -> str:
        module = function.__module__ or ""
        name, *attributes = path
        if kind == "import":
            value = self._import(name, function.__globals__)
            name = f"import {name}"
        elif kind == "closure":
            value = self._closure(function, name)
            if value is _MISSING:  # a local of an outer function, not of this one
                return "local"
        else:
            value = self._bound(function.__globals__, name)
            if value is _MISSING:
                value = getattr(builtins, name, _MISSING)
                self._warned(value, module, label)
                return f"builtin:{name}" if value is not _MISSING else "missing"
        while attributes and isinstance(value, ModuleType) and is_project(value.__name__):
            attribute = attributes.pop(0)
            name = f"{value.__name__}.{attribute}"
            value = self._attribute(value, attribute)
        if value is _MISSING:
            return "missing"
        if attributes and isinstance(value, ModuleType):  # installed: only its version counts
            self._warned(getattr(value, attributes[0], None), module, label)
        place = name if kind == "import" or "." in name else f"{module_name(module)}.{name}"
        return self.token(value, f"{label}.{name}" if kind == "closure" else place, module)

    def _warned(self, value: Any, module: str, label: str) -> None:
        """Note what cannot be followed: code that reaches names made at run time."""
        if any(value is item for item in _REACH_ANYTHING):
            self._whole_module(module, f"{label} uses {value.__name__}()")
        elif any(value is item for item in _IMPORT_ANYTHING):
            self._give_up(f"{label} imports by a name made at run time")

    def _closure(self, function: FunctionType, name: str) -> Any:
        free = function.__code__.co_freevars
        if name not in free or function.__closure__ is None:
            return _MISSING
        cell: CellType = function.__closure__[free.index(name)]
        value = _content(cell)
        self.checks.append(lambda: _content(cell) is value)
        return value

    def _import(self, name: str, namespace: dict[str, Any]) -> Any:
        try:
            if name.startswith("."):
                name = importlib.util.resolve_name(name, namespace.get("__package__") or "")
            return importlib.import_module(name)
        except (ImportError, ValueError):
            return _MISSING

    def _attribute(self, module: ModuleType, name: str) -> Any:
        """An attribute of a project module, which may be a module that is not yet imported."""
        self._file(module.__name__)
        if name not in vars(module) and "__path__" in vars(module):
            self._import(f"{module.__name__}.{name}", vars(module))
        value = self._bound(vars(module), name)
        if value is _MISSING and "__getattr__" in vars(module):
            self._whole_module(module.__name__, f"{module.__name__}.{name} is made by __getattr__")
        return value

    def _bound(self, namespace: Any, name: str) -> Any:
        value = namespace.get(name, _MISSING)
        self.checks.append(lambda: namespace.get(name, _MISSING) is value)
        return value

    # Classes and modules

    def _class(self, cls: type) -> str:
        if not is_project(cls.__module__):
            return self._installed(cls)
        known = self._labels.get(id(cls))
        if known is not None:
            return known
        label = self._label(f"code:{_name(cls)}", cls)
        self._todo.append(lambda: self._class_body(cls, label))
        return label

    def _class_body(self, cls: type, label: str) -> None:
        self._file(cls.__module__)
        bases = [self.token(base, f"{label}.bases", cls.__module__) for base in cls.__bases__]
        bound = [f"bases={bases}", f"type={self.token(type(cls), label, cls.__module__)}"]
        annotations = inspect.get_annotations(cls)
        bound.append(f"annotations={[(name, repr(kind)) for name, kind in annotations.items()]}")
        for special in ("__struct_config__", "__struct_defaults__", "__dataclass_params__"):
            if special in cls.__dict__:
                bound.append(f"{special}={_plain(cls.__dict__[special])}")
        count = len(cls.__dict__)
        self.checks.append(lambda: len(cls.__dict__) == count)
        for name in sorted(cls.__dict__):
            if name not in _NOT_BEHAVIOUR and not name.startswith("__dataclass_"):
                value = self._bound(cls.__dict__, name)
                if not _is_slot(value):
                    token = self.token(value, f"{label}.{name}", cls.__module__)
                    bound.append(f"{name}={token}")
        self.parts[label] = _digest("\n".join(bound))

    def _module(self, module: ModuleType) -> str:
        name = module.__name__
        if not is_project(name):
            self._distribution(name)
            return f"module:{name}"
        self._whole_module(name, "")
        return f"module:{module_name(name)}"

    def _whole_module(self, name: str, reason: str) -> None:
        """Take a project module as a whole: its file and all that it holds."""
        label = f"module:{module_name(name)}"
        if reason:
            self.notes.append(f"{reason}; the whole of {module_name(name)} counts")
        if label in self.parts:
            return
        module = sys.modules.get(name)
        digest = file_digest_of_syntax(module_file(module)) if module else ""
        self.parts[label] = digest
        if module is None or not digest:
            self._give_up(f"{label} cannot be read, or was written while this process ran")
            return
        self._file(name)
        self._todo.append(lambda: self._module_body(module, label, digest))

    def _module_body(self, module: ModuleType, label: str, digest: str) -> None:
        bound = [digest]
        for name in sorted(vars(module)):
            if name.startswith("__") and name.endswith("__"):
                continue
            value = self._bound(vars(module), name)
            if isinstance(value, ModuleType) and not is_project(value.__name__):
                self._distribution(value.__name__)
            elif isinstance(value, ModuleType | FunctionType | type):
                bound.append(f"{name}={self.token(value, f'{label}.{name}', module.__name__)}")
        self.parts[label] = _digest("\n".join(bound))

    # Constants and what is installed

    def _named_constant(self, value: Any, where: str, module: str) -> str:
        """Make a constant a part of its own, so that a change of it can be told."""
        text = self._constant(value, where, module)
        label = f"const:{where.removeprefix('code:')}"
        self.parts[label] = text if len(text) <= _SHOWN else _digest(text)
        return label

    def _constant(self, value: Any, where: str, module: str) -> str:
        try:
            text = canonical(value, lambda item: self._inner(item, where, module))
        except NotCanonical as error:
            kind = f"{type(error.value).__module__}.{type(error.value).__qualname__}"
            self._installed(type(error.value))
            self._whole_module(module, f"{where} holds a {kind}, which has no canonical form")
            return f"identity:{kind}"
        frozen = snapshot(value)
        if frozen is not value:
            self.checks.append(lambda: snapshot(value) == frozen)
        return text

    def _inner(self, value: Any, where: str, module: str) -> str | None:
        """Code inside a constant is followed; None if it is no code."""
        is_code = isinstance(
            value, ModuleType | FunctionType | type | MethodType | functools.partial
        )
        if is_code or isinstance(value, BuiltinFunctionType | property):
            return self.token(value, where, module)
        if isinstance(getattr(value, "__wrapped__", None), FunctionType | type):
            return self.token(value, where, module)
        if is_project(type(value).__module__):
            self._class(type(value))
        else:
            self._distribution(type(value).__module__)
        return None

    def _installed(self, value: Any) -> str:
        name = getattr(value, "__module__", None) or ""
        self._distribution(name)
        return f"installed:{name}.{getattr(value, '__qualname__', value)}"

    def _distribution(self, module: str) -> None:
        if not module:
            return
        name, version = distribution_of(module)
        if name:
            self.parts[f"dist:{name}"] = version or "unknown"

    def _give_up(self, reason: str) -> None:
        self.cacheable = False
        self.notes.append(f"{reason}; not cached")

    def _file(self, module: str) -> None:
        found = sys.modules.get(module)
        if found is not None and module_file(found):
            self.files[module_name(module)] = module_file(found)

    def _label(self, label: str, value: Any) -> str:
        # Two closures of one function have one name; the order of the walk tells them apart.
        taken = set(self._labels.values())
        unique, number = label, 2
        while unique in taken:
            unique, number = f"{label}#{number}", number + 1
        self._labels[id(value)] = unique
        self._keep.append(value)
        return unique


def _name(value: Any) -> str:
    return f"{module_name(value.__module__ or '')}.{value.__qualname__}"


def _is_of_project(function: FunctionType) -> bool:
    # functools.wraps gives a wrapper the module of what it wraps, and the reverse may happen too.
    return is_project(str(function.__globals__.get("__name__", "")))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return _MISSING


def _is_slot(value: Any) -> bool:
    return type(value).__name__ in ("member_descriptor", "getset_descriptor", "wrapper_descriptor")


def _plain(value: Any) -> str:
    try:
        return canonical(value, lambda item: None)
    except NotCanonical:
        return repr(value) if " at 0x" not in repr(value) else type(value).__name__


def _digest(text: str) -> str:
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
