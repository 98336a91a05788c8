"""FernetBox: secrets under a key of the workspace, by the ``cryptography`` package's Fernet.

The choice: the standard library has no authenticated encryption, and one of our own making would be
worse than none, so ``cryptography`` is an optional dependency that only a webhook with a secret
needs. The key is ``EVERLOOP_SECRET_KEY``, or else a file of the workspace that only its user may
read, made at the first use. What this keeps safe is the catalog alone: a dump of the database, a
copy of the catalog's file. Who can copy the whole folder has key and catalog; several servers on
one PostgreSQL must share the key by the environment.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import BackendError, InvalidInput, MissingExtra

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

__all__ = ["FernetBox"]


class FernetBox:
    """Seals with the key `key`, or with the one in `file`.

    Args:
        file: Where the key lies; made, readable by its owner alone, when it is first needed.
        key: 32 bytes in URL-safe base64, or empty for the file.
    """

    def __init__(self, file: Path, key: str = "") -> None:
        self._file = file
        self._key = key
        self._loading = threading.Lock()
        self._loaded: Fernet | None = None

    def seal(self, secret: str) -> str:
        """`secret`, encrypted and authenticated."""
        return self._fernet().encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret. Raises BackendError if it was altered or sealed with another key."""
        fernet = self._fernet()
        from cryptography.fernet import InvalidToken

        try:
            return fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise BackendError(
                "a secret was sealed with another key, or altered",
                hint=f"bring back EVERLOOP_SECRET_KEY or {self._file}, or set the secret anew",
            ) from None

    def _fernet(self) -> Fernet:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Fernet:
        try:
            from cryptography.fernet import Fernet
        except ImportError as error:
            raise MissingExtra.of("webhooks", "keeping the secret of a webhook") from error
        try:
            return Fernet(self._key or self._key_of_file(Fernet.generate_key()))
        except (ValueError, TypeError):
            where = "EVERLOOP_SECRET_KEY" if self._key else str(self._file)
            raise InvalidInput(
                f"{where} is no key", hint="it must be 32 bytes in URL-safe base64"
            ) from None
        except OSError as error:
            raise BackendError(
                f"the key {self._file} cannot be read or made: {error.strerror}",
                hint="correct the rights, or set EVERLOOP_SECRET_KEY",
            ) from error

    def _key_of_file(self, fresh: bytes) -> bytes:
        """The key in the file; the file is made whole or not at all, by whoever is first."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not self._file.exists():
            part = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(fresh)
                    file.flush()
                    os.fsync(file.fileno())
                self._link(part)
            finally:
                part.unlink()
        return self._file.read_bytes().strip()

    def _link(self, part: Path) -> None:
        try:
            os.link(part, self._file)
        except FileExistsError:  # another process was first: its key counts
            return
