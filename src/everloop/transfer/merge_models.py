"""Models in a merge: versions, aliases with their history and protection, and what was deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Table, or_, select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.model import AliasMove
from everloop.core.schema import canonical_json
from everloop.errors import GateRefused
from everloop.registry import seal
from everloop.registry.history import MERGED, histories
from everloop.registry.trash import used_numbers
from everloop.registry.write import move_alias
from everloop.transfer.numbers import Merging
from everloop.transfer.rows import dicts, fresh

__all__ = ["MERGED_TAG", "merge_models"]

#: Where a version came from that follows others here under another number.
MERGED_TAG = "everloop.merged_from"
_RULE = ("gates", "approvals", "four_eyes", "rollback")


def merge_models(now: Merging) -> None:
    """Merge models: the same content of the same run is one version, others follow what is here.

    No version is live or a candidate here by a merge, and no alias is moved that is set here.
    """
    there, here, numbers, missing, findings, _ = now
    models = tables.models
    moves = histories(there)
    for model in dicts(there, select(models).order_by(models.c.name)):
        name = model["name"]
        used = used_numbers(here, name)
        is_new = here.insert_new(models, model | {"latest": max(model["latest"], used)})
        latest = int(here.scalar(select(models.c.latest).where(models.c.name == name)))
        if is_new:
            latest = used
        else:
            _complete(here, models, model, "name")
        known = {_identity(row): row["version"] for row in _versions(here, name)}
        for row in _versions(there, name):
            findings.add("model version", found=1)
            number = row["version"]
            identity = _identity(row, now)
            if identity in known:
                numbers.models[name, number] = known[identity]
                findings.add("model version", there=1)
                same = row | {"version": known[identity]}
                _complete(here, tables.model_versions, same, "name", "version")
                continue
            lost = missing & _objects_of(row)
            if lost:
                reason = f"its object {min(lost)} is missing"
                findings.fail("model version", f"{name}/{number}", reason)
                continue
            latest = number if is_new and not used else latest + 1
            _insert_version(now, row, latest)
            known[identity] = latest
            numbers.models[name, number] = latest
            findings.add("model version", imported=1)
        latest = _merge_deleted_versions(now, name, known, latest, keep=is_new and not used)
        older = (models.c.name == name) & (models.c.latest < latest)
        here.execute(models.update().where(older).values(latest=latest))
        _merge_history(now, name, moves.get(name, []))
        _merge_aliases(now, name)
        _merge_rules(now, name)
        _merge_approvals(now, name)
    _merge_deleted_models(now)


def _complete(here: Transaction, table: Table, row: dict[str, Any], *key: str) -> None:
    """Add what a row here has nothing of: tags, a description, an owner, a card."""
    its = [table.c[name] == row[name] for name in key]
    [now] = dicts(here, select(table).where(*its))
    added = {"tags": row["tags"] | now["tags"]}
    for name in ("description", "owner", "card"):
        if name in row:
            added[name] = now[name] or row[name]
    if any(now[name] != value for name, value in added.items()):
        here.execute(table.update().where(*its).values(added))


def _insert_version(now: Merging, row: dict[str, Any], number: int) -> None:
    state = row["state"] if row["state"] == "draft" else "archived"
    values = _renumbered(now, row, number) | {"state": state}
    now.here.execute(tables.model_versions.insert().values(values))


def _renumbered(now: Merging, row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row of a version under its number here, signed anew if its signature held."""
    was, name = row["version"], row["name"]
    manifest = row["manifest"]
    told = {
        "data": now.numbers.data(manifest["data"]),
        "source": now.numbers.uri(manifest["source"]),
    }
    if number != was or any(manifest[key] != value for key, value in told.items()):
        manifest = seal.changed(manifest, name, was, told, number=number)
    values = row | {"version": number, "manifest": manifest}
    if number != was:
        values["tags"] = row["tags"] | {MERGED_TAG: f"{now.origin}: {name}/{was}"}
    return values


