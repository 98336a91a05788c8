"""Constants of modules and classes as they are in the run's own process, for its workers.

A key names constants by their content there. A worker imports the modules anew, so that what a
program set after its own import (``config.RATE = 5``) is not there: it would compute something else
than the key says. So a worker is told the constants of its step, and asks for those that differ.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from everloop.core.project import module_name
from everloop.errors import InvalidInput
from everloop.pipelines.constants import NotCanonical, canonical, shown

__all__ = ["differing", "set_values", "values_of"]


def differing(constants: Mapping[str, str]) -> list[str]:
    """The places of those constants that have another content in this process.

    Where nothing can be compared, as there is no canonical form, no difference is told.

    Args:
        constants: Place (``module.NAME``, ``module.Class.NAME``) and content, as in a key.
    """
    return [place for place, text in constants.items() if _differs(place, text)]


def _differs(place: str, there: str) -> bool:
    try:
        owner, name = _owner(place)
        value = vars(owner)[name]
        if isinstance(value, PurePath) and repr(value) == there:
            return False
        return not there.startswith("identity:") and shown(canonical(value, _no_code)) != there
    except (LookupError, TypeError, NotCanonical):
        return False


def _no_code(value: Any) -> None:
    if callable(value) or isinstance(value, property | staticmethod | classmethod):
        raise NotCanonical(value)


def _owner(place: str) -> tuple[Any, str]:
    """The module or class that has the last name of `place`, and that name.

    Raises:
        LookupError: If there is none.
        TypeError: If something on the way has no names.
    """
    *path, name = place.split(".")
    main = module_name("__main__")
    for cut in range(len(path), 0, -1):
        module = ".".join(path[:cut])
        owner: Any = sys.modules.get("__main__" if module == main else module)
        if owner is not None:
            for part in path[cut:]:
                owner = vars(owner)[part]
            return owner, name
    raise LookupError(place)


def values_of(places: Iterable[str]) -> bytes:
    """What is at `places` in this process, for :func:`set_values`.

    Raises:
        InvalidInput: If something of it cannot be sent; names it.
    """
    import cloudpickle

    values, faults = {}, []
    for place in places:
        owner, name = _owner(place)
        try:
            values[place] = cloudpickle.dumps(vars(owner)[name])
        except Exception as error:  # noqa: BLE001 - pickling runs methods of the user's classes
            faults.append((place, str(error)))
    if faults:
        raise InvalidInput(
            "constants that were changed after their import cannot be sent to another process",
            faults,
            hint="give them to the step as arguments, or call the step plainly",
        )
    return pickle.dumps(values)


def set_values(data: bytes) -> None:
    """Have the constants of :func:`values_of` in this process too."""
    for place, pickled in pickle.loads(data).items():
        owner, name = _owner(place)
        value, old = pickle.loads(pickled), vars(owner)[name]
        # In place, so that a module which imported it by its name has it as well.
        if type(value) is type(old) and isinstance(old, dict | set):
            old.clear()
            old.update(value)
        elif type(value) is type(old) and isinstance(old, list):
            old[:] = value
        else:
            setattr(owner, name, value)
