"""The key that a workspace signs with: of the settings, or of a file that is its own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from everloop import settings
from everloop.errors import BackendError, StateError

__all__ = ["SigningKey"]


class SigningKey:
    """The key of a workspace: ``EVERLOOP_SIGNING_KEY``, or else the file, made when it is needed.

    Args:
        file: Where the key lies; readable by its owner alone. None is a workspace without a folder.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def get(self) -> str:
        """The key.

        Raises:
            StateError: If there is neither a setting nor a folder.
            BackendError: If the file can be neither read nor made.
        """
        if found := settings.load().signing_key:
            return found
        if self._file is None:
            raise StateError(
                "there is no key to sign with", hint="set EVERLOOP_SIGNING_KEY where the server is"
            )
        try:
            self._make(self._file)
            found = self._file.read_text().strip()
        except OSError as error:
            raise BackendError(
                f"the signing key {self._file} cannot be read: {error.strerror or error}",
                hint="check the rights of the folder, or set EVERLOOP_SIGNING_KEY",
            ) from error
        if not found:
            raise BackendError(f"the signing key {self._file} is empty", hint="bring it back")
        return found

    @staticmethod
    def _make(file: Path) -> None:
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as target:
                target.write(f"{secrets.token_hex(32)}\n")
                target.flush()
                os.fsync(target.fileno())
            os.link(temporary, file)  # whoever comes second takes the key of the first
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
