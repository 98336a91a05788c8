"""Every error that Everloop raises on purpose, and the one table that maps them to the doors.

The tree::

    EverloopError
      InvalidInput   (ValueError)    the input is wrong; holds every fault
        TooLarge                     more bytes than this door takes; names the limit
      NotFound       (KeyError)      no such thing; names the nearest ones
      Conflict                       somebody else was first; names the winner
      StateError                     not allowed in the present state; tells what led there
      RunStopped                     a rule of the user's own ended a hopeless run
      RunWaiting                     a run waits for a person's approval; names the run
      NotAllowed     (PermissionError)
        NotAuthenticated             nobody knows who asks: no credentials, or wrong ones
      Throttled                      too many tries; says when the next one is taken
      GateRefused                    a gate said no; carries the verdict
      MissingExtra   (ImportError)   an optional library is needed; gives the install line
      BackendError                   something outside failed; keeps the cause
      UserCodeError                  the user's own function raised; shows that traceback first

An error says what was asked, what is there, and what to do (``hint``).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "BackendError",
    "Conflict",
    "EverloopError",
    "Fault",
    "GateRefused",
    "InvalidInput",
    "MissingExtra",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "RunStopped",
    "RunWaiting",
    "StateError",
    "Throttled",
    "TooLarge",
    "UserCodeError",
    "described",
    "error_from_wire",
    "exit_code",
    "http_status",
    "storable",
    "to_wire",
]


class Fault(NamedTuple):
    """One thing wrong with an input: where (a path such as ``rows[3].distance``) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class EverloopError(Exception):
    """Base of all deliberate errors.

    Args:
        message: What is wrong and where, one or two sentences.
        hint: What to do about it; may be empty.
        details: JSON-able facts for programs, kept on the wire.
    """

    code = "error"
    status = 500
    exit = 1

    def __init__(
        self, message: str, *, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = details or {}

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InvalidInput(EverloopError, ValueError):
    """The input is wrong. ``faults`` lists everything wrong with it, not only the first thing."""

    code = "invalid_input"
    status = 400
    exit = 2

    #: Faults shown in the message; all of them stay in ``faults``.
    SHOWN = 20

    def __init__(
        self,
        message: str,
        faults: Iterable[Fault | tuple[str, str]] = (),
        *,
        hint: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        self.faults = [Fault(*fault) for fault in faults]
        self.summary = message
        lines = [message, *(f"  - {fault}" for fault in self.faults[: self.SHOWN])]
        if len(self.faults) > self.SHOWN:
            lines.append(f"  ... and {len(self.faults) - self.SHOWN} more")
        super().__init__("\n".join(lines), hint=hint, details=details)


class TooLarge(InvalidInput):
    """More bytes than this door takes; the message names the limit."""

    code = "too_large"
    status = 413


class NotFound(EverloopError, KeyError):
    """No such thing. Build it with :meth:`named` to offer the nearest names."""

    code = "not_found"
    status = 404
    exit = 5

    @classmethod
    def named(cls, kind: str, name: str, known: Iterable[str] = ()) -> NotFound:
        """Say that no `kind` called `name` exists, with up to three near names of `known`."""
        known = list(known)
        import difflib

        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(repr(item) for item in near) + "?"
        elif known:
            shown = ", ".join(sorted(known)[:8])
            hint = f"there are: {shown}{', ...' if len(known) > 8 else ''}"
        else:
            hint = f"there is no {kind} yet"
        return cls(f"no {kind} {name!r}", hint=hint, details={"kind": kind, "name": str(name)})


class Conflict(EverloopError):
    """Somebody else changed or made it first; ``details['winner']`` says what is there now."""

    code = "conflict"
    status = 409
    exit = 6


class StateError(EverloopError):
    """The thing is in a state that does not allow this; the message tells how it got there."""

    code = "wrong_state"
    status = 409
    exit = 6


class RunStopped(EverloopError):
    """A rule that the user gave ended a run that has no hope; the message says which and why."""

    code = "run_stopped"
    status = 409


class RunWaiting(EverloopError):
    """A run waits for an approval and goes on when it is given; ``details['run']`` is its id."""

    code = "run_waiting"
    status = 409


class NotAllowed(EverloopError, PermissionError):
    """The principal may not do this."""

    code = "not_allowed"
    status = 403
    exit = 4


class NotAuthenticated(NotAllowed):
    """Nobody knows who asks: credentials are missing, wrong, expired or revoked."""

    code = "not_authenticated"
    status = 401


class Throttled(EverloopError):
    """Too many tries; ``details['retry_after_s']`` says when the next one is taken."""

    code = "throttled"
    status = 429


class GateRefused(EverloopError):
    """A gate said no; ``details['verdict']`` holds the id of the verdict with the evidence."""

    code = "gate_refused"
    status = 403
    exit = 3


class MissingExtra(EverloopError, ImportError):
    """An optional library is needed for this."""

    code = "missing_extra"
    status = 501

    @classmethod
    def of(cls, extra: str, purpose: str) -> MissingExtra:
        """Say that `purpose` needs the optional dependency group `extra`."""
        return cls(
            f"{purpose} needs an optional library that is not installed",
            hint=f"pip install 'everloop[{extra}]'",
        )


class BackendError(EverloopError):
    """A database, disk, object store or server outside Everloop failed."""

    code = "backend"
    status = 503


#: Frames that stand between whoever started something and the user's own function.
_OURS = ("/everloop/pipelines/", "/everloop/evaluation/data_tests/")


class UserCodeError(EverloopError):
    """The user's function raised. The user's traceback comes first, without our own frames."""

    code = "user_code"
    status = 422

    @classmethod
    def caught(cls, where: str, error: BaseException, *, hint: str = "") -> UserCodeError:
        """Wrap `error`, raised by the user's code in `where`, dropping the frames above it."""
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if not any(o in f.filename for o in _OURS)] or list(frames)
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(inside)]
        text = storable("".join([*lines, *traceback.format_exception_only(error)]))
        wrapped = cls(f"{text.rstrip()}\n\n{where} raised {type(error).__name__}", hint=hint)
        wrapped.__cause__ = error
        return wrapped


