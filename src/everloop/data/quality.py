"""The part of DataService that judges versions, and lets rows go that were set aside."""

from __future__ import annotations

import msgspec
import polars as pl
import pyarrow as pa

from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.core.check import OVER_TIME
from everloop.core.dataset import DatasetVersion
from everloop.core.profile import Profile
from everloop.core.quality import SHOWN_ROWS, QualityReport
from everloop.core.schema import Check, Schema
from everloop.data.commit import Draft, LostRace, publish
from everloop.data.history import Past, judge_over_time
from everloop.data.judge import judge_parts, schema_of
from everloop.data.profile import profile_of
from everloop.data.quarantine import ID, SUFFIX, released
from everloop.data.rows import read_rows, row_parts
from everloop.data.shown import Shown
from everloop.data.terms import with_tags
from everloop.data.versions import version_of, versions_of
from everloop.errors import Conflict, InvalidInput, NotFound

__all__ = ["QualityMethods"]

_RACES = 1000
_KEPT_PROFILES = 64
#: By digest of the version, which is over schema and content.
_profiles: dict[str, Profile] = {}


class QualityMethods(Shown):
    """Checks of versions, and the quarantine."""

    @action("dataset:read", on="name")
    def check(
        self,
        name: str,
        contract: Schema | list[Check] | None = None,
        number: int | None = None,
        *,
        rows: int = SHOWN_ROWS,
    ) -> QualityReport:
        """Hold a version against a contract; nothing is changed.

        It is read once, block by block, and every rule is judged on each. Held in memory are one
        block, the columns that a rule must see as a whole, and the rows that are handed back. Only
        an SQL condition with a window or a query in it takes the whole version at once.

        Args:
            name: The dataset.
            contract: A schema; checks beside the version's own rules; or None for those alone.
            number: The version; None is the latest.
            rows: Most failing rows of each rule to hand back; all are counted.

        Raises:
            NotFound: If there is no such dataset or version, or none that a check refers to.
            InvalidInput: If it is no table, or a check cannot be evaluated.
            UserCodeError: If a function that a check names raises.
        """
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        if version.kind != "table":
            raise InvalidInput(f"{version.ref} is a {version.kind} and has no rows to check")
        view = self._privacy.view(version)
        # A rule that the caller brings would be a question about values that they may not see.
        masks = view.masks if contract is not None else {}
        schema = schema_of(contract, version.schema)
        schema = with_tags(schema, view.kinds, keep=contract is not None)
        parts = row_parts(self._blobs, version, version.schema.names)
        seen = (view.mask(part) for part in parts) if masks else parts
        report = judge_parts(seen, schema, values_of=self._values_of, show=rows)
        late, unjudged = judge_over_time(self._past(version, masked=bool(masks)), schema)
        if masks:
            unjudged |= {"personal data": f"rules saw {', '.join(masks)} masked, as you do"}
        over_time = tuple(check.name for check in schema.checks if check.kind in OVER_TIME)
        return msgspec.structs.replace(
            report,
            ref=version.ref,
            rules=(*report.rules, *(name for name in over_time if name not in unjudged)),
            broken=tuple(view.without_figures(rule) for rule in (*report.broken, *late)),
            unjudged=unjudged,
        )

    @action("dataset:read", on="name")
    def profile(self, name: str, number: int | None = None) -> Profile:
        """What a version holds, column by column; computed once for each content.

        The columns are read whole. Of personal data (by the tags of the schema) only counts and
        lengths are told.

        Args:
            name: The dataset.
            number: The version; None is the latest.

        Raises:
            NotFound: If there is no such dataset or version.
            InvalidInput: If it is no table.
        """
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        if version.kind != "table":
            raise InvalidInput(f"{version.ref} is a {version.kind} and has no columns")
        kinds = self._privacy.view(version).kinds
        # The digest is over the schema and its tags, and not over what was tagged beside it.
        known = f"{version.holds} {' '.join(sorted(kinds))}"
        found = _profiles.get(known)
        if found is None:
            rows = pl.from_arrow(read_rows(self._blobs, version, version.schema.names))
            assert isinstance(rows, pl.DataFrame)
            found = profile_of(rows, with_tags(version.schema, kinds))
            while len(_profiles) >= _KEPT_PROFILES:
                _profiles.pop(next(iter(_profiles)), None)
            _profiles[known] = found
        return msgspec.structs.replace(found, ref=version.ref, digest=version.holds)

    @action("dataset:write", on="name")
    def release_rows(self, name: str, rows: pa.Table, *, note: str = "") -> DatasetVersion:
        """Take corrected rows out of the quarantine of `name` and append them to it.

        Values that came masked, and come back so, are what they were. Rows are checked again, and
        one that still breaks a rule (save one that only warns) keeps all of them where
        they are. Both datasets change in one transaction.

        Args:
            name: The dataset, not its quarantine.
            rows: Rows of ``<name>.quarantine``, corrected, with their ``quarantine_id``.
            note: For people.

        Returns:
            The new version of `name`.

        Raises:
            Conflict: If one of them does not wait, as it was released before.
            InvalidInput: With every fault of the rows.
            NotFound: If nothing was ever set aside.
        """
        for _ in range(_RACES):
            with self._catalog.read() as tx:
                base = version_of(tx, name, None)
                waiting = statements.find_version(tx, name + SUFFIX)
            fresh, rest = released(self._blobs, name, waiting, self._restored(waiting, rows))
            assert waiting is not None
            draft = Draft(
                self._blobs, name, fresh, None, mode="append", values_of=self._values_of,
                is_release=True,
            )  # fmt: skip
            draft.prepare(base, "")
            aside = Draft(self._blobs, name + SUFFIX, rest, waiting.schema, mode="replace")
            aside.prepare(waiting, "")
            told = note or f"{fresh.num_rows} rows released from quarantine"
            try:
                with self._catalog.write() as tx:
                    version = publish(tx, draft, base, owner="", note=told, run_id="")
                    left = publish(tx, aside, waiting, owner="", note=told, run_id="")
                    if version is None or left is None:
                        raise LostRace
                    ids = rows.column(ID).to_pylist()
                    tx.append(
                        "dataset.RowsReleased",
                        f"dataset:{version.ref}",
                        {"dataset": name, "from": waiting.ref, "rows": len(ids)},
                    )
                    return version
            except LostRace:
                continue
        raise Conflict(f"others commit to {name} all the time", hint="release again")

    def _past(self, version: DatasetVersion, *, masked: bool) -> Past:
        with self._catalog.read() as tx:
            every = versions_of(tx, version.dataset, version.branch)
            tags = {tag.tag: tag.number for tag in statements.tags(tx, version.dataset)}
            now = tx.now

        def values(of: DatasetVersion, column: str) -> pa.ChunkedArray:
            of.schema.field(column)
            if masked:
                return self._seen(of, [column]).column(column)
            return read_rows(self._blobs, of, [column]).column(column)

        def find(which: str) -> DatasetVersion:
            number = int(which) if which.isdecimal() else tags.get(which, 0)
            known = {one.number: one for one in every}
            if number not in known:
                raise NotFound.named(f"version or tag of {version.dataset}", which, tags)
            return known[number]

        earlier = [one for one in every if one.number < version.number]
        return Past(version, earlier, now, values, find)
