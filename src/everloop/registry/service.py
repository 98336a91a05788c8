"""RegistryService: models, their versions, aliases and states.

A version is an immutable manifest over content-addressed files: once registered only its state,
description, tags and card change. Numbers are dense and never used again, not even after the
model itself was deleted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import select

from everloop import settings
from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import feature_set_ref
from everloop.catalog.transaction import Transaction
from everloop.core.artifact import ModelArtifact
from everloop.core.context import current_actor, current_principal
from everloop.core.model import (
    Model,
    ModelPage,
    ModelVersion,
    Verification,
    VersionPage,
    VersionState,
)
from everloop.core.run import Artifact
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore
from everloop.registry import seal, search, write
from everloop.registry.aliases import AliasMethods
from everloop.registry.intake import IntakeMethods
from everloop.registry.manifest import NO_SIGNATURE, check_paths, make_manifest
from everloop.registry.stages import StageMethods
from everloop.registry.trash import TrashMethods, refuse_used, rename, used_numbers
from everloop.tracking.limits import check_tags

__all__ = ["RegistryService"]

_MAX_TAG = 100_000
# How a tracking client names the files of a logged model.
_LOGGED_MODEL = "models:/m-"


class RegistryService(AliasMethods, StageMethods, TrashMethods, IntakeMethods, Service):
    """Keeps models: who is what, made from what, and which one is meant by an alias."""

    area = "registry"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    # --- models -------------------------------------------------------------------------------

    @action("model:write", on="name")
    def create_model(
        self,
        name: str,
        *,
        description: str = "",
        owner: str = "",
        tags: dict[str, str] | None = None,
    ) -> Model:
        """Make a model without versions.

        Raises:
            Conflict: If the name is taken.
            InvalidInput: If it cannot be a name.
        """
        write.check_name(name)
        check_tags(tags or {}, longest=_MAX_TAG)
        with self._catalog.write() as tx:
            if not self._create(tx, name, description, owner, tags or {}):
                raise Conflict(
                    f"there is a model {name!r} already",
                    hint="choose another name, or register a version of it",
                    details={"winner": name},
                )
            return write.load_model(tx, name)

    @action("model:read", on="name")
    def model(self, name: str) -> Model:
        """The model called `name`; raises NotFound with near names."""
        with self._catalog.read() as tx:
            return write.load_model(tx, name)

    @action("model:read")
    def models(self) -> list[Model]:
        """All models, by name."""
        with self._catalog.read() as tx:
            aliases = defaultdict(list)
            for row in tx.all(select(tables.aliases)):
                aliases[row.name].append(row)
            rows = tx.all(select(tables.models).order_by(tables.models.c.name))
            return [write.to_model(row, aliases[row.name]) for row in rows]

    @action("model:read")
    def search_models(
        self,
        filter: str = "",
        *,
        order_by: list[str] | None = None,
        limit: int = 100,
        page_token: str = "",
        and_only: bool = False,
    ) -> ModelPage:
        """Search models by ``name`` and tags; by name without `order_by`.

        Args:
            filter: See ``everloop.tracking.search``.
            order_by: ``name``, ``creation_timestamp`` or ``last_updated_timestamp``.
            limit: Most to return, 1 to 1,000.
            page_token: Of the page before.
            and_only: Refuse OR, NOT and parentheses, as MLflow does.
        """
        return search.page_of_models(
            self.models(), filter, order_by or [], limit, page_token, and_only=and_only
        )

    @action("model:read")
    def search_versions(
        self,
        filter: str = "",
        *,
        order_by: list[str] | None = None,
        limit: int = 10_000,
        page_token: str = "",
        and_only: bool = False,
    ) -> VersionPage:
        """Search versions by ``name``, ``run_id``, ``source_path``, ``version_number`` and tags.

        Args:
            filter: See ``everloop.tracking.search``.
            order_by: By name, newest version first, without it.
            limit: Most to return, 1 to 200,000.
            page_token: Of the page before.
            and_only: Refuse OR, NOT and parentheses, as MLflow does.
        """
        return search.page_of_versions(
            self.versions(), filter, order_by or [], limit, page_token, and_only=and_only
        )

    @action("model:write", on="name")
    def update_model(
        self, name: str, *, description: str | None = None, owner: str | None = None
    ) -> Model:
        """Change what is said of a model; None leaves it."""
        changes = {"description": description, "owner": owner}
        return self._change_model(name, {k: v for k, v in changes.items() if v is not None})

    @action("model:write", on="name")
    def tag_model(self, name: str, tags: dict[str, str | None]) -> Model:
        """Set tags of a model; a tag of None is removed."""
        check_tags(tags, longest=_MAX_TAG)
        with self._catalog.write() as tx:
            merged = _merged(write.load_model(tx, name).tags, tags)
            tx.append("model.Tagged", f"model:{name}", _tag_changes(tags))
            return self._write_model(tx, name, {"tags": merged})

    @action("model:delete", on="name")
    def rename_model(self, name: str, new_name: str) -> Model:
        """Give a model another name; versions, aliases and verdicts follow.

        Raises:
            Conflict: If the new name is taken.
            StateError: If a version is live or a candidate: a deployment knows it by its name.
        """
        write.check_name(new_name)
        with self._catalog.write() as tx:
            model = write.load_model(tx, name)
            if new_name == name:
                return model
            refuse_used(tx, name, "renamed")
            rename(tx, name, new_name)
            return write.load_model(tx, new_name)

    # --- versions -----------------------------------------------------------------------------

    @action("model:register", on="name")
    def register(
        self,
        name: str,
        artifact: ModelArtifact,
        *,
        run_id: str = "",
        code: str = "",
        environment: dict[str, str] | None = None,
        alias: str = "",
        tags: dict[str, str] | None = None,
        description: str = "",
    ) -> ModelVersion:
        """Register a version; the model is made on first use.

        The same artifact registered again by the same run (or again without a run) is the same
        version. The files are durable before the version can be seen.

        Args:
            run_id: The run that trained it.
            code: Digest of the code snapshot.
            environment: Distributions with their versions.
            alias: Point this alias at it, in the same transaction; it takes who may promote.

        Code and environment are those that the run noted, where they are not given. Where
        ``EVERLOOP_SIGNING_KEY`` is set the manifest is signed with it.

        Raises:
            InvalidInput: If the name, the alias or a file's path is malformed, or it has no files.
            GateRefused: If the alias is protected; nothing is registered then.
        """
        from everloop.registry.flavors import true_tier  # NumPy, for this alone

        write.check_name(name)
        if alias:
            write.check_alias(alias)
            # No way around `set_alias`, which is the right that this needs, too.
            self._authorizer.authorize(current_principal(), "model:promote", name)
        files = self._store(artifact.files)
        reference = self._store({"reference": artifact.reference}) if artifact.reference else ()
        manifest = make_manifest(
            content=artifact.digest,
            files=files,
            flavor=artifact.flavor,
            tier=true_tier(artifact),
            signature=artifact.signature or NO_SIGNATURE,
            code=code,
            feature_set=artifact.feature_set,
            data=artifact.data,
            rows=artifact.rows,
            trained_until=artifact.trained_until,
            params=artifact.params,
            metrics={key: repr(float(value)) for key, value in artifact.metrics.items()},
            environment=environment or artifact.environment,
            reference=reference[0].digest if reference else "",
        )
        with self._catalog.write() as tx:
            self._create(tx, name, "", "", {})
            for file in (*files, *reference):
                row = {"digest": file.digest, "size": file.size, "created_at": tx.now}
                tx.insert_new(tables.objects, row)
            found = self._same(tx, name, run_id, manifest["content"])
            if found is None:
                found = self._append(tx, name, manifest, run_id, tags or {}, description)
            if alias:
                write.move_alias(tx, name, alias, found, reason="registered")
            return write.load_version(tx, name, found)

    @action("model:register", on="name")
    def register_source(
        self,
        name: str,
        source: str,
        *,
        run_id: str = "",
        run_link: str = "",
        tags: dict[str, str] | None = None,
        description: str = "",
        files: list[Artifact] | None = None,
    ) -> ModelVersion:
        """Register a version that says where its files are, as MLflow's clients do.

        Each call makes a version. Where the files are in this store too and are a model folder of
        MLflow's, the version has them and can be served; any other has none that can be loaded.

        Args:
            source: The URI.
            run_id: The run that made it.
            run_link: URL of that run on another server.
            files: What lies there in this store, by path within `source`.

        Raises:
            NotFound: If there is no such model, or no such file in the store.
            InvalidInput: If `source` is blank or a path is no plain relative one.
        """
        from everloop.registry.folder import adopted

        if not source.strip():
            raise InvalidInput("the version is wrong", [("source", "must not be blank")])
        check_tags(tags or {}, longest=_MAX_TAG)
        manifest = make_manifest(content="", source=source, **adopted(self._blobs, files or []))
        with self._catalog.write() as tx:
            write.load_model(tx, name)
            for file in manifest["files"]:
                row = {"digest": file.digest, "size": file.size, "created_at": tx.now}
                tx.insert_new(tables.objects, row)
            number = self._append(tx, name, manifest, run_id, tags or {}, description, run_link)
            return write.load_version(tx, name, number)

    @action("model:read", on="name")
    def version(self, name: str, version: int) -> ModelVersion:
        """A version of a model; raises NotFound that says what there is."""
        with self._catalog.read() as tx:
            return write.load_version(tx, name, version)

    @action("model:read", on="name")
    def versions(self, name: str = "", *, run_id: str = "") -> list[ModelVersion]:
        """The versions of a model (of all models if no name is given), oldest first.

        Args:
            name: The model; NotFound if there is none of that name.
            run_id: Only those that this run registered.
        """
        table = tables.model_versions
        query = select(table).order_by(table.c.name, table.c.version)
        if name:
            query = query.where(table.c.name == name)
        if run_id:
            query = query.where(table.c.run_id == run_id)
        with self._catalog.read() as tx:
            rows = tx.all(query)
            if name and not rows:
                write.load_model(tx, name)
            return [write.to_version(row) for row in rows]

    @action("model:read", on="name")
    def latest(self, name: str) -> ModelVersion | None:
        """The newest version that was not deleted; None if there is none."""
        table = tables.model_versions
        query = select(table).where(table.c.name == name).order_by(table.c.version.desc())
        with self._catalog.read() as tx:
            row = tx.first(query.limit(1))
            if row is None:
                write.load_model(tx, name)
                return None
            return write.to_version(row)

    @action("model:read", on="name")
    def files(self, name: str, version: int) -> dict[str, bytes]:
        """The files of a version by path, checked against its manifest."""
        found = self.version(name, version)
        return {file.path: self._blobs.get(file.digest) for file in found.files}

    @action("model:write", on="name")
    def update_version(self, name: str, version: int, *, description: str) -> ModelVersion:
        """Describe a version."""
        with self._catalog.write() as tx:
            write.load_version(tx, name, version)
            return self._write_version(tx, name, version, {"description": description})

    @action("model:write", on="name")
    def tag_version(self, name: str, version: int, tags: dict[str, str | None]) -> ModelVersion:
        """Set tags of a version; a tag of None is removed."""
        check_tags(tags, longest=_MAX_TAG)
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            merged = _merged(found.tags, tags)
            tx.append("model.VersionTagged", f"model:{found.ref}", _tag_changes(tags))
            return self._write_version(tx, name, version, {"tags": merged})

    @action("model:write", on="name")
    def set_card(self, name: str, version: int, card: bytes) -> ModelVersion:
        """Keep the model card (Markdown) of a version; an earlier one is replaced."""
        digest, size = self._blobs.put(card)
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            if found.card == digest:
                return found
            row = {"digest": digest, "size": size, "created_at": tx.now}
            tx.insert_new(tables.objects, row)
            tx.append("model.CardWritten", f"model:{found.ref}", {"card": digest})
            return self._write_version(tx, name, version, {"card": digest})

    @action("model:write", on="name")
    def set_reference(self, name: str, version: int, reference: bytes) -> ModelVersion:
        """Keep what monitors compare the version with, where its training gave none.

        Raises:
            StateError: If it has one: what a model is measured against does not change.
        """
        digest, size = self._blobs.put(reference)
        with self._catalog.write() as tx:
            found = write.load_version(tx, name, version)
            if found.reference == digest:
                return found
            if found.reference:
                raise StateError(f"{found.ref} has a reference already")
            row = {"digest": digest, "size": size, "created_at": tx.now}
            tx.insert_new(tables.objects, row)
            tx.append("model.ReferenceSet", f"model:{found.ref}", {"reference": digest})
            versions = tables.model_versions
            its = (versions.c.name == name) & (versions.c.version == version)
            old = tx.scalar(select(versions.c.manifest).where(its))
            manifest = seal.changed(old, name, version, {"reference": digest})
            return self._write_version(tx, name, version, {"manifest": manifest})

    @action("model:read", on="name")
    def verify(self, name: str, version: int) -> Verification:
        """Whether a version is what was registered: its signature, and the bytes of its files.

        The signature is checked with the key of the settings, ``EVERLOOP_SIGNING_KEY``.
        """
        key = settings.load().signing_key
        with self._catalog.read() as tx:
            found = write.load_version(tx, name, version)
            table = tables.model_versions
            its = (table.c.name == name, table.c.version == version)
            manifest = tx.scalar(select(table.c.manifest).where(*its))
        return Verification(
            signature=seal.verdict(manifest, name, version, key),
            signed_by=found.signed_by,
            damaged=tuple(file.path for file in found.files if self._damaged(file.digest)),
            digest=manifest["digest"],
        )

    # --- states -------------------------------------------------------------------------------

    @action("model:promote", on="name")
    def set_state(
        self,
        name: str,
        version: int,
        state: VersionState,
        *,
        reason: str = "",
        evidence: str = "",
    ) -> ModelVersion:
        """Put a version into `state`.

        ``draft`` is for what was archived and shall be judged again.

        Raises:
            StateError: If it cannot follow the present one (``core.machines``), or it is to be
                archived while a deployment answers with it.
        """
        with self._catalog.write() as tx:
            if state == "archived":
                self._refuse_served(tx, name, version)
            write.change_state(tx, name, version, state, reason=reason, evidence=evidence)
            return write.load_version(tx, name, version)

    # --- inside -------------------------------------------------------------------------------

    def _create(
        self, tx: Transaction, name: str, description: str, owner: str, tags: dict[str, str]
    ) -> bool:
        row = {
            "name": name,
            "description": description,
            "owner": owner,
            "tags": tags,
            "latest": used_numbers(tx, name),
            "created_at": tx.now,
            "updated_at": tx.now,
        }
        made = tx.insert_new(tables.models, row) is not None
        if made:
            body = {"owner": owner, "description": description, "tags": tags}
            tx.append("model.Created", f"model:{name}", body)
        return made

    def _change_model(self, name: str, values: dict[str, Any]) -> Model:
        with self._catalog.write() as tx:
            write.load_model(tx, name)
            return self._write_model(tx, name, values)

    def _write_model(self, tx: Transaction, name: str, values: dict[str, Any]) -> Model:
        statement = tables.models.update().where(tables.models.c.name == name)
        tx.execute(statement.values(**values, updated_at=tx.now))
        return write.load_model(tx, name)

    def _write_version(
        self, tx: Transaction, name: str, version: int, values: dict[str, Any]
    ) -> ModelVersion:
        table = tables.model_versions
        where = (table.c.name == name, table.c.version == version)
        tx.execute(table.update().where(*where).values(**values, updated_at=tx.now))
        return write.load_version(tx, name, version)

    def _refuse_served(self, tx: Transaction, name: str, version: int) -> None:
        table = tables.deployments
        columns = (table.c.name, table.c.arms)
        for row in tx.all(select(*columns).where(table.c.model == name)):
            if any(arm["version"] == version for arm in row.arms):
                raise StateError(
                    f"deployment {row.name!r} answers with {name}/{version}, so it cannot be"
                    " archived",
                    hint="promote another version, or abort the rollout",
                )

    def _damaged(self, digest: str) -> bool:
        try:
            self._blobs.get(digest)
        except (BackendError, NotFound):
            return True
        return False

    def _store(self, files: dict[str, bytes]) -> tuple[Artifact, ...]:
        check_paths(files)
        stored = []
        for path in sorted(files):
            digest, size = self._blobs.put(files[path])
            stored.append(Artifact(path=path, digest=digest, size=size))
        return tuple(stored)

    def _same(self, tx: Transaction, name: str, run_id: str, content: str) -> int | None:
        table = tables.model_versions
        query = select(table.c.version, table.c.manifest).where(
            table.c.name == name, table.c.run_id == run_id
        )
        for row in tx.all(query.order_by(table.c.version.desc())):
            if row.manifest["content"] == content:
                return int(row.version)
        return None

    def _append(
        self,
        tx: Transaction,
        name: str,
        manifest: dict[str, Any],
        run_id: str,
        tags: dict[str, str],
        description: str,
        run_link: str = "",
    ) -> int:
        models = tables.models
        # Counted up in the row itself, so two who register at once get two numbers.
        step = models.update().where(models.c.name == name)
        step = step.values(latest=models.c.latest + 1, updated_at=tx.now)
        number = int(tx.scalar(step.returning(models.c.latest)))
        manifest = {
            **manifest,
            **_surroundings(tx, run_id, manifest),
            "compatibility": write.compatibility(tx, name, manifest),
            "actor": current_actor() or self._catalog.actor,
        }
        manifest = seal.sealed(manifest, name, number, settings.load().signing_key)
        row = {
            "name": name,
            "version": number,
            "manifest": manifest,
            "run_id": run_id,
            "state": "draft",
            "description": description,
            "tags": tags,
            "card": "",
            "run_link": run_link,
            "created_at": tx.now,
            "updated_at": tx.now,
        }
        tx.execute(tables.model_versions.insert().values(row))
        subject = f"model:{name}/{number}"
        if run_id:
            link(tx, f"run:{run_id}", subject, "produced")
        for dataset, at in manifest["data"].items():
            link(tx, f"dataset:{dataset}@{at}", subject, "trained")
        if manifest["feature_set"]:
            link(tx, feature_set_ref(tx, manifest["feature_set"]), subject, "features")
        if manifest["source"].startswith(_LOGGED_MODEL):
            logged = manifest["source"].removeprefix("models:/").partition("/")[0]
            link(tx, f"logged_model:{logged}", subject, "registered")
        told = ("digest", "flavor", "data", "feature_set", "trained_until", "metrics", "source")
        body = {"run": run_id, **{key: manifest[key] for key in told}}
        body |= {"description": description, "tags": tags}
        tx.append("model.Registered", subject, body)
        return number


def _surroundings(tx: Transaction, run_id: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Code snapshot and environment as the run noted them, where nobody said otherwise.

    The environment of the run is that of the model too; versions that the model came with win.
    """
    runs = tables.runs
    query = select(runs.c.code, runs.c.environment).where(runs.c.id == run_id)
    run = tx.first(query) if run_id else None
    if run is None:
        return {}
    return {
        "code": manifest["code"] or run.code,
        "environment": {**(run.environment or {}), **manifest["environment"]},
    }


def _merged(old: dict[str, str], new: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in {**old, **new}.items() if value is not None}


def _tag_changes(tags: dict[str, str | None]) -> dict[str, Any]:
    return {
        "set": {key: value for key, value in tags.items() if value is not None},
        "removed": [key for key, value in tags.items() if value is None],
    }
