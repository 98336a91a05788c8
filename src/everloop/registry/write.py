"""Statements of the registry that others run inside their own transaction.

A promotion moves traffic, alias and states together or not at all, so deployment calls these
within its transaction instead of calling the service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Row, func, select

from everloop.catalog import tables
from everloop.catalog.engine import Transaction
from everloop.core.model import Model, ModelVersion, VersionState
from everloop.errors import Conflict, InvalidInput, NotFound, StateError

__all__ = [
    "change_state",
    "check_alias",
    "check_name",
    "load_model",
    "load_version",
    "move_alias",
    "to_model",
    "to_version",
]

_ALIAS = re.compile(r"[\w-]{1,255}")
_MAX_NAME = 256

# What may follow what. Nothing returns to draft: whatever was judged or served has a history.
_MOVES: dict[VersionState, tuple[VersionState, ...]] = {
    "draft": ("candidate", "live", "archived"),
    "candidate": ("live", "archived"),
    "live": ("archived", "candidate"),
    "archived": ("candidate", "live"),
}


def check_name(name: str) -> None:
    """Refuse what cannot name a model: blank, ``/ : @``, control characters, over 256 letters."""
    faults = []
    if not name.strip():
        faults.append(("name", "must not be blank"))
    else:
        if len(name) > _MAX_NAME:
            faults.append(("name", f"has {len(name)} letters, {_MAX_NAME} are allowed"))
        if name in (".", ".."):
            faults.append(("name", "must be no path"))
        bad = sorted({letter for letter in name if letter in "/:@" or not letter.isprintable()})
        if bad:
            faults.append(("name", f"must not hold {', '.join(map(repr, bad))}"))
    if faults:
        raise InvalidInput(f"{name[:80]!r} cannot name a model", faults)


def check_alias(alias: str) -> None:
    """Refuse what cannot be an alias: signs but letters, digits, ``_-``; ``latest``; ``v3``."""
    if not _ALIAS.fullmatch(alias):
        raise InvalidInput(
            f"{alias[:80]!r} cannot be an alias",
            hint="use letters, digits, '_' and '-', at most 255",
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise InvalidInput(
            f"{alias!r} is reserved and cannot be an alias", hint="use another, such as champion"
        )


def load_model(tx: Transaction, name: str) -> Model:
    """The model called `name`; raises NotFound with near names."""
    row = tx.first(select(tables.models).where(tables.models.c.name == name))
    if row is None:
        names = [found.name for found in tx.all(select(tables.models.c.name))]
        raise NotFound.named("model", name, names)
    query = select(tables.aliases).where(tables.aliases.c.name == name)
    return to_model(row, tx.all(query))


def to_model(row: Row[Any], aliases: Iterable[Row[Any]]) -> Model:
    """A row of ``models`` with its rows of ``aliases``."""
    return Model(**row._asdict(), aliases={found.alias: found.version for found in aliases})


def load_version(tx: Transaction, name: str, version: int) -> ModelVersion:
    """A version of a model; raises NotFound that says what there is."""
    table = tables.model_versions
    if 0 < version < 1 << 31:  # what the column holds
        row = tx.first(select(table).where(table.c.name == name, table.c.version == version))
        if row is not None:
            return to_version(row)
    load_model(tx, name)
    query = select(func.count(), func.min(table.c.version), func.max(table.c.version))
    count, first, last = tuple(tx.all(query.where(table.c.name == name))[0])
    raise NotFound(
        f"no version {version!r} of model {name!r}",
        hint=f"there are {count}, from {first} to {last}" if count else "it has no version yet",
        details={"kind": "model version", "name": f"{name}/{version}"},
    )


def to_version(row: Row[Any]) -> ModelVersion:
    """A row of ``model_versions`` as a manifest."""
    manifest = dict(row.manifest)
    # Kept as text: a metric may be NaN or infinite, which JSON cannot say.
    manifest["metrics"] = {key: float(value) for key, value in manifest["metrics"].items()}
    manifest.pop("content")
    # Keys as plain text: the driver's own kind of text is none to msgspec.
    rest = {str(key): value for key, value in row._mapping.items() if key != "manifest"}
    return msgspec.convert({**manifest, **rest}, ModelVersion)


def move_alias(
    tx: Transaction,
    name: str,
    alias: str,
    version: int,
    *,
    expect: int | None = None,
    reason: str = "",
    evidence: str = "",
    cause: str = "",
) -> None:
    """Point `alias` at `version`; nothing happens, and no event, if it points there already.

    Args:
        expect: The version it must point at now, 0 for none; None moves it from wherever.
        evidence: Id of the verdict that allows it, or empty.
        cause: Id of the event that led here; the ambient cause if empty.

    Raises:
        Conflict: If it does not point at `expect`; ``details["winner"]`` says where.
        NotFound: If there is no such version.
        InvalidInput: If the alias is malformed.
    """
    check_alias(alias)
    load_version(tx, name, version)
    table = tables.aliases
    here = (table.c.name == name, table.c.alias == alias)
    now = int(tx.scalar(select(table.c.version).where(*here)) or 0)
    if expect is not None and now != expect:
        raise Conflict(
            f"alias {alias!r} of {name!r} points at {now or 'nothing'}, not at {expect or 'none'}",
            hint="read it again and decide anew",
            details={"winner": now},
        )
    if now == version:
        return
    row = {"name": name, "alias": alias, "version": version, "updated_at": tx.now}
    tx.upsert(table, row, ("name", "alias"))
    body = {"alias": alias, "from": now, "to": version, "reason": reason, "evidence": evidence}
    tx.append("model.AliasMoved", f"model:{name}/{version}", body, cause=cause)


def change_state(
    tx: Transaction,
    name: str,
    version: int,
    state: VersionState,
    *,
    reason: str = "",
    evidence: str = "",
    cause: str = "",
) -> None:
    """Put a version into `state`; nothing happens if it is there already.

    Raises:
        StateError: If the move is not legal.
        NotFound: If there is no such version.
    """
    found = load_version(tx, name, version)
    if found.state == state:
        return
    if state not in _MOVES[found.state]:
        raise StateError(
            f"{found.ref} is {found.state} and cannot become {state}",
            hint=f"it can become {' or '.join(_MOVES[found.state])}",
        )
    table = tables.model_versions
    where = (table.c.name == name, table.c.version == version)
    tx.execute(table.update().where(*where).values(state=state, updated_at=tx.now))
    body = {"from": found.state, "to": state, "reason": reason, "evidence": evidence}
    tx.append("model.StateChanged", f"model:{name}/{version}", body, cause=cause)
