"""The part of DataService that governs: purpose and licence, personal data, masks, who saw what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from everloop.access.service import action
from everloop.core.access import ROLES
from everloop.core.context import current_principal
from everloop.core.dataset import DatasetVersion
from everloop.core.mask import mask_fault, mask_of
from everloop.core.personal import (
    GOVERN,
    Access,
    DatasetTerms,
    PersonalColumn,
    TermsChange,
)
from everloop.data.pii_service import PiiMethods
from everloop.data.privacy import ACCESSED
from everloop.data.terms import DESCRIBED, GRANTED, MASKED, REVOKED, TAGGED, history_of
from everloop.data.versions import version_of
from everloop.errors import Fault, InvalidInput, NotFound

if TYPE_CHECKING:
    pass

__all__ = ["PersonalMethods"]

_LONGEST = 2000


class PersonalMethods(PiiMethods):
    """What is stated of datasets, what in them is personal, who may see it, and who did."""

    @action("dataset:write", on="name")
    def describe(
        self,
        name: str,
        *,
        owner: str | None = None,
        description: str | None = None,
        purpose: str | None = None,
        licence: str | None = None,
        source: str | None = None,
        sensitivity: str | None = None,
        retention: str | None = None,
        pii: dict[str, str] | None = None,
    ) -> DatasetTerms:
        """State what a dataset is for and what holds of it; what is not given stays as it is.

        A statement equal to the one before is none. The history is kept (``terms_history``).

        Args:
            name: The dataset.
            owner: Who answers for it, and sees its personal data.
            description: What it is, in a sentence.
            purpose: What it may be used for.
            licence: An SPDX identifier such as ``CC-BY-4.0``, or a text.
            source: Where it comes from.
            sensitivity: Such as ``public``, ``internal``, ``confidential``.
            retention: How long it is kept and why.
            pii: Columns that hold personal data, with its kind, such as ``{"mail": "email"}``; an
                empty kind says that a column holds none, which takes the right ``dataset:govern``.

        Raises:
            NotFound: If there is no such dataset, or no such column in its latest version.
            NotAllowed: If it would uncover personal data: without the right, no tag is removed, and
                no new owner named where there is personal data.
            InvalidInput: If a text is too long.
        """
        given = {
            "description": description, "purpose": purpose, "licence": licence, "source": source,
            "sensitivity": sensitivity, "retention": retention,
        }  # fmt: skip
        stated = {key: text for key, text in given.items() if text is not None}
        told = {**stated, **({} if owner is None else {"owner": owner})}
        faults = [
            Fault(key, f"is longer than {_LONGEST} characters")
            for key, text in told.items()
            if len(text) > _LONGEST
        ]
        if faults:
            raise InvalidInput("the description is wrong", faults)
        version = self._named(name)
        for column in pii or {}:
            version.schema.field(column)
        known = self._terms(name)
        tags = {
            column: kind
            for column, kind in (pii or {}).items()
            if (known.pii.get(column, "") != kind if kind else column not in known.cleared)
        }
        if not all(tags.values()):  # also where there is no tag yet: there may be one tomorrow
            self._authorizer.authorize(current_principal(), GOVERN, name)
        if owner:
            self._check_owner(name, owner)
        news = {key: text for key, text in stated.items() if getattr(known, key) != text}
        with self._catalog.write() as tx:
            if owner is not None:
                sql = "UPDATE datasets SET owner = ? WHERE name = ? AND owner <> ?"
                if tx.run(sql, (owner, name, owner)).rowcount:
                    news["owner"] = owner
            if news:
                tx.append(DESCRIBED, f"dataset:{name}", news)
            if tags:
                tx.append(TAGGED, f"dataset:{name}", {"columns": tags})
        self._privacy.changed()
        return self._terms(name)

    @action("dataset:read", on="name")
    def terms(self, name: str) -> DatasetTerms:
        """What is stated of a dataset beside its schema, with masks and grants; NotFound."""
        self._named(name)
        return self._terms(name)

    @action("dataset:read", on="name")
    def terms_history(self, name: str) -> list[TermsChange]:
        """Every statement, tag, mask and grant that a dataset ever had, oldest first; NotFound."""
        self._named(name)
        with self._catalog.direct(write=False) as tx:
            return history_of(tx, name)

    @action("dataset:read", on="name")
    def personal(self, name: str, number: int | None = None) -> list[PersonalColumn]:
        """The columns of a version that hold personal data, with what others get instead."""
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        found = self._privacy.personal(name, version.schema)
        return [found[column] for column in version.schema.names if column in found]

    @action("dataset:read", on="name")
    def masked(self, name: str, number: int | None = None) -> list[str]:
        """The columns of a version that whoever asks gets masked, by name; NotFound."""
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        return sorted(self._privacy.view(version).masks)

    @action(GOVERN, on="name")
    def mask(self, name: str, column: str, mask: str) -> DatasetTerms:
        """Say what whoever may not see a column gets instead, in every version of the dataset.

        Args:
            name: The dataset.
            column: Of the latest version.
            mask: As ``everloop.core.mask`` writes them (``hash``, ``bucket:10``...); empty takes
                back what was said here: then that of the schema holds, or the default.

        Raises:
            NotFound: If there is no such dataset or column.
            InvalidInput: If it is no mask, or none for a column of this type.
            StateError: If it needs a key and the workspace has none.
        """
        version = self._named(name)
        field = version.schema.field(column)
        if mask:
            if reason := mask_fault(mask, field.type):
                raise InvalidInput(
                    f"{column} of {name} cannot be masked so", [Fault("mask", reason)]
                )
            rule = mask_of(mask)
            if rule.by:
                version.schema.field(rule.by)
            if rule.kind in ("hash", "shift"):
                self._privacy.key()  # told now, and not to the first who reads
        if self._terms(name).masks.get(column, "") != mask:
            with self._catalog.write() as tx:
                tx.append(MASKED, f"dataset:{name}", {"column": column, "mask": mask})
            self._privacy.changed()
        return self._terms(name)

    @action(GOVERN, on="name")
    def grant(
        self, name: str, to: str, *, columns: Sequence[str] = (), reason: str = ""
    ) -> DatasetTerms:
        """Let somebody see personal data of a dataset; a grant to the same takes its place.

        Args:
            name: The dataset.
            to: A user, or ``role:contributor`` for that role and those above it.
            columns: Only these; none is all.
            reason: What for; kept with the event.

        Raises:
            NotFound: If there is no such dataset or column.
            InvalidInput: If there is no such role.
        """
        version = self._named(name)
        kind, _, role = to.rpartition(":")
        if not to or (kind and (kind != "role" or role not in ROLES)):
            raise InvalidInput(
                f"{to!r} is nobody who can be granted anything",
                hint=f"name a user, or role:ROLE with one of {', '.join(ROLES)}",
            )
        for column in columns:
            version.schema.field(column)
        with self._catalog.write() as tx:
            body = {"to": to, "columns": list(columns), "reason": reason[:_LONGEST]}
            tx.append(GRANTED, f"dataset:{name}", body)
        self._privacy.changed()
        return self._terms(name)

    @action(GOVERN, on="name")
    def revoke(self, name: str, to: str) -> DatasetTerms:
        """Take a grant back; NotFound if there is none."""
        known = self._terms(name)
        if to not in (grants := [grant.to for grant in known.grants]):
            raise NotFound.named(f"grant of {name} to", to, grants)
        with self._catalog.write() as tx:
            tx.append(REVOKED, f"dataset:{name}", {"to": to})
        self._privacy.changed()
        return self._terms(name)

    @action("dataset:read", on="name")
    def access_log(self, name: str, *, who: str = "", limit: int = 1000) -> list[Access]:
        """Who read personal data of a dataset, newest first; see ``Access``.

        Args:
            name: The dataset.
            who: Only this caller.
            limit: Most entries.

        Raises:
            NotFound: If there is no such dataset.
        """
        self._named(name)
        sql = "SELECT at, actor, body FROM events WHERE subject = ? AND kind = ?"
        values: list[Any] = [f"dataset:{name}", ACCESSED]
        if who:
            sql, values = f"{sql} AND actor = ?", [*values, who]
        with self._catalog.direct(write=False) as tx:
            rows = tx.run(f"{sql} ORDER BY seq DESC LIMIT ?", (*values, max(limit, 0))).fetchall()
        return [_access(name, *row) for row in rows]

    @action("dataset:read", on="name")
    def note_access(
        self,
        name: str,
        number: int,
        *,
        door: str,
        columns: list[str] | None = None,
        purpose: str = "",
    ) -> None:
        """Put into the access log that a program read a version past ``read``; NotFound.

        Of a dataset without personal data nothing is noted.
        """
        with self._catalog.read() as tx:
            version = version_of(tx, name, number)
        view = self._privacy.view(version)
        view.log(version.schema.names if columns is None else columns, door, purpose)

    # --- inside ----------------------------------------------------------------------------------

    def _named(self, name: str) -> DatasetVersion:
        with self._catalog.read() as tx:
            return version_of(tx, name, None)

    def _terms(self, name: str) -> DatasetTerms:
        return self._privacy.terms().get(name) or DatasetTerms(dataset=name)


def _access(name: str, at: int, who: str, body: str) -> Access:
    from everloop.catalog.direct import from_json
    from everloop.core.time import from_micros

    told = from_json(body)
    return Access(
        at=from_micros(at),
        who=who,
        dataset=name,
        version=told["version"],
        columns=tuple(told["columns"]),
        masked=tuple(told["masked"]),
        door=told["door"],
        purpose=told["purpose"],
    )
