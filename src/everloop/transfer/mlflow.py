"""Finds out what kind of store of MLflow's a source is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from everloop.errors import InvalidInput
from everloop.settings import MlflowLogin
from everloop.transfer.source import Fail, Source

__all__ = ["open_source"]


def open_source(source: str, login: MlflowLogin, fail: Fail, artifacts: Path | None) -> Source:
    """Open a store of MLflow's for reading.

    Args:
        source: A folder ``mlruns``, a file ``mlflow.db``, the URL of a database or of a server.
        login: Who asks, for a server.
        fail: Told what cannot be read.
        artifacts: Where the files are, if not where the store says.

    Raises:
        InvalidInput: If it is none of these.
        BackendError: If it cannot be reached.
    """
    if source.startswith(("http://", "https://")):
        from everloop.transfer.mlflow_rest import RestSource

        return RestSource(source, login, fail)
    if "://" in source and not source.startswith("file:"):
        from everloop.transfer.mlflow_sql import SqlSource

        return SqlSource(source, fail, artifacts)
    path = Path(unquote(urlsplit(source).path) if source.startswith("file:") else source)
    path = path.expanduser().absolute()
    if path.is_file():
        from everloop.transfer.mlflow_sql import SqlSource

        return SqlSource(f"sqlite:///{path}", fail, artifacts)
    from everloop.transfer.mlflow_files import FileSource

    _check_folder(path)
    return FileSource(path, fail, artifacts)


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InvalidInput(
            f"there is no folder or file {path}",
            hint="name a folder mlruns, a file mlflow.db, a database's URL or a server's URL",
        )
    if (path / "catalog.sqlite").exists():
        raise InvalidInput(
            f"{path} is a workspace of Everloop's, not a store of MLflow's",
            hint=f"take it in with: everloop merge {path}",
        )
    if any(path.glob("*/meta.yaml")) or any(path.glob(".trash/*/meta.yaml")):
        return
    for name in ("mlflow.db", "mlruns"):
        if (path / name).exists():
            raise InvalidInput(f"{path} is not a store itself", hint=f"name {path / name}")
    raise InvalidInput(
        f"{path} is no folder of MLflow's: no folder in it has a meta.yaml",
        hint="name the folder mlruns itself",
    )
