"""FeatureService: definitions in the catalog, by name and by content."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

import msgspec
from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import feature_ref
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import DatasetVersion
from everloop.core.feature import FeatureDefinition, FeatureView
from everloop.core.schema import canonical_json
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.features.sets import FeatureSet
from everloop.ports.blobs import BlobStore

__all__ = ["FeatureService"]

_T = TypeVar("_T")
Kind = Literal["feature_set", "feature_view"]

# Fewer digits than this could be part of a name, as in "delay@1".
_SHORTEST_DIGEST = 8

_names = tables.feature_names
_definitions = tables.feature_definitions


class Datasets(Protocol):
    """Says what a dataset holds."""

    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        """The latest version of a dataset, or the one with this number; NotFound if none."""
        ...


class FeatureService(Service):
    """Keeps feature sets and views. A definition is data: reading it runs no code of a user.

    What a name ever meant stays readable by its digest.
    """

    area = "features"

    def __init__(
        self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer, data: Datasets
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer
        self._data = data

    @action("feature:apply")
    def apply(self, definition: FeatureSet) -> FeatureDefinition:
        """Record a feature set and its views under their names.

        Applying what is there already changes nothing and appends no event; another owner or
        description takes the place of the one before. A dataset that is not there yet is not
        checked.

        Raises:
            InvalidInput: If a dataset lacks columns that a view reads, with all of them; or if a
                name ends in an ``@`` and digits that read like a digest.
        """
        for name in (definition.name, *(view.name for view in definition.views)):
            if _digest_in(name):
                raise InvalidInput(f"{name!r} reads like a name with a digest; choose another")
        self._check_columns(definition)
        with self._catalog.write() as tx:
            for view in definition.views:
                self._put(tx, "feature_view", view)
                of_view = feature_ref("feature_view", view.name, view.digest)
                of_set = feature_ref("feature_set", definition.name, definition.digest)
                link(tx, f"dataset:{view.source.dataset}", of_view, "read")
                link(tx, of_view, of_set, "features")
            return self._put(tx, "feature_set", definition)

    @action("feature:read", on="name")
    def feature_set(self, name: str) -> FeatureSet:
        """The feature set ``name``, ``name@digest`` (8 digits suffice) or a whole digest.

        Raises:
            NotFound: If there is none; with the nearest names.
        """
        return _decode(self._body("feature_set", name), FeatureSet)

    @action("feature:read", on="name")
    def view(self, name: str) -> FeatureView:
        """The feature view of this name or digest; as :meth:`feature_set`."""
        return _decode(self._body("feature_view", name), FeatureView)

    @action("feature:read", on="name")
    def get(self, name: str) -> FeatureDefinition:
        """Which definition the name of a feature set stands for now.

        Raises:
            NotFound: If there is none; with the nearest names.
        """
        found = [item for item in self.definitions("feature_set") if item.name == name]
        if not found:
            known = [item.name for item in self.definitions("feature_set")]
            raise NotFound.named("feature set", name, known)
        return found[0]

    @action("feature:read")
    def definitions(self, kind: Kind | None = None) -> list[FeatureDefinition]:
        """All names, sorted, of one kind or of both."""
        query = select(_names).order_by(_names.c.kind, _names.c.name)
        if kind is not None:
            query = query.where(_names.c.kind == kind)
        with self._catalog.read() as tx:
            return [FeatureDefinition(**row._asdict()) for row in tx.all(query)]

    def _check_columns(self, definition: FeatureSet) -> None:
        faults = []
        for dataset, columns in definition.datasets.items():
            try:
                names = self._data.version(dataset).schema.names
            except NotFound:
                continue
            faults += [Fault(f"{dataset}.{c}", "is no column") for c in columns if c not in names]
        if faults:
            raise InvalidInput(f"feature set {definition.name!r} reads what is not there", faults)

    def _put(
        self, tx: Transaction, kind: Kind, definition: FeatureSet | FeatureView
    ) -> FeatureDefinition:
        digest, name, owner = definition.digest, definition.name, definition.owner
        found = tx.first(select(_names).where(_names.c.kind == kind, _names.c.name == name))
        body = msgspec.to_builtins(definition)
        kept = tx.scalar(select(_definitions.c.body).where(_definitions.c.digest == digest))
        same = kept is not None and canonical_json(kept) == canonical_json(body)
        if found is not None and same and (found.digest, found.owner) == (digest, owner):
            return FeatureDefinition(**found._asdict())
        made = {"digest": digest, "kind": kind, "name": name, "created_at": tx.now}
        if not tx.insert_new(_definitions, {**made, "body": body}):
            # The digest leaves out what is for people: the last who said it is right.
            there = _definitions.update().where(_definitions.c.digest == digest)
            tx.execute(there.values(body=body))
        row = {"kind": kind, "name": name, "digest": digest, "owner": owner}
        tx.upsert(_names, {**row, "updated_at": tx.now}, key=["kind", "name"])
        before = "" if found is None else found.digest
        tx.append("feature.Applied", f"{kind}:{name}", {"digest": digest, "before": before})
        return FeatureDefinition(
            kind=kind, name=name, digest=digest, owner=owner, updated_at=tx.now
        )

    def _body(self, kind: Kind, name: str) -> object:
        wanted, digest = name, _digest_in(name)
        query = select(_definitions.c.body).where(_definitions.c.kind == kind)
        if digest:
            wanted = name.rpartition("@")[0]
            query = query.where(_definitions.c.digest.startswith(digest, autoescape=True))
            if wanted:
                query = query.where(_definitions.c.name == wanted)
        else:
            join = (_names.c.digest == _definitions.c.digest) & (_names.c.kind == kind)
            query = query.where(join, _names.c.name == name)
        with self._catalog.read() as tx:
            found = tx.all(query.limit(2))
            if len(found) == 1:
                return found[0].body
            known = [row.name for row in tx.all(select(_names.c.name).where(_names.c.kind == kind))]
        if found:
            raise NotFound(f"more than one {kind} begins with {digest}", hint="give more digits")
        raise NotFound.named(kind.replace("_", " "), wanted if wanted in known else name, known)


def _digest_in(name: str) -> str:
    """The digest that a name ends in after an ``@``, or is; empty if it has none."""
    last = name.rpartition("@")[2]
    enough = len(last) >= (_SHORTEST_DIGEST if "@" in name else 64)
    return last if enough and not set(last) - set("0123456789abcdef") else ""


def _decode(body: object, type: type[_T]) -> _T:
    return msgspec.convert(body, type)
