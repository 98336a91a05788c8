"""Versions of MLflow's registered models: made, found, described, moved between stages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_sources import (
    LOGGED_MODEL,
    PROMPT_TAG,
    check_prompt_source,
    files_of_source,
    files_uri,
    run_of_source,
)
from everloop.api.mlflow_wire import (
    KeyValue,
    Page,
    Text,
    bare,
    invalid,
    of_one,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.model import ModelVersion
from everloop.errors import InvalidInput, NotFound
from everloop.workspace import Workspace

__all__ = ["OfVersion", "answer", "calls", "check_model_name", "told_as_version", "version_fields"]

calls = Calls()

_VERSION = "mlflow/model-versions"
_NOTE_TAG = "mlflow.modelVersions"


def check_model_name(name: str) -> None:
    """Refuse what can name no registered model, before it is looked for.

    Raises:
        InvalidInput: If it holds a slash or colon.
    """
    if "/" in name or ":" in name:
        raise InvalidInput(f"Invalid model name {name[:260]!r}. Names cannot contain '/' or ':'.")


class OfVersion(msgspec.Struct, kw_only=True):
    """A request about one version of a model."""

    name: Text
    version: Text

    def __post_init__(self) -> None:
        check_model_name(self.name)

    @property
    def number(self) -> int:
        """Its number."""
        if not re.fullmatch(r"-?[0-9]{1,18}", self.version):
            raise InvalidInput(
                f"Parameter 'version' must be an integer, got {self.version[:40]!r}."
            )
        return int(self.version)


@contextmanager
def told_as_version(asked: OfVersion) -> Iterator[None]:
    """Within the block a model that is not there is told as its version that is not."""
    try:
        yield
    except NotFound as error:
        if error.details.get("kind") != "model":
            raise
        raise NotFound.named("model version", f"{asked.name}/{asked.number}", []) from error


class _CreateVersion(msgspec.Struct):
    name: Text
    source: Text
    run_id: str | None = ""
    run_link: str | None = ""
    model_id: str | None = ""
    tags: list[KeyValue] | None = None
    description: str | None = ""


class _UpdateVersion(OfVersion):
    description: str | None = ""


class _SetVersionTag(OfVersion):
    key: Text
    value: str | None = ""


class _DeleteVersionTag(OfVersion):
    key: Text


class _Transition(OfVersion, kw_only=True):
    stage: Text
    archive_existing_versions: Any = None


def version_fields(version: ModelVersion, aliases: dict[str, int]) -> dict[str, Any]:
    """A version as MLflow shows it."""
    logged = LOGGED_MODEL.fullmatch(version.source)
    texts = {
        "description": version.description,
        "run_id": version.run_id,
        "run_link": version.run_link,
    }
    return texts | bare(
        name=version.name,
        version=str(version.version),
        creation_timestamp=to_ms(version.created_at),
        last_updated_timestamp=to_ms(version.updated_at),
        current_stage=version.stage,
        source=version.source,
        status="READY",
        tags=pairs(version.tags),
        aliases=sorted(alias for alias, number in aliases.items() if number == version.version),
        user_id=version.actor,
        model_id=logged[1] if logged else "",
    )


def answer(workspace: Workspace, version: ModelVersion) -> dict[str, Any]:
    """The answer that shows one version."""
    aliases = workspace.registry.model(version.name).aliases
    return {"model_version": version_fields(version, aliases)}


@calls.on("POST", f"{_VERSION}/create")
def _create_version(workspace: Workspace, asked: _CreateVersion) -> dict[str, Any]:
    check_model_name(asked.name)
    workspace.registry.model(asked.name)
    tags = tags_of(asked.tags)
    if tags.get(PROMPT_TAG, "").lower() == "true":
        check_prompt_source(asked.source)
        run_id = asked.run_id or ""
    else:
        run_id = run_of_source(workspace, asked.source, asked.run_id or "", asked.model_id or "")
    made = workspace.registry.register_source(
        asked.name,
        asked.source,
        run_id=run_id,
        run_link=asked.run_link or "",
        tags=tags,
        description=asked.description or "",
        files=files_of_source(workspace, asked.source),
    )
    if asked.model_id:
        _note_on_model(workspace, asked.model_id, made)
    return answer(workspace, made)


def _note_on_model(workspace: Workspace, model_id: str, made: ModelVersion) -> None:
    """Say on the logged model under which name it is registered, as the client does again."""
    model = workspace.tracking.logged_model(model_id)
    try:
        noted = msgspec.json.decode(model.tags.get(_NOTE_TAG, "[]"), type=list[Any])
    except msgspec.DecodeError:
        noted = []  # somebody wrote a text of their own there
    noted.append({"name": made.name, "version": made.version})
    tags = {_NOTE_TAG: msgspec.json.encode(noted).decode()}
    workspace.tracking.update_logged_model(model_id, tags=tags)


@calls.on("GET", f"{_VERSION}/get")
def _get_version(workspace: Workspace, asked: OfVersion) -> dict[str, Any]:
    with told_as_version(asked):
        return answer(workspace, workspace.registry.version(asked.name, asked.number))


@calls.on("GET", f"{_VERSION}/search")
def _search_versions(workspace: Workspace, asked: Page) -> dict[str, Any]:
    page = workspace.registry.search_versions(
        filter=asked.filter or "",
        order_by=asked.order_by or [],
        limit=10_000 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
        and_only=True,
    )
    aliases = {
        name: workspace.registry.model(name).aliases
        for name in {found.name for found in page.versions}
    }
    return bare(
        model_versions=[version_fields(found, aliases[found.name]) for found in page.versions],
        next_page_token=page.next_page_token,
    )


@calls.on("GET", f"{_VERSION}/get-download-uri")
def _download_uri(workspace: Workspace, asked: OfVersion) -> dict[str, Any]:
    with told_as_version(asked):
        return {"artifact_uri": files_uri(workspace, asked.name, asked.number)}


@calls.on("PATCH", f"{_VERSION}/update")
def _update_version(workspace: Workspace, asked: _UpdateVersion) -> dict[str, Any]:
    text = asked.description or ""
    with told_as_version(asked):
        found = workspace.registry.update_version(asked.name, asked.number, description=text)
    return answer(workspace, found)


@calls.on("DELETE", f"{_VERSION}/delete")
def _delete_version(workspace: Workspace, asked: OfVersion) -> dict[str, Any]:
    with told_as_version(asked):
        workspace.registry.delete_version(asked.name, asked.number)
    return {}


@calls.on("POST", f"{_VERSION}/set-tag")
def _set_version_tag(workspace: Workspace, asked: _SetVersionTag) -> dict[str, Any]:
    with of_one("tags"), told_as_version(asked):
        tags: dict[str, str | None] = {asked.key: asked.value or ""}
        workspace.registry.tag_version(asked.name, asked.number, tags)
    return {}


@calls.on("DELETE", f"{_VERSION}/delete-tag")
def _delete_version_tag(workspace: Workspace, asked: _DeleteVersionTag) -> dict[str, Any]:
    with of_one("tags"), told_as_version(asked):
        workspace.registry.tag_version(asked.name, asked.number, {asked.key: None})
    return {}


@calls.on("POST", f"{_VERSION}/transition-stage")
def _transition(workspace: Workspace, asked: _Transition) -> dict[str, Any]:
    archive = asked.archive_existing_versions
    if not isinstance(archive, bool | None):
        raise invalid("archive_existing_versions", archive, "it must be true or false")
    with told_as_version(asked):
        found = workspace.registry.set_stage(
            asked.name, asked.number, asked.stage, archive_others=bool(archive)
        )
    return answer(workspace, found)
