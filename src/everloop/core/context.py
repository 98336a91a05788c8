"""Who acts, because of which event, in which workspace: ambient in a context.

A *principal* was authenticated by a door; an *actor* is a name that a caller states. Where there is
a principal it is the actor, whatever anybody states: nobody can act under another's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from everloop.core.access import Principal
from everloop.errors import StateError

__all__ = [
    "Place",
    "acting",
    "authenticated",
    "current_actor",
    "current_cause",
    "current_principal",
    "current_workspace",
    "enter_workspace",
    "has_workspace",
    "leave_workspace",
    "open_at",
    "open_elsewhere",
    "set_opener",
    "using",
]

_actor: ContextVar[str] = ContextVar("everloop_actor", default="")
_cause: ContextVar[str] = ContextVar("everloop_cause", default="")
_principal: ContextVar[Principal | None] = ContextVar("everloop_principal", default=None)


def current_principal() -> Principal | None:
    """Whom a door authenticated in this context; None within a program of one's own."""
    return _principal.get()


def current_actor() -> str:
    """Who acts in this context, or empty."""
    principal = _principal.get()
    return _actor.get() if principal is None else principal.name


def current_cause() -> str:
    """Id of the event that this context acts upon, or empty."""
    return _cause.get()


@contextmanager
def authenticated(principal: Principal | None) -> Iterator[None]:
    """Within the block whatever is done is done by `principal`; None is this process itself."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


@contextmanager
def acting(actor: str | None = None, cause: str | None = None) -> Iterator[None]:
    """Within the block events carry `actor` and `cause`; None keeps what is set.

    An authenticated principal stays the actor.
    """
    actor_token = _actor.set(actor) if actor is not None else None
    cause_token = _cause.set(cause) if cause is not None else None
    try:
        yield
    finally:
        if actor_token is not None:
            _actor.reset(actor_token)
        if cause_token is not None:
            _cause.reset(cause_token)


# The workspace that plain functions (steps, ``ev.register``) act in. The composition root sets the
# opener; floors below it only see the services that they ask for, by their own protocols.
_workspace: ContextVar[Any] = ContextVar("everloop_workspace", default=None)
_opener: Callable[..., Any] | None = None


def set_opener(opener: Callable[..., Any]) -> None:
    """Tell how to open the workspace where none is set.

    Args:
        opener: Called with nothing, or by :func:`open_elsewhere` with its arguments.
    """
    global _opener
    _opener = opener


def open_elsewhere(location: str, *, actor: str, clock: Any) -> None:
    """Have :func:`current_workspace` open the one at `location` where none is set."""
    opener = _opener
    assert opener is not None, "importing everloop sets it"
    set_opener(lambda: opener(location, actor=actor, clock=clock))


class Place(NamedTuple):
    """Where a workspace is, in words that another machine understands too.

    Attributes:
        location: As :func:`everloop.open` takes it; no path in it is relative.
        objects: Folder or URL of the objects; empty for a server.
        token: What a server is shown; empty where none is needed.
        actor: Whom events name.
    """

    location: str
    objects: str
    token: str
    actor: str

    def __repr__(self) -> str:
        return "Place(...)"  # a location may hold a password


def open_at(location: str, *, actor: str | None, clock: Any) -> Any:
    """Open the workspace at `location`; the caller closes it."""
    assert _opener is not None, "importing everloop sets it"
    return _opener(location, actor=actor, clock=clock)


def current_workspace() -> Any:
    """The workspace of this context; opened where the surroundings say if none is set."""
    found = _workspace.get()
    if found is None:
        if _opener is None:
            raise StateError("no workspace is open", hint="call everloop.open() first")
        found = _opener()
        _workspace.set(found)
    return found


def has_workspace() -> bool:
    """Whether a workspace is set in this context; opens none."""
    return _workspace.get() is not None


@contextmanager
def using(workspace: Any) -> Iterator[None]:
    """Within the block plain functions act in `workspace`."""
    token = enter_workspace(workspace)
    try:
        yield
    finally:
        leave_workspace(token)


def enter_workspace(workspace: Any) -> Token[Any]:
    """From here on plain functions act in `workspace`, until what is returned is left."""
    return _workspace.set(workspace)


def leave_workspace(token: Token[Any]) -> None:
    """Plain functions act where they did before the workspace was entered."""
    with suppress(ValueError):  # left in another thread or task, which never was in it
        _workspace.reset(token)
