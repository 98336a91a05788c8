"""What a check of the whole store found, and what became of it."""

from __future__ import annotations

import msgspec

__all__ = ["BadObject", "Checked"]


class BadObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object that is missing, or is not what its name says.

    Attributes:
        places: What it is a part of: ``name@number`` with the path in it, or the row of the catalog
            that names it, such as ``model churn/3``. Empty if nothing names it.
        rows: Rows that cannot be read without it, where it is a block of a table.
        repaired: How it was repaired; empty if it was not.
    """

    digest: str
    reason: str
    places: tuple[str, ...] = ()
    rows: int = 0
    repaired: str = ""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a check.

    Attributes:
        read_data: Whether the bytes were held against the names; else only that they are there.
        objects: Objects that were looked at, each once.
        size: Bytes that were read.
        packs: Packs whose list of objects was damaged, with what became of them.
        models: Model versions that came of damaged data, or are damaged.
    """

    read_data: bool
    versions: int
    objects: int
    size: int = 0
    damaged: tuple[BadObject, ...] = ()
    packs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether nothing that something names is damaged, or all of it was repaired."""
        return all(bad.repaired or not bad.places for bad in self.damaged)
