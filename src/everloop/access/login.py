"""Login: from the credentials of a request to a principal.

A token costs a hash and a look-up. A password costs its slow hash once; that it was right is then
remembered for a while under a keyed hash of what was sent, together with the hash that it matched,
so that a user who is disabled or has a new password is out as soon as the directory knows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from everloop.access import secrets
from everloop.access.directory import Directory, Snapshot
from everloop.access.throttle import Throttle
from everloop.core.access import Principal
from everloop.core.time import Clock
from everloop.errors import NotAuthenticated, Throttled

__all__ = ["Login"]

_log = logging.getLogger(__name__)

#: How long a right password is remembered, seconds, and how many.
REMEMBERED_S, _MOST = 300.0, 10_000
#: Passwords that are checked at once (each takes 32 MiB), and that may wait for it.
_AT_ONCE, _WAITING = 2, 64
_LONGEST_HEADER = 4096


class _Remembered(NamedTuple):
    user: str
    password: str  # the hash that it matched
    until_s: float


class Login:
    """Tells who a request is from.

    Args:
        directory: Whom there is.
        clock: Decides whether a token has expired.
    """

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self.directory = directory
        self._clock = clock
        self._key = os.urandom(32)
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._checking: dict[bytes, Future[bool]] = {}
        self._throttle = Throttle()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="login")

    def known(self, header: bytes, snapshot: Snapshot) -> Principal | None:
        """Whom the ``Authorization`` header stands for; None if a password must be checked first.

        Raises:
            NotAuthenticated: If it can stand for nobody.
        """
        scheme, _, value = header.partition(b" ")
        kind = scheme.lower()
        if kind == b"bearer" and len(header) <= _LONGEST_HEADER:
            digest = secrets.token_digest(value.strip().decode("latin-1"))
            found = snapshot.by_token(digest, self._clock.now())
            if found is None:
                raise NotAuthenticated(
                    "the token is not valid: unknown, expired or revoked",
                    hint="make another with: everloop token create",
                )
            return found
        if kind != b"basic" or len(header) > _LONGEST_HEADER:
            raise NotAuthenticated("log in with a token (Bearer) or name and password (Basic)")
        key = self._key_of(header)
        with self._lock:
            remembered = self._remembered.get(key)
        if remembered is None or remembered.until_s < time.monotonic():
            return None
        account = snapshot.accounts.get(remembered.user)
        if account is None or account.disabled or account.password != remembered.password:
            return None
        return Principal(account.name, account.role)

    def check(self, header: bytes, address: str, snapshot: Snapshot) -> Future[bool]:
        """Begin to check the password of a ``Basic`` header, in a thread of this object.

        Whoever sends the same while it is being checked waits for the same check.

        Raises:
            NotAuthenticated: If the header cannot be read.
            Throttled: If there were too many wrong tries, or too many wait.
        """
        name, password = _pair(header)
        key = self._key_of(header)
        with self._lock:
            under_way = self._checking.get(key)
            if under_way is not None:
                return under_way
            if len(self._checking) >= _WAITING:
                raise _throttled("too many passwords are being checked", 1.0)
            wait_s = self._throttle.begin(name, address, time.monotonic())
            if wait_s > 0:
                raise _throttled("there were too many wrong passwords", wait_s)
            account = snapshot.accounts.get(name)
            kept = "" if account is None else account.password
            is_open = account is not None and not account.disabled
            remembered = _Remembered(name, kept, 0.0) if is_open else None
            # It is remembered before the future is done: who waits for that looks there next.
            checking = self._threads.submit(self._checked, key, password, kept, address, remembered)
            self._checking[key] = checking
        return checking

    def _checked(
        self, key: bytes, password: str, kept: str, address: str, remembered: _Remembered | None
    ) -> bool:
        is_right = False
        try:
            is_right = secrets.matches(password, kept) and remembered is not None
        finally:
            with self._lock:
                del self._checking[key]
                if is_right and remembered is not None:
                    self._throttle.succeed(remembered.user, address)
                    until_s = time.monotonic() + REMEMBERED_S
                    self._remembered[key] = remembered._replace(until_s=until_s)
                    self._remembered.move_to_end(key)
                    while len(self._remembered) > _MOST:
                        self._remembered.popitem(last=False)
        if not is_right:
            # Not who was tried: people type their password where the name belongs.
            _log.warning("a wrong name or password from %s", address or "somewhere")
        return is_right

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _key_of(self, header: bytes) -> bytes:
        return hashlib.blake2b(header, key=self._key, digest_size=32).digest()


def _pair(header: bytes) -> tuple[str, str]:
    try:
        text = base64.b64decode(header.partition(b" ")[2].strip(), validate=True)
    except (binascii.Error, ValueError):
        raise NotAuthenticated("the Basic credentials cannot be read") from None
    try:
        name, colon, password = text.decode().partition(":")
    except UnicodeDecodeError:  # as clients before RFC 7617 send it
        name, colon, password = text.decode("latin-1").partition(":")
    if not colon:
        raise NotAuthenticated("the Basic credentials lack a password")
    return name, password


def _throttled(message: str, wait_s: float) -> Throttled:
    seconds = max(1, round(wait_s + 0.5))
    return Throttled(message, hint=f"try again in {seconds} s", details={"retry_after_s": seconds})
