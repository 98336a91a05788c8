"""Who sees what of a version: the one place that decides it, masks, and keeps the access log.

A program that holds the catalog itself (no principal) sees everything, as it could read the folder
anyway. Whoever logged in sees the columns that are no personal data, and of the others those that
the role, the ownership of the dataset or a grant uncovers; what is left comes masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from everloop.access.policy import Authorizer
from everloop.access.signing import SigningKey
from everloop.catalog.engine import Catalog
from everloop.core.access import RANKS, Principal
from everloop.core.context import current_actor, current_principal
from everloop.core.dataset import DatasetVersion, Value
from everloop.core.mask import default_mask, mask_fault
from everloop.core.personal import READ_PERSONAL, DatasetTerms, PersonalColumn
from everloop.core.quality import MASKED, RuleResult
from everloop.core.schema import Schema
from everloop.data.terms import tagged_in, terms_of
from everloop.errors import NotAllowed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ACCESSED", "ASIDE", "MARK", "VIEW", "Privacy", "View", "base_name"]

#: Kind of the events of the access log.
ACCESSED = "dataset.PersonalDataRead"
#: Key of the metadata of a table that names the columns that came masked, comma-separated.
MARK = b"everloop.masked"
#: Key that names all columns that the caller gets masked, of a version with personal data: a stored
#: result of a step is another one's if this is another.
VIEW = b"everloop.view"
#: Ending of the dataset of rows that were set aside, as in ``everloop.data.quarantine``.
ASIDE = ".quarantine"
#: One entry of the access log stands for so long.
_HOUR = timedelta(hours=1)
_MOST_KEPT = 10_000
#: Characters of a purpose that are kept.
_LONGEST = 200
_OWNER = "SELECT owner FROM datasets WHERE name = ?"


class View(NamedTuple):
    """What a caller sees of a version.

    Attributes:
        personal: Columns of personal data, by name; the same for every caller.
        masks: Of those, what the caller gets instead; empty if the caller sees all of them.
    """

    dataset: str
    version: int
    personal: dict[str, PersonalColumn]
    masks: dict[str, str]
    privacy: Privacy

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the columns of personal data."""
        return {name: column.kind for name, column in self.personal.items()}

    def mask(self, rows: pa.Table) -> pa.Table:
        """The rows as the caller sees them; the metadata says what was masked."""
        hidden = [name for name in rows.column_names if name in self.masks]
        told = {VIEW: ",".join(sorted(self.masks)).encode()}
        if not hidden:
            return rows.replace_schema_metadata(told)
        from everloop.data.masking import masked_table

        made = masked_table(rows, self.masks, self.privacy.key)
        return made.replace_schema_metadata({**told, MARK: ",".join(hidden).encode()})

    def mask_rows(
        self, rows: Iterable[dict[str, Value]], known: Iterable[str]
    ) -> list[dict[str, Value]]:
        """Rows as data, with every value of the columns that the caller may not see replaced.

        Args:
            known: Columns of the dataset; what else a row has was made of them by a step, and is
                masked too.
        """
        plain = set(known) - self.masks.keys()
        return [
            {n: v if v is None or _origin(n) in plain else MASKED for n, v in row.items()}
            for row in rows
        ]

    def without_figures(self, rule: RuleResult) -> RuleResult:
        """What a rule found without a figure of a column that the caller may not see."""
        if rule.value is None or self.masks.keys().isdisjoint(rule.columns):
            return rule
        told = "a figure of personal data, which is not told"
        return msgspec.structs.replace(rule, value=None, reason=told)

    def log(self, columns: Iterable[str], door: str, purpose: str = "") -> None:
        """Keep in the access log that these columns were read, if any is of personal data."""
        seen = [name for name in columns if name in self.personal]
        if seen:
            self.privacy.log(self, seen, door, purpose)


def _origin(column: str) -> str:
    """The column that a column of the ledger is of: ``mail.new`` holds new values of ``mail``."""
    return column.removesuffix(".new")


def base_name(dataset: str) -> str:
    """The dataset whose rows wait in a quarantine; any other dataset itself."""
    return dataset.removesuffix(ASIDE)


