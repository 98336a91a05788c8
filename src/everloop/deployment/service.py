"""DeploymentService: what is served under a name, and the rollouts that change it.

What to do next is decided by ``core.machines``; here it is done: arms, rollout, alias and version
states change together with their events, in one transaction. Nobody else moves traffic.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_cause
from everloop.core.deploy import Arm, ArmName, Deployment, Rollout, WorkerStatus
from everloop.core.ids import new_id
from everloop.core.machines import (
    RolloutDecision,
    RolloutObservation,
    RolloutPlan,
    RolloutState,
    begin_rollout,
    decide_rollout,
)
from everloop.deployment.records import (
    arms_of,
    champion_of,
    check_verdict,
    last_event,
    last_story,
    load_deployment,
    load_rollout,
    open_rollout,
    to_deployment,
    to_rollout,
)
from everloop.errors import Conflict, InvalidInput, StateError
from everloop.registry import write
from everloop.registry.flavors import check_loads
from everloop.registry.service import RegistryService

__all__ = ["DeploymentService"]

#: Of the arm, and of the alias that follows it.
CHAMPION: ArmName = "champion"


class DeploymentService(Service):
    """Deployments by name, one open rollout at most for each."""

    area = "deployment"

    def __init__(self, catalog: Catalog, authorizer: Authorizer, registry: RegistryService) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._registry = registry

    # --- deployments --------------------------------------------------------------------------

    @action("deployment:create", on="name")
    def create(
        self, name: str, *, model: str, version: int, owner: str = "", route_by: str = ""
    ) -> Deployment:
        """Serve a version under a name: it becomes live and gets the alias ``champion``.

        Args:
            route_by: Request field that decides the arm; empty means the request's id.

        Raises:
            Conflict: If the name is taken.
            NotFound: If there is no such version, or its flavor is not installed.
            InvalidInput: If the version has no files here that could be loaded.
            NotAllowed: If its format runs code when loaded, and no valid signature vouches for it.
        """
        write.check_name(name)
        check_loads(self._registry.version(model, version), self._registry)
        with self._catalog.write() as tx:
            row = {
                "name": name,
                "model": model,
                "revision": 1,
                "arms": (Arm(name=CHAMPION, version=version, weight=100),),
                "route_by": route_by,
                "salt": name,
                "state": "serving",
                "owner": owner,
                "created_at": tx.now,
                "updated_at": tx.now,
            }
            if not tx.insert_new(tables.deployments, row):
                raise Conflict(
                    f"there is a deployment {name!r} already",
                    hint="promote a version in it, or choose another name",
                    details={"winner": name},
                )
            body = {"model": model, "version": version, "owner": owner}
            event = tx.append("deployment.Created", f"deployment:{name}", body)
            made = load_deployment(tx, name)
            self._crown(tx, made, version, "first deployment", "", event.id)
            return made

    @action("deployment:read", on="name")
    def deployment(self, name: str) -> Deployment:
        """The deployment called `name`; raises NotFound with near names."""
        with self._catalog.read() as tx:
            return load_deployment(tx, name)

    @action("deployment:read")
    def deployments(self) -> list[Deployment]:
        """All deployments, by name."""
        table = tables.deployments
        with self._catalog.read() as tx:
            return [to_deployment(row) for row in tx.all(select(table).order_by(table.c.name))]

    @action("deployment:write", on="name")
    def stop(self, name: str, reason: str = "") -> Deployment:
        """Stop serving; an open rollout stands still, and its step begins anew with the start.

        Stopping twice does nothing.
        """
        return self._set_state(name, "stopped", reason)

    @action("deployment:write", on="name")
    def start(self, name: str, reason: str = "") -> Deployment:
        """Serve again. Starting twice does nothing."""
        return self._set_state(name, "serving", reason)

    # --- rollouts -----------------------------------------------------------------------------

    @action("deployment:promote", on="name")
    def start_rollout(
        self, name: str, candidate: int, plan: RolloutPlan, *, verdict: str = ""
    ) -> Rollout:
        """Begin to move traffic to a candidate: shadow, or the first step where none is asked for.

        Args:
            verdict: Id of the verdict that lets it through. Without one it is the caller's choice.

        Raises:
            Conflict: If a rollout is open, or the verdict was given against another champion.
            GateRefused: If the verdict is a no.
            StateError: If the candidate is the champion, or the deployment is stopped.
            NotFound: If there is no such deployment, version or verdict.
        """
        with self._catalog.write() as tx:
            found = load_deployment(tx, name)
            champion = champion_of(found)
            self._refuse_start(tx, found, candidate)
            cause = check_verdict(tx, found.model, candidate, champion, verdict)
            begun = begin_rollout(plan, tx.now.timestamp())
            rollout_id = new_id()
            row = {
                "id": rollout_id,
                "deployment": name,
                "champion": champion,
                "candidate": candidate,
                "plan": plan,
                "state": begun.state,
                "open": True,
                "verdict": verdict,
                "reason": begun.reason,
                "started_at": tx.now,
                "updated_at": tx.now,
            }
            tx.execute(tables.rollouts.insert().values(row))
            rollout = load_rollout(tx, rollout_id)
            body = {
                "deployment": name,
                "champion": champion,
                "candidate": candidate,
                "verdict": verdict,
                "plan": msgspec.to_builtins(plan),
            }
            started = tx.append(
                "rollout.Started", f"rollout:{rollout.id}", body, cause=cause or current_cause()
            )
            write.change_state(
                tx, found.model, candidate, "candidate", reason="rollout started",
                evidence=verdict, cause=started.id,
            )  # fmt: skip
            event = started.id
            if begun.action == "promote":
                event = self._tell(tx, rollout, begun, event)
            # A salt of its own, so that not the same keys try every candidate first.
            salted = msgspec.structs.replace(found, salt=f"{name}/{candidate}")
            return self._perform(tx, salted, rollout, begun, event)

    @action("deployment:promote", on="name")
    def advance(
        self, name: str, seen: RolloutObservation | None = None, *, expect: int | None = None
    ) -> Rollout | None:
        """Let the open rollout take its next step if it is time and every objective held.

        Called again and again by whoever supervises; of two at once one moves and the other sees
        the result.

        Args:
            seen: What was seen of the candidate since the step began; its ``now_s`` is replaced by
                the time of the catalog's clock.
            expect: The revision at which it was seen; if another is in force nothing is decided.

        Returns:
            The rollout as it stands then; None if none was open.
        """
        with self._catalog.write() as tx:
            found = load_deployment(tx, name)
            rollout = open_rollout(tx, name)
            if rollout is None or found.state == "stopped":
                return rollout
            if expect is not None and expect != found.revision:
                return rollout
            now_s = tx.now.timestamp()
            seen = msgspec.structs.replace(seen or RolloutObservation(now_s), now_s=now_s)
            decision = decide_rollout(rollout.plan, rollout.state, seen)
            if decision.action == "wait":
                return rollout
            return self._finish(tx, found, rollout, decision, seen)

    @action("deployment:promote", on="name")
    def abort(self, name: str, reason: str) -> Rollout:
        """Take the candidate out at once; the champion stays.

        Raises:
            StateError: If no rollout is open; tells how the last one ended.
        """
        with self._catalog.write() as tx:
            found = load_deployment(tx, name)
            rollout = open_rollout(tx, name)
            if rollout is None:
                raise StateError(f"{name!r} has no open rollout", hint=last_story(tx, name))
            state = RolloutState("aborted", rollout.state.step, tx.now.timestamp())
            return self._finish(tx, found, rollout, RolloutDecision(state, 0, "abort", reason))

    @action("deployment:promote", on="name")
    def promote(
        self,
        name: str,
        version: int,
        reason: str,
        *,
        expected: int | None = None,
        evidence: str = "",
    ) -> Deployment:
        """Make a version the champion at once, forward or back; closes an open rollout.

        Args:
            expected: The version that must be champion now; None replaces whichever is.
            evidence: Id of the verdict that allows it, or empty.

        Raises:
            Conflict: If it is the champion already, or `expected` is not.
            GateRefused: If the alias ``champion`` of the model is protected and something is
                missing.
            NotFound: If there is no such deployment or version.
        """
        with self._catalog.write() as tx:
            found = load_deployment(tx, name)
            write.load_version(tx, found.model, version)
            if expected is not None and champion_of(found) != expected:
                raise Conflict(
                    f"the champion of {name!r} is version {champion_of(found)}, not {expected}",
                    hint="read it again and decide anew",
                    details={"winner": champion_of(found)},
                )
            if champion_of(found) == version:
                raise Conflict(
                    f"{found.model}/{version} is the champion of {name!r} already",
                    hint="abort the rollout to keep it" if len(found.arms) > 1 else "",
                    details={"winner": version},
                )
            rollout = open_rollout(tx, name)
            now_s = tx.now.timestamp()
            if rollout is not None and rollout.candidate == version:
                state = RolloutState("promoted", len(rollout.plan.steps) - 1, now_s)
                self._finish(tx, found, rollout, RolloutDecision(state, 100, "promote", reason))
                return load_deployment(tx, name)
            if rollout is not None:
                state = RolloutState("aborted", rollout.state.step, now_s)
                why = f"version {version} was promoted: {reason}"
                self._finish(tx, found, rollout, RolloutDecision(state, 0, "abort", why))
                found = load_deployment(tx, name)
            arms = (Arm(name=CHAMPION, version=version, weight=100),)
            event = self._change_arms(tx, found, arms, reason, "")
            self._crown(tx, found, version, reason, evidence, event)
            return load_deployment(tx, name)

    @action("deployment:read", on="id")
    def rollout(self, id: str) -> Rollout:
        """A rollout; raises NotFound."""
        with self._catalog.read() as tx:
            return load_rollout(tx, id)

    @action("deployment:read", on="name")
    def rollouts(self, name: str = "", *, open_only: bool = False) -> list[Rollout]:
        """The rollouts of a deployment (of all if no name is given), oldest first."""
        table = tables.rollouts
        query = select(table).order_by(table.c.started_at, table.c.id)
        if open_only:
            query = query.where(table.c.open)
        with self._catalog.read() as tx:
            if name:
                load_deployment(tx, name)
                query = query.where(table.c.deployment == name)
            return [to_rollout(row) for row in tx.all(query)]

    # --- workers ------------------------------------------------------------------------------

    @action("deployment:serve", on="name")
    def acknowledge(self, name: str, worker: str, pid: int, revision: int) -> WorkerStatus:
        """A worker says which revision it serves; a beat, so no event.

        Raises:
            InvalidInput: If there has not been such a revision yet.
            NotFound: If there is no such deployment.
        """
        with self._catalog.write(ordered=False) as tx:
            newest = load_deployment(tx, name).revision
            if not 0 <= revision <= newest:
                raise InvalidInput(f"{name!r} is at revision {newest}, there is no {revision}")
            said = WorkerStatus(
                deployment=name, worker=worker, pid=pid, revision=revision, at=tx.now
            )
            row = msgspec.structs.asdict(said)
            tx.upsert(tables.deployment_workers, row, ("deployment", "worker"))
            return said

    @action("deployment:read", on="name")
    def workers(self, name: str) -> list[WorkerStatus]:
        """What each worker last said; one that is gone stays with its last time."""
        table = tables.deployment_workers
        with self._catalog.read() as tx:
            load_deployment(tx, name)
            rows = tx.all(select(table).where(table.c.deployment == name).order_by(table.c.worker))
            return [WorkerStatus(**row._asdict()) for row in rows]

    # --- inside -------------------------------------------------------------------------------

    def _refuse_start(self, tx: Transaction, found: Deployment, candidate: int) -> None:
        if found.state == "stopped":
            raise StateError(f"{found.name!r} is stopped", hint="start it first")
        write.load_version(tx, found.model, candidate)
        champion = champion_of(found)
        if champion == candidate:
            raise StateError(f"{found.model}/{candidate} is the champion of {found.name!r} already")
        rollout = open_rollout(tx, found.name)
        if rollout is not None:
            raise Conflict(
                f"a rollout of version {rollout.candidate} is open in {found.name!r}"
                f" ({rollout.state.stage})",
                hint="wait for it or abort it",
                details={"winner": rollout.id},
            )

    def _finish(
        self,
        tx: Transaction,
        found: Deployment,
        rollout: Rollout,
        decision: RolloutDecision,
        seen: RolloutObservation | None = None,
    ) -> Rollout:
        """Perform `decision`; it follows from what is ambient, or from the last such event."""
        cause = current_cause() or last_event(tx, f"rollout:{rollout.id}")
        event = self._tell(tx, rollout, decision, cause, seen)
        return self._perform(tx, found, rollout, decision, event)

    def _perform(
        self,
        tx: Transaction,
        found: Deployment,
        rollout: Rollout,
        decision: RolloutDecision,
        event: str,
    ) -> Rollout:
        """Write what `decision` means; `event` tells of it and causes what follows."""
        closed = decision.action in ("promote", "abort")
        table = tables.rollouts
        values = {"state": decision.state, "reason": decision.reason, "updated_at": tx.now}
        tx.execute(table.update().where(table.c.id == rollout.id).values(**values, open=not closed))
        arms = arms_of(rollout, decision)
        self._change_arms(tx, found, arms, decision.reason, event)
        if decision.action == "promote":
            self._crown(tx, found, rollout.candidate, decision.reason, rollout.verdict, event)
        elif decision.action == "abort":
            self._retire(tx, found, rollout.candidate, decision.reason, event)
        return load_rollout(tx, rollout.id)

    def _tell(
        self,
        tx: Transaction,
        rollout: Rollout,
        decision: RolloutDecision,
        cause: str,
        seen: RolloutObservation | None = None,
    ) -> str:
        kinds = {"promote": "Promoted", "abort": "Aborted", "advance": "Advanced"}
        body = {
            "deployment": rollout.deployment,
            "candidate": rollout.candidate,
            "stage": decision.state.stage,
            "weight": decision.weight,
            "reason": decision.reason,
            "seen": None if seen is None else msgspec.to_builtins(seen),
        }
        kind = f"rollout.{kinds[decision.action]}"
        return tx.append(kind, f"rollout:{rollout.id}", body, cause=cause).id

    def _change_arms(
        self, tx: Transaction, found: Deployment, arms: tuple[Arm, ...], reason: str, cause: str
    ) -> str:
        table = tables.deployments
        # The revision guards against a writer that read before another one wrote.
        where = (table.c.name == found.name, table.c.revision == found.revision)
        values = {"arms": arms, "salt": found.salt, "revision": found.revision + 1}
        changed = tx.execute(table.update().where(*where).values(**values, updated_at=tx.now))
        if changed.rowcount != 1:
            raise Conflict(
                f"{found.name!r} was changed by somebody else meanwhile", hint="do it again"
            )
        body = {
            "revision": found.revision + 1,
            "arms": msgspec.to_builtins(arms),
            "reason": reason,
        }
        subject = f"deployment:{found.name}"
        for arm in arms:
            if arm.name != CHAMPION:
                link(tx, f"model:{found.model}/{arm.version}", subject, "tried")
        return tx.append("deployment.ArmsChanged", subject, body, cause=cause).id

    def _crown(
        self,
        tx: Transaction,
        found: Deployment,
        version: int,
        reason: str,
        evidence: str,
        cause: str,
    ) -> None:
        """Alias and states follow the arms: the new champion is live, the old one archived."""
        more: dict[str, Any] = {"reason": reason, "evidence": evidence, "cause": cause}
        write.change_state(tx, found.model, version, "live", **more)
        write.move_alias(tx, found.model, CHAMPION, version, **more)
        link(tx, f"model:{found.model}/{version}", f"deployment:{found.name}", "served")
        if champion_of(found) != version:
            self._retire(tx, found, champion_of(found), f"replaced by version {version}", cause)

    def _retire(
        self, tx: Transaction, found: Deployment, version: int, reason: str, cause: str
    ) -> None:
        """Archive a version unless another arm, here or elsewhere, still answers with it."""
        table = tables.deployments
        rows = tx.all(select(table).where(table.c.model == found.model))
        served = {arm.version for row in rows for arm in to_deployment(row).arms}
        if version not in served:
            write.change_state(tx, found.model, version, "archived", reason=reason, cause=cause)

    def _begin_step_anew(self, tx: Transaction, name: str) -> None:
        """The time in which nothing was served does not count for the step of an open rollout."""
        rollout = open_rollout(tx, name)
        if rollout is not None:
            state = msgspec.structs.replace(rollout.state, since_s=tx.now.timestamp())
            table = tables.rollouts
            values = {"state": state, "updated_at": tx.now}
            tx.execute(table.update().where(table.c.id == rollout.id).values(values))

    def _set_state(self, name: str, state: str, reason: str) -> Deployment:
        with self._catalog.write() as tx:
            found = load_deployment(tx, name)
            if found.state != state:
                table = tables.deployments
                values = {"state": state, "revision": found.revision + 1, "updated_at": tx.now}
                tx.execute(table.update().where(table.c.name == name).values(values))
                if state == "serving":
                    self._begin_step_anew(tx, name)
                kind = "deployment.Stopped" if state == "stopped" else "deployment.Started"
                tx.append(kind, f"deployment:{name}", {"reason": reason})
            return load_deployment(tx, name)
