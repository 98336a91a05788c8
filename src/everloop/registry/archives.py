"""Looks at an archive before a library opens it."""

from __future__ import annotations

import io
import zipfile

from everloop.errors import InvalidInput

__all__ = ["check_zip", "most_bytes"]

_MOST_MEMBERS = 100_000
#: An archive may unfold to so many bytes, or so many times its own size. Weights hardly shrink.
_SMALL = 64 << 20
_MOST_TIMES = 20


def most_bytes(size: int) -> int:
    """How many bytes a file of this size may unfold to."""
    return max(_SMALL, _MOST_TIMES * size)


def check_zip(data: bytes, what: str) -> list[str]:
    """The names of the members of a zip archive, each once and none of them a climbing path.

    Raises:
        InvalidInput: If it is no archive, cut short, or would unfold to far more than it is.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InvalidInput(f"the file is no {what}: {error}") from error
    names = [member.filename for member in members]
    size = sum(member.file_size for member in members)
    if len(names) > _MOST_MEMBERS or size > most_bytes(len(data)):
        raise InvalidInput(
            f"the file is no {what}: {len(data)} bytes would unfold to {len(names)} files of"
            f" {size} bytes"
        )
    if len(set(names)) != len(names) or any(
        name.startswith("/") or ".." in name.split("/") or "\\" in name for name in names
    ):
        raise InvalidInput(f"the file is no {what}: its members have names that no model gives")
    return names
