"""Statements of protected aliases: rules, approvals, and what is missing before one may move."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row, select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.gate import GATE_KINDS, Gate
from everloop.core.model import AliasRule, Approval, ModelVersion
from everloop.errors import Fault, InvalidInput
from everloop.registry.history import moves_of

__all__ = ["approvals_of", "check_rule", "missing", "rule_of", "rules_of"]

#: Kinds whose outcome depends on who was champion then.
_AGAINST_CHAMPION = ("beats_champion", "not_worse", "no_group_worse")
_MOST_APPROVALS = 100


def check_rule(gates: list[str], approvals: int) -> None:
    """Refuse a rule that asks for nothing, or for what no gate can give.

    Raises:
        InvalidInput: With every fault.
    """
    faults = [
        Fault(f"gates[{position}]", f"{name!r} names no gate; it begins with {_KINDS}")
        for position, name in enumerate(gates)
        if name.partition(":")[0] not in GATE_KINDS
    ]
    if not 0 <= approvals <= _MOST_APPROVALS:
        faults.append(Fault("approvals", f"must be within 0 and {_MOST_APPROVALS}"))
    if not gates and not approvals:
        faults.append(Fault("", "name gates, or ask for approvals"))
    if faults:
        raise InvalidInput("the rule is wrong", faults)


_KINDS = " or ".join(GATE_KINDS)


def rule_of(tx: Transaction, name: str, alias: str) -> AliasRule | None:
    """The rule of an alias, or None if it is not protected."""
    return next((rule for rule in rules_of(tx, name) if rule.alias == alias), None)


def rules_of(tx: Transaction, name: str) -> list[AliasRule]:
    """The rules of a model, by alias."""
    table = tables.alias_rules
    rows = tx.all(select(table).where(table.c.name == name).order_by(table.c.alias))
    return [msgspec.convert(_plain(row), AliasRule) for row in rows]


def approvals_of(tx: Transaction, name: str, version: int, alias: str = "") -> list[Approval]:
    """Who approved a version (for one alias, if it is named), in the order of time."""
    table = tables.approvals
    query = select(table).where(table.c.name == name, table.c.version == version)
    if alias:
        query = query.where(table.c.alias == alias)
    rows = tx.all(query.order_by(table.c.at, table.c.alias, table.c.actor))
    return [Approval(**_plain(row)) for row in rows]


def missing(tx: Transaction, rule: AliasRule, version: ModelVersion, actor: str) -> list[str]:
    """What is missing before `actor` may move the alias to a version; empty if nothing is."""
    # A move in another workspace was allowed there, by its rules and its people.
    before = moves_of(tx, rule.name, rule.alias) if rule.rollback else ()
    if any(move.after == version.version and not move.origin for move in before):
        return []
    return [*_missing_gates(tx, rule, version), *_missing_approvals(tx, rule, version, actor)]


def _missing_gates(tx: Transaction, rule: AliasRule, version: ModelVersion) -> list[str]:
    if not rule.gates:
        return []
    table = tables.verdicts
    where = (table.c.model == rule.name, table.c.candidate == version.version)
    verdicts = tx.all(select(table).where(*where).order_by(table.c.at.desc(), table.c.id.desc()))
    aliases = tables.aliases
    here = (aliases.c.name == rule.name, aliases.c.alias == "champion")
    champion = int(tx.scalar(select(aliases.c.version).where(*here)) or 0)
    found = [_gate_fault(name, verdicts, champion, version.version) for name in rule.gates]
    return [fault for fault in found if fault]


def _gate_fault(name: str, verdicts: Any, champion: int, version: int) -> str:
    """Why a gate does not count as passed, by the newest verdict that holds it; empty if it does.

    The newest one decides: a version that failed when it was judged again has not passed.
    """
    for verdict in verdicts:
        results = [
            result
            for result in verdict.results
            if msgspec.convert(result["gate"], Gate).answers_to(name)
        ]
        if not results:
            continue
        failed = next((result for result in results if not result["passed"]), None)
        if failed is not None:
            return f"gate {name} was not passed in verdict {verdict.id}: {failed['reason']}"
        if not verdict.passed:
            return f"gate {name} was passed in verdict {verdict.id}, but the verdict is a no"
        relative = any(result["gate"]["kind"] in _AGAINST_CHAMPION for result in results)
        if relative and champion not in (0, version, verdict.champion):
            return (
                f"gate {name} was passed in verdict {verdict.id} against version"
                f" {verdict.champion}; the champion is {champion} now"
            )
        return ""
    return f"gate {name} was never judged for this version"


def _missing_approvals(
    tx: Transaction, rule: AliasRule, version: ModelVersion, actor: str
) -> list[str]:
    given = [found.actor for found in approvals_of(tx, rule.name, version.version, rule.alias)]
    own = {actor, version.actor} if rule.four_eyes else set()
    counted = [person for person in given if person not in own]
    lacking = rule.approvals - len(counted)
    if lacking <= 0:
        return []
    told = f"{lacking} of {rule.approvals} approvals"
    if counted:
        told += f" (approved by {', '.join(counted)})"
    void = sorted(own & set(given))
    if void:
        told += f" (that of {', '.join(void)} does not count: four eyes)"
    return [told]


def _plain(row: Row[Any]) -> dict[str, Any]:
    # Keys as plain text: the driver's own kind of text is none to msgspec.
    return {str(key): value for key, value in row._mapping.items()}
