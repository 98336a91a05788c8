"""Claims in PostgreSQL: advisory locks of a session."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from everloop.catalog.claims import number_of

__all__ = ["SessionClaims"]


class SessionClaims:
    """Claims of all processes, of any machine, that use one PostgreSQL database.

    They end with their session. Where the server drops it, others may compute the same beside us;
    whoever commits first is the one that counts, as ever.

    Args:
        engine: Gives the connection.
        within: Around each use of it; tells faults in our words.
    """

    def __init__(self, engine: Engine, within: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine = engine
        self._within = within
        self.forget()
        _sessions.add(self)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._connection: Connection | None = None

    def take(self, keys: Iterable[str]) -> set[str]:
        with self._lock, self._within():
            numbers = {-1 - number_of(key): key for key in keys}
            # A session may take its own lock again, so the threads are told apart here.
            wanted = [number for number in numbers if number not in self._taken]
            if not wanted:
                return set()
            try:
                taken = self._ask("pg_try_advisory_lock", wanted)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                taken = self._ask("pg_try_advisory_lock", wanted)  # in a new session
            self._taken |= taken
            return {numbers[number] for number in taken}

    def release(self, keys: Iterable[str]) -> None:
        with self._lock, self._within():
            held = [n for n in (-1 - number_of(key) for key in keys) if n in self._taken]
            if not held:
                return
            try:
                self._ask("pg_advisory_unlock", held)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                self._taken.clear()  # they ended with their session
            self._taken.difference_update(held)

    def _ask(self, function: str, numbers: list[int]) -> set[int]:
        # Negative numbers, so that none is one of the catalog's own locks.
        query = text(f"SELECT n FROM unnest(CAST(:n AS bigint[])) AS n WHERE {function}(n)")
        return set(self._open().execute(query, {"n": numbers}).scalars())

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.invalidated:
            self._taken.clear()  # a new session has none of the old one's locks
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def close(self) -> None:
        """Give up all claims."""
        with self._lock:
            self._taken.clear()
            if self._connection is not None:
                # Back in the pool the session would keep its locks.
                self._connection.invalidate()
                self._connection.close()
                self._connection = None


_sessions: weakref.WeakSet[SessionClaims] = weakref.WeakSet()


def _forget_in_child() -> None:
    # What the parent holds, the child does not.
    for session in list(_sessions):
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