def _merge_aliases(now: Merging, name: str) -> None:
    there, here, numbers, _, findings, origin = now
    table = tables.aliases
    query = select(table).where(table.c.name == name).order_by(table.c.alias)
    known = {row.alias: row.version for row in here.all(query)}
    for row in there.all(query):
        number = numbers.models.get((name, row.version))
        findings.add("alias", found=1)
        if row.alias in known:
            findings.add("alias", there=1)
            if known[row.alias] != number:
                stays = f"stays at version {known[row.alias]}"
                findings.note(f"alias {name}@{row.alias} is set here and {stays}")
        elif number is None:
            findings.fail("alias", f"{name}@{row.alias}", "its version could not be merged")
        else:
            try:
                move_alias(here, name, row.alias, number, reason=f"merged from {origin}")
            except GateRefused as error:  # it is protected here
                findings.fail("alias", f"{name}@{row.alias}", error.message)
            else:
                findings.add("alias", imported=1)


def _versions(tx: Transaction, name: str) -> list[dict[str, Any]]:
    table = tables.model_versions
    return dicts(tx, select(table).where(table.c.name == name).order_by(table.c.version))


def _identity(row: dict[str, Any], now: Merging | None = None) -> bytes:
    """What makes two versions one: content and run, and the time where there is no content.

    Args:
        row: A version, also one from the trash.
        now: Given for a version of there, whose source may be called otherwise here.
    """
    manifest = row["manifest"]
    content, source = manifest["content"], manifest["source"]
    if now is not None:
        source = now.numbers.uri(source)
    told = "" if content else msgspec.convert(row["created_at"], datetime).isoformat()
    return canonical_json([content, manifest["digest"], source, row["run_id"], told])


def _objects_of(row: dict[str, Any]) -> set[str]:
    manifest = row["manifest"]
    digests = {file["digest"] for file in manifest["files"]}
    return digests | {row["card"], manifest["reference"]} - {""}


# --- history and protection of aliases --------------------------------------------------------


def _merge_history(now: Merging, name: str, moves: list[AliasMove]) -> None:
    """Tell of the moves there as such; they moved nothing here and let nothing return here."""
    events = tables.events
    rows = []
    for move in moves:
        before, after = (now.numbers.models.get((name, at), 0) for at in (move.before, move.after))
        body = {
            "alias": move.alias,
            "from": before,
            "to": after,
            "reason": move.reason,
            "evidence": move.evidence,
            "origin": move.origin or f"{now.origin}: {name} {move.before} -> {move.after}",
        }
        rows.append(
            {
                "id": move.event,
                "at": move.at,
                "kind": MERGED,
                "subject": f"model:{name}/{after or before}",
                "actor": move.actor,
                "cause": "",
                "body": body,
            }
        )
    news = fresh(now.here, events, rows)
    if news:
        now.here.execute(events.insert(), news)
    now.findings.count("alias move", len(rows), len(news))


def _merge_rules(now: Merging, name: str) -> None:
    """Protect what is protected there; a rule that is here stays as it is."""
    table = tables.alias_rules
    query = select(table).where(table.c.name == name).order_by(table.c.alias)
    known = {row["alias"]: row for row in dicts(now.here, query)}
    rows = dicts(now.there, query)
    news = [row for row in rows if row["alias"] not in known]
    if news:
        now.here.execute(table.insert(), news)
    now.findings.count("protection", len(rows), len(news))
    for row in rows:
        if row["alias"] in known and not _is_same_rule(known[row["alias"]], row):
            now.findings.note(f"alias {name}@{row['alias']} is protected otherwise here")


def _is_same_rule(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in _RULE)


