"""Stages of versions: labels that clients of before aliases move and ask for."""

from __future__ import annotations

from sqlalchemy import func, select

from everloop.access.service import action
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.model import ModelVersion
from everloop.errors import InvalidInput
from everloop.registry import write

__all__ = ["STAGES", "StageMethods", "stage_called"]

STAGES = ("None", "Staging", "Production", "Archived")
_ACTIVE = ("Staging", "Production")


def stage_called(name: str) -> str:
    """The stage of this name in any case.

    Raises:
        InvalidInput: If there is none.
    """
    for stage in STAGES:
        if stage.lower() == name.lower():
            return stage
    raise InvalidInput(
        f"Invalid Model Version stage: {name[:80]}. Value must be one of {', '.join(STAGES)}."
    )


class StageMethods:
    """The part of the registry that keeps stages. A stage serves nothing and passes no gate."""

    _catalog: Catalog

    @action("model:promote", on="name")
    def set_stage(
        self, name: str, version: int, stage: str, *, archive_others: bool = False
    ) -> ModelVersion:
        """Label a version.

        Args:
            name: The model.
            version: Its version.
            stage: One of ``None``, ``Staging``, ``Production``, ``Archived``, in any case.
            archive_others: Label the versions that are in this stage now ``Archived``.

        Raises:
            NotFound: If there is no such version.
            InvalidInput: If there is no such stage, or others cannot be archived out of it.
        """
        wanted = stage_called(stage)
        if archive_others and wanted not in _ACTIVE:
            raise InvalidInput(
                f"Versions are archived only out of {' and '.join(_ACTIVE)}, not out of {wanted}"
            )
        table = tables.model_versions
        here = (table.c.name == name, table.c.version == version)
        with self._catalog.write() as tx:
            before = write.load_version(tx, name, version).stage
            if archive_others:
                others = (table.c.name == name, table.c.version != version, table.c.stage == wanted)
                archived = table.update().where(*others)
                tx.execute(archived.values(stage="Archived", updated_at=tx.now))
            tx.execute(table.update().where(*here).values(stage=wanted, updated_at=tx.now))
            if before != wanted:
                body = {"from": before, "to": wanted, "archived_others": archive_others}
                tx.append("model.StageChanged", f"model:{name}/{version}", body)
            return write.load_version(tx, name, version)

    @action("model:read", on="name")
    def latest_of_stages(self, name: str) -> list[ModelVersion]:
        """The newest version of each stage that has one, oldest first.

        Raises:
            NotFound: If there is no such model.
        """
        table = tables.model_versions
        newest = select(func.max(table.c.version)).where(table.c.name == name)
        query = select(table).where(
            table.c.name == name, table.c.version.in_(newest.group_by(table.c.stage))
        )
        with self._catalog.read() as tx:
            rows = tx.all(query.order_by(table.c.version))
            if not rows:
                write.load_model(tx, name)
            return [write.to_version(row) for row in rows]
