"""MLflow's webhooks: the calls that make, list, change, remove and try them."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_wire import Int64, Text, bare, to_ms
from everloop.core.webhook import Webhook
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_BASE = "mlflow/webhooks"
_Status = Literal["ACTIVE", "DISABLED"]


_NAME = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)


class _Event(msgspec.Struct):
    entity: Text
    action: Text

    @property
    def topic(self) -> str:
        return f"{self.entity}.{self.action}".lower()


class _Create(msgspec.Struct):
    name: Text
    url: Text
    events: list[_Event]
    description: str | None = ""
    secret: str | None = ""
    status: _Status | None = None


class _List(msgspec.Struct):
    max_results: Int64 | None = None
    page_token: str | None = ""


class _ById(msgspec.Struct):
    webhook_id: Text


class _Update(msgspec.Struct):
    webhook_id: Text
    name: str | None = None
    url: str | None = None
    events: list[_Event] | None = None
    description: str | None = None
    secret: str | None = None
    status: _Status | None = None


class _Test(msgspec.Struct):
    webhook_id: Text
    event: _Event | None = None


def _check_name(name: str | None) -> None:
    if name and not _NAME.fullmatch(name):
        raise InvalidInput(
            f"Webhook name {name[:80]!r} is invalid. Use up to 63 letters, digits, '.', '_' and "
            "'-', with a letter or digit first and last"
        )


def _fields(webhook: Webhook) -> dict[str, Any]:
    events = [topic.upper().split(".") for topic in webhook.topics]
    return bare(
        webhook_id=webhook.id,
        name=webhook.name,
        description=webhook.description,
        url=webhook.url,
        events=[{"entity": entity, "action": action} for entity, action in events],
        status="ACTIVE" if webhook.active else "DISABLED",
        creation_timestamp=to_ms(webhook.created_at),
        last_updated_timestamp=to_ms(webhook.updated_at),
    )


@calls.on("POST", _BASE)
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    _check_name(asked.name)
    webhook = workspace.webhooks.create(
        asked.name,
        asked.url,
        [event.topic for event in asked.events],
        description=asked.description or "",
        secret=asked.secret or "",
        active=asked.status != "DISABLED",
    )
    return {"webhook": _fields(webhook)}


@calls.on("GET", _BASE)
def _list(workspace: Workspace, asked: _List) -> dict[str, Any]:
    page = workspace.webhooks.webhooks(
        limit=100 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
    )
    return bare(
        webhooks=[_fields(webhook) for webhook in page.webhooks],
        next_page_token=page.next_page_token,
    )


@calls.on("GET", f"{_BASE}/{{webhook_id}}")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"webhook": _fields(workspace.webhooks.webhook(asked.webhook_id))}


@calls.on("PATCH", f"{_BASE}/{{webhook_id}}")
def _update(workspace: Workspace, asked: _Update) -> dict[str, Any]:
    _check_name(asked.name)
    webhook = workspace.webhooks.update(
        asked.webhook_id,
        name=asked.name or None,
        url=asked.url or None,
        # A client that leaves the list out and one that sends it empty mean the same.
        topics=[event.topic for event in asked.events] if asked.events else None,
        description=asked.description,
        secret=asked.secret or None,
        active=None if asked.status is None else asked.status == "ACTIVE",
    )
    return {"webhook": _fields(webhook)}


@calls.on("DELETE", f"{_BASE}/{{webhook_id}}")
def _delete(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    workspace.webhooks.delete(asked.webhook_id)
    return {}


@calls.on("POST", f"{_BASE}/{{webhook_id}}/test")
def _test(workspace: Workspace, asked: _Test) -> dict[str, Any]:
    told = workspace.webhooks.test(asked.webhook_id, asked.event.topic if asked.event else "")
    fields = bare(
        response_status=told.status or None, response_body=told.body, error_message=told.error
    )
    return {"result": {"success": told.success, **fields}}
