"""Versions of datasets and models in a merge: which number there is which number here."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Transaction
from everloop.core.schema import canonical_json
from everloop.errors import GateRefused
from everloop.registry.write import move_alias
from everloop.transfer.report import Findings

__all__ = ["MERGED_TAG", "Merging", "Numbers", "merge_datasets", "merge_models"]

#: Where a version came from that follows others here under another number.
MERGED_TAG = "everloop.merged_from"


class Numbers:
    """By name and number there the number here, and what names them rewritten."""

    def __init__(self) -> None:
        self.datasets: dict[tuple[str, int], int] = {}
        self.models: dict[tuple[str, int], int] = {}

    def subject(self, subject: str) -> str:
        """What `subject` is called here; empty if it was not merged."""
        kind = subject.partition(":")[0]
        if kind == "dataset":
            return self._numbered(subject, self.datasets, "@")
        if kind == "model":
            return self._numbered(subject, self.models, "/")
        return subject

    @staticmethod
    def _numbered(subject: str, known: dict[tuple[str, int], int], mark: str) -> str:
        kind, _, rest = subject.partition(":")
        name, _, number = rest.rpartition(mark)
        if not number.isdecimal() or (name, int(number)) not in known:
            return ""
        return f"{kind}:{name}{mark}{known[name, int(number)]}"

    def data(self, versions: dict[str, int]) -> dict[str, int]:
        """Dataset versions by name, as they are numbered here."""
        return {name: self.datasets.get((name, at), at) for name, at in versions.items()}

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of ``run_inputs``."""
        at = (row["dataset"], row["version"])
        return row | {"version": self.datasets.get(at, row["version"])}

    def body(self, kind: str, before: str, now: str, body: dict[str, Any]) -> dict[str, Any]:
        """The facts of an event whose subject was `before` and is `now`."""
        changed = dict(body)
        if isinstance(body.get("data"), dict):
            changed["data"] = self.data(body["data"])
        if before != now:
            changed["merged_from"] = before
            if kind == "dataset.VersionCommitted":
                changed["number"] = int(now.rpartition("@")[2])
        return changed


class Merging(NamedTuple):
    """A merge within one transaction here.

    Attributes:
        missing: Digests of objects that could not be taken.
        origin: Where it comes from, for notes and events.
    """

    there: Transaction
    here: Transaction
    numbers: Numbers
    missing: set[str]
    findings: Findings
    origin: str


def merge_datasets(now: Merging) -> None:
    """Merge datasets: versions of the same digest are one, others follow what is here."""
    there, here, numbers, missing, findings, origin = now
    names, versions = tables.datasets, tables.dataset_versions
    for dataset in _dicts(there, select(names).order_by(names.c.name)):
        name = dataset["name"]
        rows = _dicts(there, select(versions).where(versions.c.dataset == name))
        is_new = here.insert_new(names, dataset)
        known = {} if is_new else _digests(here, name)
        latest = 0 if is_new else max(known, default=0)
        for row in sorted(rows, key=lambda item: int(item["number"])):
            number = row["number"]
            findings.add("dataset version", found=1)
            same = number if known.get(number) == row["digest"] else 0
            if not same and not is_new:
                same = next((n for n, digest in known.items() if digest == row["digest"]), 0)
            if same:
                numbers.datasets[name, number] = same
                findings.add("dataset version", there=1)
                continue
            lost = missing & {block["digest"] for block in row["blocks"]}
            if lost:
                reason = f"its block {min(lost)} is missing"
                findings.fail("dataset version", f"{name}@{number}", reason)
                continue
            latest = number if is_new else latest + 1
            fresh = row | {"number": latest}
            if row["parent"]:
                fresh["parent"] = numbers.datasets.get((name, row["parent"]), 0)
            if not is_new:
                fresh["note"] = f"{row['note']} (merged from {origin}, {name}@{number})".strip()
            here.execute(versions.insert().values(fresh))
            known[latest] = row["digest"]
            numbers.datasets[name, number] = latest
            findings.add("dataset version", imported=1)
        if not is_new and latest:
            older = (names.c.name == name) & (names.c.latest < latest)
            here.execute(names.update().where(older).values(latest=latest))


def _digests(tx: Transaction, name: str) -> dict[int, str]:
    table = tables.dataset_versions
    query = select(table.c.number, table.c.digest).where(table.c.dataset == name)
    return {row.number: row.digest for row in tx.all(query.order_by(table.c.number))}


def merge_models(now: Merging) -> None:
    """Merge models: the same content of the same run is one version, others follow what is here.

    No version is live or a candidate here by a merge, and no alias is moved that is set here.
    """
    there, here, numbers, missing, findings, _ = now
    models = tables.models
    for model in _dicts(there, select(models).order_by(models.c.name)):
        name = model["name"]
        used = _used(here, name)
        is_new = here.insert_new(models, model | {"latest": max(model["latest"], used)})
        latest = int(here.scalar(select(models.c.latest).where(models.c.name == name)))
        if is_new:
            latest = used
        known = {_identity(row): row["version"] for row in _versions(here, name)}
        for row in _versions(there, name):
            findings.add("model version", found=1)
            number = row["version"]
            if _identity(row) in known:
                numbers.models[name, number] = known[_identity(row)]
                findings.add("model version", there=1)
                continue
            lost = missing & _objects_of(row)
            if lost:
                reason = f"its object {min(lost)} is missing"
                findings.fail("model version", f"{name}/{number}", reason)
                continue
            latest = number if is_new and not used else latest + 1
            _insert_version(now, row, latest)
            known[_identity(row)] = latest
            numbers.models[name, number] = latest
            findings.add("model version", imported=1)
        older = (models.c.name == name) & (models.c.latest < latest)
        here.execute(models.update().where(older).values(latest=latest))
        _merge_aliases(now, name)


def _used(here: Transaction, name: str) -> int:
    """The highest number that a model of this name gave out here before it was deleted."""
    events = tables.events
    kinds = ("model.Deleted", "model.Renamed")
    query = select(events.c.body).where(
        events.c.subject == f"model:{name}", events.c.kind.in_(kinds)
    )
    return max((int(row.body.get("latest", 0)) for row in here.all(query)), default=0)


def _insert_version(now: Merging, row: dict[str, Any], number: int) -> None:
    manifest = row["manifest"] | {"data": now.numbers.data(row["manifest"]["data"])}
    state = row["state"] if row["state"] == "draft" else "archived"
    fresh = row | {"version": number, "manifest": manifest, "state": state}
    if number != row["version"]:
        note = {MERGED_TAG: f"{now.origin}: {row['name']}/{row['version']}"}
        fresh["tags"] = row["tags"] | note
    now.here.execute(tables.model_versions.insert().values(fresh))


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
    return _dicts(tx, select(table).where(table.c.name == name).order_by(table.c.version))


def _identity(row: dict[str, Any]) -> bytes:
    """What makes two versions one: content and run, and the time where there is no content."""
    manifest = row["manifest"]
    content = manifest["content"]
    told = "" if content else row["created_at"].isoformat()
    return canonical_json([content, manifest["digest"], manifest["source"], row["run_id"], told])


def _objects_of(row: dict[str, Any]) -> set[str]:
    manifest = row["manifest"]
    digests = {file["digest"] for file in manifest["files"]}
    return digests | {row["card"], manifest["reference"]} - {""}


def _dicts(tx: Transaction, query: Any) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row._mapping.items()} for row in tx.all(query)]
