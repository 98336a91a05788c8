"""The part of the registry that deletes and restores.

What is deleted leaves its tables at once, so its name is free and nobody finds it; its rows lie in
the trash as JSON until they are put back or purged. The objects that they name stay as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, Table, select

from everloop.access.service import action
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.catalog.types import Instant
from everloop.core.context import current_actor
from everloop.core.ids import new_id
from everloop.core.model import Deleted, Model, ModelVersion
from everloop.errors import Conflict, NotFound, StateError
from everloop.registry import protection, seal, write

__all__ = ["TrashMethods", "refuse_used", "rename", "used_numbers"]

#: The tables of a model's rows, in the order in which they can be put back.
_PARTS = (
    tables.models,
    tables.model_versions,
    tables.aliases,
    tables.alias_rules,
    tables.approvals,
)


class TrashMethods:
    """Deletes that can be undone until they are purged (``everloop gc``)."""

    _catalog: Catalog

    @action("model:delete", on="name")
    def delete_model(self, name: str, *, reason: str = "") -> None:
        """Delete a model with all that belongs to it; its name is free at once.

        It can be restored until it is purged. Its numbers are not used again.

        Raises:
            StateError: If a version is live or a candidate, or an alias is protected.
        """
        with self._catalog.write() as tx:
            model = write.load_model(tx, name)
            refuse_used(tx, name, "deleted")
            for rule in protection.rules_of(tx, name):
                raise StateError(
                    f"{name!r} cannot be deleted: its alias {rule.alias!r} is protected",
                    hint=f"first: everloop model protect {name} {rule.alias} --off",
                )
            body = {part.name: _take(tx, part, name) for part in _PARTS}
            trash = _put(tx, "model", name, 0, body)
            for part in reversed(_PARTS):
                tx.execute(part.delete().where(part.c.name == name))
            told = {"latest": model.latest, "trash": trash, "reason": reason}
            tx.append("model.Deleted", f"model:{name}", told)

    @action("model:delete", on="name")
    def delete_version(self, name: str, version: int, *, reason: str = "") -> None:
        """Delete a version and the aliases that point at it; its number is not used again.

        It can be restored until it is purged.

        Raises:
            StateError: If it is live, or a candidate that a rollout may hold, or a protected alias
                points at it.
        """
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            if found.state in ("live", "candidate"):
                raise StateError(
                    f"{found.ref} is {found.state} and cannot be deleted", hint="archive it first"
                )
            parts = (tables.model_versions, tables.aliases, tables.approvals)
            body = {part.name: _take(tx, part, name, version) for part in parts}
            protected = {rule.alias for rule in protection.rules_of(tx, name)}
            for row in body["aliases"]:
                if row["alias"] in protected:
                    raise StateError(
                        f"{found.ref} cannot be deleted: the protected alias {row['alias']!r}"
                        " points at it",
                        hint="move the alias first",
                    )
            trash = _put(tx, "model_version", name, version, body)
            for part in reversed(parts):
                tx.execute(part.delete().where(part.c.name == name, part.c.version == version))
            told = {"digest": found.digest, "trash": trash, "reason": reason}
            event = tx.append("model.VersionDeleted", f"model:{found.ref}", told)
            for row in body["aliases"]:
                write.tell_move(
                    tx, name, row["alias"], version, 0,
                    reason="the version was deleted", cause=event.id,
                )  # fmt: skip

    @action("model:read")
    def deleted(self, name: str = "") -> list[Deleted]:
        """What was deleted (under one name, if it is given) and can be restored, newest first."""
        table = tables.trash
        columns = [column for column in table.columns if column.name != "body"]
        query = select(*columns).order_by(table.c.deleted_at.desc(), table.c.id.desc())
        if name:
            query = query.where(table.c.name == name)
        with self._catalog.read() as tx:
            return [Deleted(**row._asdict()) for row in tx.all(query)]

    @action("model:delete", on="name")
    def restore_model(self, name: str, *, new_name: str = "") -> Model:
        """Put the model that was deleted last under a name back, with all that belonged to it.

        Args:
            new_name: Where the name was taken meanwhile, another for the one that comes back.

        Raises:
            NotFound: If no model of this name was deleted, or it was purged.
            Conflict: If the name is taken.
        """
        target = new_name or name
        write.check_name(target)
        with self._catalog.write() as tx:
            row = self._trashed(tx, "model", name, 0)
            if tx.first(select(tables.models.c.name).where(tables.models.c.name == target)):
                raise Conflict(
                    f"there is a model {target!r} already",
                    hint="give the one that comes back another name (new_name)",
                    details={"winner": target},
                )
            body = row.body if target == name else _renamed(tx, row.body, name, target)
            for part in _PARTS:
                _bring_back(tx, part, body[part.name])
            tx.execute(tables.trash.delete().where(tables.trash.c.id == row.id))
            tx.append("model.Restored", f"model:{target}", {"trash": row.id, "from": name})
            return write.load_model(tx, target)

    @action("model:delete", on="name")
    def restore_version(self, name: str, version: int) -> ModelVersion:
        """Put a deleted version back; aliases that point nowhere since then point at it again.

        Raises:
            NotFound: If it was not deleted, or was purged, or the model itself is deleted.
            Conflict: If a version of this number was imported meanwhile.
        """
        with self._catalog.write() as tx:
            row = self._trashed(tx, "model_version", name, version)
            model = write.load_model(tx, name)
            if model.created_at > row.deleted_at:
                raise NotFound(
                    f"{name}/{version} was deleted from another model of this name",
                    hint="restore that model first, under a new name",
                )
            table = tables.model_versions
            there = (table.c.name == name, table.c.version == version)
            if tx.first(select(table.c.version).where(*there)) is not None:
                raise Conflict(
                    f"there is another version {version} of {name!r} now, imported from elsewhere",
                    details={"winner": version},
                )
            for part in (tables.model_versions, tables.approvals):
                _bring_back(tx, part, row.body[part.name])
            tx.execute(tables.trash.delete().where(tables.trash.c.id == row.id))
            event = tx.append("model.VersionRestored", f"model:{name}/{version}", {"trash": row.id})
            taken = set(write.load_model(tx, name).aliases)
            taken |= {rule.alias for rule in protection.rules_of(tx, name)}
            for alias in row.body["aliases"]:
                if alias["alias"] not in taken:
                    write.move_alias(
                        tx, name, alias["alias"], version,
                        reason="the version was restored", cause=event.id,
                    )  # fmt: skip
            return write.load_version(tx, name, version)

    def _trashed(self, tx: Transaction, kind: str, name: str, version: int) -> Row[Any]:
        table = tables.trash
        query = select(table).where(
            table.c.kind == kind, table.c.name == name, table.c.version == version
        )
        row = tx.first(query.order_by(table.c.deleted_at.desc(), table.c.id.desc()).limit(1))
        if row is not None:
            return row
        what = f"version {version} of model {name!r}" if version else f"model {name!r}"
        others = {found.name for found in tx.all(select(table.c.name).where(table.c.kind == kind))}
        raise NotFound(
            f"no deleted {what}",
            hint=f"deleted and not purged: {', '.join(sorted(others)[:8])}"
            if others
            else "what is past its window is purged by everloop gc",
        )


def refuse_used(tx: Transaction, name: str, what: str) -> None:
    """Refuse to touch a model that a deployment may know.

    Raises:
        StateError: If a version is live or a candidate.
    """
    table = tables.model_versions
    query = select(table.c.version, table.c.state).where(
        table.c.name == name, table.c.state.in_(("live", "candidate"))
    )
    used = tx.first(query)
    if used is not None:
        raise StateError(
            f"{name}/{used.version} is {used.state}, so the model cannot be {what}",
            hint="archive it first",
        )


def used_numbers(tx: Transaction, name: str) -> int:
    """The highest number that a deleted or renamed model of this name had given out."""
    events = tables.events
    query = select(events.c.body).where(
        events.c.subject == f"model:{name}",
        events.c.kind.in_(("model.Deleted", "model.Renamed")),
    )
    return max((row.body.get("latest", 0) for row in tx.all(query)), default=0)


def rename(tx: Transaction, name: str, new_name: str) -> None:
    """Give a model another name; what refers to it by name follows.

    Raises:
        Conflict: If the new name is taken.
    """
    model = write.load_model(tx, name)
    kept = {key: getattr(model, key) for key in ("description", "owner", "tags", "created_at")}
    latest = max(model.latest, used_numbers(tx, new_name))
    row = {**kept, "name": new_name, "latest": latest, "updated_at": tx.now}
    if not tx.insert_new(tables.models, row):
        raise Conflict(f"there is a model {new_name!r} already", details={"winner": new_name})
    seal.renew(tx, name, new_name)
    for table in _PARTS[1:]:
        tx.execute(table.update().where(table.c.name == name).values(name=new_name))
    verdicts = tables.verdicts
    tx.execute(verdicts.update().where(verdicts.c.model == name).values(model=new_name))
    trash = (tables.trash.c.name == name, tables.trash.c.kind == "model_version")
    for found in tx.all(select(tables.trash).where(*trash)):
        body = {
            part: [{**values, "name": new_name} for values in rows]
            for part, rows in found.body.items()
        }
        where = tables.trash.c.id == found.id
        tx.execute(tables.trash.update().where(where).values(name=new_name, body=body))
    tx.execute(tables.models.delete().where(tables.models.c.name == name))
    tx.append(
        "model.Renamed", f"model:{name}", {"from": name, "to": new_name, "latest": model.latest}
    )


def _renamed(
    tx: Transaction, body: dict[str, list[dict[str, Any]]], name: str, new_name: str
) -> dict[str, list[dict[str, Any]]]:
    """The rows of a deleted model for another name; its verdicts follow."""
    body = {part: [{**row, "name": new_name} for row in rows] for part, rows in body.items()}
    for row in body["models"]:
        row["latest"] = max(row["latest"], used_numbers(tx, new_name))
    verdicts = tables.verdicts
    for row in body["model_versions"]:
        row["manifest"] = seal.changed(row["manifest"], name, row["version"], {}, to=new_name)
        its = (verdicts.c.model == name, verdicts.c.candidate == row["version"])
        tx.execute(verdicts.update().where(*its).values(model=new_name))
    return body


def _take(tx: Transaction, table: Table, name: str, version: int = 0) -> list[dict[str, Any]]:
    query = select(table).where(table.c.name == name)
    if version:
        query = query.where(table.c.version == version)
    return [{str(key): value for key, value in row._mapping.items()} for row in tx.all(query)]


def _put(
    tx: Transaction, kind: str, name: str, version: int, body: dict[str, list[dict[str, Any]]]
) -> str:
    empty: dict[str, list[dict[str, Any]]] = {part.name: [] for part in _PARTS}
    row = {
        "id": new_id(),
        "kind": kind,
        "name": name,
        "version": version,
        "body": {**empty, **body},
        "actor": current_actor() or tx.actor,
        "deleted_at": tx.now,
    }
    tx.execute(tables.trash.insert().values(row))
    return str(row["id"])


def _bring_back(tx: Transaction, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    times = [column.name for column in table.columns if isinstance(column.type, Instant)]
    for row in rows:
        values = {**row, **{name: msgspec.convert(row[name], datetime) for name in times}}
        tx.execute(table.insert().values(values))
