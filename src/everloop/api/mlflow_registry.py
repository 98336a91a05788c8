"""MLflow's registered models, their aliases and tags. Their versions are in ``mlflow_versions``."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_versions import OfVersion, answer, check_model_name, version_fields
from everloop.api.mlflow_wire import (
    KeyValue,
    Page,
    Text,
    bare,
    missing,
    of_one,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.model import Model
from everloop.errors import Conflict, InvalidInput
from everloop.registry.stages import STAGES, stage_called
from everloop.registry.write import check_alias
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_MODEL = "mlflow/registered-models"


class _Create(msgspec.Struct):
    name: Text
    tags: list[KeyValue] | None = None
    description: str | None = ""


class _ByName(msgspec.Struct):
    name: Text

    def __post_init__(self) -> None:
        check_model_name(self.name)


class _Update(_ByName):
    description: str | None = ""


class _Rename(_ByName):
    new_name: Text


class _SetTag(_ByName):
    key: Text
    value: str | None = ""


class _DeleteTag(_ByName):
    key: Text


class _Alias(_ByName):
    alias: Text


class _Latest(_ByName):
    stages: list[str] | None = None


class _SetAlias(OfVersion):
    alias: Text


# --- answers ----------------------------------------------------------------------------------


def _model_fields(workspace: Workspace, model: Model) -> dict[str, Any]:
    latest = workspace.registry.latest_of_stages(model.name)
    return bare(
        name=model.name,
        creation_timestamp=to_ms(model.created_at),
        last_updated_timestamp=to_ms(model.updated_at),
        description=model.description,
        user_id=model.owner,
        latest_versions=[version_fields(found, model.aliases) for found in latest],
        tags=pairs(model.tags),
        aliases=[{"alias": a, "version": str(n)} for a, n in sorted(model.aliases.items())],
    )


# --- registered models --------------------------------------------------------------------------


@calls.on("POST", f"{_MODEL}/create")
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    if not asked.name.strip():
        raise missing("name")
    check_model_name(asked.name)
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
    check_model_name(asked.new_name)
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
    wanted = {stage_called(stage) for stage in asked.stages or STAGES}
    return bare(
        model_versions=[
            version_fields(found, model.aliases)
            for found in workspace.registry.latest_of_stages(asked.name)
            if found.stage in wanted
        ]
    )


@calls.on("POST", f"{_MODEL}/set-tag")
def _set_tag(workspace: Workspace, asked: _SetTag) -> dict[str, Any]:
    with of_one("tags"):
        workspace.registry.tag_model(asked.name, {asked.key: asked.value or ""})
    return {}


@calls.on("DELETE", f"{_MODEL}/delete-tag")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    with of_one("tags"):
        workspace.registry.tag_model(asked.name, {asked.key: None})
    return {}


@calls.on("POST", f"{_MODEL}/alias")
def _set_alias(workspace: Workspace, asked: _SetAlias) -> dict[str, Any]:
    check_alias(asked.alias)
    workspace.registry.set_alias(asked.name, asked.alias, asked.number, reason="set through MLflow")
    return {}


@calls.on("GET", f"{_MODEL}/alias")
def _get_by_alias(workspace: Workspace, asked: _Alias) -> dict[str, Any]:
    if asked.alias.lower() == "latest":
        latest = workspace.registry.latest(asked.name)
        if latest is not None:
            return answer(workspace, latest)
    if asked.alias not in workspace.registry.model(asked.name).aliases:
        # 400 and not 404, as MLflow answers it.
        raise InvalidInput(f"Registered model alias {asked.alias} not found.")
    return answer(workspace, workspace.registry.by_alias(asked.name, asked.alias))


@calls.on("DELETE", f"{_MODEL}/alias")
def _delete_alias(workspace: Workspace, asked: _Alias) -> dict[str, Any]:
    check_alias(asked.alias)
    workspace.registry.delete_alias(asked.name, asked.alias, reason="removed through MLflow")
    return {}
