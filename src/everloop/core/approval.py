"""RunApproval: a question within a run that a person answers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

__all__ = ["MOST_TEXT", "ApprovalState", "RunApproval"]

#: Characters of a question or a note.
MOST_TEXT = 1_000

ApprovalState = Literal["asked", "approved", "refused", "expired"]


class RunApproval(msgspec.Struct, frozen=True, kw_only=True):
    """A run waits for it without a process, until somebody approves or refuses, or it expires.

    Attributes:
        name: The question, with a number where a run asks the same again.
        target: ``path/to/file.py:function``, where the run goes on; empty where nobody can tell.
        four_eyes: Whether who started the run may not approve.
        actor: Who answered.
        note: What they said.
        at: When they did.
    """

    run_id: str
    name: str
    question: str
    target: str = ""
    four_eyes: bool = False
    state: ApprovalState = "asked"
    actor: str = ""
    note: str = ""
    asked_at: datetime
    expires_at: datetime | None = None
    at: datetime | None = None
