"""The part of the registry that moves aliases, protects them, and remembers their moves."""

from __future__ import annotations

from sqlalchemy import delete, select

from everloop.access.service import action
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.context import current_actor
from everloop.core.model import AliasMove, AliasRule, Approval, Model, ModelVersion
from everloop.errors import NotAllowed, NotFound, StateError
from everloop.registry import protection, write
from everloop.registry.history import moves_of

__all__ = ["AliasMethods"]


class AliasMethods:
    """Aliases: which version is meant by a name, and what must hold before that changes."""

    _catalog: Catalog

    @action("model:read", on="name")
    def by_alias(self, name: str, alias: str) -> ModelVersion:
        """The version that `alias` points at; raises NotFound with the near aliases."""
        with self._catalog.read() as tx:
            aliases = write.load_model(tx, name).aliases
            if alias not in aliases:
                raise NotFound.named(f"alias of model {name!r} called", alias, aliases)
            return write.load_version(tx, name, aliases[alias])

    @action("model:promote", on="name")
    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        expected: int | None = None,
        reason: str = "",
        evidence: str = "",
    ) -> Model:
        """Point `alias` at `version`.

        Args:
            expected: The version it must point at now, 0 for none; None moves it from wherever.
            reason: Why; kept with the event.
            evidence: Id of the verdict that allows it.

        Raises:
            Conflict: If it does not point at `expected`; ``details["winner"]`` says where.
            GateRefused: If it is protected and gates or approvals are missing; lists them.
            NotFound: If there is no such version.
            InvalidInput: If the alias is malformed, ``latest`` or like ``v3``.
        """
        with self._catalog.write() as tx:
            write.move_alias(
                tx, name, alias, version, expected=expected, reason=reason, evidence=evidence
            )
            return write.load_model(tx, name)

    @action("model:promote", on="name")
    def delete_alias(
        self, name: str, alias: str, *, expected: int | None = None, reason: str = ""
    ) -> Model:
        """Remove an alias; removing what is not there does nothing.

        Raises:
            Conflict: If it does not point at `expected`.
            StateError: If it is protected.
        """
        with self._catalog.write() as tx:
            write.load_model(tx, name)
            now = write.check_expected(tx, name, alias, expected)
            if now:
                if protection.rule_of(tx, name, alias) is not None:
                    raise StateError(
                        f"alias {alias!r} of {name!r} is protected and cannot be removed",
                        hint=f"move it, or first: everloop model protect {name} {alias} --off",
                    )
                table = tables.aliases
                tx.execute(delete(table).where(table.c.name == name, table.c.alias == alias))
                write.tell_move(tx, name, alias, now, 0, reason=reason)
            return write.load_model(tx, name)

    @action("model:read", on="name")
    def alias_history(self, name: str, alias: str = "") -> list[AliasMove]:
        """The moves of an alias (of all aliases if none is named), oldest first.

        The history follows the model when it is renamed.

        Raises:
            NotFound: If there is no such model.
        """
        with self._catalog.read() as tx:
            write.load_model(tx, name)
            return moves_of(tx, name, alias)

    # --- protection ---------------------------------------------------------------------------

    @action("model:protect", on="name")
    def protect(
        self,
        name: str,
        alias: str,
        gates: list[str] | None = None,
        approvals: int = 0,
        *,
        four_eyes: bool = True,
        rollback: bool = False,
    ) -> AliasRule:
        """Let an alias move only to versions that passed gates or were approved.

        It holds for every way in which the alias can move: a rollout, a promotion by hand, a
        registration, MLflow's own call. Where it points now does not change.

        Args:
            gates: Names such as ``beats_champion``, ``threshold:auc`` or
                ``no_group_worse:tpr:carrier``; each must have passed in the newest verdict on the
                version that holds it, and that verdict must be a yes.
            approvals: How many people must have approved the version for this alias.
            four_eyes: Do not count the approval of whoever made the version or moves the alias.
            rollback: Let it return to a version that it pointed at before, without more.

        Raises:
            InvalidInput: If the rule asks for nothing or names no gate.
            NotFound: If there is no such model.
        """
        write.check_alias(alias)
        wanted = list(dict.fromkeys(gates or []))
        protection.check_rule(wanted, approvals)
        with self._catalog.write() as tx:
            write.load_model(tx, name)
            row = {
                "name": name,
                "alias": alias,
                "gates": wanted,
                "approvals": approvals,
                "four_eyes": four_eyes,
                "rollback": rollback,
                "actor": current_actor() or tx.actor,
                "updated_at": tx.now,
            }
            tx.upsert(tables.alias_rules, row, ("name", "alias"))
            body = {key: row[key] for key in ("alias", "gates", "approvals", "four_eyes")}
            tx.append("model.AliasProtected", f"model:{name}", {**body, "rollback": rollback})
            found = protection.rule_of(tx, name, alias)
        assert found is not None  # it was put there just now
        return found

    @action("model:protect", on="name")
    def unprotect(self, name: str, alias: str, *, reason: str = "") -> None:
        """Let an alias move freely again; without a rule nothing happens."""
        with self._catalog.write() as tx:
            write.load_model(tx, name)
            table = tables.alias_rules
            gone = tx.execute(delete(table).where(table.c.name == name, table.c.alias == alias))
            if gone.rowcount:
                body = {"alias": alias, "reason": reason}
                tx.append("model.AliasUnprotected", f"model:{name}", body)

    @action("model:read", on="name")
    def alias_rules(self, name: str) -> list[AliasRule]:
        """The rules of a model's protected aliases, by alias."""
        with self._catalog.read() as tx:
            write.load_model(tx, name)
            return protection.rules_of(tx, name)

    @action("model:read", on="name")
    def missing_for(self, name: str, alias: str, version: int) -> list[str]:
        """What is missing before whoever asks may move an alias to a version; empty if nothing."""
        with self._catalog.read() as tx:
            found = write.load_version(tx, name, version)
            rule = protection.rule_of(tx, name, alias)
            actor = current_actor() or tx.actor
            return [] if rule is None else protection.missing(tx, rule, found, actor)

    @action("model:approve", on="name")
    def approve(
        self, name: str, version: int, alias: str = "champion", *, note: str = ""
    ) -> Approval:
        """Agree, as whoever is asking, that an alias moves to a version; again changes nothing.

        Raises:
            NotAllowed: If the one who made the version approves it where four eyes are asked for.
            NotFound: If there is no such version.
        """
        write.check_alias(alias)
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            actor = current_actor() or tx.actor
            rule = protection.rule_of(tx, name, alias)
            if rule is not None and rule.four_eyes and actor == found.actor:
                raise NotAllowed(
                    f"{actor} made {found.ref} and cannot approve it for {alias!r}: four eyes",
                    hint="ask somebody else",
                )
            row = {
                "name": name,
                "version": version,
                "alias": alias,
                "actor": actor,
                "note": note,
                "at": tx.now,
            }
            if tx.insert_new(tables.approvals, row):
                body = {"alias": alias, "note": note}
                tx.append("model.VersionApproved", f"model:{found.ref}", body)
            given = protection.approvals_of(tx, name, version, alias)
            return next(approval for approval in given if approval.actor == actor)

    @action("model:approve", on="name")
    def withdraw_approval(self, name: str, version: int, alias: str = "champion") -> None:
        """Take back one's own approval; without one nothing happens."""
        table = tables.approvals
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            mine = (
                table.c.name == name,
                table.c.version == version,
                table.c.alias == alias,
                table.c.actor == (current_actor() or tx.actor),
            )
            if tx.first(select(table.c.at).where(*mine)) is not None:
                tx.execute(delete(table).where(*mine))
                tx.append("model.ApprovalWithdrawn", f"model:{found.ref}", {"alias": alias})

    @action("model:read", on="name")
    def approvals(self, name: str, version: int, alias: str = "") -> list[Approval]:
        """Who approved a version (for one alias, if it is named), in the order of time."""
        with self._catalog.read() as tx:
            write.load_version(tx, name, version)
            return protection.approvals_of(tx, name, version, alias)
