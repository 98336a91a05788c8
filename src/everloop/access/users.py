"""AccessService: who may log in and what they may do. No secret is ever given back or logged."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from everloop.access import secrets
from everloop.access.directory import Directory
from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import access as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import principals, tokens
from everloop.catalog.transaction import Transaction
from everloop.core.access import RANKS, NewToken, Principal, Role, Token, User, lower_role
from everloop.core.context import current_principal
from everloop.core.ids import new_id
from everloop.core.time import duration_micros
from everloop.errors import Conflict, InvalidInput, NotAllowed, NotFound, StateError

__all__ = ["AccessService"]

_MAX_NAME, _MAX_NOTE = 128, 1000


class AccessService(Service):
    """Users, their roles, passwords and tokens."""

    area = "access"

    def __init__(self, catalog: Catalog, authorizer: Authorizer, directory: Directory) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._directory = directory

    # --- users --------------------------------------------------------------------------------

    @action("user:read")
    def users(self) -> list[User]:
        """All users, by name."""
        with self._catalog.read() as tx:
            return [_user(row) for row in statements.load_principals(tx)]

    @action("user:write", on="name")
    def create_user(self, name: str, role: Role, *, password: str = "") -> User:
        """Make a user. From the first one on, every door asks who is there.

        Args:
            name: What events call the user; for ever, as users are never deleted.
            role: What the user may do. The first must be an admin.
            password: At least 12 characters; without one the user has tokens alone, as a program.

        Raises:
            InvalidInput: With everything that is wrong.
            Conflict: If the name is taken, also one that differs in case alone.
        """
        _check_name(name)
        if password:
            secrets.check_password(name, password)
        # Outside the transaction: it takes a quarter of a second on purpose.
        kept = secrets.hash_password(password) if password else ""
        with self._catalog.write() as tx:
            known = statements.load_principals(tx)
            if not known and role != "admin":
                raise InvalidInput(
                    "the first user must be an admin: nobody else could make others",
                    [("role", role)],
                )
            taken = next((r.name for r in known if r.name.casefold() == name.casefold()), None)
            if taken is not None:
                raise Conflict(
                    f"there is a user {taken!r} already",
                    hint="users are disabled, never deleted, so that a name stays one person's",
                    details={"winner": taken},
                )
            row = {
                "name": name,
                "role": role,
                "password": kept,
                "disabled": False,
                "created_at": tx.now,
                "updated_at": tx.now,
            }
            tx.execute(principals.insert().values(row))
            tx.append("access.UserCreated", f"user:{name}", {"role": role})
            made = _user(_load(tx, name))
        self._directory.expire()
        return made

    @action("user:write", on="name")
    def set_role(self, name: str, role: Role) -> User:
        """Change what a user may do.

        Raises:
            NotFound: If there is none.
            StateError: If nobody would be an admin any more.
        """
        with self._catalog.write() as tx:
            row = _load(tx, name)
            if row.role != role:
                if role != "admin":
                    _keep_an_admin(tx, row)
                statements.change_principal(tx, name, role=role)
                body = {"before": row.role, "role": role}
                tx.append("access.RoleChanged", f"user:{name}", body)
            changed = _user(_load(tx, name))
        self._directory.expire()
        return changed

    @action("user:write", on="name")
    def disable(self, name: str, disabled: bool = True, *, reason: str = "") -> User:
        """Keep a user out, with all tokens; or let them in again.

        Raises:
            NotFound: If there is none.
            StateError: If nobody would be an admin any more.
        """
        with self._catalog.write() as tx:
            row = _load(tx, name)
            if row.disabled != disabled:
                if disabled:
                    _keep_an_admin(tx, row)
                statements.change_principal(tx, name, disabled=disabled)
                kind = "access.UserDisabled" if disabled else "access.UserEnabled"
                tx.append(kind, f"user:{name}", {"reason": reason})
            changed = _user(_load(tx, name))
        self._directory.expire()
        return changed

    @action("user:own", on="name")
    def set_password(self, name: str, password: str, *, current: str = "") -> User:
        """Set a password: an admin anybody's, everybody their own.

        Args:
            name: Whose.
            password: At least 12 characters.
            current: The one before; needed for one's own.

        Raises:
            InvalidInput: If the password is too easy.
            NotAllowed: If it is another's and the caller no admin, the current one is wrong, or the
                caller came with a token: who finds one must not get a password by it.
        """
        caller = current_principal()
        if caller is not None:
            self._refuse_tokens(caller, "set a password")
            if caller.name != name:
                self._authorizer.authorize(caller, "user:write", name)
            else:
                with self._catalog.read() as tx:
                    kept = _load(tx, name).password
                if not secrets.matches(current, kept):
                    raise NotAllowed("the current password is wrong")
        secrets.check_password(name, password)
        kept = secrets.hash_password(password)
        with self._catalog.write() as tx:
            _load(tx, name)
            statements.change_principal(tx, name, password=kept)
            tx.append("access.PasswordChanged", f"user:{name}")
            changed = _user(_load(tx, name))
        self._directory.expire()
        return changed

    # --- tokens -------------------------------------------------------------------------------

    @action("token:own", on="user")
    def create_token(
        self,
        user: str = "",
        *,
        note: str = "",
        role: Role | None = None,
        expires: str = "",
    ) -> NewToken:
        """Make a token; its secret is given this once.

        Args:
            user: For whom; for the caller if not given. For others only an admin may.
            note: What it is for.
            role: The most that it may do; what its user may, if not given.
            expires: After how long, such as ``"90d"``; never if not given.

        Raises:
            InvalidInput: If something is wrong, or nobody is named and nobody is logged in.
            NotAllowed: If it is another's and the caller no admin, or the caller came with a token.
            NotFound: If there is no such user.
        """
        name = self._own(user)
        caller = current_principal()
        if caller is not None:
            self._refuse_tokens(caller, "make tokens")
        if len(note) > _MAX_NOTE or not note.isprintable():
            raise InvalidInput(f"note: at most {_MAX_NOTE} printable characters")
        lasting = timedelta(microseconds=duration_micros(expires)) if expires else None
        secret = secrets.new_token()
        with self._catalog.write() as tx:
            row = _load(tx, name)
            if row.disabled:
                raise StateError(f"{name} is disabled", hint=f"everloop user disable {name} --undo")
            made = Token(
                id=new_id(),
                user=name,
                note=note,
                role=lower_role(role or row.role, row.role),
                created_at=tx.now,
                expires_at=_later(tx.now, lasting),
                revoked_at=None,
            )
            kept = {
                "id": made.id,
                "principal": name,
                "note": note,
                "role": made.role,
                "digest": secrets.token_digest(secret),
                "created_at": made.created_at,
                "expires_at": made.expires_at,
            }
            tx.execute(tokens.insert().values(kept))
            tx.append(
                "access.TokenCreated",
                f"token:{made.id}",
                {"user": name, "role": made.role, "note": note},
            )
        self._directory.expire()
        return NewToken(token=made, secret=secret)

    @action("token:own", on="user")
    def tokens(self, user: str = "") -> list[Token]:
        """The tokens of a user, of the caller if none is named, oldest first; all to an admin."""
        caller = current_principal()
        name = user
        if caller is not None and RANKS.get(caller.role, -1) < RANKS["admin"]:
            name = self._own(user)
        with self._catalog.read() as tx:
            if name:
                _load(tx, name)
            return [_token(row) for row in statements.load_tokens(tx, name)]

    @action("token:own", on="id")
    def revoke_token(self, id: str) -> Token:
        """End a token; one that has ended stays as it is.

        Raises:
            NotFound: If there is none, or it is another's and the caller no admin.
        """
        caller = current_principal()
        with self._catalog.write() as tx:
            row = statements.load_token(tx, id)
            is_ours = row is not None and (
                caller is None or caller.name == row.principal or caller.role == "admin"
            )
            if row is None or not is_ours:
                raise NotFound(f"no token {id[:80]!r}", hint="see: everloop token list")
            if row.revoked_at is None:
                statements.revoke(tx, id)
                tx.append("access.TokenRevoked", f"token:{id}", {"user": row.principal})
            ended = _token(statements.load_token(tx, id))
        self._directory.expire()
        return ended

    def _own(self, user: str) -> str:
        """The user that is meant; for another's the caller must be an admin."""
        caller = current_principal()
        if caller is not None and user not in ("", caller.name):
            self._authorizer.authorize(caller, "user:write", user)
        name = user or (caller.name if caller is not None else "")
        if not name:
            raise InvalidInput("nobody is logged in here", [("user", "say whose")])
        return name

    @staticmethod
    def _refuse_tokens(caller: Principal, what: str) -> None:
        if caller.token:
            raise NotAllowed(
                f"a token cannot {what}: whoever found it would be in for good",
                hint="log in with name and password",
            )


