"""The table of rights: which role may do what. ``everloop user roles`` prints it.

Each action is listed once, under the lowest role that has it; the roles above have it too. What is
not listed is allowed to nobody, and a test looks for every action that any service declares.
"""

from __future__ import annotations

from everloop.core.access import RANKS, ROLES, Principal, Role
from everloop.errors import NotAllowed

__all__ = ["RIGHTS", "ROLE_OF", "RoleAuthorizer", "is_allowed"]

#: Role -> what it may beyond the role before it.
RIGHTS: dict[Role, frozenset[str]] = {
    # Sees everything that is kept here, and asks what is served. Whoever looks at runs has those
    # noted as lost whose lease is over: the catalog's clock decides that, not the caller.
    "viewer": frozenset({
        "artifact:read", "charter:read", "dataset:read", "deployment:read", "event:read",
        "experiment:read", "feature:read", "lineage:read", "logged_model:read", "loop:read",
        "model:read", "monitor:read", "object:read", "package:read", "prediction:ask",
        "prediction:read", "run:read", "run:reap", "token:own", "trace:read", "user:own",
        "verdict:read", "webhook:read",
    }),
    # Does the daily work: data, runs, models. What it deletes can be restored.
    "contributor": frozenset({
        "artifact:write", "ci:record", "dataset:tag", "dataset:write", "experiment:create",
        "experiment:write",
        "feature:apply", "label:write", "lineage:write", "logged_model:create",
        "logged_model:delete", "logged_model:write", "model:register", "model:write",
        "object:write", "package:build", "run:create", "run:delete", "run:start", "run:write",
        "trace:assess", "trace:write",
    }),
    # Answers for what is live: gates, aliases, deployments, loops; and what is gone for good.
    "maintainer": frozenset({
        "artifact:delete", "charter:write", "deployment:create", "deployment:promote",
        "deployment:serve", "deployment:write", "event:follow", "experiment:delete",
        "hook:receive", "loop:decide", "loop:pause", "loop:run", "loop:write", "model:approve",
        "model:delete", "model:promote", "model:protect", "monitor:update", "monitor:write",
        "package:approve", "package:deploy", "package:promote", "package:protect",
        "prediction:write", "run:approve", "source:write", "trace:delete", "verdict:give",
        "webhook:write",
    }),
    # Who may log in; what could rewrite who did what (an import keeps the names it brings).
    "admin": frozenset({
        "dataset:erase", "dataset:expire", "dataset:govern", "dataset:hold",
        "dataset:read-personal",
        "logged_model:import", "model:import", "package:import", "run:import", "trace:import",
        "user:read", "user:write", "workspace:collect",
    }),
}  # fmt: skip

#: Action -> the lowest role that has it.
ROLE_OF: dict[str, Role] = {action: role for role in ROLES for action in RIGHTS[role]}


def is_allowed(role: str, action: str) -> bool:
    """Whether `role` may do `action`; nobody may do what is not in the table."""
    needed = ROLE_OF.get(action)
    return needed is not None and RANKS.get(role, -1) >= RANKS[needed]


class RoleAuthorizer:
    """Decides by the table.

    Without a principal the caller is a program that holds the catalog itself: whoever can read the
    folder or the database may do everything. Doors never call without one once there are users.
    """

    def authorize(self, principal: Principal | None, action: str, object_: str) -> None:
        """Return if allowed; raises NotAllowed."""
        if principal is None or is_allowed(principal.role, action):
            return
        needed = ROLE_OF.get(action)
        on = f" on {object_[:80]!r}" if object_ else ""
        raise NotAllowed(
            f"{principal.name} ({principal.role or 'no role'}) may not {action}{on}",
            hint=f"it takes the role {needed}; an admin gives it: "
            f"everloop user role {principal.name} {needed}"
            if needed
            else "",
        )
