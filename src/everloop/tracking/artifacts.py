"""The part of the tracking service that keeps files and logged models."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import delete, select

from everloop.access.service import action
from everloop.catalog.datasets import add_objects
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import artifacts
from everloop.core.run import Artifact, LoggedModel, LoggedModelPage, ModelOrder
from everloop.errors import NotFound, StateError
from everloop.ports.blobs import BlobStore, HasParts
from everloop.tracking import models as logged
from everloop.tracking.experiments import experiment_row
from everloop.tracking.groups import Together
from everloop.tracking.limits import check_page, clean_path
from everloop.tracking.store import not_active

__all__ = ["SMALL", "ArtifactMethods", "FileGroups"]


#: A file up to this size shares its way to the disk with others that come at once.
SMALL = 64 << 10


class FileGroups(Together[tuple[str, bytes], Artifact]):
    """Stores small files for all threads of this process."""

    def __init__(self, catalog: Catalog, blobs: BlobStore) -> None:
        super().__init__()
        self._catalog = catalog
        self._blobs = blobs

    def _write(self, items: list[tuple[str, bytes]]) -> list[Artifact]:
        if len(items) == 1:
            stored = [self._blobs.put(items[0][1])]
        else:
            stored = self._blobs.put_many([data for _, data in items])
        found = [
            Artifact(path=path, digest=digest, size=size)
            for (path, _), (digest, size) in zip(items, stored, strict=True)
        ]
        link_all(self._catalog, found)
        return found


def link_all(catalog: Catalog, found: list[Artifact]) -> None:
    """Give stored objects their paths, in one transaction; the last of equal paths counts."""
    # In one order, so that two writers never wait for each other in a circle.
    with catalog.write(ordered=False) as tx:
        sizes = {item.digest: item.size for item in found}
        add_objects(tx, sorted(sizes.items()))
        rows = {
            item.path: {"path": item.path, "digest": item.digest, "size": item.size}
            for item in found
        }
        tx.upsert(
            artifacts, [rows[path] | {"created_at": tx.now} for path in sorted(rows)], ["path"]
        )


class ArtifactMethods:
    """Files by path, and logged models. Bytes are in the object store before a row names them."""

    _catalog: Catalog
    _blobs: BlobStore
    _files: FileGroups

    @action("artifact:write", on="path")
    def put_artifact(self, path: str, data: bytes) -> Artifact:
        """Store a file under a path of the workspace, over what was there.

        Raises:
            InvalidInput: If the path is not a plain relative one.
        """
        clean = clean_path(path)
        if len(data) <= SMALL:
            return self._files.put((clean, data))
        digest, size = self._blobs.put(data)
        return self._link(clean, digest, size)

    @action("artifact:write", on="folder")
    def put_artifacts(self, folder: str, files: dict[str, bytes]) -> list[Artifact]:
        """Store files under paths relative to `folder`, over what was there: all of them or none.

        For many small files this is many times as fast as one by one, also through a server.

        Raises:
            InvalidInput: If a path is not a plain relative one.
        """
        paths = [clean_path(f"{clean_path(folder)}/{clean_path(name)}") for name in files]
        stored = self._blobs.put_many(list(files.values()))
        found = [
            Artifact(path=path, digest=digest, size=size)
            for path, (digest, size) in zip(paths, stored, strict=True)
        ]
        link_all(self._catalog, found)
        return found

    @action("artifact:write", on="path")
    def link_artifact(self, path: str, digest: str, size: int) -> Artifact:
        """Give an object that is in the store already a path; for data that was streamed in.

        Raises:
            NotFound: If the store has no such object.
        """
        clean = clean_path(path)
        if not self._blobs.keep(digest):
            raise NotFound(f"no object {digest}")
        return self._link(clean, digest, size)

    @action("artifact:write", on="path")
    def begin_upload(self, path: str) -> str:
        """Begin to send a file to this path in parts; the id of the upload.

        Raises:
            StateError: If the object store takes no parts.
        """
        return self._parts().begin_parts(clean_path(path))

    @action("artifact:write", on="path")
    def complete_upload(self, path: str, upload: str, parts: dict[int, str]) -> Artifact:
        """Join the parts of an upload to the file at its path; may be repeated if cut short.

        Args:
            path: As given when it began.
            upload: Its id.
            parts: Number -> blake3 digest; an empty digest is not compared.

        Raises:
            NotFound: If no such upload to this path is under way.
            InvalidInput: If a part is missing or another.
        """
        clean = clean_path(path)
        digest, size = self._parts().join_parts(upload, clean, parts)
        made = self._link(clean, digest, size)
        # Only now: an upload cut short before has all its parts still.
        self._parts().drop_parts(upload, clean)
        return made

    @action("artifact:write", on="path")
    def abort_upload(self, path: str, upload: str) -> None:
        """End an upload and forget its parts; raises NotFound if there is none."""
        self._parts().drop_parts(upload, clean_path(path))

    def _parts(self) -> HasParts:
        if not isinstance(self._blobs, HasParts):
            raise StateError("this object store takes no parts", hint="send the file whole")
        return self._blobs

    def _link(self, path: str, digest: str, size: int) -> Artifact:
        found = Artifact(path=path, digest=digest, size=size)
        link_all(self._catalog, [found])
        return found

    @action("artifact:read", on="path")
    def artifact(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            NotFound: If there is no file at this path.
        """
        return self._blobs.get(self.artifact_info(path).digest)

    @action("artifact:read", on="path")
    def artifact_info(self, path: str) -> Artifact:
        """Digest and size of a file, for those who stream it from the store.

        Raises:
            NotFound: If there is no file at this path.
        """
        clean = clean_path(path)
        with self._catalog.read() as tx:
            row = tx.first(select(artifacts).where(artifacts.c.path == clean))
        if row is None:
            raise NotFound(f"no artifact {path!r}", details={"kind": "artifact", "name": path})
        return Artifact(path=row.path, digest=row.digest, size=row.size)

    @action("artifact:read", on="path")
    def list_artifacts(self, path: str = "") -> list[Artifact]:
        """What lies directly in a folder, by full path; a folder has no digest and size 0.

        Empty for a path that is a file or not there.
        """
        clean = clean_path(path, empty=True)
        prefix = f"{clean}/" if clean else ""
        query = select(artifacts.c.path, artifacts.c.digest, artifacts.c.size)
        with self._catalog.read() as tx:
            rows = tx.all(query.where(tx.within(artifacts.c.path, clean)) if prefix else query)
        found: dict[str, Artifact] = {}
        for row in rows:
            name, slash, _ = row.path[len(prefix) :].partition("/")
            child = prefix + name
            if slash:
                found[child] = Artifact(path=child, digest="", size=0)
            else:
                found.setdefault(child, Artifact(path=child, digest=row.digest, size=row.size))
        return [found[child] for child in sorted(found)]

    @action("artifact:delete", on="path")
    def delete_artifacts(self, path: str) -> None:
        """Delete a file, or a folder with all in it; the objects stay until purged."""
        clean = clean_path(path)
        with self._catalog.write(ordered=False) as tx:
            inside = tx.within(artifacts.c.path, clean)
            tx.execute(delete(artifacts).where((artifacts.c.path == clean) | inside))

    # Logged models

    @action("logged_model:create", on="experiment")
    def create_logged_model(
        self,
        experiment: str,
        *,
        name: str = "",
        model_type: str = "",
        source_run_id: str = "",
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> LoggedModel:
        """Begin to log a model in the experiment with this id; it is pending until finished.

        Raises:
            NotFound: If there is no such experiment.
            InvalidInput: If the name holds one of ``/ : . % " '``.
        """
        with self._catalog.write() as tx:
            found = experiment_row(tx, experiment)
            if found.lifecycle != "active":
                raise not_active("experiment", experiment)
            return logged.create(
                tx,
                int(found.id),
                name,
                model_type,
                source_run_id,
                params=params or {},
                tags=tags or {},
            )

    @action("logged_model:read", on="id")
    def logged_model(self, id: str) -> LoggedModel:
        """A logged model with its metrics.

        Raises:
            NotFound: If there is none, or it is deleted.
        """
        with self._catalog.read() as tx:
            return logged.read(tx, id)

    @action("logged_model:write", on="id")
    def finish_logged_model(
        self,
        id: str,
        status: Literal["ready", "failed"] = "ready",
    ) -> LoggedModel:
        """Say that all files of a model are there, or that they never will be."""
        with self._catalog.write() as tx:
            return logged.change(tx, id, status=status)

    @action("logged_model:write", on="id")
    def update_logged_model(
        self,
        id: str,
        *,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        delete_tag: str = "",
    ) -> LoggedModel:
        """Add parameters, which never change, set tags, or delete one.

        Raises:
            InvalidInput: If a parameter has another value already.
            NotFound: If there is no such model or tag.
        """
        with self._catalog.write() as tx:
            return logged.change(
                tx, id, params=params or {}, tags=tags or {}, delete_tag=delete_tag
            )

    @action("logged_model:delete", on="id")
    def delete_logged_model(self, id: str) -> None:
        """Delete a logged model; its files stay until purged."""
        with self._catalog.write() as tx:
            logged.change(tx, id, status="deleted")

    @action("logged_model:read")
    def search_logged_models(
        self,
        experiments: list[str],
        *,
        filter: str = "",
        order_by: list[str | ModelOrder] | None = None,
        datasets: list[tuple[str, str]] | None = None,
        limit: int = 100,
        page_token: str = "",
        and_only: bool = False,
    ) -> LoggedModelPage:
        """Search the logged models of experiments by id.

        Args:
            experiments: Ids to look in.
            filter: See ``everloop.tracking.search``.
            order_by: Newest first after these.
            datasets: Name and digest (or an empty one) of each dataset whose metrics count; a
                model without any on these is left out.
            limit: Most to return, 1 to 50,000.
            page_token: Of the page before; only with the same search.
            and_only: Refuse OR, NOT and parentheses, as MLflow does.
        """
        check_page(limit)
        keys = [int(id_) for id_ in experiments if id_.isdecimal() and len(id_) < 19]
        with self._catalog.read() as tx:
            found = logged.read_many(tx, keys)
        page, token = logged.page_of_models(
            found,
            filter,
            order_by or [],
            datasets or [],
            limit,
            page_token,
            and_only=and_only,
            view=str(sorted(keys)),
        )
        return LoggedModelPage(models=tuple(page), next_page_token=token)