def _merge_approvals(now: Merging, name: str) -> None:
    """Take approvals, but none that would count for a rule that only this workspace has."""
    table, rules = tables.approvals, tables.alias_rules
    of_model = select(rules).where(rules.c.name == name)
    there, here = (
        {row["alias"]: row for row in dicts(tx, of_model)} for tx in (now.there, now.here)
    )
    rows = []
    for row in dicts(now.there, select(table).where(table.c.name == name)):
        alias, number = row["alias"], now.numbers.models.get((name, row["version"]))
        if number is None:
            continue
        if alias in here and not (alias in there and _is_same_rule(here[alias], there[alias])):
            text = f"approvals of {name} for {alias!r} do not count for the rule that is here"
            now.findings.note(text)
        else:
            rows.append(row | {"version": number})
    query = select(table.c.version, table.c.alias, table.c.actor).where(table.c.name == name)
    known = {tuple(row) for row in now.here.all(query)}
    news = [row for row in rows if (row["version"], row["alias"], row["actor"]) not in known]
    if news:
        now.here.execute(table.insert(), news)
    now.findings.count("approval", len(rows), len(news))


# --- what was deleted -------------------------------------------------------------------------


def _merge_deleted_versions(
    now: Merging, name: str, known: dict[bytes, int], latest: int, *, keep: bool
) -> int:
    """Take versions that can be restored, each with a number of its own; the last one then."""
    table = tables.trash
    query = select(table).where(table.c.kind == "model_version", table.c.name == name)
    for row in dicts(now.there, query.order_by(table.c.version)):
        body = dict(row["body"])
        [version] = body["model_versions"]
        number = _known_deleted(now, row["id"]) or known.get(_identity(version, now), 0)
        now.findings.add("deleted", found=1, there=bool(number))
        if not number:
            number = row["version"] if keep else latest + 1
            body["model_versions"] = [_renumbered(now, version, number)]
            for part in ("aliases", "approvals"):
                body[part] = [{**item, "version": number} for item in body[part]]
            # One that left before the model was made here would be another model's.
            model = select(tables.models.c.created_at).where(tables.models.c.name == name)
            is_older = row["deleted_at"] < now.here.scalar(model)
            at = now.here.now if is_older else row["deleted_at"]
            values = {"version": number, "body": body, "deleted_at": at}
            now.here.execute(table.insert().values(row | values))
            now.findings.add("deleted", imported=1)
        latest = max(latest, number)
        now.numbers.models[name, row["version"]] = number
    return latest


def _known_deleted(now: Merging, id_: str) -> int:
    """Under which number a version that was deleted there is here, deleted or restored since."""
    table, events = tables.trash, tables.events
    number = now.here.scalar(select(table.c.version).where(table.c.id == id_))
    if number is not None:
        return int(number)
    query = select(events).where(events.c.kind == "model.VersionRestored")
    for row in now.here.all(query):
        if row.body.get("trash") == id_:
            return int(row.subject.rpartition("/")[2])
    return 0


def _merge_deleted_models(now: Merging) -> None:
    table, events = tables.trash, tables.events
    restored = select(events.c.body).where(events.c.kind == "model.Restored")
    back = {row.body.get("trash") for row in now.here.all(restored)}
    known = back | {row.id for row in now.here.all(select(table.c.id))}
    # With versions that were deleted before their model was.
    alone = or_(table.c.kind == "model", table.c.name.not_in(select(tables.models.c.name)))
    rows = dicts(now.there, select(table).where(alone))
    news = [row for row in rows if row["id"] not in known]
    taken = {row.name for row in now.here.all(select(tables.models.c.name))}
    for row in rows:
        if row["name"] not in taken:  # what is told of it can mean no other model
            for item in row["body"]["model_versions"]:
                at = (row["name"], item["version"])
                now.numbers.models.setdefault(at, item["version"])
    for row in news:
        body = dict(row["body"])
        versions = body["model_versions"]
        body["model_versions"] = [_renumbered(now, item, item["version"]) for item in versions]
        now.here.execute(table.insert().values(row | {"body": body}))
    now.findings.count("deleted", len(rows), len(news))
