"""DataService: named tables, their immutable versions, and the ledger of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.access.signing import SigningKey
from everloop.catalog import datasets as statements
from everloop.catalog.engine import Catalog
from everloop.core.dataset import MAIN, Dataset, DatasetDiff, DatasetVersion
from everloop.core.schema import Schema
from everloop.data.branches import BranchMethods
from everloop.data.erasing import EraseMethods
from everloop.data.keeping import KeepMethods
from everloop.data.ledger_service import LedgerMethods
from everloop.data.personal_service import PersonalMethods
from everloop.data.privacy import Privacy
from everloop.data.quality import QualityMethods
from everloop.data.source_service import SourceMethods
from everloop.data.versions import check_names, version_of, versions_of
from everloop.data.work_service import WorkMethods
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DataService"]


class DataService(
    BranchMethods,
    SourceMethods,
    QualityMethods,
    LedgerMethods,
    WorkMethods,
    EraseMethods,
    KeepMethods,
    PersonalMethods,
    Service,
):
    """Datasets: commit, read, tag, branch, merge, compare, and ask why a row is not there."""

    area = "data"

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        authorizer: Authorizer,
        signing: SigningKey | None = None,
        copies: Path | None = None,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer
        self._signing = signing or SigningKey(None)
        self._copies = copies
        self._privacy = Privacy(catalog, authorizer, self._signing)

    @action("dataset:write", on="name")
    def commit(
        self,
        name: str,
        rows: pa.Table,
        *,
        schema: Schema | None = None,
        mode: Literal["append", "replace"] = "append",
        owner: str = "",
        note: str = "",
        run_id: str = "",
        expect: int | None = None,
        sources: list[str] | None = None,
        branch: str = MAIN,
        on_duplicate: Literal["error", "last"] = "error",
    ) -> DatasetVersion:
        """Make a version of the dataset `name`; the dataset is made on its first commit.

        Rows are held against the schema first. A broken rule with ``on_fail="fail"`` refuses the
        frame; ``drop`` leaves rows out and records them in the ledger; ``warn`` records them;
        ``quarantine`` leaves them out until ``fix_rows``; ``repair`` corrects them first.
        Content equal to the latest version's makes no version, and neither do rows that a keyed
        dataset was given before in an equal commit: a commit may be repeated after a failure.
        Several processes may append at once: every one's rows are kept, none twice.

        Args:
            name: Letters, digits, ``_ . -``; at most 200 characters.
            rows: In any order of columns.
            schema: None takes the latest version's, and for the first version the frame's own.
            mode: ``append`` adds to the rows of the latest version; ``replace`` makes `rows` the
                whole table. With a key only the rows that differ are stored then; those that stay
                keep their order, and the others stand behind the row that they follow in `rows`.
            owner: Who answers for the dataset; empty leaves it as it is.
            note: For people.
            run_id: The run that made the rows.
            expect: Number that the latest version must have (0: no version yet), or None.
            sources: Where the rows come from outside, as URIs such as ``s3://lake/flights``: what
                is told of these by OpenLineage is then upstream of the version.
            branch: The line to commit to; the versions above are those of this line.
            on_duplicate: Of rows with the same key: ``error`` refuses the frame and names the keys;
                ``last`` keeps the last one of each, before any other rule is judged, and records
                the others in the ledger as dropped by ``key.unique``. Keys of earlier versions are
                none of these: an append that has one is refused either way.

        Returns:
            The new version, or the one that holds this content already.

        Raises:
            InvalidInput: With every fault of the frame, or of the schema against earlier rows.
            Conflict: If `expect` is not met, or another commit came while this one replaced the
                table (with a key: and both changed the same rows, otherwise both changes are
                kept); ``details["winner"]`` is the latest number.
            NotFound: If there is no such branch.
            BackendError: If bytes or rows could not be stored; then no version was made.
        """
        import pyarrow as pa

        from everloop.data.commit import Draft, Told, publish_last

        check_names(name, sources)
        if not isinstance(rows, pa.Table):
            raise InvalidInput(
                f"rows must be an Arrow table, not {type(rows).__name__}",
                hint="everloop.Table.of(rows).to_arrow() reads frames, dicts and lists of dicts",
            )
        self._refuse_masked(name, rows)
        self._check_owner(name, owner)
        draft = Draft(
            self._blobs,
            name,
            rows,
            schema,
            mode=mode,
            expect=expect,
            branch=branch,
            keep_last=on_duplicate == "last",
            values_of=self._values_of,
        )
        told = Told(owner, note, run_id, tuple(sources or ()))
        return publish_last(self._catalog, draft, told)

    @action("dataset:read")
    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        with self._catalog.read() as tx:
            return statements.all_datasets(tx)

    @action("dataset:read", on="name")
    def versions(self, name: str, *, branch: str | None = MAIN) -> list[DatasetVersion]:
        """The versions of a dataset, oldest first.

        Args:
            branch: Of this line; of a branch with those before it began. None is all of all lines.

        Raises:
            NotFound: If there is no such dataset or branch.
        """
        with self._catalog.read() as tx:
            return versions_of(tx, name, branch)

    @action("dataset:read", on="name")
    def read(
        self,
        name: str,
        number: int | None = None,
        *,
        columns: list[str] | None = None,
        purpose: str = "",
    ) -> pa.Table:
        """The rows of a version, in its order (see ``commit``).

        Columns of personal data come masked to whoever may not see them, in the types that they
        have; the metadata of the table names them under ``everloop.masked``.

        Args:
            name: The dataset.
            number: The version; None is the latest.
            columns: Only these are read, in this order; None is all.
            purpose: What for; kept in the access log, if there is personal data among it.

        Raises:
            NotFound: If there is no such dataset, version or column.
            BackendError: If a stored block is damaged.
        """
        from everloop.data.commit import unless_erased

        version = self.version(name, number)
        if version.kind != "table":
            raise InvalidInput(
                f"{version.ref} is a {version.kind} and has no rows",
                hint=f"everloop data ls {version.ref}; in Python ev.read({name!r}) opens its files",
            )
        names = list(version.schema.names) if columns is None else columns
        for column in names:
            version.schema.field(column)
        while True:
            try:
                return self._shown(version, names, purpose)
            except NotFound as error:
                version = unless_erased(self._catalog, version, error)

    @action("dataset:read", on="name")
    def note_export(
        self,
        name: str,
        number: int,
        *,
        format: Literal["parquet", "delta", "iceberg", "lance"],
        to: str,
    ) -> None:
        """Put into the log that a version is written to a place outside, where nothing erases it.

        Args:
            name: The dataset.
            number: The version.
            format: What it is written as.
            to: The place; the first thousand characters are kept.

        Raises:
            NotFound: If there is no such dataset or version.
        """
        with self._catalog.write() as tx:
            version = version_of(tx, name, number)
            tx.append(
                "dataset.Exported", f"dataset:{version.ref}", {"format": format, "to": to[:1000]}
            )

    @action("dataset:read", on="name")
    def diff(self, name: str, old: int, new: int, *, rows: int = 0) -> DatasetDiff:
        """How two versions differ: columns, numbers of rows by kind, and the first rows of each.

        Only rows are looked at that the versions do not share, and of those the hashes first.

        Args:
            name: The dataset.
            old, new: Numbers of versions.
            rows: Most rows of each kind (added, removed, changed) to show.

        Raises:
            NotFound: If there is no such dataset or version.
            InvalidInput: If it is no table.
            BackendError: If a stored block is damaged.
        """
        from everloop.data.compare import difference

        before, after = self.version(name, old), self.version(name, new)
        if after.kind != "table":
            raise InvalidInput(f"{name} is a {after.kind} and has no rows to compare")
        return self._compared(difference(self._blobs, before, after, rows=rows), before, after)