def _check_name(name: str) -> None:
    faults = []
    if not 1 <= len(name) <= _MAX_NAME:
        faults.append(("name", f"must have 1 to {_MAX_NAME} characters"))
    if not name.isprintable() or ":" in name or "/" in name or name != name.strip():
        faults.append(
            ("name", "must not hold ':', '/' or control characters, nor begin or end with a space")
        )
    elif unicodedata.normalize("NFKC", name) != name:
        faults.append(("name", "holds characters that look like others; write it in plain ones"))
    if faults:
        raise InvalidInput("the user cannot be called that", faults)


def _later(now: datetime, length: timedelta | None) -> datetime | None:
    return None if length is None else now + length


def _load(tx: Transaction, name: str) -> Row[Any]:
    row = statements.load_principal(tx, name)
    if row is None:
        known = [found.name for found in statements.load_principals(tx)]
        # An admin may see the others' names; nobody else may learn them by a near miss.
        caller = current_principal()
        raise NotFound.named(
            "user", name, known if caller is None or caller.role == "admin" else ()
        )
    return row


def _keep_an_admin(tx: Transaction, row: Row[Any]) -> None:
    is_admin = row.role == "admin" and not row.disabled
    if is_admin and not statements.has_active_admin(tx, besides=row.name):
        raise StateError(
            f"{row.name} is the only admin who may log in", hint="make somebody else an admin first"
        )


def _user(row: Row[Any]) -> User:
    return User(
        name=row.name,
        role=row.role,
        disabled=row.disabled,
        has_password=bool(row.password),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _token(row: Row[Any] | None) -> Token:
    assert row is not None  # read within the transaction that found it
    return Token(
        id=row.id,
        user=row.principal,
        note=row.note,
        role=row.role,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
