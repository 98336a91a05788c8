"""Statements of access: users, their tokens, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, or_, select, update

from everloop.catalog.tables import events, principals, tokens
from everloop.catalog.transaction import Transaction

__all__ = [
    "CHANGES",
    "change_principal",
    "has_active_admin",
    "load_principal",
    "load_principals",
    "load_token",
    "load_tokens",
    "revision",
    "revoke",
    "usable_tokens",
]

#: Kinds of the events that change who may do what.
CHANGES = (
    "access.UserCreated",
    "access.PasswordChanged",
    "access.RoleChanged",
    "access.UserDisabled",
    "access.UserEnabled",
    "access.TokenCreated",
    "access.TokenRevoked",
)


def load_principal(tx: Transaction, name: str) -> Row[Any] | None:
    """The row of a user, or None."""
    return tx.first(select(principals).where(principals.c.name == name))


def load_principals(tx: Transaction) -> Sequence[Row[Any]]:
    """All users, by name."""
    return tx.all(select(principals).order_by(principals.c.name))


def change_principal(tx: Transaction, name: str, **values: Any) -> None:
    """Set columns of a user."""
    values["updated_at"] = tx.now
    tx.execute(update(principals).where(principals.c.name == name).values(**values))


def has_active_admin(tx: Transaction, *, besides: str = "") -> bool:
    """Whether an admin may log in, other than `besides`."""
    query = select(principals.c.name).where(
        principals.c.role == "admin",
        principals.c.disabled.is_(False),
        principals.c.name != besides,
    )
    return tx.first(query.limit(1)) is not None


def load_token(tx: Transaction, id_: str) -> Row[Any] | None:
    """The row of a token, or None."""
    return tx.first(select(tokens).where(tokens.c.id == id_))


def load_tokens(tx: Transaction, principal: str = "") -> Sequence[Row[Any]]:
    """The tokens of a user, or of all, oldest first."""
    query = select(tokens).order_by(tokens.c.id)
    if principal:
        query = query.where(tokens.c.principal == principal)
    return tx.all(query)


def usable_tokens(tx: Transaction) -> Sequence[Row[Any]]:
    """The tokens that were neither revoked nor have expired."""
    lasting = or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > tx.now)
    return tx.all(select(tokens).where(tokens.c.revoked_at.is_(None), lasting))


def revoke(tx: Transaction, id_: str) -> None:
    """Mark a token as revoked."""
    tx.execute(update(tokens).where(tokens.c.id == id_).values(revoked_at=tx.now))


def revision(tx: Transaction) -> tuple[int, ...]:
    """Changes whenever a user or a token does: the last event of each kind, a seek each."""
    newest = [
        select(func.max(events.c.seq)).where(events.c.kind == kind).scalar_subquery()
        for kind in CHANGES
    ]
    row = tx.first(select(*newest))
    return tuple(seq or 0 for seq in row or ())
