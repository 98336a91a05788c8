"""Searches of models and versions, in the grammar of ``everloop.tracking.search``."""

from __future__ import annotations

from typing import Any

from everloop.core.model import Model, ModelPage, ModelVersion, VersionPage
from everloop.core.time import to_micros
from everloop.tracking.limits import check_page
from everloop.tracking.models import page_of
from everloop.tracking.search import Grammar, Order, parse_order

__all__ = ["page_of_models", "page_of_versions"]

#: Clients ask for models that are no prompts by this tag being other than "true", and mean those
#: without it too; any other tag that is absent meets no comparison.
_PROMPT = "mlflow.prompt.is_prompt"
_TAGS = {"tag": "tag", "tags": "tag"}
_MODELS = Grammar(
    attributes={
        "name": "text",
        "creation_timestamp": "number",
        "last_updated_timestamp": "number",
    },
    entities=_TAGS,
    aliases={"timestamp": "last_updated_timestamp"},
)
_VERSIONS = Grammar(
    attributes={
        **_MODELS.attributes,
        "run_id": "text",
        "source_path": "text",
        "version_number": "number",
    },
    entities=_TAGS,
    quotes_numbers=True,
)
_BY_NAME = Order("attribute", "name", False)
_NEWEST = Order("attribute", "version_number", True)


def page_of_models(
    found: list[Model],
    filter_: str,
    order_by: list[str],
    limit: int,
    page_token: str,
    *,
    and_only: bool,
) -> ModelPage:
    """One page of the models that meet a filter."""
    check_page(limit, 1000)

    def values(model: Model, entity: str, key: str) -> list[Any]:
        if entity == "tag":
            if key == _PROMPT and key not in model.tags:
                return ["false"]
            return [model.tags[key]] if key in model.tags else []
        attributes = {
            "name": model.name,
            "creation_timestamp": to_micros(model.created_at) // 1000,
            "last_updated_timestamp": to_micros(model.updated_at) // 1000,
        }
        return [attributes[key]]

    page, token = page_of(
        found,
        values,
        _MODELS,
        [_BY_NAME],
        filter_,
        parse_order(order_by, _MODELS),
        limit,
        page_token,
        and_only=and_only,
        view="models",
        key=lambda model: model.name,
    )
    return ModelPage(models=tuple(page), next_page_token=token)


def page_of_versions(
    found: list[ModelVersion],
    filter_: str,
    order_by: list[str],
    limit: int,
    page_token: str,
    *,
    and_only: bool,
) -> VersionPage:
    """One page of the versions that meet a filter."""
    check_page(limit, 200_000)

    def values(version: ModelVersion, entity: str, key: str) -> list[Any]:
        if entity == "tag":
            if key == _PROMPT and key not in version.tags:
                return ["false"]
            return [version.tags[key]] if key in version.tags else []
        attributes = {
            "name": version.name,
            "run_id": version.run_id,
            "source_path": version.source,
            "version_number": version.version,
            "creation_timestamp": to_micros(version.created_at) // 1000,
            "last_updated_timestamp": to_micros(version.updated_at) // 1000,
        }
        return [attributes[key]]

    page, token = page_of(
        found,
        values,
        _VERSIONS,
        [_BY_NAME, _NEWEST],
        filter_,
        parse_order(order_by, _VERSIONS),
        limit,
        page_token,
        and_only=and_only,
        view="versions",
        key=lambda version: version.ref,
    )
    return VersionPage(versions=tuple(page), next_page_token=token)
