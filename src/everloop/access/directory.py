"""Directory: who may log in, as this process last saw it. Looking somebody up asks no database."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import NamedTuple

from everloop.catalog import access as statements
from everloop.catalog.engine import Catalog
from everloop.core.access import Principal, Role, lower_role

__all__ = ["Account", "Directory", "Key", "Snapshot"]


class Account(NamedTuple):
    """A user as a login needs it."""

    name: str
    role: Role
    password: str
    disabled: bool


class Key(NamedTuple):
    """A token as a login needs it."""

    id: str
    user: str
    role: Role
    expires_at: datetime | None


class Snapshot(NamedTuple):
    """All users and usable tokens at one moment; `tokens` by their digest."""

    accounts: dict[str, Account]
    tokens: dict[str, Key]
    revision: tuple[int, ...]

    def by_token(self, digest: str, now: datetime) -> Principal | None:
        """Whom a token stands for, if it still does."""
        key = self.tokens.get(digest)
        if key is None or (key.expires_at is not None and key.expires_at <= now):
            return None
        account = self.accounts.get(key.user)
        if account is None or account.disabled:
            return None
        return Principal(account.name, lower_role(account.role, key.role), key.id)


class Directory:
    """Keeps a snapshot of a catalog's users and tokens; any thread may ask.

    Args:
        catalog: Where they are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._loading = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._checked_s = float("-inf")
        self._changes = 0

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot; None before the first :meth:`refresh`."""
        return self._snapshot

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was known to be what the catalog says."""
        return time.monotonic() - self._checked_s

    def refresh(self) -> Snapshot:
        """Look whether anything changed, and read everything again if so.

        Raises:
            BackendError: If the catalog does not answer; the snapshot stays.
        """
        with self._loading:
            began_s, changes = time.monotonic(), self._changes
            with self._catalog.read() as tx:
                revision = statements.revision(tx)
                known = self._snapshot
                if known is None or known.revision != revision:
                    rows, keys = statements.load_principals(tx), statements.usable_tokens(tx)
                    known = Snapshot(
                        {r.name: Account(r.name, r.role, r.password, r.disabled) for r in rows},
                        {k.digest: Key(k.id, k.principal, k.role, k.expires_at) for k in keys},
                        revision,
                    )
            self._snapshot = known
            if changes == self._changes:  # else it may have been read before what we changed
                self._checked_s = began_s
            return known

    def expire(self) -> None:
        """Look again before the next answer: this process itself changed something."""
        self._changes += 1
        self._checked_s = float("-inf")
