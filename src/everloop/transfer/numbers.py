"""What is called otherwise here than there in a merge: numbers of versions, ids, paths."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import MAIN
from everloop.tracking.places import OURS, path_within
from everloop.transfer.report import Findings
from everloop.transfer.rows import dicts

__all__ = ["Merging", "Numbers", "merge_datasets"]


class Numbers:
    """What is called how here, and what names it rewritten.

    Attributes:
        datasets: By name and number there the number here; likewise `models`.
        folders: By a folder of artifacts there, such as one of an experiment, the folder here.
    """

    def __init__(self) -> None:
        self.datasets: dict[tuple[str, int], int] = {}
        self.models: dict[tuple[str, int], int] = {}
        self.folders: dict[str, str] = {}

    def subject(self, subject: str) -> str:
        """What `subject` is called here; empty if it was not merged."""
        kind = subject.partition(":")[0]
        if kind == "dataset":
            return self._numbered(subject, self.datasets, "@")
        if kind == "model":
            return self._numbered(subject, self.models, "/")
        if kind == "experiment":
            return f"experiment:{self._experiment(subject.partition(':')[2])}"
        return subject

    def _experiment(self, id_: str) -> str:
        return self.folders.get(id_, id_)

    @staticmethod
    def _numbered(subject: str, known: dict[tuple[str, int], int], mark: str) -> str:
        kind, _, rest = subject.partition(":")
        if mark not in rest:  # the name itself, which is the same here
            return subject
        name, _, number = rest.rpartition(mark)
        if not number.isdecimal() or (name, int(number)) not in known:
            return ""
        return f"{kind}:{name}{mark}{known[name, int(number)]}"

    def path(self, path: str) -> str:
        """The path of an artifact; that of no folder which was merged stays as it is."""
        head = path
        while head:
            if head in self.folders:
                return self.folders[head] + path[len(head) :]
            head = head.rpartition("/")[0]
        return path

    def uri(self, uri: str) -> str:
        """A URI, which may name an artifact of the workspace that it is from."""
        path = path_within(uri)
        return uri if path is None else f"{OURS}{self.path(path)}"

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
        if isinstance(body.get("experiment"), str):
            changed["experiment"] = self._experiment(body["experiment"])
        if before != now:
            changed["merged_from"] = before
            if kind in ("dataset.VersionCommitted", "dataset.BranchCommitted"):
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
    for dataset in dicts(there, select(names).order_by(names.c.name)):
        name = dataset["name"]
        rows = dicts(there, select(versions).where(versions.c.dataset == name))
        is_new = here.insert_new(names, dataset)
        known = {} if is_new else _digests(here, name)
        latest = 0 if is_new else max(known, default=0)
        newest = 0
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
            lost = missing & _objects_of(row)
            if lost:
                reason = f"its object {min(lost)} is missing"
                findings.fail("dataset version", f"{name}@{number}", reason)
                continue
            latest = number if is_new else latest + 1
            fresh = row | {"number": latest}
            for before in ("parent", "merged"):
                if row[before]:
                    fresh[before] = numbers.datasets.get((name, row[before]), 0)
            if not is_new:
                fresh["note"] = f"{row['note']} (merged from {origin}, {name}@{number})".strip()
            here.execute(versions.insert().values(fresh))
            known[latest] = row["digest"]
            newest = latest if row["branch"] == MAIN else newest
            numbers.datasets[name, number] = latest
            findings.add("dataset version", imported=1)
        if not is_new and newest:
            older = (names.c.name == name) & (names.c.latest < newest)
            here.execute(names.update().where(older).values(latest=newest))
        _merge_tags(now, name)
        _merge_branches(now, name)
        _merge_pulls(now, name)


def _objects_of(row: dict[str, Any]) -> set[str]:
    named = {row["layout"], row["root"], *(block["digest"] for block in row["blocks"])}
    return named | {block.get("hashes", "") for block in row["blocks"]}


def _merge_tags(now: Merging, name: str) -> None:
    """Merge tags: one that is set here stays."""
    table, findings = tables.dataset_tags, now.findings
    query = select(table).where(table.c.dataset == name).order_by(table.c.tag)
    known = {row["tag"]: row["number"] for row in dicts(now.here, query)}
    for row in dicts(now.there, query):
        findings.add("dataset tag", found=1)
        number = now.numbers.datasets.get((name, row["number"]), 0)
        tag = f"{name}@{row['tag']}"
        if row["tag"] in known:
            findings.add("dataset tag", there=1)
            if known[row["tag"]] != number:
                findings.note(f"tag {tag} is set here and stays at version {known[row['tag']]}")
        elif not number:
            findings.fail("dataset tag", tag, "its version could not be merged")
        else:
            now.here.execute(table.insert().values(row | {"number": number}))
            findings.add("dataset tag", imported=1)


def _merge_branches(now: Merging, name: str) -> None:
    """Merge branches: one that is here stays where it is, and what came of it has its versions."""
    table, findings = tables.dataset_branches, now.findings
    query = select(table).where(table.c.dataset == name).order_by(table.c.branch)
    known = {row["branch"]: row["number"] for row in dicts(now.here, query)}
    for row in dicts(now.there, query):
        findings.add("dataset branch", found=1)
        base, number = (
            now.numbers.datasets.get((name, row[which]), 0) for which in ("base", "number")
        )
        branch = f"{name}@{row['branch']}"
        if row["branch"] in known:
            findings.add("dataset branch", there=1)
            if known[row["branch"]] != number:
                at = known[row["branch"]]
                findings.note(f"branch {branch} is here and stays at version {at}, not {number}")
        elif not number:
            findings.fail("dataset branch", branch, "its version could not be merged")
        else:
            fresh = row | {"base": base, "number": number}
            now.here.execute(table.insert().values(fresh))
            findings.add("dataset branch", imported=1)


def _merge_pulls(now: Merging, name: str) -> None:
    """Merge the records of pulls with the versions that they are of."""
    table = tables.data_pulls
    query = select(table).where(table.c.dataset == name).order_by(table.c.pk)
    known = {(row["number"], row["at"]) for row in dicts(now.here, query)}
    for row in dicts(now.there, query):
        number = now.numbers.datasets.get((name, row["number"]), 0)
        if number and (number, row["at"]) not in known:
            del row["pk"]
            pull = row["pull"] | {"number": number}
            now.here.execute(table.insert().values(row | {"number": number, "pull": pull}))


def _digests(tx: Transaction, name: str) -> dict[int, str]:
    table = tables.dataset_versions
    query = select(table.c.number, table.c.digest).where(table.c.dataset == name)
    return {row.number: row.digest for row in tx.all(query.order_by(table.c.number))}
