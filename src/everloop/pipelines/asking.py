"""``ev.approve``: a pipeline that waits for a person, and no process waits with it."""

from __future__ import annotations

import inspect
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from everloop.core.approval import MOST_TEXT, RunApproval
from everloop.core.context import current_workspace
from everloop.core.time import duration_micros
from everloop.errors import GateRefused, InvalidInput, RunWaiting, StateError
from everloop.pipelines.engine import Execution, executing
from everloop.tracking.current import logging_to

__all__ = ["Waits", "approve", "waiting_error"]


class Waits(BaseException):
    """Leaves a pipeline that waits for an answer; no ``except Exception`` of a user's stops it."""

    def __init__(self, approval: RunApproval) -> None:
        super().__init__(approval.question)
        self.approval = approval


_questions: WeakKeyDictionary[Execution, Counter[str]] = WeakKeyDictionary()


def approve(
    question: str,
    *,
    expires: str | timedelta | None = None,
    four_eyes: bool = False,
    when: bool = True,
) -> RunApproval | None:
    """Go on once somebody approved.

    In a run that is not approved yet, the run comes to ``waiting`` and ``run()`` raises
    :class:`everloop.errors.RunWaiting`; no process is needed until it is answered. Outside a run
    nobody is asked, as a pipeline is a plain function there.

    Args:
        question: What people read, such as ``"promote?"``.
        expires: How long it may wait, such as ``"3d"``; then the run fails. Without end if not
            given.
        four_eyes: Whether who started the run may not approve.
        when: Only ask if this is true.

    Returns:
        Who approved, when and with which note; None where nobody was asked.

    Raises:
        GateRefused: If it was refused; says by whom and why.
        InvalidInput: If the question or the time is wrong.
        StateError: If it stands in a step: a step's result is kept, an answer is not its own.
    """
    if not question.strip() or len(question) > MOST_TEXT or "\0" in question:
        raise InvalidInput("ask something", [("question", f"1 to {MOST_TEXT} characters")])
    expires_s = duration_micros(expires) / 1e6 if expires is not None else 0.0
    execution = executing.get()
    if execution is None:
        if logging_to.get() is not None:
            raise StateError(
                f"{question!r} is asked where no pipeline can wait",
                hint="ask in the pipeline itself, not in a step of it or in ev.run(...)",
            )
        return None
    if not when:
        return None
    execution.join()  # what was begun is finished, and kept, before the process ends
    asked = _questions.setdefault(execution, Counter())
    asked[question] += 1
    number = asked[question]
    found: RunApproval = current_workspace().approvals.ask(
        execution.run.id,
        execution.run.fence,
        question if number == 1 else f"{question} #{number}",
        question,
        target=_target(),
        four_eyes=four_eyes,
        expires_s=expires_s,
    )
    if found.state == "asked":
        raise Waits(found)
    if found.state == "refused":
        raise GateRefused(f"{question} was refused by {found.actor}: {found.note}")
    return found


def _target() -> str:
    """Where the running pipeline stands, as the supervisor loads it; empty for a notebook."""
    frame = inspect.currentframe()
    while frame is not None:
        # The frame of ``Pipeline._execute``; the class itself stands above this module.
        owner: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "_execute" and hasattr(owner, "run_id"):
            function = inspect.unwrap(owner.function)
            file = function.__code__.co_filename
            plain = Path(file).is_file() and function.__qualname__ == function.__name__
            return f"{Path(file).resolve()}:{function.__name__}" if plain else ""
        frame = frame.f_back
    return ""


def waiting_error(run_id: str, approval: RunApproval) -> RunWaiting:
    """What ``run()`` raises when a run waits."""
    until = f" until {approval.expires_at:%Y-%m-%d %H:%M} UTC" if approval.expires_at else ""
    return RunWaiting(
        f"run {run_id} waits for an approval{until}: {approval.question}",
        hint=f"everloop approve {run_id}   (or: everloop refuse {run_id} --reason ...)",
        details={"run": run_id, "question": approval.question},
    )
