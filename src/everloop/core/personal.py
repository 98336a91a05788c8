"""Personal data of datasets: what was stated of it, who may see it, who saw it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = [
    "GOVERN",
    "READ_PERSONAL",
    "TERMS",
    "Access",
    "DatasetTerms",
    "Grant",
    "PersonalColumn",
    "TermsChange",
]

#: The right to see personal data of every dataset; the role that has it is in ``access/roles.py``.
READ_PERSONAL = "dataset:read-personal"
#: The right to say who sees it, and that a column holds none.
GOVERN = "dataset:govern"

#: What can be stated of a dataset, in the order in which a data sheet tells it.
TERMS = ("description", "purpose", "licence", "source", "sensitivity", "retention")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may see personal data of a dataset.

    Attributes:
        to: A user, or ``role:contributor`` for that role and those above it.
        columns: Only these; empty is all of them, also those that are tagged later.
        reason: Why, such as the purpose that they are seen for.
        by: Who gave it.
    """

    to: str
    columns: tuple[str, ...] = ()
    reason: str = ""
    by: str = ""
    at: datetime


class DatasetTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What people stated of a dataset beside its schema.

    Attributes:
        licence: An SPDX identifier such as ``CC-BY-4.0``, or a text.
        source: Where the data comes from, in words or as an address.
        sensitivity: Such as ``public``, ``internal``, ``confidential``.
        retention: How long it is kept and why, in words; ``everloop data keep`` makes it happen.
        pii: Columns that hold personal data, with its kind. A column that was ever tagged in a
            schema stands here too, so that a later schema without the tag does not uncover it.
        cleared: Columns of which somebody with the right to said that they hold none.
        masks: By column, as ``everloop.core.mask`` writes them; before those of the schema.
        grants: Who may see what beside the role that sees everything and the dataset's owner.
    """

    dataset: str
    description: str = ""
    purpose: str = ""
    licence: str = ""
    source: str = ""
    sensitivity: str = ""
    retention: str = ""
    pii: dict[str, str] = {}
    cleared: tuple[str, ...] = ()
    masks: dict[str, str] = {}
    grants: tuple[Grant, ...] = ()


class TermsChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of what is stated of a dataset."""

    at: datetime
    actor: str
    kind: str
    what: dict[str, Any]


class PersonalColumn(msgspec.Struct, frozen=True):
    """A column of a version that not everybody may see.

    Attributes:
        kind: Such as ``email``; ``masked`` where only a mask says that it is not for everybody.
        mask: What others get instead.
    """

    name: str
    kind: str
    mask: str


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """That personal data was read. It holds no value.

    One entry stands for all that the same caller read of the same columns of the same version in
    the same way, for the same purpose, in one process within an hour.

    Attributes:
        columns: Of personal data, of those that were read.
        masked: Those of them that came masked.
        door: ``read``, ``blocks``, ``scan``, ``export``, ``ledger``, ``diff``.
        purpose: As stated, or the run that asked.
    """

    at: datetime
    who: str
    dataset: str
    version: int
    columns: tuple[str, ...]
    masked: tuple[str, ...] = ()
    door: str
    purpose: str = ""
