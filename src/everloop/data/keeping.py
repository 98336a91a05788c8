"""The part of DataService that lets versions go: rules of retention.

Only whole versions go, and only by a rule that somebody set. What names a version keeps it, with a
reason that can be read: then whoever wonders why the store does not shrink knows whom to ask.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

import msgspec
from sqlalchemy import delete, select, update

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog import erasures as records
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.retention import Expiry, ExpiryItem, RetentionRule
from everloop.data.versions import version_of
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = ["KeepMethods"]

_DAY_US = 86_400_000_000
_MOST_DAYS = 100_000
#: States in which a run may still read what it began with.
_ENDED = ("finished", "failed", "killed")


class KeepMethods:
    """Rules of retention, and what they let go."""

    _catalog: Catalog

    @action("dataset:expire", on="name")
    def keep(self, name: str, *, for_days: float, last: int = 1, reason: str = "") -> RetentionRule:
        """Let versions go that are older than this and not among the last; it replaces a rule.

        Nothing goes at once: ``expire`` and ``everloop gc`` apply the rules.

        Args:
            name: Of the dataset.
            for_days: Younger versions stay.
            last: So many of the newest stay however old they are; at least 1.
            reason: Why.

        Raises:
            NotFound: If there is no such dataset.
            InvalidInput: With every fault of the numbers.
        """
        faults = []
        if not 0 <= for_days <= _MOST_DAYS:
            faults.append(Fault("for_days", f"must be from 0 to {_MOST_DAYS}"))
        if last < 1:
            faults.append(Fault("last", "must be at least 1: the latest version always stays"))
        if faults:
            raise InvalidInput("the rule cannot be kept", faults)
        with self._catalog.write() as tx:
            version_of(tx, name)
            rule = RetentionRule(
                dataset=name,
                keep_us=round(for_days * _DAY_US),
                keep_last=last,
                reason=reason,
                actor=current_actor() or tx.actor,
                updated_at=tx.now,
            )
            tx.upsert(tables.retention_rules, msgspec.structs.asdict(rule), ("dataset",))
            told = {"for_days": for_days, "last": last, "reason": reason}
            tx.append("dataset.RetentionSet", f"dataset:{name}", told)
        return rule

    @action("dataset:expire", on="name")
    def keep_all(self, name: str) -> None:
        """Remove the rule of a dataset: all of its versions stay.

        Raises:
            NotFound: If there is no rule for it.
        """
        table = tables.retention_rules
        with self._catalog.write() as tx:
            known = [rule.dataset for rule in _rules(tx)]
            if not tx.execute(delete(table).where(table.c.dataset == name)).rowcount:
                raise NotFound.named("rule of retention for", name, known)
            tx.append("dataset.RetentionEnded", f"dataset:{name}", {})

    @action("dataset:read")
    def retention(self) -> list[RetentionRule]:
        """The rules, by dataset."""
        with self._catalog.read() as tx:
            return _rules(tx)

    @action("dataset:expire")
    def expire(self, *, dry_run: bool = False) -> Expiry:
        """Apply the rules: versions go, and their objects with the next collection of garbage.

        What a tag, a model version, a run under way or a legal hold names stays, with
        the reason. A version that went is told by the event log and by lineage.

        Args:
            dry_run: Only say what would go.
        """
        if dry_run:
            with self._catalog.read() as tx:
                return Expiry(dry_run=True, items=tuple(_old(tx)))
        with self._catalog.write() as tx:
            items = tuple(_old(tx))
            for item in items:
                if not item.stays:
                    _drop(tx, item)
        return Expiry(dry_run=False, items=items)


def _rules(tx: Transaction) -> list[RetentionRule]:
    table = tables.retention_rules
    rows = tx.all(select(table).order_by(table.c.dataset))
    return [RetentionRule(**row._asdict()) for row in rows]


def _old(tx: Transaction) -> list[ExpiryItem]:
    """The versions that a rule would let go, with what keeps them."""
    rules = _rules(tx)
    reasons = _reasons(tx) if rules else {}
    found = []
    for rule in rules:
        held = tuple(f"legal hold {hold.name}" for hold in records.holds_of(tx, rule.dataset))
        before = tx.now - timedelta(microseconds=rule.keep_us)
        for version in statements.versions(tx, rule.dataset)[: -rule.keep_last]:
            if version.created_at < before:
                why = (*held, *reasons.get((version.dataset, version.number), ()))
                found.append(
                    ExpiryItem(
                        ref=version.ref, created_at=version.created_at, rows=version.rows, stays=why
                    )
                )
    return found


def _reasons(tx: Transaction) -> dict[tuple[str, int], list[str]]:
    """By dataset and number what names a version."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for tag in tx.all(select(tables.dataset_tags)):
        found[tag.dataset, tag.number].append(f"tag {tag.tag}")
    for known in tx.all(select(tables.datasets.c.name, tables.datasets.c.latest)):
        found[known.name, known.latest].append("the latest")
    for line in tx.all(select(tables.dataset_branches)):
        found[line.dataset, line.number].append(f"the latest of branch {line.branch}")
        found[line.dataset, line.base].append(f"branch {line.branch} began there")
    models = tables.model_versions
    live = _live(tx)
    for row in tx.all(select(models.c.name, models.c.version, models.c.manifest)):
        for dataset, number in row.manifest["data"].items():
            why = f"model {row.name}/{row.version}"
            if names := live.get((row.name, row.version)):
                why += f", which {', '.join(names)} serves"
            found[dataset, number].append(why)
    for row in tx.all(select(tables.trash.c.body)):
        for item in row.body.get("model_versions", ()):
            for dataset, number in item["manifest"]["data"].items():
                found[dataset, number].append(f"deleted model {item['name']}, until it is purged")
    runs, inputs = tables.runs, tables.run_inputs
    query = select(inputs.c.dataset, inputs.c.version, runs.c.id).join(
        runs, runs.c.pk == inputs.c.run_pk
    )
    for row in tx.all(query.where(runs.c.state.not_in(_ENDED), runs.c.lease_until >= tx.now)):
        found[row.dataset, row.version].append(f"run {row.id}, which is under way")
    return found


def _live(tx: Transaction) -> dict[tuple[str, int], list[str]]:
    """By model version the deployments that have it."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    deployments = tables.deployments
    for row in tx.all(select(deployments.c.name, deployments.c.model, deployments.c.arms)):
        for arm in row.arms:
            found[row.model, arm["version"]].append(row.name)
    return found


def _drop(tx: Transaction, item: ExpiryItem) -> None:
    name, _, number = item.ref.rpartition("@")
    versions, changes = tables.dataset_versions, tables.row_changes
    mine = versions.c.dataset == name
    gone = versions.c.number == int(number)
    # Its line goes on without it, for who asks what there was at a time, or merges.
    before = tx.scalar(select(versions.c.parent).where(mine, gone))
    for column in (versions.c.parent, versions.c.merged):
        follows = (mine, column == int(number))
        tx.execute(update(versions).where(*follows).values({column.name: before}))
    tx.execute(delete(versions).where(mine, gone))
    tx.execute(delete(changes).where(changes.c.scope == f"dataset:{item.ref}"))
    tx.append("dataset.VersionExpired", f"dataset:{item.ref}", {"rows": item.rows})