class Privacy:
    """Views of versions for whoever asks.

    Args:
        catalog: Where statements, owners and the log are.
        authorizer: Knows who may see personal data everywhere.
        signing: The key of the workspace, from which that of the masks is made.
    """

    def __init__(self, catalog: Catalog, authorizer: Authorizer, signing: SigningKey) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._signing = signing
        self._terms = terms_of(catalog)
        self._logged: dict[tuple[Any, ...], Any] = {}

    def key(self) -> bytes:
        """The key of the masks.

        Raises:
            StateError: If the workspace has no key and no folder to keep one in.
            BackendError: If it cannot be read.
        """
        from everloop.data.masking import mask_key

        return mask_key(self._signing.get())

    def terms(self) -> dict[str, DatasetTerms]:
        """What is stated of the datasets, by name."""
        return self._terms.look(self._catalog, exact=current_principal() is not None)

    def changed(self) -> None:
        """Something was stated by this process."""
        self._terms.expire()

    def view(self, version: DatasetVersion) -> View:
        """What whoever asks sees of a version."""
        personal = self.personal(version.dataset, version.schema)
        masks = self.masks_for(version.dataset, personal) if personal else {}
        return View(version.dataset, version.number, personal, masks, self)

    def personal(self, dataset: str, schema: Schema) -> dict[str, PersonalColumn]:
        """The columns of a schema of `dataset` that hold personal data, by name."""
        stated = [t for n in (base_name(dataset), dataset) if (t := self.terms().get(n))]
        kinds = tagged_in(schema)
        if not stated and not kinds:
            return {}
        masks: dict[str, str] = {f.name: f.mask for f in schema.fields if f.mask}
        for terms in stated:
            kinds |= {name: kind for name, kind in terms.pii.items() if kind}
            kinds |= {name: kinds.get(name, "masked") for name in terms.masks}
            kinds = {n: k for n, k in kinds.items() if n not in terms.cleared}
            masks |= terms.masks
        types = {field.name: field.type for field in schema.fields}
        found = {}
        for name in types.keys() & kinds.keys():
            mask = masks.get(name, "")
            if not mask or mask_fault(mask, types[name]):  # the column has another type by now
                mask = default_mask(types[name])
            found[name] = PersonalColumn(name, kinds[name], mask)
        return found

    def masks_for(self, dataset: str, personal: Mapping[str, PersonalColumn]) -> dict[str, str]:
        """What whoever asks gets instead of columns of personal data; empty if all are seen."""
        principal = current_principal()
        if principal is None or self._sees_all(principal, dataset):
            return {}
        seen = self._granted(principal, base_name(dataset), personal)
        return {name: column.mask for name, column in personal.items() if name not in seen}

    def _sees_all(self, principal: Principal, dataset: str) -> bool:
        try:
            self._authorizer.authorize(principal, READ_PERSONAL, dataset)
            return True
        except NotAllowed:
            pass
        with self._catalog.direct(write=False) as tx:
            row = tx.run(_OWNER, (base_name(dataset),)).fetchone()
        return row is not None and bool(row[0]) and row[0] == principal.name

    def _granted(
        self, principal: Principal, dataset: str, personal: Mapping[str, PersonalColumn]
    ) -> set[str]:
        terms = self.terms().get(dataset)
        seen: set[str] = set()
        for grant in terms.grants if terms else ():
            kind, _, role = grant.to.rpartition(":")
            is_role = kind == "role" and RANKS.get(principal.role, -1) >= RANKS.get(role, 99)
            if is_role or grant.to == principal.name:
                seen |= set(grant.columns or personal)
        return seen

    def refused(self, dataset: str, columns: Sequence[str], what: str) -> NotAllowed:
        """The error of a way out that cannot be masked."""
        principal = current_principal()
        who = f"{principal.name} ({principal.role or 'no role'})" if principal else "this caller"
        named = ", ".join(columns) or "personal data"
        return NotAllowed(
            f"{who} may not read {what} of {dataset}: {named} would come unmasked",
            hint=f"ev.read({dataset!r}) and everloop data export give it masked; it takes "
            f"{READ_PERSONAL}, which an admin gives: everloop data grant {dataset} --to "
            f"{principal.name if principal else 'NAME'}",
        )

    def log(self, view: View, columns: Sequence[str], door: str, purpose: str) -> None:
        """Append to the access log, once an hour for the same."""
        hidden = tuple(sorted(name for name in columns if name in view.masks))
        read = tuple(sorted(columns))
        who = current_actor() or self._catalog.actor
        key = (who, view.dataset, view.version, read, hidden, door, purpose)
        now = self._catalog.clock.now()
        last = self._logged.get(key)
        if last is not None and timedelta(0) <= now - last < _HOUR:
            return
        purpose, door = purpose[:_LONGEST], door[:_LONGEST]
        body = {"version": view.version, "columns": read, "masked": hidden, "door": door}
        with self._catalog.write() as tx:
            tx.append(ACCESSED, f"dataset:{view.dataset}", body | {"purpose": purpose})
        # Only what is in the log is passed over the next time.
        if len(self._logged) >= _MOST_KEPT:
            self._logged.clear()
        self._logged[key] = now
