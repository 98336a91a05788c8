"""What flavors share: the files of a model by path, and ``flavor.json``, which describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from everloop.errors import InvalidInput
from everloop.registry.predictor import Floats

__all__ = [
    "ABOUT",
    "about",
    "check_scores",
    "file_of",
    "made_by",
    "many_outputs",
    "names_of",
    "options_of",
]

ABOUT = "flavor.json"


class _About(msgspec.Struct, omit_defaults=True):
    """What stands in ``flavor.json``."""

    names: tuple[str, ...]
    library: str = ""
    options: dict[str, Any] = {}


def made_by(model: object, library: str) -> bool:
    """Whether the model's class or one it inherits from is of `library`."""
    # By name, so that asking does not import the library.
    return any(cls.__module__.partition(".")[0] == library for cls in type(model).__mro__)


def many_outputs(library: str, outputs: object) -> InvalidInput:
    """The error of a model that gives more than one score per row."""
    return InvalidInput(
        f"this {library} model gives {outputs} scores per row; one is expected",
        hint="wrap it in a function that returns the one score to serve",
    )


def check_scores(function: Callable[[Floats], Floats], width: int, library: str) -> None:
    """Refuse a model that does not give one score for each of three rows of zeros."""
    shape = np.shape(function(np.zeros((3, width))))
    if shape != (3,):
        raise many_outputs(library, math.prod(shape[1:]) if len(shape) > 1 else f"{shape} for 3")


def about(
    names: Sequence[str], *, width: int, library: str, options: Mapping[str, object] | None = None
) -> bytes:
    """The bytes of ``flavor.json``.

    Args:
        names: The features in order; empty if not known.
        width: How many the model takes; 0 if not known.
        library: What made it.
        options: What else the flavor must know to load it.

    Raises:
        InvalidInput: If there are not as many names as features.
    """
    if width and names and len(names) != width:
        raise InvalidInput(f"the model takes {width} features, the signature names {len(names)}")
    return msgspec.json.encode(_About(tuple(names), library, dict(options or {})))


def names_of(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """The names of the features, in order; empty if the model does not know them."""
    return _read(files).names


def options_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the flavor noted when it packed the model."""
    return _read(files).options


def _read(files: Mapping[str, bytes]) -> _About:
    try:
        return msgspec.json.decode(file_of(files, ABOUT), type=_About)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"{ABOUT} is damaged: {error}") from error


def file_of(files: Mapping[str, bytes], path: str) -> bytes:
    """The bytes at `path`; raises InvalidInput that says which files there are."""
    try:
        return files[path]
    except KeyError:
        raise InvalidInput(
            f"the model has no file {path!r}; it has {', '.join(sorted(files)) or 'none'}"
        ) from None
