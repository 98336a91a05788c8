"""Loads pipelines from files: ``path/to/loop.py:retrain``."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from everloop.errors import InvalidInput, NotFound, UserCodeError
from everloop.pipelines.api import Pipeline

__all__ = ["load_module", "load_pipeline"]


class _FromSource(SourceFileLoader):
    """Compiles the file itself: kept bytecode also passes for an edit of the same second and size.

    A supervisor loads a file again when it was edited, and would go on with the code before.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_module(path: str | Path) -> ModuleType:
    """Import the file at `path` under its own name; a file that is imported already is not again.

    Its folder comes first on the module path, so that it can import what lies beside it.

    Raises:
        NotFound: If there is no such file.
        UserCodeError: If the file raises when it is imported.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise NotFound(f"there is no file {path}", hint="give the path of a Python file")
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    loader = _FromSource(file.stem, str(file))
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=loader)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file: they see their own traceback
        sys.modules.pop(file.stem, None)
        raise UserCodeError.caught(f"importing {path}", error) from error
    return module


def load_pipeline(target: str) -> Pipeline[Any, Any]:
    """The pipeline that ``file.py:name`` names.

    Raises:
        InvalidInput: If `target` is not of that form, or names something else than a pipeline.
        NotFound: If there is no such file or name; with the pipelines of the file.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not path:
        raise InvalidInput(f"{target!r} names no pipeline", hint="write it as loop.py:retrain")
    module = load_module(path)
    pipelines = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    if not hasattr(module, name):
        raise NotFound.named("pipeline", name, pipelines)
    found = getattr(module, name)
    if not isinstance(found, Pipeline):
        raise InvalidInput(
            f"{target} is no pipeline but a {type(found).__name__}",
            hint=f"pipelines of {path}: {', '.join(pipelines) or 'none'}",
        )
    return found
