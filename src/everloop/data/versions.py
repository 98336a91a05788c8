"""What versions of tables and of files have in common: names, kinds, where they are found."""

from __future__ import annotations

import re
from collections.abc import Iterable

from everloop.catalog import datasets as statements
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import DatasetVersion
from everloop.core.lineage import check_subject, external_ref
from everloop.errors import Conflict, InvalidInput, NotFound

__all__ = ["check_names", "refuse_kind", "version_of", "versions_of"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def check_names(name: str, sources: Iterable[str] | None) -> None:
    """Raise InvalidInput if `name` is none of a dataset, or one of `sources` is no URI."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no name of a dataset",
            hint="letters, digits, _ . and - only, at most 200, not beginning with . or -",
        )
    for source in sources or ():
        check_subject(external_ref(source))


def refuse_kind(name: str, base: DatasetVersion | None, kind: str) -> None:
    """A dataset is of one kind for ever.

    Raises:
        Conflict: If `base` is of another one.
    """
    if base is not None and base.kind != kind:
        raise Conflict(
            f"{name} is a {base.kind}, and a {kind} cannot be a version of it",
            hint="give it another name",
            details={"kind": base.kind},
        )


def version_of(tx: Transaction, name: str, number: int | None = None) -> DatasetVersion:
    """A version, the latest if `number` is None; raises NotFound."""
    found = statements.find_version(tx, name, number)
    if found is not None:
        return found
    numbers = statements.numbers(tx, name)
    if not numbers:
        raise NotFound.named("dataset", name, statements.names(tx))
    raise NotFound(
        f"no version {number} of {name}", hint=f"there are {numbers[0]} to {numbers[-1]}"
    )


def versions_of(tx: Transaction, name: str) -> list[DatasetVersion]:
    """All versions, oldest first; raises NotFound if there is no such dataset."""
    found = statements.versions(tx, name)
    if not found:
        raise NotFound.named("dataset", name, statements.names(tx))
    return found
