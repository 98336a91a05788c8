"""What is stated of datasets beside their schemas: folded from the event log, kept by the process.

The log is where it stands: there is no table beside it that could say something else. A process
looks for new statements at most once a second for programs of its own, and before every answer to
whoever logged in, so that a mask or a grant taken back holds at once at every door.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import msgspec

from everloop.catalog.direct import Direct, from_json, marks
from everloop.catalog.engine import Catalog
from everloop.core.dataset import DatasetVersion
from everloop.core.personal import TERMS, DatasetTerms, Grant, TermsChange
from everloop.core.schema import Schema
from everloop.core.time import from_micros

__all__ = [
    "DESCRIBED",
    "GRANTED",
    "MASKED",
    "REVOKED",
    "TAGGED",
    "Terms",
    "history_of",
    "keep_tags",
    "newly_tagged",
    "tagged_in",
    "terms_of",
    "with_tags",
]

DESCRIBED = "dataset.Described"
TAGGED = "dataset.PersonalTagged"
MASKED = "dataset.MaskSet"
GRANTED = "dataset.AccessGranted"
REVOKED = "dataset.AccessRevoked"
_KINDS = (DESCRIBED, TAGGED, MASKED, GRANTED, REVOKED)

_SINCE = (
    f"SELECT seq, at, kind, subject, actor, body FROM events WHERE kind IN ({marks(len(_KINDS))}) "
    "AND seq > ? ORDER BY seq"
)
_HISTORY = (
    "SELECT at, kind, actor, body FROM events "
    f"WHERE subject = ? AND kind IN ({marks(len(_KINDS))}) ORDER BY seq"
)
#: How old what a program of one's own sees may be, seconds.
_LOOK_S = 1.0
_SUBJECT = "dataset:"

_terms: weakref.WeakKeyDictionary[Catalog, Terms] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def terms_of(catalog: Catalog) -> Terms:
    """What this process knows of the datasets of a catalog; one for each catalog."""
    with _making:
        found = _terms.get(catalog)
        if found is None:
            found = _terms[catalog] = Terms()
        return found


def tagged_in(schema: Schema) -> dict[str, str]:
    """The columns that a schema marks as personal data, with the kind."""
    return {f.name: f.pii or "masked" for f in schema.fields if f.pii or f.mask}


class Terms:
    """What is stated of each dataset; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seq = 0
        self._looked_s = float("-inf")
        self._found: dict[str, DatasetTerms] = {}

    def look(self, catalog: Catalog, *, exact: bool) -> dict[str, DatasetTerms]:
        """What is stated, by dataset.

        Args:
            exact: As of now; else as of the last look, if that was less than a second ago.
        """
        if not exact and time.monotonic() - self._looked_s < _LOOK_S:
            return self._found
        with self._lock:
            began_s = time.monotonic()
            with catalog.direct(write=False) as tx:
                rows = tx.run(_SINCE, (*_KINDS, self._seq)).fetchall()
            if rows:
                found = dict(self._found)
                for _, at, kind, subject, actor, body in rows:
                    name = subject.removeprefix(_SUBJECT)
                    known = found.get(name) or DatasetTerms(dataset=name)
                    found[name] = _folded(known, at, kind, actor, from_json(body))
                self._found, self._seq = found, rows[-1][0]
            self._looked_s = began_s
            return self._found

    def expire(self) -> None:
        """Look again before the next answer: this process itself stated something."""
        self._looked_s = float("-inf")


def _folded(
    terms: DatasetTerms, at: int, kind: str, actor: str, body: dict[str, Any]
) -> DatasetTerms:
    replace = msgspec.structs.replace
    if kind == DESCRIBED:
        return replace(terms, **{name: body[name] for name in TERMS if name in body})
    if kind == TAGGED:
        pii = {**terms.pii, **body["columns"]}
        cleared = {*terms.cleared, *(n for n, w in pii.items() if not w)}
        pii = {name: what for name, what in pii.items() if what}
        return replace(terms, pii=pii, cleared=tuple(sorted(cleared - pii.keys())))
    if kind == MASKED:
        masks = {**terms.masks, body["column"]: body["mask"]}
        masks = {name: mask for name, mask in masks.items() if mask}
        # A mask that came later goes before what was said of the column earlier.
        still = tuple(name for name in terms.cleared if name not in masks)
        return replace(terms, masks=masks, cleared=still)
    others = tuple(grant for grant in terms.grants if grant.to != body["to"])
    if kind == REVOKED:
        return replace(terms, grants=others)
    given = Grant(
        to=body["to"],
        columns=tuple(body["columns"]),
        reason=body["reason"],
        by=actor,
        at=from_micros(at),
    )
    return replace(terms, grants=(*others, given))


def history_of(tx: Direct, name: str) -> list[TermsChange]:
    """All that was ever stated of a dataset, oldest first."""
    rows = tx.run(_HISTORY, (_SUBJECT + name, *_KINDS)).fetchall()
    return [
        TermsChange(at=from_micros(at), actor=actor, kind=kind, what=from_json(body))
        for at, kind, actor, body in rows
    ]


def newly_tagged(schema: Schema, earlier: Schema | None) -> dict[str, str]:
    """Columns that `schema` marks, or that `earlier` did and it does not, to be kept as marked."""
    if earlier is not None and earlier.fields == schema.fields:
        return {}
    before = {} if earlier is None else tagged_in(earlier)
    now = tagged_in(schema)
    return {n: what for n, what in {**before, **now}.items() if before.get(n) != now.get(n)}


def keep_tags(tx: Direct, version: DatasetVersion, base: DatasetVersion | None) -> None:
    """Keep what a version's schema marks as personal data, whatever a later schema says of it."""
    if news := newly_tagged(version.schema, base.schema if base is not None else None):
        tx.append(TAGGED, f"{_SUBJECT}{version.dataset}", {"columns": news})


def with_tags(schema: Schema, kinds: Mapping[str, str], *, keep: bool = False) -> Schema:
    """The schema with every column of `kinds` tagged as personal data.

    Args:
        keep: Whether columns stay tagged that are not in `kinds`.
    """
    tags = {f.name: kinds.get(f.name, "") or (f.pii if keep else "") for f in schema.fields}
    if all(field.pii == tags[field.name] for field in schema.fields):
        return schema
    fields = (msgspec.structs.replace(f, pii=tags[f.name]) for f in schema.fields)
    return msgspec.structs.replace(schema, fields=tuple(fields))
