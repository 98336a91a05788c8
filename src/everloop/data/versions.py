"""What versions of tables and of files have in common: names, kinds, where they are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from everloop.catalog import datasets as statements
from everloop.catalog.edges import link
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import MAIN, DatasetVersion
from everloop.core.lineage import check_subject, external_ref
from everloop.errors import Conflict, InvalidInput, NotFound

__all__ = [
    "base_of",
    "check_label",
    "check_names",
    "line_of",
    "link_before",
    "refuse_kind",
    "refuse_other",
    "tell_committed",
    "version_of",
    "versions_of",
]

# A colon marks a time in "name@...", digits alone a number; "latest" and "main" name the main line.
_LABEL = re.compile(r"(?!(?:latest|main)$)(?!\d+$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
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


def check_label(label: str, what: str) -> None:
    """Raise InvalidInput if `label` can be no name of a tag or a branch."""
    if not _LABEL.fullmatch(label):
        raise InvalidInput(
            f"{label!r} is no name of a {what}",
            hint="letters, digits, _ . and - only, at most 200; not digits alone, latest or main",
        )


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


def refuse_other(name: str, latest: DatasetVersion | None, expect: int | None) -> None:
    """Hold the latest version of a line against what the caller expects: a number, 0 for none.

    Raises:
        Conflict: If it is another.
    """
    number = latest.number if latest else 0
    if expect is None or expect == number:
        return
    there = "there is none yet"
    if latest is not None:
        at = f"{latest.created_at:%Y-%m-%d %H:%M:%S} UTC"
        there = f"the latest is {latest.ref} by {latest.author}, {at}"
    raise Conflict(
        f"{name} was expected at version {expect}; {there}",
        hint="read the latest version, then commit again",
        details={"winner": number},
    )


def base_of(tx: Transaction, name: str, branch: str) -> DatasetVersion | None:
    """The version that a commit to a line follows; None for the first of a dataset.

    Raises:
        NotFound: If there is no such branch.
    """
    if branch == MAIN:
        return statements.find_version(tx, name)
    return version_of(tx, name, branch=branch)


def version_of(
    tx: Transaction, name: str, number: int | None = None, *, branch: str = MAIN
) -> DatasetVersion:
    """A version, the latest of `branch` if `number` is None; raises NotFound."""
    found = statements.find_version(tx, name, number, branch=branch)
    if found is not None:
        return found
    if number is None and branch != MAIN and statements.numbers(tx, name):
        lines = [MAIN, *(line.branch for line in statements.branches(tx, name))]
        raise NotFound.named(f"branch of dataset {name} called", branch, lines)
    numbers = statements.numbers(tx, name)
    if not numbers:
        raise NotFound.named("dataset", name, statements.names(tx))
    raise NotFound(
        f"no version {number} of {name}", hint=f"there are {numbers[0]} to {numbers[-1]}"
    )


def versions_of(tx: Transaction, name: str, branch: str | None = None) -> list[DatasetVersion]:
    """The versions of a line, of all lines for None, oldest first; raises NotFound.

    Those of a branch begin with what it has from the line that it came from.
    """
    found = statements.versions(tx, name)
    if not found:
        raise NotFound.named("dataset", name, statements.names(tx))
    if branch is None:
        return found
    if branch == MAIN:
        return [version for version in found if version.branch == MAIN]
    points = statements.lines(tx, name)
    line = set(line_of(points, version_of(tx, name, branch=branch).number))
    return [version for version in found if version.number in line]


def line_of(points: Mapping[int, statements.Point], number: int) -> Iterator[int]:
    """The version `number` and those before it on its line, newest first."""
    while number in points:
        yield number
        number = points[number].parent


def link_before(
    tx: Transaction, version: DatasetVersion, base: DatasetVersion | None, kind: str
) -> None:
    """Record in the lineage what led to a version: what it came after, by `kind`, and its run."""
    subject = f"dataset:{version.ref}"
    if base is not None:
        link(tx, f"dataset:{base.ref}", subject, kind)
    if version.merged:
        link(tx, f"dataset:{version.dataset}@{version.merged}", subject, "merged")
    if version.run_id:
        link(tx, f"run:{version.run_id}", subject, "produced")


def tell_committed(tx: Transaction, version: DatasetVersion, body: dict[str, Any]) -> None:
    """Append the event: of another kind off the main line, which triggers do not listen to."""
    if version.merged:
        body["merged"] = version.merged
    if version.branch == MAIN:
        tx.append("dataset.VersionCommitted", f"dataset:{version.ref}", body)
    else:
        body["branch"] = version.branch
        tx.append("dataset.BranchCommitted", f"dataset:{version.ref}", body)
