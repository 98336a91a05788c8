"""How a call of a step reaches another process: the function by name, large arguments by digest."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from everloop.core.context import current_workspace
from everloop.core.pipeline import StoredValue
from everloop.errors import BackendError, InvalidInput
from everloop.pipelines.definition import Step
from everloop.pipelines.loaded import is_a, is_exactly
from everloop.pipelines.values import load, store

__all__ = ["LazyBlobs", "StepReference", "call_from_bytes", "call_to_bytes", "reference_to"]

#: Arrays from this many bytes go through the object store, where they are mapped and not copied.
_LARGE = 65_536
#: How deep in an argument we look for what cannot be sent.
_DEEPEST = 8


class LazyBlobs:
    """The object store of the current workspace, which is opened when something large comes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current_workspace().blobs, name)


class StepReference(NamedTuple):
    """Where a step's function is: a name in a module, or the function itself.

    Attributes:
        module: Empty if the function travels.
        name: Qualified name of the step in the module.
        function: The pickled function of a notebook, a main script or another function.
    """

    module: str
    name: str
    function: bytes

    def resolve(self) -> Callable[..., Any]:
        """The function; imports its module."""
        return _resolve(self)


@functools.lru_cache(maxsize=64)
def _resolve(reference: StepReference) -> Callable[..., Any]:
    if not reference.module:
        return pickle.loads(reference.function)  # type: ignore[no-any-return]
    found: Any = importlib.import_module(reference.module)
    for part in reference.name.split("."):
        found = getattr(found, part)
    return found.function  # type: ignore[no-any-return]


def reference_to(step: Step) -> StepReference:
    """How another process finds the function of `step`.

    Raises:
        InvalidInput: If it holds something that cannot be sent.
    """
    module, name = step.function.__module__, step.function.__qualname__
    if module != "__main__" and "<" not in name:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is step:
            return StepReference(module, name, b"")
    import cloudpickle

    try:
        return StepReference("", "", cloudpickle.dumps(step.function))
    except Exception as error:  # pickling runs methods of whatever the function holds
        raise InvalidInput(
            f"step {step.name} cannot be sent to another process: {error}",
            hint="open connections, locks and the like inside the step",
        ) from error


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Puts large tables and arrays into the object store and sends their names."""

        def __init__(self, file: io.BytesIO, blobs: Any) -> None:
            super().__init__(file)
            self._blobs = blobs

        def persistent_id(self, obj: Any) -> StoredValue | None:
            if not _is_large(obj):
                return None
            return store(obj, self._blobs, "an argument")[0]

    return Pickler


def _is_large(value: Any) -> bool:
    if is_a(value, "pyarrow", "Table") or is_a(value, "everloop.data.files", "Files"):
        return True
    if is_exactly(value, "numpy", "ndarray"):
        return bool(value.nbytes >= _LARGE and not value.dtype.hasobject)
    # One with pending changes would lose them on the way through the store.
    return type(value).__module__ == "everloop.data.frame" and not getattr(value, "changes", True)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: StoredValue) -> Any:
        return load(pid, LazyBlobs())


def call_to_bytes(args: tuple[Any, ...], kwargs: dict[str, Any], blobs: Any, where: str) -> bytes:
    """The arguments of a call; large ones are in the store when this returns.

    Raises:
        InvalidInput: If one of them cannot be sent; names it.
        BackendError: If a large one cannot be stored.
    """
    try:
        return _dump((args, kwargs), blobs)
    except BackendError:  # no room for a large one
        raise
    except Exception as error:  # pickling runs methods of the user's classes
        named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        faults = [fault for name, value in named.items() for fault in _faults(str(name), value)]
        raise InvalidInput(
            f"the arguments of {where} cannot be sent to another process",
            faults or [("", str(error))],
            hint="give it what it can open itself (a path, an address), or call the step plainly",
        ) from error


def _dump(value: Any, blobs: Any) -> bytes:
    sink = io.BytesIO()
    _pickler()(sink, blobs).dump(value)
    return sink.getvalue()


def _faults(path: str, value: Any, depth: int = 0) -> list[tuple[str, str]]:
    """What inside `value` cannot be sent, by its path there."""
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - as above; here it only says what it was
        inside = _inside(path, value) if depth < _DEEPEST else []
        found = [fault for name, item in inside for fault in _faults(name, item, depth + 1)]
        return found or [(path, f"{type(value).__name__}: {error}")]
    return []


def _inside(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, type | ModuleType | FunctionType):
        return []
    names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
    return [(f"{path}.{name}", getattr(value, name, None)) for name in names]


def call_from_bytes(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that :func:`call_to_bytes` wrote; large ones are mapped, read-only."""
    args, kwargs = _Unpickler(io.BytesIO(data)).load()
    return args, kwargs
