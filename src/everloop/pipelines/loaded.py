"""Asking what a value is without loading the library that it would be of.

NumPy and Arrow take a tenth of a second to load, and most steps hand over numbers and text. Who has
an array has loaded NumPy already.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_a", "is_exactly"]


def is_a(value: Any, module: str, name: str) -> bool:
    """Whether `value` is an instance of the class `name` of `module`; loads nothing."""
    loaded = sys.modules.get(module)
    # A module that another thread is just loading may not have its classes yet.
    return loaded is not None and isinstance(value, getattr(loaded, name, ()))


def is_exactly(value: Any, module: str, name: str) -> bool:
    """As `is_a`; instances of classes below it do not count."""
    loaded = sys.modules.get(module)
    return loaded is not None and type(value) is getattr(loaded, name, None)
