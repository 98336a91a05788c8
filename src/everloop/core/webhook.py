"""Webhooks: who is told of what, how it is signed, how long it is tried. Pure functions."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime
from typing import Literal

import msgspec

__all__ = [
    "TOPICS",
    "Delivery",
    "DeliveryPage",
    "Webhook",
    "WebhookPage",
    "WebhookTest",
    "is_tried_again",
    "retry_after_s",
    "signature",
]

#: What a webhook can be told of, ``entity.action``, as MLflow's clients know it.
TOPICS = (
    "registered_model.created",
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
    "prompt.created",
    "prompt_version.created",
    "prompt_tag.set",
    "prompt_tag.deleted",
    "prompt_version_tag.set",
    "prompt_version_tag.deleted",
    "prompt_alias.created",
    "prompt_alias.deleted",
    # Nothing here has budgets of that kind: it can be asked for and never comes.
    "budget_policy.exceeded",
)

# About seven hours: a receiver may be down for a night's maintenance, not for a week.
_WAITS_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 3600.0 * 6)


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An address that is told of events. The secret that signs what it gets is never shown."""

    id: str
    name: str
    description: str = ""
    url: str
    topics: tuple[str, ...]
    active: bool = True
    signed: bool = False
    created_at: datetime
    updated_at: datetime


class WebhookPage(msgspec.Struct, frozen=True, kw_only=True):
    """Webhooks, oldest first; `next_page_token` is empty at the end."""

    webhooks: tuple[Webhook, ...]
    next_page_token: str = ""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message on its way to a webhook, or one that was given up. What arrived is forgotten.

    Attributes:
        state: ``pending``, or ``dead`` once it was given up.
        due_at: When it is tried next.
        status: HTTP's of the last try; 0 if there was no answer.
        error: Why the last try failed.
    """

    id: str
    webhook_id: str
    event_id: str
    topic: str
    payload: str
    state: Literal["pending", "dead"]
    attempts: int
    due_at: datetime
    status: int
    error: str
    created_at: datetime
    updated_at: datetime


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries, oldest first; `next_page_token` is empty at the end."""

    deliveries: tuple[Delivery, ...]
    next_page_token: str = ""


class WebhookTest(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook answered to an example."""

    success: bool
    status: int = 0
    body: str = ""
    error: str = ""


def is_tried_again(status: int) -> bool:
    """Whether an answer is the receiver's passing trouble; 0 is no answer at all."""
    return status == 0 or status == 429 or status >= 500


def retry_after_s(attempts: int, wanted: float = 0.0) -> float | None:
    """Seconds until the next try after `attempts` failed ones; None to give up.

    Args:
        attempts: How many there were, at least one.
        wanted: What the receiver asked for; it is not asked sooner.
    """
    if attempts > len(_WAITS_S):
        return None
    return max(wanted, _WAITS_S[attempts - 1])


def signature(secret: str, delivery_id: str, timestamp: str, payload: str) -> str:
    """``v1,`` and the HMAC-SHA256 of what is delivered, as receivers check it."""
    content = f"{delivery_id}.{timestamp}.{payload}".encode()
    return "v1," + base64.b64encode(hmac.digest(secret.encode(), content, hashlib.sha256)).decode()
