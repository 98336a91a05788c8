"""Typed arguments and results.

What a step or pipeline takes is checked before anything runs, and what a step says that it returns
before that is stored.
"""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from everloop.errors import Fault, InvalidInput

__all__ = ["Signature"]

_Check = Callable[[Any, str], list[Fault]]


class Signature:
    """The parameters of a function.

    Args:
        function: A plain function.
        kind: ``step`` or ``pipeline``, for messages.
        name: Its name, for messages.
    """

    def __init__(self, function: Callable[..., Any], kind: str, name: str) -> None:
        self.parameters = dict(inspect.signature(function).parameters)
        self.names = tuple(self.parameters)
        self._function = function
        self._title = f"{kind} {name}"
        self._signature = inspect.signature(function)
        self._checks: dict[str, _Check] | None = None
        self._of_result: tuple[_Check | None] | None = None
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self._is_plain = all(p.kind is plain for p in self.parameters.values())

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, texts: bool = False
    ) -> dict[str, Any]:
        """Arguments by name, with defaults filled in, in the order of the parameters.

        Args:
            args: Positional arguments.
            kwargs: Arguments by name.
            texts: Whether a text may stand for what JSON has no type for: a path, an instant in
                ISO 8601, an enum, a UUID, a decimal number.

        Raises:
            InvalidInput: With every argument that is missing, unknown or of the wrong type.
        """
        if self._is_plain and not kwargs and len(args) == len(self.names):
            bound = dict(zip(self.names, args, strict=True))
        else:
            bound = self._bind(args, kwargs)
        checks = self._checks
        if checks is None:
            checks = self._checks = self._compile()
        if texts:
            self._read_texts(bound)
        for name, check in checks.items():
            if name in bound and check(bound[name], name):
                self._refuse(bound)
        return bound

    def _read_texts(self, bound: dict[str, Any]) -> None:
        hints = _hints(self._function)
        for name, value in bound.items():
            if type(value) is str and name in (self._checks or {}):
                with contextlib.suppress(msgspec.ValidationError, TypeError, ValueError):
                    # What does not fit stays as it is, for the check to refuse.
                    bound[name] = msgspec.convert(value, hints[name], dec_hook=_from_text)

    def check_result(self, value: Any) -> None:
        """See that `value` is what the function says that it returns.

        Raises:
            InvalidInput: If it is not; with the path of each part that differs.
        """
        if self._of_result is None:
            hints = _hints(self._function)
            self._of_result = (_check_of(hints["return"]) if "return" in hints else None,)
        [check] = self._of_result
        faults = check(value, "result") if check is not None else []
        if faults:
            shown = _wanted(_hints(self._function)["return"])
            raise InvalidInput(
                f"{self._title} says that it returns {shown}, and returned something else",
                faults,
                hint="mend the function or its annotation; nothing was stored",
            )

    def unbind(self, bound: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for a call, from arguments by name."""
        if self._is_plain:
            return (), bound
        arguments = inspect.BoundArguments(self._signature, bound)
        return arguments.args, arguments.kwargs

    def convert(self, texts: dict[str, str]) -> dict[str, Any]:
        """Arguments from text, as the command line has them, by the annotations.

        Raises:
            InvalidInput: With every text that does not fit its parameter.
        """
        hints = _hints(self._function)
        faults, values = [], {}
        for name, text in texts.items():
            hint = hints.get(name, str)
            try:
                values[name] = msgspec.convert(text, hint, strict=False, dec_hook=_from_text)
            except (msgspec.ValidationError, TypeError, ValueError) as error:
                faults.append((name, f"{text!r} is no {_wanted(hint)}: {error}"))
        if faults:
            raise InvalidInput(f"{self._title} cannot take these arguments", faults)
        return values

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            faults = self._binding_faults(args, kwargs) or [Fault("", str(error))]
            raise InvalidInput(
                f"{self._title} cannot take these arguments",
                faults,
                hint=f"it is called as {self._title.split()[-1]}{self._signature}",
            ) from None
        bound.apply_defaults()
        return bound.arguments

    def _binding_faults(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Fault]:
        given = set(self.names[: len(args)]) | kwargs.keys()
        kinds = inspect.Parameter
        variable = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        faults = [
            Fault(name, f"missing; wanted {self._wanted(name)}")
            for name, parameter in self.parameters.items()
            if parameter.default is kinds.empty
            and parameter.kind not in variable
            and name not in given
        ]
        if not any(p.kind is kinds.VAR_KEYWORD for p in self.parameters.values()):
            there = ", ".join(self.names) or "none"
            unknown = [name for name in kwargs if name not in self.parameters]
            faults += [Fault(name, f"unknown argument; there are: {there}") for name in unknown]
        return faults

    def _wanted(self, name: str) -> str:
        hint = _hints(self._function).get(name)
        return "a value" if hint is None else _wanted(hint)

    def _compile(self) -> dict[str, _Check]:
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        checks = {}
        for name, hint in _hints(self._function).items():
            parameter = self.parameters.get(name)
            if parameter is not None and parameter.kind not in variable:
                check = _check_of(hint)
                if check is not None:
                    checks[name] = check
        return checks

    def _refuse(self, bound: dict[str, Any]) -> None:
        checks = self._checks or {}
        faults = [f for n, check in checks.items() if n in bound for f in check(bound[n], n)]
        raise InvalidInput(f"{self._title} cannot take these arguments", faults)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that cannot be resolved (under TYPE_CHECKING) promise nothing


def _wanted(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _from_text(kind: type, value: Any) -> Any:
    return kind(value)  # Path and the like take their text


def _fault(value: Any, path: str, hint: Any) -> list[Fault]:
    shown = repr(value)
    shown = f" {shown}" if len(shown) <= 40 and "\n" not in shown else ""
    wanted, got = _wanted(hint), type(value).__name__
    if wanted == got and isinstance(hint, type):  # two classes of one name: say which
        wanted = f"{hint.__module__}.{wanted}"
        got = f"{type(value).__module__}.{got}"
    return [Fault(path, f"wanted {wanted}, got {got}{shown}")]


def _check_of(hint: Any) -> _Check | None:
    """A check for an annotation; None for those that promise nothing we can see."""
    if hint is None:
        hint = type(None)
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    if typing.is_typeddict(hint):
        return _typed_dict(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _check_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        return _union(hint, [_check_of(item) for item in inner])
    if origin is typing.Literal:
        allowed = {(type(item), item) for item in inner}
        return lambda v, p: [] if _literal(v) in allowed else _fault(v, p, hint)
    if origin is not None and isinstance(origin, type):
        return _container(hint, origin, inner)
    if not isinstance(hint, type) or hint in (object, Any) or getattr(hint, "_is_protocol", False):
        return None
    accepted = _accepted(hint)
    refuses_bool = hint in (int, float, complex)

    def check(value: Any, path: str) -> list[Fault]:
        if isinstance(value, accepted) and not (refuses_bool and isinstance(value, bool)):
            return []
        return _fault(value, path, hint)

    return check


def _literal(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return None
    return (type(value), value)


def _accepted(kind: type) -> Any:
    # NumPy's numbers are registered with the abstract ones.
    if kind is int:
        return (int, numbers.Integral)
    if kind is float:
        return (float, int, numbers.Real)
    return kind


def _union(hint: Any, checks: list[_Check | None]) -> _Check | None:
    if any(check is None for check in checks):
        return None
    known = [check for check in checks if check is not None]

    def check_any(value: Any, path: str) -> list[Fault]:
        return [] if any(not check(value, path) for check in known) else _fault(value, path, hint)

    return check_any


def _typed_dict(hint: Any) -> _Check:
    checks = {name: _check_of(item) for name, item in typing.get_type_hints(hint).items()}
    required = _required_keys(hint)

    def check(value: Any, path: str) -> list[Fault]:
        if not isinstance(value, dict):
            return _fault(value, path, hint)
        faults = [Fault(f"{path}[{key!r}]", "missing") for key in sorted(required - value.keys())]
        for key, item in value.items():
            of_item = checks.get(key)
            if key not in checks:
                known = ", ".join(sorted(checks))
                faults.append(Fault(f"{path}[{key!r}]", f"unknown key; there are: {known}"))
            elif of_item is not None:
                faults += of_item(item, f"{path}[{key!r}]")
        return faults

    return check


def _required_keys(hint: Any) -> set[str]:
    # Where annotations are texts, the class itself has not seen the marks in them.
    required = set(hint.__required_keys__)
    for name, item in typing.get_type_hints(hint, include_extras=True).items():
        if typing.get_origin(item) is typing.NotRequired:
            required.discard(name)
        elif typing.get_origin(item) is typing.Required:
            required.add(name)
    return required


def _container(hint: Any, origin: type, inner: tuple[Any, ...]) -> _Check:
    is_mapping = issubclass(origin, collections.abc.Mapping)
    is_tuple = origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis)
    of_items = [_check_of(item) for item in inner if item is not Ellipsis]

    def check(value: Any, path: str) -> list[Fault]:
        if not isinstance(value, origin) or (
            isinstance(value, str | bytes) and origin not in (str, bytes)
        ):
            return _fault(value, path, hint)
        faults: list[Fault] = []
        if is_mapping and len(of_items) == 2:
            for key, item in value.items():  # type: ignore[attr-defined]
                if of_items[0]:
                    faults += of_items[0](key, f"{path} (key)")
                if of_items[1]:
                    faults += of_items[1](item, f"{path}[{key!r}]")
        elif is_tuple and of_items:
            if len(value) != len(of_items):  # type: ignore[arg-type]
                return _fault(value, path, hint)
            for index, (item, of_item) in enumerate(zip(value, of_items, strict=True)):  # type: ignore[call-overload]
                faults += of_item(item, f"{path}[{index}]") if of_item else []
        elif len(of_items) == 1 and of_items[0] and isinstance(value, collections.abc.Collection):
            for index, item in enumerate(value):
                faults += of_items[0](item, f"{path}[{index}]")
        return faults

    return check
