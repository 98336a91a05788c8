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
from everloop.catalog.transaction import Transaction
from everloop.core.compat import compatible
from everloop.core.context import current_actor
from everloop.core.machines import next_version_state
from everloop.core.model import Compatibility, Model, ModelVersion, VersionState
from everloop.errors import Conflict, GateRefused, InvalidInput, NotFound
from everloop.registry import protection
from everloop.registry.seal import signer_of

__all__ = [
    "change_state",
    "check_alias",
    "check_expected",
    "check_name",
    "compatibility",
    "load_model",
    "load_version",
    "move_alias",
    "tell_move",
    "to_model",
    "to_version",
]

_ALIAS = re.compile(r"[\w-]{1,255}")
_MAX_NAME = 256


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
            f"Invalid alias name: {alias[:80]!r}",
            hint="use letters, digits, '_' and '-', at most 255",
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise InvalidInput(
            f"Invalid alias name: {alias!r} is reserved", hint="use another, such as champion"
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
    manifest["signed_by"] = signer_of(manifest)
    # Keys as plain text: the driver's own kind of text is none to msgspec.
    rest = {str(key): value for key, value in row._mapping.items() if key != "manifest"}
    return msgspec.convert({**manifest, **rest}, ModelVersion)


def move_alias(
    tx: Transaction,
    name: str,
    alias: str,
    version: int,
    *,
    expected: int | None = None,
    reason: str = "",
    evidence: str = "",
    cause: str = "",
) -> None:
    """Point `alias` at `version`; nothing happens, and no event, if it points there already.

    Args:
        expected: The version it must point at now, 0 for none; None moves it from wherever.
        evidence: Id of the verdict that allows it, or empty.
        cause: Id of the event that led here; the ambient cause if empty.

    Raises:
        Conflict: If it does not point at `expected`; ``details["winner"]`` says where.
        GateRefused: If it is protected and something is missing; ``details["missing"]`` lists it.
        NotFound: If there is no such version.
        InvalidInput: If the alias is malformed.
    """
    check_alias(alias)
    found = load_version(tx, name, version)
    now = check_expected(tx, name, alias, expected)
    if now == version:
        return
    rule = protection.rule_of(tx, name, alias)
    if rule is not None:
        actor = current_actor() or tx.actor
        missing = protection.missing(tx, rule, found, actor)
        if missing:
            raise GateRefused(
                f"{alias!r} of {name!r} is protected and cannot move to version {version}: "
                + "; ".join(missing),
                hint=f"everloop model approve {name}/{version} {alias}"
                if all("approval" in item for item in missing)
                else "record a passed verdict that holds these gates, or change the rule",
                details={"missing": missing, "verdict": evidence},
            )
    row = {"name": name, "alias": alias, "version": version, "updated_at": tx.now}
    tx.upsert(tables.aliases, row, ("name", "alias"))
    tell_move(tx, name, alias, now, version, reason=reason, evidence=evidence, cause=cause)


def check_expected(tx: Transaction, name: str, alias: str, expected: int | None) -> int:
    """The version that an alias points at now, 0 for none.

    Raises:
        Conflict: If it is not `expected`, where that is given.
    """
    table = tables.aliases
    here = (table.c.name == name, table.c.alias == alias)
    now = int(tx.scalar(select(table.c.version).where(*here)) or 0)
    if expected is not None and now != expected:
        raise Conflict(
            f"alias {alias!r} of {name!r} points at {now or 'nothing'}, not at"
            f" {expected or 'nothing'}",
            hint="read it again and decide anew",
            details={"winner": now},
        )
    return now


def tell_move(
    tx: Transaction,
    name: str,
    alias: str,
    before: int,
    after: int,
    *,
    reason: str = "",
    evidence: str = "",
    cause: str = "",
) -> None:
    """Append the event of an alias that moved; it is about the version that it points at then."""
    body = {"alias": alias, "from": before, "to": after, "reason": reason, "evidence": evidence}
    tx.append("model.AliasMoved", f"model:{name}/{after or before}", body, cause=cause)


def compatibility(tx: Transaction, name: str, manifest: dict[str, Any]) -> Compatibility | None:
    """The signature of a manifest beside the champion's; None where one of them is missing."""
    table = tables.aliases
    champion = select(table.c.version).where(table.c.name == name, table.c.alias == "champion")
    number = tx.scalar(champion)
    if number is None or not manifest["signature"].inputs.fields:
        return None
    old = load_version(tx, name, int(number)).signature
    if not old.inputs.fields:
        return None
    return compatible(old, manifest["signature"], against=int(number))


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
    after = next_version_state(found.state, state, f"{found.ref} is {found.state}")
    table = tables.model_versions
    where = (table.c.name == name, table.c.version == version)
    tx.execute(table.update().where(*where).values(state=after, updated_at=tx.now))
    body = {"from": found.state, "to": after, "reason": reason, "evidence": evidence}
    tx.append("model.StateChanged", f"model:{name}/{version}", body, cause=cause)