def described(error: BaseException) -> str:
    """Class and words of any error, as every catalog can keep them."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - the user's class
        words = "<its __str__ raised>"
    return storable(f"{type(error).__name__}: {words}".rstrip(": "))


def storable(text: str) -> str:
    """`text` without what a database refuses: half surrogates and the character 0, escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _classes() -> dict[str, type[EverloopError]]:
    found: dict[str, type[EverloopError]] = {EverloopError.code: EverloopError}
    todo: list[type[EverloopError]] = [EverloopError]
    while todo:
        for cls in todo.pop().__subclasses__():
            found.setdefault(cls.code, cls)
            todo.append(cls)
    return found


def to_wire(error: EverloopError) -> dict[str, Any]:
    """Render an error as the native JSON body (``error_code, message, hint, faults, details``)."""
    body: dict[str, Any] = {"error_code": error.code, "message": error.message}
    if error.hint:
        body["hint"] = error.hint
    if isinstance(error, InvalidInput):
        body["message"] = error.summary
        body["faults"] = [{"path": f.path, "message": f.message} for f in error.faults]
    if error.details:
        body["details"] = error.details
    return body


def error_from_wire(body: dict[str, Any]) -> EverloopError:
    """Rebuild the error that :func:`to_wire` rendered, so that a remote call raises the same."""
    cls = _classes().get(str(body.get("error_code")), EverloopError)
    message, hint = str(body.get("message", "")), str(body.get("hint", ""))
    details = body.get("details")
    if issubclass(cls, InvalidInput):
        faults: Sequence[dict[str, str]] = body.get("faults", [])
        return cls(message, [(f["path"], f["message"]) for f in faults], hint=hint, details=details)
    return cls(message, hint=hint, details=details)


def http_status(error: EverloopError) -> int:
    """The HTTP status of an error; the same for every door."""
    return error.status


def exit_code(error: EverloopError) -> int:
    """The exit status of the command line: 1 failed, 2 usage, 3 gate, 4 not allowed, 5, 6."""
    return error.exit
