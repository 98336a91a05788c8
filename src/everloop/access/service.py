"""Service: the base of every area's surface. A public method declares the action it needs.

A method without a declared action does not load: the class statement raises. Embedded, a call is
a call with the check before it. Remote, ``everloop.access.remote`` sends method and arguments.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from everloop.access.policy import Authorizer
from everloop.core.context import current_principal

__all__ = ["Service", "action", "actions_of"]

_F = TypeVar("_F", bound=Callable[..., Any])


def action(name: str, *, on: str = "") -> Callable[[_F], _F]:
    """Declare that a service method needs the right `name` (``noun:verb``).

    Args:
        name: Such as ``"model:promote"``.
        on: The parameter that names the object; empty for the area as a whole.
    """

    def declare(method: _F) -> _F:
        parameters = list(inspect.signature(method).parameters)
        if on and on not in parameters:
            raise TypeError(f"{method.__qualname__} has no parameter {on!r}")
        position = parameters.index(on) - 1 if on else -1

        @functools.wraps(method)
        def checked(self: Service, *args: Any, **kwargs: Any) -> Any:
            subject = ""
            if on:
                subject = args[position] if len(args) > position else kwargs.get(on, "")
            self._authorizer.authorize(current_principal(), name, str(subject))
            return method(self, *args, **kwargs)

        checked.__action__ = name  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return declare


def actions_of(service: type[Service]) -> dict[str, str]:
    """The public methods of a service with the action of each."""
    found = {}
    for name in dir(service):
        if not name.startswith("_"):
            declared = getattr(getattr(service, name), "__action__", None)
            if declared is not None:
                found[name] = declared
    return found


class Service:
    """Base of the services.

    Attributes:
        area: The name under which the workspace and the wire know it.
    """

    area: ClassVar[str] = ""
    _authorizer: Authorizer

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.area:
            raise TypeError(f"{cls.__name__} needs an area")
        for name, value in vars(cls).items():
            public = not name.startswith("_") and callable(value) and not isinstance(value, type)
            if public and not hasattr(value, "__action__"):
                raise TypeError(f"{cls.__name__}.{name} declares no action")
