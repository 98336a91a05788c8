"""What an event of the registry is to a webhook: its topics, and the data as MLflow sends it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select

from everloop.catalog.tables import models
from everloop.catalog.transaction import Transaction
from everloop.core.events import Event

__all__ = ["KINDS", "Message", "example", "messages_of", "payload"]

#: Events that webhooks can be told of.
KINDS = (
    "model.Created",
    "model.Tagged",
    "model.Registered",
    "model.VersionTagged",
    "model.AliasMoved",
)

_PROMPT_TAG, _TEXT_TAG = "mlflow.prompt.is_prompt", "mlflow.prompt.text"
_PROMPT_TOPICS = {
    "registered_model": "prompt",
    "model_version": "prompt_version",
    "model_version_tag": "prompt_version_tag",
    "model_version_alias": "prompt_alias",
}


class Message(NamedTuple):
    """One thing to tell: its topic and its data."""

    topic: str
    data: dict[str, Any]


def messages_of(tx: Transaction, event: Event) -> list[Message]:
    """What is told of an event."""
    name, _, version = event.subject.removeprefix("model:").partition("/")
    tags = event.body.get("tags", {}) if event.kind == "model.Created" else _tags(tx, name)
    is_prompt = tags.get(_PROMPT_TAG) == "true"
    if event.kind == "model.Created":
        described = event.body.get("description") or None
        data = {"name": name, "tags": _shown(tags), "description": described}
        found = [Message("registered_model.created", data)]
    elif event.kind == "model.Registered":
        found = [_registered(event, name, version)]
    elif event.kind == "model.VersionTagged":
        found = _tagged(event, "model_version_tag", {"name": name, "version": version})
    elif event.kind == "model.Tagged":
        # Of a model that is no prompt, MLflow has no such topic.
        return _tagged(event, "prompt_tag", {"name": name}) if is_prompt else []
    else:
        found = [_aliased(event, name, version)]
    return [_as_prompt(item) for item in found] if is_prompt else found


def _tags(tx: Transaction, name: str) -> dict[str, str]:
    row = tx.first(select(models.c.tags).where(models.c.name == name))
    return row.tags if row is not None else {}


def _registered(event: Event, name: str, version: str) -> Message:
    data = {
        "name": name,
        "version": version,
        "source": event.body.get("source") or f"models:/{name}/{version}",
        "run_id": event.body.get("run") or None,
        "tags": event.body.get("tags", {}),
        "description": event.body.get("description") or None,
    }
    return Message("model_version.created", data)


def _tagged(event: Event, entity: str, at: dict[str, Any]) -> list[Message]:
    put = [
        Message(f"{entity}.set", {**at, "key": key, "value": value})
        for key, value in event.body.get("set", {}).items()
    ]
    gone = event.body.get("removed", ())
    return put + [Message(f"{entity}.deleted", {**at, "key": key}) for key in gone]


def _aliased(event: Event, name: str, version: str) -> Message:
    at = {"name": name, "alias": event.body.get("alias", "")}
    if event.body.get("to"):
        return Message("model_version_alias.created", {**at, "version": version})
    return Message("model_version_alias.deleted", at)


def _as_prompt(message: Message) -> Message:
    """MLflow keeps prompts as models that a tag marks, and tells of them as prompts."""
    entity, _, action = message.topic.partition(".")
    data = dict(message.data)
    if entity == "model_version":
        tags = data["tags"]
        data = {
            "name": data["name"],
            "version": data["version"],
            "template": tags.get(_TEXT_TAG, ""),
            "tags": _shown(tags),
            "description": data["description"],
        }
    return Message(f"{_PROMPT_TOPICS[entity]}.{action}", data)


def _shown(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.prompt.")}


def payload(message: Message, at: datetime) -> str:
    """The body that is posted, and signed as it is."""
    entity, _, action = message.topic.partition(".")
    body = {
        "entity": entity,
        "action": action,
        "timestamp": at.isoformat(),
        "data": message.data,
    }
    return msgspec.json.encode(body).decode()


def example(topic: str) -> Message:
    """A message such as `topic` has, for trying a webhook out."""
    entity = topic.partition(".")[0]
    name = "example_prompt" if entity.startswith("prompt") else "example_model"
    data: dict[str, Any] = {"name": name}
    if "version" in entity:
        data["version"] = "1"
    if entity.endswith("_tag"):
        data |= {"key": "example_key"} | ({"value": "example"} if topic.endswith("set") else {})
    elif entity.endswith("alias"):
        data["alias"] = "example_alias"
    else:
        data |= {"tags": {}, "description": "An example"}
    return Message(topic, data)
