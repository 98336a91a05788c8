"""The part of DataService that keeps lines of versions beside the main one, and merges them."""

from __future__ import annotations

from typing import Literal

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.dataset import MAIN, DatasetBranch, DatasetMerge, DatasetVersion
from everloop.data.shown import Shown
from everloop.data.tags import TagMethods
from everloop.data.versions import check_label, line_of, refuse_other, version_of
from everloop.errors import Conflict

__all__ = ["BranchMethods"]

# Each lost race means that another commit succeeded, so this is never reached in earnest.
_RACES = 1000


class BranchMethods(TagMethods, Shown):
    """Branches of datasets: a line of versions that nobody reads who does not name it."""

    @action("dataset:write", on="name")
    def branch(
        self, name: str, branch: str, *, at: int | str | None = None, note: str = ""
    ) -> DatasetBranch:
        """Begin a line of versions; nothing is copied.

        Args:
            name: The dataset, of any kind.
            branch: Letters, digits, ``_ . -``; not digits alone, ``latest``, ``main`` or a tag.
            at: The version that it begins at: number, tag, branch or time (ISO 8601, of the main
                line); None is the latest of the main line.
            note: For people.

        Returns:
            The branch; one that is there already and began at the same version stays as it is.

        Raises:
            Conflict: If the dataset has such a tag, or a branch that began elsewhere.
            NotFound: If there is no such dataset or version.
            InvalidInput: If no branch can be called so.
        """
        check_label(branch, "branch")
        start = self._start(name, at)
        with self._catalog.write() as tx:
            version = version_of(tx, name, start)
            if any(tag.tag == branch for tag in statements.tags(tx, name)):
                hint = "give the branch another name"
                raise Conflict(f"{name} has a tag called {branch}", hint=hint)
            known = statements.find_branch(tx, name, branch)
            if known is not None:
                if known.base == version.number:
                    return known
                raise Conflict(
                    f"{known.ref} is there and began at version {known.base}",
                    hint="delete it first, or give the branch another name",
                    details={"winner": known.number},
                )
            made = DatasetBranch(
                dataset=name,
                branch=branch,
                base=version.number,
                number=version.number,
                actor=current_actor() or tx.actor,
                note=note,
                created_at=tx.now,
                updated_at=tx.now,
            )
            statements.put_branch(tx, made)
            body = {"branch": branch, "base": made.base, "note": note}
            tx.append("dataset.BranchMade", f"dataset:{name}", body)
        return made

    def _start(self, name: str, at: int | str | None) -> int | None:
        if at is None or isinstance(at, int):
            return at
        with self._catalog.read() as tx:
            labels = [tag.tag for tag in statements.tags(tx, name)]
            labels += [MAIN, "latest", *(line.branch for line in statements.branches(tx, name))]
        # A date alone looks like a tag, so that what there is of these is asked first.
        is_label = at in labels or at.isdecimal()
        version = self.find(f"{name}@{at}") if is_label else self.version_at(name, at)
        return version.number

    @action("dataset:read", on="name")
    def branches(self, name: str) -> list[DatasetBranch]:
        """The branches of a dataset beside the main line, by name.

        Raises:
            NotFound: If there is no such dataset.
        """
        with self._catalog.read() as tx:
            version_of(tx, name, None)
            return statements.branches(tx, name)

    @action("dataset:write", on="name")
    def delete_branch(
        self, name: str, branch: str, *, expected: int | None = None, reason: str = ""
    ) -> None:
        """Forget a branch, not its versions: these are read by number and tag as before.

        Removing what is not there does nothing.

        Args:
            expected: Number that its latest version must have; None removes it wherever it is.
            reason: Why; kept with the event.

        Raises:
            Conflict: If somebody committed to it, so that `expected` is not met.
            NotFound: If there is no such dataset.
        """
        with self._catalog.write() as tx:
            version_of(tx, name, None)
            known = statements.find_branch(tx, name, branch)
            if known is None:
                return
            if expected is not None:
                refuse_other(known.ref, version_of(tx, name, known.number), expected)
            statements.drop_branch(tx, name, branch)
            body = {"branch": branch, "number": known.number, "reason": reason}
            tx.append("dataset.BranchDeleted", f"dataset:{name}", body)

    @action("dataset:write", on="name")
    def merge(
        self,
        name: str,
        branch: str,
        *,
        into: str = MAIN,
        strategy: Literal["refuse", "ours", "theirs"] = "refuse",
        expect: int | None = None,
        note: str = "",
        run_id: str = "",
    ) -> DatasetMerge:
        """Bring to one line what another one changed since the version that they have in common.

        Tables with a key are merged by key, and within a row by column: if both lines changed a
        row, each in other columns, it gets both. Directories are merged by path. What both changed
        to different ends is a conflict: all of them are named, or decided by `strategy`. A table
        without a key is merged where only one line changed it, or both only appended. The
        merged rows are held against the schema, and rows that only `branch` has stand behind the
        row that they follow there. Both tables are in memory meanwhile.

        Args:
            name: The dataset.
            branch: What to bring; it stays as it is, and may be merged again later.
            into: The line that gets the version.
            strategy: What decides conflicts: ``refuse`` nothing, ``ours`` the line `into`,
                ``theirs`` the branch.
            expect: Number that the latest version of `into` must have, or None.
            note: For people; "merge of ..." if empty.
            run_id: The run that merges.

        Raises:
            Conflict: If there are conflicts and nothing decides: ``details["conflicts"]`` are the
                first thousand (see ``MergeConflict``), ``details["total"]`` counts all. Or if
                `expect` is not met.
            NotFound: If there is no such dataset or branch.
            InvalidInput: If the merged rows break the schema: with all of them.
        """
        from everloop.data import merge, merge_files

        for _ in range(_RACES):
            with self._catalog.read() as tx:
                ours = version_of(tx, name, branch=into)
                theirs = version_of(tx, name, branch=branch)
                base = _common(tx, name, ours.number, theirs.number)
            refuse_other(name, ours, expect)
            found = DatasetMerge(
                version=ours, base=base.number, ours=ours.number, theirs=theirs.number
            )
            if base.number == theirs.number:
                return found  # there is nothing that this line lacks
            three = merge.Three(base, ours, theirs)
            if ours.kind == "table":
                with self._hiding(ours, theirs):
                    done = merge.merged(
                        self._blobs, three, into, strategy, values_of=self._values_of
                    )
            else:
                done = merge_files.merged(self._blobs, three, into, strategy)
            text = note or f"merge of {name}@{branch}"
            with self._catalog.write() as tx:
                version = done.publish(tx, note=text, run_id=run_id)
            if version is not None:
                return DatasetMerge(
                    version=version,
                    base=base.number,
                    ours=ours.number,
                    theirs=theirs.number,
                    conflicted=done.conflicts.total,
                    conflicts=self._conflicts_shown(done.conflicts.first, ours, theirs),
                )
        raise Conflict(f"others commit to {name} all the time", hint="merge again")


def _common(tx: Transaction, name: str, ours: int, theirs: int) -> DatasetVersion:
    """The latest version that both come from.

    Numbers grow along every line, so the highest of those in common comes from no other of them.
    """
    points = statements.lines(tx, name)
    both = _before(points, ours) & _before(points, theirs)
    if not both:
        raise Conflict(
            f"{name}@{ours} and {name}@{theirs} have no version in common",
            hint="they were merged from two workspaces; read one and commit it to the other",
        )
    return version_of(tx, name, max(both))


def _before(points: dict[int, statements.Point], number: int) -> set[int]:
    """A version and everything that it comes from."""
    found: set[int] = set()
    waiting = [number]
    while waiting:
        for at in line_of(points, waiting.pop()):
            if at in found:
                break
            found.add(at)
            if points[at].merged:
                waiting.append(points[at].merged)
    return found
