"""The part of DataService that names versions: tags, and looking a version up by what is known."""

from __future__ import annotations

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.dataset import MAIN, DatasetTag, DatasetVersion
from everloop.core.time import parse_instant
from everloop.data.versions import check_label, line_of, version_of
from everloop.errors import Conflict, NotFound

__all__ = ["TagMethods"]


class TagMethods:
    """Tags of versions, and versions by number, tag or time."""

    _catalog: Catalog

    @action("dataset:read", on="ref")
    def find(self, ref: str) -> DatasetVersion:
        """The version that a text means.

        Args:
            ref: ``loans`` or ``loans@latest`` (the latest version), ``loans@3`` (by number),
                ``loans@2025q1`` (by tag), ``loans@fix-weather`` (the latest of a branch), or
                ``loans@2025-03-01T06:00:00Z`` (as ``version_at``; of a branch
                ``loans@fix-weather@2025-03-01T06:00:00Z``).

        Raises:
            NotFound: If there is no such dataset, version, tag or branch.
            InvalidInput: If what stands for the time is none.
        """
        name, mark, which = ref.partition("@")
        if ":" in which:
            branch, _, at = which.rpartition("@")
            return self.version_at(name, at, branch=branch or MAIN)
        with self._catalog.read() as tx:
            if not mark or which == "latest":
                return version_of(tx, name, None)
            if which.isdecimal():
                return version_of(tx, name, int(which))
            known = {tag.tag: tag.number for tag in statements.tags(tx, name)}
            if which == MAIN and MAIN not in known:
                return version_of(tx, name)
            known |= {line.branch: line.number for line in statements.branches(tx, name)}
            if which not in known:
                raise NotFound.named(f"tag or branch of dataset {name} called", which, known)
            return version_of(tx, name, known[which])

    @action("dataset:read", on="name")
    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        """A version; the latest if `number` is None.

        Raises:
            NotFound: If there is no such dataset (with the nearest names) or version.
        """
        with self._catalog.read() as tx:
            return version_of(tx, name, number)

    @action("dataset:read", on="name")
    def version_at(self, name: str, at: str, *, branch: str = MAIN) -> DatasetVersion:
        """The version that was the latest at a time.

        Versions count in the order of their numbers: where the clock of a writer went wrong, one
        is there only from when all before it are.

        Args:
            at: ISO 8601; a date is its first instant, and without a zone it is UTC.
            branch: The line; one that had no version of its own yet had that which it began at.

        Raises:
            NotFound: If there is no such dataset, or it had no version yet.
            InvalidInput: If `at` is no time.
        """
        instant = parse_instant(at)
        with self._catalog.read() as tx:
            head = version_of(tx, name, branch=branch)
            times = statements.times(tx, name)
            if branch != MAIN:
                points = statements.lines(tx, name)
                line = [*line_of(points, head.number)][::-1]
                times = [(number, points[number].created_at) for number in line]
            later = (n for n, (_, made) in enumerate(times) if made > instant)
            count = next(later, len(times))
            if not count:
                raise NotFound(
                    f"{name} had no version at {instant.isoformat()}",
                    hint=f"its first is of {times[0][1].isoformat()}",
                )
            return version_of(tx, name, times[count - 1][0])

    @action("dataset:tag", on="name")
    def tag(
        self, name: str, tag: str, number: int, *, expected: int | None = None, reason: str = ""
    ) -> DatasetTag:
        """Let `tag` name a version; it moves there if it named another one.

        Args:
            tag: Letters, digits, ``_ . -``; not digits alone, and not ``latest``.
            number: The version.
            expected: The version that it must name now, 0 for none; None moves it from wherever.
            reason: Why; kept with the event.

        Raises:
            Conflict: If it does not name `expected`; ``details["winner"]`` says which.
            NotFound: If there is no such version.
            InvalidInput: If no version can be called so.
        """
        check_label(tag, "tag")
        with self._catalog.write() as tx:
            version = version_of(tx, name, number)
            if statements.find_branch(tx, name, tag) is not None:
                raise Conflict(
                    f"{name} has a branch called {tag}", hint="give the tag another name"
                )
            now = _expected(tx, name, tag, expected)
            made = DatasetTag(
                dataset=name,
                tag=tag,
                number=version.number,
                actor=current_actor() or tx.actor,
                reason=reason,
                updated_at=tx.now,
            )
            if now == version.number:
                return next(t for t in statements.tags(tx, name) if t.tag == tag)
            statements.put_tag(tx, made)
            _tell(tx, name, tag, now, version.number, reason)
        return made

    @action("dataset:tag", on="name")
    def untag(self, name: str, tag: str, *, expected: int | None = None, reason: str = "") -> None:
        """Remove a tag, not the version; removing what is not there does nothing.

        Raises:
            Conflict: If it does not name `expected`.
            NotFound: If there is no such dataset.
        """
        with self._catalog.write() as tx:
            version_of(tx, name, None)
            now = _expected(tx, name, tag, expected)
            if now:
                statements.drop_tag(tx, name, tag)
                _tell(tx, name, tag, now, 0, reason)

    @action("dataset:read", on="name")
    def tags(self, name: str) -> list[DatasetTag]:
        """The tags of a dataset, by name.

        Raises:
            NotFound: If there is no such dataset.
        """
        with self._catalog.read() as tx:
            version_of(tx, name, None)
            return statements.tags(tx, name)


def _expected(tx: Transaction, name: str, tag: str, expected: int | None) -> int:
    """The version that the tag names now, 0 for none; raises Conflict if it is not `expected`."""
    now = next((t.number for t in statements.tags(tx, name) if t.tag == tag), 0)
    if expected is not None and expected != now:
        where = f"names {name}@{now}" if now else "names no version"
        raise Conflict(
            f"tag {tag!r} of {name} was expected at version {expected}; it {where}",
            hint="look at what it names now, then decide again",
            details={"winner": now},
        )
    return now


def _tell(tx: Transaction, name: str, tag: str, old: int, new: int, reason: str) -> None:
    body = {"tag": tag, "from": old, "to": new, "reason": reason}
    tx.append("dataset.TagMoved", f"dataset:{name}", body)
