"""Events: facts in the past tense, appended in the transaction of the change they tell of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = ["CI_FINISHED", "PACKAGE_BUILT", "PACKAGE_IMPORTED", "PACKAGE_PROMOTED", "Event"]

#: Kinds that several rooms read. CI says for which ``loop`` and ``code`` (digest of a snapshot) it
#: had which ``outcome``; a package is built of a ``code``, and promoted to an ``environment``.
CI_FINISHED = "ci.Finished"
PACKAGE_BUILT = "package.Built"
PACKAGE_IMPORTED = "package.Imported"
PACKAGE_PROMOTED = "package.Promoted"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One fact.

    Attributes:
        seq: Position in the log; gives the order, also where clocks disagree.
        id: Sortable id; readers that see an id twice do nothing the second time.
        at: When, UTC.
        kind: ``area.PastTense``, such as ``model.Promoted``.
        subject: What it is about, ``kind:name``, such as ``model:flights-delay/3``.
        actor: Who did it: a principal, or ``loop:<name>`` where no person acted.
        cause: Id of the event that led to this one, or empty. The chain is the loop's story.
        body: Further facts, JSON.
    """

    seq: int
    id: str
    at: datetime
    kind: str
    subject: str
    actor: str
    cause: str = ""
    body: dict[str, Any] = {}
