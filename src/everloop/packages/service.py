"""PackageService: packages, the environments that they come to one after the other, and approvals.

A package is a manifest in the object store and a row. Where it is stands in a row for each
environment; where it was, who approved it and whether its code passed CI is in the event log.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, Text, select, type_coerce

from everloop import settings
from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.datasets import add_objects
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.events import CI_FINISHED, PACKAGE_BUILT, PACKAGE_IMPORTED, PACKAGE_PROMOTED
from everloop.core.package import (
    Manifest,
    Package,
    PackageApproval,
    PackageEnvironment,
    PackageMove,
    from_bytes,
)
from everloop.core.pipeline import PartChange
from everloop.errors import (
    Conflict,
    EverloopError,
    GateRefused,
    InvalidInput,
    NotAllowed,
    NotFound,
    StateError,
    TooLarge,
)
from everloop.pipelines.snapshot import MOST_CODE, read_tree, tree_faults
from everloop.ports.blobs import BlobStore

__all__ = ["PackageService"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_MOST_APPROVALS = 100
_MOVES = {PACKAGE_PROMOTED: "promoted", "package.RolledBack": "rolled back"}


class PackageService(Service):
    """Keeps packages and moves environments to them."""

    area = "packages"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    # --- packages -----------------------------------------------------------------------------

    @action("package:build", on="digest")
    def add(self, digest: str, git: dict[str, str] | None = None) -> Package:
        """Take up the manifest that is the object `digest`; the first environment moves to it.

        The same again adds nothing.

        Args:
            digest: Of the manifest; its code and its lock file are in the object store too.
            git: ``commit``, ``branch`` and ``dirty`` of the repository.

        Raises:
            InvalidInput: If it is no manifest, or something that it names is not there; all faults
                are listed.
        """
        manifest, sizes = self._checked(digest)
        first = settings.load().package_environments[0]
        with self._catalog.write() as tx:
            facts = {"git": git or {}, "builder": current_actor() or tx.actor, "built_at": tx.now}
            if _insert(tx, digest, manifest, sizes, facts):
                body = {"digest": digest, "code": manifest.code, "git": git or {}}
                tx.append(PACKAGE_BUILT, f"package:{manifest.name}", body)
            now = _environment(tx, manifest.name, first)
            if now.digest != digest:
                _move(tx, now, digest, PACKAGE_PROMOTED, reason="built")
            return _package(tx, digest)

    @action("package:import", on="digest")
    def receive(
        self,
        digest: str,
        *,
        git: dict[str, str],
        builder: str,
        built_at: datetime,
        reached: list[str],
        origin: str = "",
    ) -> Package:
        """Take up a package that was built in another workspace; no environment moves to it.

        Args:
            digest: Of the manifest; its code and its lock file are in the object store too.
            git: As there.
            builder: Who built it there.
            built_at: When.
            reached: Environments that it had come to there, as its file says.
            origin: Where it comes from, for the event.

        Raises:
            InvalidInput: As :meth:`add`.
        """
        manifest, sizes = self._checked(digest)
        with self._catalog.write() as tx:
            facts = {"git": git, "builder": builder, "built_at": built_at, "reached": reached}
            if _insert(tx, digest, manifest, sizes, facts):
                body = {"digest": digest, "code": manifest.code, "reached": reached}
                body |= {"builder": builder, "origin": origin}
                tx.append(PACKAGE_IMPORTED, f"package:{manifest.name}", body)
            return _package(tx, digest)

    @action("package:read", on="name")
    def packages(self, name: str = "") -> list[Package]:
        """All packages, or those of one name; newest first.

        Raises:
            NotFound: If none has the name.
        """
        table = tables.packages
        query = select(table).order_by(table.c.created_at.desc(), table.c.digest)
        with self._catalog.read() as tx:
            if name:
                _check_known(tx, name)
                query = query.where(table.c.name == name)
            return [_to_package(row) for row in tx.all(query)]

    @action("package:read", on="ref")
    def package(self, ref: str) -> Package:
        """One package: ``name@environment``, ``name@digest`` (8 digits at least), or the newest.

        Raises:
            NotFound: If there is none; says what there is.
            InvalidInput: If several begin with these digits.
        """
        with self._catalog.read() as tx:
            return _find(tx, ref)

    # --- environments -------------------------------------------------------------------------

    @action("package:read", on="name")
    def environments(self, name: str = "") -> list[PackageEnvironment]:
        """Where packages are (or those of one name), by name and in the order of promotion."""
        table = tables.package_environments
        query = select(table).order_by(table.c.name)
        with self._catalog.read() as tx:
            if name:
                _check_known(tx, name)
                query = query.where(table.c.name == name)
            found = [PackageEnvironment(**row._asdict()) for row in tx.all(query)]
        order = {one: place for place, one in enumerate(settings.load().package_environments)}
        return sorted(found, key=lambda e: (e.name, order.get(e.environment, 99), e.environment))

    @action("package:promote", on="ref")
    def promote(
        self,
        ref: str,
        environment: str,
        *,
        expected: str | None = None,
        reason: str = "",
        evidence: str = "",
        force: bool = False,
    ) -> PackageEnvironment:
        """Move an environment to a package that is in the environment below it.

        Args:
            ref: As for :meth:`package`.
            environment: Where to.
            expected: Digest (8 digits at least) of the package that must be there now, empty for
                none; None moves it from wherever.
            reason: Why; kept with the event.
            evidence: What speaks for it; the event of the CI run if that is asked for.
            force: Jump a stage; needs a reason.

        Raises:
            Conflict: If another package is there than `expected`; ``details["winner"]`` says which.
            StateError: If it is not in the environment below.
            GateRefused: If the environment is protected and something is missing; lists it.
            NotFound: If there is no such package or environment.
        """
        with self._catalog.write() as tx:
            found = _find(tx, ref)
            now = _environment(tx, found.name, environment)
            _check_expected(now, expected)
            if now.digest == found.digest:
                return now
            jumps = _jumps(tx, found, environment)
            if jumps and not (force and reason.strip()):
                raise StateError(
                    jumps.message, hint=f'{jumps.hint}   (or --force --reason "...")'
                ) from None
            missing, ci = _missing(tx, found, now)
            if missing:
                raise GateRefused(
                    f"{environment} of {found.name} is protected and cannot move to {found.ref}: "
                    + "; ".join(missing),
                    hint=f"everloop package approve {found.ref} {environment}"
                    if all("approval" in one for one in missing)
                    else "have CI pass the code, and record that in this workspace",
                    details={"missing": missing},
                )
            return _move(
                tx,
                now,
                found.digest,
                PACKAGE_PROMOTED,
                reason=reason,
                evidence=evidence or ci,
                is_forced=jumps is not None,
            )

    @action("package:promote", on="name")
    def rollback(
        self,
        name: str,
        environment: str,
        *,
        to: str = "",
        expected: str | None = None,
        reason: str = "",
    ) -> PackageEnvironment:
        """Move an environment back to the package that was there before; again, one further back.

        It was allowed there once, so neither CI nor approvals are asked for.

        Args:
            name: Of the package.
            environment: Which.
            to: Digest (8 digits at least) of one that was there earlier, instead of the last one.
            expected: As for :meth:`promote`.
            reason: Why; kept with the event.

        Raises:
            StateError: If nothing was there before, or not that.
            Conflict: If another package is there than `expected`.
        """
        with self._catalog.write() as tx:
            _check_known(tx, name)
            now = _environment(tx, name, environment)
            _check_expected(now, expected)
            before = _stack(_moves(tx, name, environment))[:-1]
            fit = [digest for digest in before if digest.startswith(to)]
            if not fit or (to and not _DIGEST.fullmatch(to)):
                shown = ", ".join(digest[:8] for digest in before) or "nothing"
                raise StateError(
                    f"{environment} of {name} cannot go back to {to or 'what was there before'}",
                    hint=f"before {now.digest[:8] or 'now'} there was: {shown}",
                )
            return _move(tx, now, fit[-1], "package.RolledBack", reason=reason)

    @action("package:read", on="name")
    def history(self, name: str, environment: str = "") -> list[PackageMove]:
        """The moves of a package's environments (or of one), oldest first.

        Raises:
            NotFound: If no package has the name.
        """
        with self._catalog.read() as tx:
            _check_known(tx, name)
            return _moves(tx, name, environment)

    # --- protection ---------------------------------------------------------------------------

    @action("package:protect", on="name")
    def protect(
        self, name: str, environment: str, *, ci: bool = False, approvals: int = 0
    ) -> PackageEnvironment:
        """Let an environment move only to packages that passed CI or that others approved.

        Neither of them lets it move freely again. What is there now does not change.

        Args:
            name: Of the package.
            environment: Any but the first, to which everything comes that is built.
            ci: The newest ``ci.Finished`` of its code must say ``passed``.
            approvals: How many people must have approved it who neither built it nor move it.

        Raises:
            InvalidInput: If the number makes no sense, or it is the first environment.
        """
        faults = []
        if environment == settings.load().package_environments[0]:
            faults.append(("environment", "everything that is built comes to the first one"))
        if not 0 <= approvals <= _MOST_APPROVALS:
            faults.append(("approvals", f"must be within 0 and {_MOST_APPROVALS}"))
        if faults:
            raise InvalidInput("the protection is wrong", faults)
        with self._catalog.write() as tx:
            _check_known(tx, name)
            now = _environment(tx, name, environment)
            after = msgspec.structs.replace(now, ci=ci, approvals=approvals, updated_at=tx.now)
            if (now.ci, now.approvals) != (ci, approvals):
                _put(tx, after)
                body = {"environment": environment, "ci": ci, "approvals": approvals}
                tx.append("package.Protected", f"package:{name}", body)
            return after

    @action("package:approve", on="ref")
    def approve(self, ref: str, environment: str, *, note: str = "") -> PackageApproval:
        """Agree, as whoever is asking, that a package comes to an environment; again is once.

        Raises:
            NotAllowed: If the one who built it approves it.
        """
        with self._catalog.write() as tx:
            found = _find(tx, ref)
            _environment(tx, found.name, environment)
            actor = current_actor() or tx.actor
            if actor == found.builder:
                raise NotAllowed(
                    f"{actor} built {found.ref} and cannot approve it: four eyes",
                    hint="ask somebody else",
                )
            given = _approvals(tx, found, environment)
            if actor not in {one.actor for one in given}:
                body = {"digest": found.digest, "environment": environment, "note": note}
                tx.append("package.Approved", f"package:{found.name}", body)
                given = _approvals(tx, found, environment)
            return next(one for one in given if one.actor == actor)

    @action("package:read", on="ref")
    def approvals(self, ref: str, environment: str = "") -> list[PackageApproval]:
        """Who approved a package (for one environment, if it is named), in the order of time."""
        with self._catalog.read() as tx:
            return _approvals(tx, _find(tx, ref), environment)

    # --- deployment ---------------------------------------------------------------------------

    @action("package:deploy", on="digest")
    def note_deployment(
        self,
        digest: str,
        environment: str,
        host: str,
        *,
        differences: list[PartChange] | None = None,
        reason: str = "",
        refused: str = "",
    ) -> None:
        """Tell that a supervisor runs a package now, or why it does not; the same again is once.

        Args:
            digest: Of the package.
            environment: That it follows; empty for none.
            host: The supervisor's.
            differences: What is not as the package needs it, and was allowed.
            reason: Why it was allowed.
            refused: Why it was not deployed.
        """
        kind = "package.DeployRefused" if refused else "package.Deployed"
        body = {"digest": digest, "environment": environment, "host": host}
        body |= {"differences": msgspec.to_builtins(differences or []), "reason": reason}
        body |= {"refused": refused} if refused else {}
        events = tables.events
        with self._catalog.write() as tx:
            subject = f"package:{_package(tx, digest).name}"
            kinds = events.c.kind.in_(("package.Deployed", "package.DeployRefused"))
            query = select(events).where(events.c.subject == subject, kinds)
            for row in tx.all(query.order_by(events.c.seq.desc()).limit(100)):
                if (row.body["environment"], row.body["host"]) == (environment, host):
                    if (row.kind, row.body) == (kind, body):
                        return
                    break
            tx.append(kind, subject, body)

    # --- inside -------------------------------------------------------------------------------

    def _checked(self, digest: str) -> tuple[Manifest, list[tuple[str, int]]]:
        """A manifest of which everything is in the store, and the sizes of all its objects."""
        data = self._blobs.get(digest)
        manifest = from_bytes(data)
        faults: list[tuple[str, str]] = []
        if not _NAME.fullmatch(manifest.name):
            told = f"{manifest.name[:80]!r} must be letters, digits, '.', '_' or '-', at most 100"
            faults.append(("name", told))
        tree = read_tree(self._blobs.get(manifest.code))
        sizes = {digest: len(data)}
        if manifest.entry not in tree:
            faults.append(("entry", f"{manifest.entry[:80]!r} is not in its code"))
        faults += tree_faults(tree)
        named = {f"object {manifest.code[:8]}": manifest.code, **tree}
        if manifest.lock:
            named[manifest.lock_name] = manifest.lock
        for name, part in named.items():
            try:
                # Kept first, so that no collection removes it before the row names it.
                self._blobs.keep(part)
                sizes[part] = len(self._blobs.get(part))
            except EverloopError as error:
                faults.append((name[:80], error.message))
            if sum(sizes.values()) > 2 * MOST_CODE:
                raise TooLarge(f"the package is above {2 * MOST_CODE // 10**6} MB")
        if faults:
            raise InvalidInput(f"the package {manifest.name[:80]!r} is not whole", faults)
        self._blobs.keep(digest)
        return manifest, sorted(sizes.items())


# --- statements ----------------------------------------------------------------------------------


def _insert(
    tx: Transaction,
    digest: str,
    manifest: Manifest,
    sizes: list[tuple[str, int]],
    facts: dict[str, Any],
) -> bool:
    row = {"digest": digest, "name": manifest.name, "code": manifest.code, "manifest": manifest}
    rest = {"reached": [], "created_at": tx.now}
    if not tx.insert_new(tables.packages, {**row, **rest, **facts}):
        return False
    add_objects(tx, sizes)
    return True


def _package(tx: Transaction, digest: str) -> Package:
    row = tx.first(select(tables.packages).where(tables.packages.c.digest == digest))
    if row is None:
        raise NotFound(f"no package {digest[:16]}")
    return _to_package(row)


def _to_package(row: Row[Any]) -> Package:
    found = {str(key): value for key, value in row._mapping.items()}
    del found["name"], found["code"], found["created_at"]
    return msgspec.convert(found, Package)


def _check_known(tx: Transaction, name: str) -> None:
    names = {row.name for row in tx.all(select(tables.packages.c.name).distinct())}
    if name not in names:
        raise NotFound.named("package", name[:100], names)


def _find(tx: Transaction, ref: str) -> Package:
    """The package that `ref` names; raises as :meth:`PackageService.package`."""
    name, at, wanted = ref.partition("@")
    _check_known(tx, name)
    table = tables.packages
    query = select(table).where(table.c.name == name).order_by(table.c.created_at.desc())
    if not at:
        row = tx.first(query.order_by(table.c.digest))
        assert row is not None  # the name is known
        return _to_package(row)
    if wanted in settings.load().package_environments:
        now = _environment(tx, name, wanted)
        if now.digest:
            return _package(tx, now.digest)
        raise NotFound(
            f"no package {name!r} is in {wanted}",
            hint=f'everloop package promote {name} {wanted} --reason "..."',
        )
    rows = tx.all(query.where(table.c.digest.startswith(wanted, autoescape=True)))
    if not _DIGEST.fullmatch(wanted) or not rows:
        known = ", ".join(row.digest[:8] for row in tx.all(query.limit(8)))
        raise NotFound(
            f"no package {ref[:120]!r}",
            hint=f"there are {', '.join(settings.load().package_environments)}, and the digests"
            f" {known} (8 digits at least)",
        )
    if len(rows) > 1:
        raise InvalidInput(f"{ref} may be several: {', '.join(row.digest[:16] for row in rows)}")
    return _to_package(rows[0])


def _environment(tx: Transaction, name: str, environment: str) -> PackageEnvironment:
    """An environment, which may be empty; raises NotFound for one that is none."""
    known = settings.load().package_environments
    if environment not in known:
        raise NotFound.named("environment", environment[:100], known)
    table = tables.package_environments
    query = select(table).where(table.c.name == name, table.c.environment == environment)
    row = tx.first(query)
    if row is not None:
        return PackageEnvironment(**row._asdict())
    return PackageEnvironment(
        name=name, environment=environment, digest="", ci=False, approvals=0, updated_at=tx.now
    )


def _put(tx: Transaction, after: PackageEnvironment) -> None:
    tx.upsert(tables.package_environments, msgspec.structs.asdict(after), ("name", "environment"))


def _move(
    tx: Transaction,
    now: PackageEnvironment,
    digest: str,
    kind: str,
    *,
    reason: str,
    evidence: str = "",
    is_forced: bool = False,
) -> PackageEnvironment:
    after = msgspec.structs.replace(now, digest=digest, updated_at=tx.now)
    _put(tx, after)
    body = {"environment": now.environment, "from": now.digest, "to": digest}
    why = {"reason": reason, "evidence": evidence, "is_forced": is_forced}
    tx.append(kind, f"package:{now.name}", {**body, **why})
    return after


def _check_expected(now: PackageEnvironment, expected: str | None) -> None:
    if expected is None or now.digest == expected:
        return
    if _DIGEST.fullmatch(expected) and now.digest.startswith(expected):
        return
    raise Conflict(
        f"{now.environment} of {now.name} holds {now.digest[:8] or 'nothing'}, not"
        f" {expected[:8] or 'nothing'}",
        hint="read it again and decide anew",
        details={"winner": now.digest},
    )


def _jumps(tx: Transaction, package: Package, environment: str) -> StateError | None:
    """What stage a promotion would jump, or None."""
    order = settings.load().package_environments
    place = order.index(environment)
    if place == 0:
        return None
    below = order[place - 1]
    there = _environment(tx, package.name, below)
    if there.digest == package.digest:
        return None
    if not there.digest and below in package.reached:
        # It came to that stage elsewhere. One that was here before goes back, it does not go up.
        if all(move.after != package.digest for move in _moves(tx, package.name, environment)):
            return None
        return StateError(
            f"{package.ref} was in {environment} before",
            hint=f"everloop package rollback {package.name} {environment} --to"
            f" {package.digest[:8]}",
        )
    return StateError(
        f"{package.ref} is not in {below}, where {there.digest[:8] or 'nothing'} is",
        hint=f"first: everloop package promote {package.ref} {below}",
    )


def _missing(tx: Transaction, package: Package, now: PackageEnvironment) -> tuple[list[str], str]:
    """What is missing before the actor may move an environment, and the event of the CI run."""
    missing, event = [], ""
    if now.ci:
        codes = set(package.manifest.loop_codes.values()) or {package.manifest.code}
        known = {code: _ci(tx, code) for code in sorted(codes)}
        told = {
            f"the newest CI run of its code says: {outcome}"
            if outcome
            else "no CI run of its code is recorded here"
            for outcome, _ in known.values()
            if outcome != "passed"
        }
        missing += sorted(told)
        event = max(event for _, event in known.values())
    own = {current_actor() or tx.actor, package.builder}
    given = {one.actor for one in _approvals(tx, package, now.environment)}
    lacking = now.approvals - len(given - own)
    if lacking > 0:
        void = f" (not by {' or '.join(sorted(own))})"
        missing.append(f"{lacking} of {now.approvals} approvals{void}")
    return missing, event


def _ci(tx: Transaction, code: str) -> tuple[str, str]:
    """The outcome of the newest CI run of a code snapshot and its event; empty if there is none."""
    events = tables.events
    is_of_code = type_coerce(events.c.body, Text).contains(f'"code":"{code}"')
    query = select(events).where(events.c.kind == CI_FINISHED, is_of_code)
    row = tx.first(query.order_by(events.c.seq.desc()))
    return (str(row.body.get("outcome")), row.id) if row is not None else ("", "")


def _approvals(tx: Transaction, package: Package, environment: str) -> list[PackageApproval]:
    events = tables.events
    subject = f"package:{package.name}"
    query = select(events).where(events.c.subject == subject, events.c.kind == "package.Approved")
    return [
        PackageApproval(actor=row.actor, at=row.at, **row.body)
        for row in tx.all(query.order_by(events.c.seq))
        if row.body["digest"] == package.digest and environment in ("", row.body["environment"])
    ]


def _moves(tx: Transaction, name: str, environment: str = "") -> list[PackageMove]:
    events = tables.events
    query = select(events).where(events.c.subject == f"package:{name}", events.c.kind.in_(_MOVES))
    return [
        PackageMove(
            kind=_MOVES[row.kind],  # type: ignore[arg-type]
            environment=row.body["environment"],
            before=row.body["from"],
            after=row.body["to"],
            at=row.at,
            actor=row.actor,
            reason=row.body["reason"],
            evidence=row.body["evidence"],
            is_forced=row.body["is_forced"],
            event=row.id,
        )
        for row in tx.all(query.order_by(events.c.seq))
        if environment in ("", row.body["environment"])
    ]


def _stack(moves: list[PackageMove]) -> list[str]:
    """What an environment may go back through: the way up, without what was gone back from."""
    found: list[str] = []
    for move in moves:
        if move.kind == "rolled back":
            while found and found[-1] != move.after:
                found.pop()
        else:
            found.append(move.after)
    return found
