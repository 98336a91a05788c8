"""What a function does, as digests: its code and all of the project that it reaches.

From a function we follow, on the live objects, every name that its code reads: helpers, constants,
closures, defaults, classes with their bases and methods, attributes of modules, what decorators
and ``functools.partial`` wrapped; files that constants name, package data, environment variables.
Installed distributions count by version. The result is a set of named parts, so that two of them
can be compared and the difference told.

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
import os
import platform
import sys
import typing
from collections import deque
from collections.abc import Callable
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from everloop.core.project import distributions_of, is_project, module_file, module_name
from everloop.pipelines.beside import Beside
from everloop.pipelines.constants import SCALARS, NotCanonical, canonical, shown, snapshot
from everloop.pipelines.facts import Facts, facts_of, keep_facts
from everloop.pipelines.scan import climbs, names_of, references, texts_of, uses
from everloop.pipelines.source import code_of_file, file_digest_of_syntax

__all__ = ["CodePrint", "fingerprint"]

PYTHON = "{}.{}".format(*platform.python_version_tuple()[:2])

_MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
# By identity, as this is asked of every name; what stays for ever keeps its id.
_REACH_ANYTHING = frozenset(map(id, (eval, exec, globals, locals, vars)))
_IMPORT_ANYTHING = frozenset(
    map(id, (builtins.__import__, importlib.import_module, importlib.reload, sys.modules))
)

# By module and name, as they load only if the project uses them: what finds code by names made at
# run time, and what brings objects back with the classes that they name.
_FIND_ANYTHING = frozenset(
    {
        ("runpy", "run_path"), ("runpy", "run_module"), ("pkgutil", "resolve_name"),
        ("pkgutil", "iter_modules"), ("pkgutil", "walk_packages"), ("pydoc", "locate"),
        ("importlib.util", "spec_from_file_location"), ("importlib.util", "find_spec"),
        ("importlib._bootstrap_external", "spec_from_file_location"),
        ("importlib._bootstrap", "module_from_spec"), ("importlib.metadata", "entry_points"),
        ("_pickle", "load"), ("_pickle", "loads"), ("_pickle", "Unpickler"),
        ("joblib.numpy_pickle", "load"), ("dill._dill", "load"), ("dill._dill", "loads"),
        ("torch.serialization", "load"), ("pandas.io.pickle", "read_pickle"),
        ("shelve", "open"), ("inspect", "getsource"), ("inspect", "stack"), ("sys", "_getframe"),
    }
)  # fmt: skip
_PACKAGE_DATA = ("importlib.resources", "importlib_resources", "importlib._resources")
_OWN_FILE = frozenset({"__file__", "__path__", "__spec__", "__loader__"})
#: Installed wrappers that do nothing of their own: all that counts is what they wrap.
_NEUTRAL_WRAPPERS = frozenset({"functools", "contextlib", "everloop", "abc"})

# Members of every class that say nothing about what it does.
_NOT_BEHAVIOUR = frozenset(
    {
        "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__abstractmethods__",
        "_abc_impl", "__annotations__", "__parameters__", "__annotate_func__",
        "__annotations_cache__",
        "__firstlineno__", "__static_attributes__", "__struct_fields__", "__slots__",
        "__slotnames__",  # pickling notes it there
        "__struct_encode_fields__", "__struct_config__", "__struct_defaults__",
        "__msgspec_cache__", "_member_map_", "_value2member_map_", "_member_names_",
        "__new_member__", "_hashable_values_", "_unhashable_values_",
    }
)  # fmt: skip


class _Builtin(NamedTuple):
    """A name that is no global."""

    text: str


class CodePrint:
    """The parts of a piece of code.

    Attributes:
        parts: ``{"code:module.name": digest, "const:module.NAME": digest, "dist:numpy": version}``.
        digest: blake3 over the parts.
        notes: What could not be followed and what was used instead.
        files: Project files reached, ``{module name: file}``.
        cacheable: Whether the parts are all there is.
        variables: Environment variables that the code reads.
    """

    __slots__ = (
        "_bindings",
        "_checks",
        "_functions",
        "cacheable",
        "digest",
        "files",
        "notes",
        "parts",
        "variables",
    )

    def __init__(self, walk: _Walk) -> None:
        self.parts = dict(sorted(walk.parts.items()))
        self.digest = blake3(msgspec.json.encode(self.parts)).hexdigest()
        self.notes = tuple(dict.fromkeys(walk.notes))
        self.files = walk.files
        self.cacheable = walk.cacheable
        self.variables = tuple(p.removeprefix("env:") for p in self.parts if p.startswith("env:"))
        self._bindings = tuple(walk.bindings.values())
        self._functions = tuple(walk.functions)
        self._checks = walk.checks

    @property
    def constants(self) -> dict[str, str]:
        """The constants that the code reads: place and content."""
        parts = self.parts.items()
        return {p.removeprefix("const:"): v for p, v in parts if p.startswith("const:")}

    @property
    def distributions(self) -> dict[str, str]:
        """The version of every distribution that the code reaches."""
        parts = self.parts.items()
        return {part.removeprefix("dist:"): v for part, v in parts if part.startswith("dist:")}

    def holds(self) -> bool:
        """Whether every binding that was read is still the same."""
        for namespace, name, value in self._bindings:  # thousands of them: no call for each
            if namespace.get(name, _MISSING) is not value:
                return False
        for function, code, defaults, keywords, count in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
                or len(function.__dict__) != count
            ):
                return False
        return all(check() for check in self._checks)


_memo: dict[int, tuple[Any, CodePrint]] = {}


def fingerprint(root: Any) -> CodePrint:
    """The parts of a function or class; remembered while every binding in them holds."""
    found = _memo.get(id(root))
    if found is not None and found[0] is root and found[1].holds():
        return found[1]
    walk = _Walk()
    walk.root(root)
    keep_facts()
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
        self.functions: list[tuple[FunctionType, Any, Any, Any, int]] = []
        self.bindings: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.cacheable = True
        self._labels: dict[int, str] = {}
        self._taken: set[str] = set()
        self._keep: list[Any] = []  # ids stay unique while their objects live
        self._todo: deque[Callable[[], None]] = deque()
        self._open: dict[int, int] = {}
        self._beside = Beside()
        self._docs = False  # whether some code reads documentation
        self._subclasses = False  # whether some code asks a class for its subclasses

    def root(self, value: Any) -> None:
        self.token(value, "root", getattr(value, "__module__", "") or "")
        while self._todo or (self._subclasses and self._more_classes()):
            self._todo.popleft()()
        if self._docs:
            known = [repr(getattr(item, "__doc__", "")) for item in self._keep]
            self.parts["docs"] = _digest("\n".join(known))
        parts, checks, too_much = self._beside.parts(self.files)
        self.parts |= parts
        self.checks += checks
        for place in too_much:
            self._give_up(f"{place} holds too many files to look at")

    def _more_classes(self) -> bool:
        """Follow subclasses, registered by being defined; whether there was one not yet known."""
        for cls in [item for item in self._keep if isinstance(item, type)]:
            subclass: type
            for subclass in type.__subclasses__(cls):
                self.token(subclass, _name(subclass), subclass.__module__)
        return bool(self._todo)

    def token(self, value: Any, where: str, module: str) -> str:
        """A text that stands for `value`, found at `where`; what it does becomes parts.

        Args:
            value: Anything that code can refer to.
            where: Name of the place that refers to it, unique within the walk.
            module: Project module to fall back to if the value cannot be followed.
        """
        self._warned(value, module, where)
        found = self._code(value, where, module)
        return self._named_constant(value, where, module) if found is None else found

    def _code(self, value: Any, where: str, module: str) -> str | None:
        """The token of code; None for what is none."""
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if _is_class(value):
            return self._class(value)
        if isinstance(value, MethodType):
            owner = self._held(value.__self__, f"{where}.__self__", module)
            return f"method({self.token(value.__func__, where, module)},{owner})"
        if isinstance(value, functools.partial):
            inner = (value.func, value.args, value.keywords, vars(value))
            return f"partial({self._constant(inner, where, module)})"
        if isinstance(value, staticmethod | classmethod):
            return f"{type(value).__name__}({self.token(value.__func__, where, module)})"
        if isinstance(value, functools.cached_property):
            return f"cached_property({self.token(value.func, where, module)})"
        if isinstance(value, property):
            accessors = (value.fget, value.fset, value.fdel)
            return f"{type(value).__qualname__}({self._constant(accessors, where, module)})"
        if isinstance(value, BuiltinFunctionType):
            return self._builtin(value, where, module)
        held = getattr(value, "__dict__", None)
        wrapped = held.get("__wrapped__") if type(held) is dict else None
        kind = type(value).__module__
        if isinstance(wrapped, FunctionType | type) and not is_project(kind):
            self._distribution(kind)  # our steps, functools.cache
            if kind.partition(".")[0] not in _NEUTRAL_WRAPPERS:
                name = f"{kind}.{type(value).__qualname__}"
                self._whole_module(module, f"{where} is wrapped in a {name}")
            return f"{type(value).__qualname__}({self.token(wrapped, where, module)})"
        return None

    def _held(self, value: Any, where: str, module: str) -> str:
        # What is being taken apart already is not followed again: it holds its own method.
        return "^" if id(value) in self._open else self.token(value, where, module)

    def _builtin(self, value: Any, where: str, module: str) -> str:
        """A function written in C; bound to an object it does what that object holds."""
        name = f"builtin:{value.__module__}.{value.__qualname__}"
        home = value.__module__ or ""
        if is_project(home):
            self._whole_module(home, f"{where} is compiled")
        self._distribution(home)
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return name
        return f"{name}({self._held(owner, f'{where}.__self__', module)})"

    # Functions

    def _function(self, function: FunctionType) -> str:
        registry = function.__dict__.get("registry")
        if isinstance(registry, MappingProxyType) and function.__globals__ is vars(functools):
            # Its closure holds caches, which say nothing about what it does.
            return (
                f"singledispatch({self._constant(registry, _name(function), function.__module__)})"
            )
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
        self.functions.append((function, code, defaults, keywords, len(function.__dict__)))
        module = function.__module__ or ""
        self._file(module)
        facts = facts_of(code)
        if (
            not facts.is_syntax and code.co_filename != "<string>"
        ):  # as dataclasses make their methods
            self.notes.append(f"{label}: by its bytecode, as its source is not what runs")
        bound = [facts.digest, *self._references(function, facts, label)]
        if defaults or keywords:
            bound.append("defaults=" + self._constant((defaults, keywords), f"{label}()", module))
        own = {k: v for k, v in function.__dict__.items() if k != "__wrapped__"}
        if own:
            bound.append("attributes=" + self._constant(own, f"{label}.__dict__", module))
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            bound.append("wraps=" + self.token(wrapped, f"{label}.__wrapped__", module))
        self.parts[label] = _digest("\n".join(bound))

    def _references(self, function: FunctionType, facts: Facts, label: str) -> list[str]:
        if facts.unknown:
            listed = ", ".join(facts.unknown)
            self._give_up(f"{label} has instructions of Python {PYTHON} not known here ({listed})")
            return []
        bound: list[str] = []
        self._beside.texts(facts.texts)
        names = facts.telling
        self._docs |= "__doc__" in names
        self._subclasses |= "__subclasses__" in names
        if "__globals__" in names or "f_globals" in names:
            self._give_up(f"{label} looks into the globals of other code")
        for reference in facts.references:
            token = self._reference(function, reference.kind, reference.path, label)
            bound.append(f"{'.'.join(reference.path)}={token}")
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
            value = self._global(function, name, label)
            if isinstance(value, _Builtin):
                return value.text
        if not _OWN_FILE.isdisjoint(path[:2]):
            home = value.__name__ if isinstance(value, ModuleType) else module
            self._beside.own_folder(sys.modules.get(home), climbs(function.__code__))
        if name in _OWN_FILE:
            return "own file"
        while attributes and isinstance(value, ModuleType) and is_project(value.__name__):
            attribute = attributes.pop(0)
            name = f"{value.__name__}.{attribute}"
            value = self._attribute(value, attribute)
        if value is _MISSING:
            return "missing"
        place = name if kind == "import" or "." in name else f"{module_name(module)}.{name}"
        if self._is_environment(value, attributes):
            self._environment(kind, path, function, label)
        if attributes and isinstance(value, ModuleType):
            patch = self._patched(value, attributes, module, label)
            value, place = (value, place) if patch is None else (patch, ".".join(path))
        if isinstance(value, PurePath) and self._under(value, path, attributes, function):
            self.parts[f"const:{place}"] = repr(value)
            return f"const:{place}"
        return self.token(value, f"{label}.{name}" if kind == "closure" else place, module)

    def _patched(self, value: Any, attributes: list[str], module: str, label: str) -> Any | None:
        """What the project put in the place of a name of an installed module, or None.

        Of what is installed only the version counts.
        """
        for attribute in attributes:
            owner, value = value, getattr(value, attribute, None)
            self._warned(value, module, label)
            kind = value if isinstance(value, type | FunctionType) else type(value)
            is_ours = isinstance(value, FunctionType) and _is_of_project(value)
            if is_ours or is_project(getattr(kind, "__module__", None) or ""):
                return value
            if isinstance(owner, ModuleType):
                self._bound(vars(owner), attribute)
            if not isinstance(value, ModuleType | type):
                break
        return None

    def _under(
        self, value: PurePath, path: tuple[str, ...], attributes: list[str], function: Any
    ) -> bool:
        """Whether code only ever reads places at known names under a folder; these then count."""
        names = []
        for use in uses(function.__code__):
            if use.path == path:
                is_known = (use.how == "/" and not attributes) or (
                    use.how == "call" and attributes in (["joinpath"], ["glob"], ["rglob"])
                )
                if not is_known or not use.text:
                    return False
                names.append(use.text)
        for name in names:
            self._beside.place(value / name)
        return bool(names)

    def _is_environment(self, value: Any, attributes: list[str]) -> bool:
        if value is os and attributes:
            value = getattr(os, attributes[0], None)
        return value is os.environ or value is os.getenv or value is os.environb

    def _environment(self, kind: str, path: tuple[str, ...], function: Any, label: str) -> None:
        """Environment variables that code reads by their names count by their values."""
        mine = [use for use in uses(function.__code__) if use.path == path]
        for use in mine:
            name = function.__globals__.get(use.name) if use.name is not None else use.text
            asks = path[-1] in ("get", "getenv") or function.__globals__.get(path[0]) is os.getenv
            is_plain = use.how in ("item", "in") or (use.how == "call" and asks)
            if isinstance(name, str) and is_plain:
                self._beside.variable(name)
            else:
                self._give_up(f"{label} reads environment variables by names made at run time")
        if kind == "import" and not mine:  # under a name of its own, which we do not follow
            self._give_up(f"{label} imports the environment under another name")

    def _global(self, function: FunctionType, name: str, label: str) -> Any:
        value = self._bound(function.__globals__, name)
        if value is not _MISSING:
            return value
        value = getattr(builtins, name, _MISSING)
        self._warned(value, function.__module__ or "", label)
        if value is _MISSING:
            return _Builtin("missing")
        # Somebody may have put a name of the project among the builtins.
        is_builtin = getattr(value, "__module__", "builtins") == "builtins"
        return _Builtin(f"builtin:{name}") if is_builtin else value

    def _warned(self, value: Any, module: str, label: str) -> None:
        """Note what cannot be followed: code that reaches names made at run time."""
        if id(value) in _REACH_ANYTHING:
            self._beside.with_code |= value in (builtins.eval, builtins.exec)
            self._whole_module(module, f"{label} uses {value.__name__}()")
        elif id(value) in _IMPORT_ANYTHING:
            self._give_up(f"{label} imports by a name made at run time")
        elif isinstance(value, FunctionType | BuiltinFunctionType | type | ModuleType):
            home = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
            if (home, value.__name__) in _FIND_ANYTHING:
                self._give_up(f"{label} uses {home}.{value.__name__}(), which can reach any code")
            if home.startswith(_PACKAGE_DATA) or (home, value.__name__) == ("pkgutil", "get_data"):
                self._beside.package_data = True

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
        self.bindings[id(namespace), name] = (namespace, name, value)
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
        for name, kind in inspect.get_annotations(cls).items():
            bound.append(f"{name}: {self._annotation(kind, cls, label)}")
        for special in ("__struct_config__", "__struct_defaults__", "__dataclass_params__"):
            if hasattr(cls, special):  # of msgspec's structs not in the class itself
                held = self._constant(getattr(cls, special), label, cls.__module__)
                bound.append(f"{special}={held}")
        count = len(cls.__dict__)
        self.checks.append(lambda: len(cls.__dict__) == count)
        for name in sorted(cls.__dict__):
            if name not in _NOT_BEHAVIOUR and not name.startswith("__dataclass_"):
                value = self._bound(cls.__dict__, name)
                if not _is_slot(value):
                    token = self.token(value, f"{label}.{name}", cls.__module__)
                    bound.append(f"{name}={token}")
        self.parts[label] = _digest("\n".join(bound))

    def _annotation(self, kind: Any, cls: type, label: str) -> str:
        """A type as text; classes of the project in it are followed, as fields are made by them."""
        if isinstance(kind, str):
            try:
                code = compile(kind, label, "eval", dont_inherit=True)
            except (SyntaxError, ValueError):
                return kind
            namespace = getattr(sys.modules.get(cls.__module__), "__dict__", {})
            known = [self._bound(namespace, item) for item in sorted(names_of(code))]
            return f"{kind} {[self._class(item) for item in known if _is_class(item)]}"
        if _is_class(kind):
            return self._class(kind)
        inner = [self._annotation(item, cls, label) for item in typing.get_args(kind)]
        return f"{kind!r} {inner}" if " at 0x" not in repr(kind) else f"{type(kind)} {inner}"

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
            else:
                place = f"{module_name(module.__name__)}.{name}"
                bound.append(f"{name}={self.token(value, place, module.__name__)}")
        # What its own lines made may come from any module that they imported.
        code = code_of_file(module_file(module))
        for reference in references(code) if code is not None else ():
            if reference.kind == "import":
                self._imported_whole(reference.path, module)
        if code is not None:
            self._beside.texts(texts_of(code))
        self.parts[label] = _digest("\n".join(bound))

    def _imported_whole(self, path: tuple[str, ...], module: ModuleType) -> None:
        package = module.__dict__.get("__package__") or ""
        try:
            name = importlib.util.resolve_name(path[0], package)
        except (ImportError, ValueError):
            return
        for found in (name, ".".join((name, *path[1:2]))):
            if found in sys.modules and is_project(found):
                self._whole_module(found, "")

    # Constants and what is installed

    def _named_constant(self, value: Any, where: str, module: str) -> str:
        """Make a constant a part of its own, so that a change of it can be told."""
        text = self._constant(value, where, module)
        label = f"const:{where.removeprefix('code:')}"
        self.parts[label] = shown(text)
        return label

    def _constant(self, value: Any, where: str, module: str) -> str:
        try:
            text = canonical(
                value,
                lambda item: self._inner(item, where, module),
                seen=self._beside.place,
                open_=self._open,
            )
        except NotCanonical as error:
            kind = f"{type(error.value).__module__}.{type(error.value).__qualname__}"
            self._installed(type(error.value))
            self._whole_module(module, f"{where} holds a {kind}, which has no canonical form")
            return f"identity:{kind}"
        frozen = value if isinstance(value, SCALARS) else snapshot(value)
        if frozen is not value:
            self.checks.append(lambda: snapshot(value) == frozen)
        return text

    def _inner(self, value: Any, where: str, module: str) -> str | None:
        """Code inside a constant is followed; None if it is no code."""
        found = self._code(value, where, module)
        if found is not None:
            return found
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
        for name, version in distributions_of(module).items():
            self.parts[f"dist:{name}"] = version or self._beside.installed(name)

    def _give_up(self, reason: str) -> None:
        self.cacheable = False
        self.notes.append(f"{reason}; not cached")

    def _file(self, module: str) -> None:
        found = sys.modules.get(module)
        if found is not None and module_file(found):
            self.files[module_name(module)] = module_file(found)

    def _label(self, label: str, value: Any) -> str:
        # Two closures of one function have one name; the order of the walk tells them apart.
        unique, number = label, 2
        while unique in self._taken:
            unique, number = f"{label}#{number}", number + 1
        self._taken.add(unique)
        self._labels[id(value)] = unique
        self._keep.append(value)
        return unique


def _is_class(value: Any) -> bool:
    return issubclass(type(value), type)  # an alias such as list[int] says that it is one


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


def _digest(text: str) -> str:
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
