"""The part of the registry that takes in models registered elsewhere, with their numbers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select

from everloop.access.service import action
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.intake import ModelRecord, Refusal, VersionRecord
from everloop.errors import EverloopError, InvalidInput
from everloop.registry import write
from everloop.registry.manifest import make_manifest
from everloop.registry.stages import STAGES

__all__ = ["IntakeMethods"]

_MAX_TEXT = 100_000


class IntakeMethods:
    """Taking in models of elsewhere. Doing it again changes nothing; nothing is overwritten."""

    _catalog: Catalog

    @action("model:import", on="record")
    def take_model(self, record: ModelRecord, *, origin: str) -> list[Refusal]:
        """Take in a model with versions under their own numbers; gaps stay gaps.

        A number that another version has here is refused, and so is an alias that points elsewhere
        here. Versions only say where their files are, as those of MLflow's clients do.

        Args:
            record: The model.
            origin: Where it comes from, for the event log.
        """
        try:
            write.check_name(record.name)
            _check_texts(record)
        except InvalidInput as error:
            return [Refusal("model", record.name[:80], str(error))]
        refused: list[Refusal] = []
        with self._catalog.write() as tx:
            self._take_head(tx, record, origin)
            for version in record.versions:
                reason = self._take_version(tx, record.name, version, origin)
                if reason:
                    refused.append(Refusal("version", f"{record.name}/{version.version}", reason))
            model = tables.models
            # Numbers of deleted versions are not used again either.
            latest = func.max(tables.model_versions.c.version)
            used = tx.scalar(select(latest).where(tables.model_versions.c.name == record.name))
            used = max(used or 0, record.latest)
            older = (model.c.name == record.name) & (model.c.latest < used)
            tx.execute(model.update().where(older).values(latest=used))
            refused += [*_take_aliases(tx, record, origin)]
        return refused

    def _take_head(self, tx: Transaction, record: ModelRecord, origin: str) -> None:
        row = {
            "name": record.name,
            "description": record.description,
            "owner": "",
            "tags": record.tags,
            "latest": record.latest,
            "created_at": record.created_at,
            "updated_at": record.updated_at,
        }
        if tx.insert_new(tables.models, row):
            tx.append("model.Imported", f"model:{record.name}", {"origin": origin})

    def _take_version(self, tx: Transaction, name: str, version: VersionRecord, origin: str) -> str:
        """Insert a version; says why not if its number is another version's."""
        manifest = make_manifest(content="", source=version.source, actor=version.actor)
        row = {
            "name": name,
            "version": version.version,
            "manifest": manifest,
            "run_id": version.run_id,
            "state": "draft",
            "description": version.description,
            "tags": version.tags,
            "card": "",
            "stage": version.stage if version.stage in STAGES else "None",
            "run_link": version.run_link,
            "created_at": version.created_at,
            "updated_at": version.updated_at,
        }
        table = tables.model_versions
        its = (table.c.name == name) & (table.c.version == version.version)
        found = tx.first(select(table).where(its))
        if found is not None:
            return "" if _is_same(found, version) else "is another version here"
        tx.execute(table.insert().values(row))
        subject = f"model:{name}/{version.version}"
        if version.run_id:
            link(tx, f"run:{version.run_id}", subject, "produced")
        body = {"origin": origin, "run": version.run_id, "source": version.source}
        tx.append("model.VersionImported", subject, body)
        return ""


def _is_same(row: Row[Any], version: VersionRecord) -> bool:
    return bool(row.created_at == version.created_at and row.run_id == version.run_id)


def _take_aliases(tx: Transaction, record: ModelRecord, origin: str) -> list[Refusal]:
    refused = []
    here = write.load_model(tx, record.name).aliases
    for alias, version in record.aliases.items():
        name = f"{record.name}@{alias}"
        if alias in here:
            if here[alias] != version:
                reason = f"points at version {here[alias]} here, at {version} there"
                refused.append(Refusal("alias", name, reason))
            continue
        try:
            write.move_alias(tx, record.name, alias, version, reason=f"imported from {origin}")
        except EverloopError as error:  # malformed, of no version, or protected here
            refused.append(Refusal("alias", name, str(error)))
    return refused


def _check_texts(record: ModelRecord) -> None:
    """Refuse what a catalog cannot hold, or no client could have written."""
    texts = [("description", record.description), *record.tags.items()]
    for version in record.versions:
        at = f"versions[{version.version}]"
        said = (
            ("description", version.description),
            ("source", version.source),
            ("run_link", version.run_link),
        )
        texts += [(f"{at}.{name}", value) for name, value in (*said, *version.tags.items())]
    faults = [
        (path, "is too long or holds a NUL or half a surrogate pair")
        for path, value in texts
        if len(value) > _MAX_TEXT or any(x == "\0" or "\ud800" <= x <= "\udfff" for x in value)
    ]
    if faults:
        raise InvalidInput(f"the model {record.name!r} is wrong", faults)
