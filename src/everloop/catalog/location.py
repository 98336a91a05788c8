"""Where the catalog of a workspace is, by what people call the place."""

from __future__ import annotations

from pathlib import Path

from everloop import settings
from everloop.errors import InvalidInput

__all__ = ["catalog_of"]


def catalog_of(location: str) -> tuple[str, Path]:
    """URL of the catalog, and the folder of the workspace; raises InvalidInput."""
    if location.startswith(("postgresql:", "postgres:", "postgresql+")):
        return location, Path(settings.DEFAULT_DIR)
    if location.startswith("sqlite:///"):
        return location, Path(location.removeprefix("sqlite:///")).parent
    if "://" in location:
        scheme = location.split("://")[0]
        raise InvalidInput(
            f"no workspace can be opened at {scheme}://",
            hint="use a folder, sqlite:///path, postgresql://user@host/database or http://host:port",
        )
    folder = Path(location).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file, not a folder")
    return f"sqlite:///{folder.absolute()}/catalog.sqlite", folder
