"""MLflow's model registry: registered models, their versions, aliases and tags."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_experiments import location_of
from everloop.api.mlflow_wire import KeyValue, Page, Text, bare, pairs, tags_of, to_ms
from everloop.core.model import Model, ModelVersion
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_MODEL = "mlflow/registered-models"
_VERSION = "mlflow/model-versions"
_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]{32})")


class _Create(msgspec.Struct):
    name: Text
    tags: list[KeyValue] | None = None
    description: str | None = ""


class _ByName(msgspec.Struct):
    name: Text


class _Update(msgspec.Struct):
    name: Text
    description: str | None = ""


class _Rename(msgspec.Struct):
    name: Text
    new_name: Text


class _SetTag(msgspec.Struct):
    name: Text
    key: Text
    value: str | None = ""


class _DeleteTag(msgspec.Struct):
    name: Text
    key: Text


class _Alias(msgspec.Struct):
    name: Text
    alias: Text


class _Latest(msgspec.Struct):
    name: Text
    stages: list[str] | None = None


class _OfVersion(msgspec.Struct, kw_only=True):
    name: Text
    version: Text

    @property
    def number(self) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", self.version):
            raise InvalidInput(f"Parameter 'version' must be an integer, got {self.version[:40]!r}")
        return int(self.version)


class _SetAlias(_OfVersion):
    alias: Text


class _CreateVersion(msgspec.Struct):
    name: Text
    source: Text
    run_id: str | None = ""
    model_id: str | None = ""
    tags: list[KeyValue] | None = None
    description: str | None = ""


class _UpdateVersion(_OfVersion):
    description: str | None = ""


class _SetVersionTag(_OfVersion):
    key: Text
    value: str | None = ""


class _DeleteVersionTag(_OfVersion):
    key: Text


# --- answers ----------------------------------------------------------------------------------


def _model_fields(workspace: Workspace, model: Model) -> dict[str, Any]:
    latest = workspace.registry.latest(model.name)
    return bare(
        name=model.name,
        creation_timestamp=to_ms(model.created_at),
        last_updated_timestamp=to_ms(model.updated_at),
        description=model.description,
        user_id=model.owner,
        latest_versions=[_version_fields(latest, model.aliases)] if latest else [],
        tags=pairs(model.tags),
        aliases=[{"alias": a, "version": str(n)} for a, n in sorted(model.aliases.items())],
    )


def _version_fields(version: ModelVersion, aliases: dict[str, int]) -> dict[str, Any]:
    logged = _LOGGED_MODEL.match(version.source)
    return bare(
        name=version.name,
        version=str(version.version),
        creation_timestamp=to_ms(version.created_at),
        last_updated_timestamp=to_ms(version.updated_at),
        current_stage="None",
        description=version.description,
        source=version.source,
        run_id=version.run_id,
        status="READY",
        tags=pairs(version.tags),
        aliases=sorted(alias for alias, number in aliases.items() if number == version.version),
        user_id=version.actor,
        model_id=logged[1] if logged else "",
    )


def _answer(workspace: Workspace, version: ModelVersion) -> dict[str, Any]:
    aliases = workspace.registry.model(version.name).aliases
    return {"model_version": _version_fields(version, aliases)}


# --- registered models --------------------------------------------------------------------------


@calls.on("POST", f"{_MODEL}/create")
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    try:
        made = workspace.registry.create_model(
            asked.name, description=asked.description or "", tags=tags_of(asked.tags)
        )
    except Conflict as error:
        raise Conflict(f"Registered Model (name={asked.name}) already exists") from error
    return {"registered_model": _model_fields(workspace, made)}


@calls.on("GET", f"{_MODEL}/get")
def _get(workspace: Workspace, asked: _ByName) -> dict[str, Any]:
    model = workspace.registry.model(asked.name)
    return {"registered_model": _model_fields(workspace, model)}


@calls.on("GET", f"{_MODEL}/search")
def _search(workspace: Workspace, asked: Page) -> dict[str, Any]:
    page = workspace.registry.search_models(
        filter=asked.filter or "",
        order_by=asked.order_by or [],
        limit=100 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
        and_only=True,
    )
    return bare(
        registered_models=[_model_fields(workspace, model) for model in page.models],
        next_page_token=page.next_page_token,
    )


@calls.on("PATCH", f"{_MODEL}/update")
def _update(workspace: Workspace, asked: _Update) -> dict[str, Any]:
    model = workspace.registry.update_model(asked.name, description=asked.description or "")
    return {"registered_model": _model_fields(workspace, model)}


@calls.on("POST", f"{_MODEL}/rename")
def _rename(workspace: Workspace, asked: _Rename) -> dict[str, Any]:
    try:
        model = workspace.registry.rename_model(asked.name, asked.new_name)
    except Conflict as error:
        raise Conflict(f"Registered Model (name={asked.new_name}) already exists") from error
    return {"registered_model": _model_fields(workspace, model)}


@calls.on("DELETE", f"{_MODEL}/delete")
def _delete(workspace: Workspace, asked: _ByName) -> dict[str, Any]:
    workspace.registry.delete_model(asked.name)
    return {}


@calls.on("GET", f"{_MODEL}/get-latest-versions")
@calls.on("POST", f"{_MODEL}/get-latest-versions")
def _get_latest_versions(workspace: Workspace, asked: _Latest) -> dict[str, Any]:
    model = workspace.registry.model(asked.name)
    if asked.stages and "none" not in {stage.lower() for stage in asked.stages}:
        return {}
    latest = workspace.registry.latest(asked.name)
    return bare(model_versions=[_version_fields(latest, model.aliases)] if latest else [])


@calls.on("POST", f"{_MODEL}/set-tag")
def _set_tag(workspace: Workspace, asked: _SetTag) -> dict[str, Any]:
    workspace.registry.tag_model(asked.name, {asked.key: asked.value or ""})
    return {}


@calls.on("DELETE", f"{_MODEL}/delete-tag")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.registry.tag_model(asked.name, {asked.key: None})
    return {}


@calls.on("POST", f"{_MODEL}/alias")
def _set_alias(workspace: Workspace, asked: _SetAlias) -> dict[str, Any]:
    workspace.registry.set_alias(asked.name, asked.alias, asked.number, reason="set through MLflow")
    return {}


@calls.on("GET", f"{_MODEL}/alias")
def _get_by_alias(workspace: Workspace, asked: _Alias) -> dict[str, Any]:
    if asked.alias not in workspace.registry.model(asked.name).aliases:
        # 400 and not 404, as MLflow answers it.
        raise InvalidInput(f"Registered model alias {asked.alias} not found.")
    return _answer(workspace, workspace.registry.by_alias(asked.name, asked.alias))


@calls.on("DELETE", f"{_MODEL}/alias")
def _delete_alias(workspace: Workspace, asked: _Alias) -> dict[str, Any]:
    workspace.registry.delete_alias(asked.name, asked.alias, reason="removed through MLflow")
    return {}


# --- versions -----------------------------------------------------------------------------------


@calls.on("POST", f"{_VERSION}/create")
def _create_version(workspace: Workspace, asked: _CreateVersion) -> dict[str, Any]:
    run_id = asked.run_id or ""
    _check_source(asked.source, run_id)
    logged = _LOGGED_MODEL.match(asked.source)
    if model_id := asked.model_id or (logged[1] if logged else ""):
        run_id = workspace.tracking.logged_model(model_id).source_run_id or run_id
    made = workspace.registry.register_source(
        asked.name,
        asked.source,
        run_id=run_id,
        tags=tags_of(asked.tags),
        description=asked.description or "",
    )
    return _answer(workspace, made)


def _check_source(source: str, run_id: str) -> None:
    """Refuse a source that a client may have forged to read what is not a model of its run."""
    plain, before = source, ""
    while plain != before:
        before, plain = plain, unquote(plain)
    scheme, colon, rest = plain.partition(":")
    parts = re.split(r"[/\\]", rest)
    if ".." in parts or "\0" in plain or "\\" in plain:
        raise InvalidInput(f"Invalid model version source: {source[:200]!r}")
    if not colon or scheme.lower() == "file" or len(scheme) == 1:
        raise InvalidInput(
            f"Invalid model version source: {source[:200]!r}. A path of the client's machine lies "
            "outside the run's artifacts; log the model to this server first"
        )
    if scheme == "runs" and not run_id:
        raise InvalidInput("Invalid model version source: a runs:/ source needs its run_id")


@calls.on("GET", f"{_VERSION}/get")
def _get_version(workspace: Workspace, asked: _OfVersion) -> dict[str, Any]:
    return _answer(workspace, workspace.registry.version(asked.name, asked.number))


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
        model_versions=[_version_fields(found, aliases[found.name]) for found in page.versions],
        next_page_token=page.next_page_token,
    )


@calls.on("GET", f"{_VERSION}/get-download-uri")
def _download_uri(workspace: Workspace, asked: _OfVersion) -> dict[str, Any]:
    source = workspace.registry.version(asked.name, asked.number).source
    if logged := _LOGGED_MODEL.match(source):
        model = workspace.tracking.logged_model(logged[1])
        return {"artifact_uri": f"{location_of(model.experiment)}/models/{model.id}/artifacts"}
    if not source:
        raise NotFound(
            f"Model Version (name={asked.name}, version={asked.version}) was not logged by MLflow "
            "and has no artifacts of its kind"
        )
    return {"artifact_uri": source}


@calls.on("PATCH", f"{_VERSION}/update")
def _update_version(workspace: Workspace, asked: _UpdateVersion) -> dict[str, Any]:
    text = asked.description or ""
    found = workspace.registry.update_version(asked.name, asked.number, description=text)
    return _answer(workspace, found)


@calls.on("DELETE", f"{_VERSION}/delete")
def _delete_version(workspace: Workspace, asked: _OfVersion) -> dict[str, Any]:
    workspace.registry.delete_version(asked.name, asked.number)
    return {}


@calls.on("POST", f"{_VERSION}/set-tag")
def _set_version_tag(workspace: Workspace, asked: _SetVersionTag) -> dict[str, Any]:
    workspace.registry.tag_version(asked.name, asked.number, {asked.key: asked.value or ""})
    return {}


@calls.on("DELETE", f"{_VERSION}/delete-tag")
def _delete_version_tag(workspace: Workspace, asked: _DeleteVersionTag) -> dict[str, Any]:
    workspace.registry.tag_version(asked.name, asked.number, {asked.key: None})
    return {}
