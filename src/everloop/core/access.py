"""Who acts: users, their tokens, and the principal that a request was authenticated as."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

__all__ = ["RANKS", "ROLES", "NewToken", "Principal", "Role", "Token", "User", "lower_role"]

#: Each may do what the ones before it may, and more.
Role = Literal["viewer", "contributor", "maintainer", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "contributor", "maintainer", "admin")
RANKS: dict[str, int] = {role: rank for rank, role in enumerate(ROLES)}


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person or a program that may log in.

    Attributes:
        name: What events call it; never given to another.
        role: What it may do.
        disabled: Whether it is kept out. Users are never deleted: their name stays theirs.
        has_password: Without one it has tokens alone, as a program does.
        created_at: UTC.
        updated_at: UTC.
    """

    name: str
    role: Role
    disabled: bool
    has_password: bool
    created_at: datetime
    updated_at: datetime


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token of a user, without its secret.

    Attributes:
        id: Names it for people; no secret.
        user: For whom it acts.
        note: What it is for.
        role: The most that it may do; never more than its user.
        created_at: UTC.
        expires_at: UTC; None means never.
        revoked_at: UTC; None means that it was not.
    """

    id: str
    user: str
    note: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that was just made, with its secret: shown this once, kept nowhere."""

    token: Token
    secret: str

    def __repr__(self) -> str:
        return f"NewToken({self.token!r}, secret=...)"  # a secret must not reach a log


class Principal(msgspec.Struct, frozen=True):
    """Whom a request was authenticated as.

    Attributes:
        name: The user, also where a token of theirs was shown.
        role: What it may do now; empty may do nothing.
        token: Id of the token that was shown, or empty.
    """

    name: str
    role: Role | Literal[""] = ""
    token: str = ""


def lower_role(one: Role, other: Role) -> Role:
    """The one of two roles that may do less."""
    return one if RANKS[one] <= RANKS[other] else other
