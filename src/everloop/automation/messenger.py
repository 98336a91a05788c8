"""Messenger: tells people what happened, by log, Slack's webhooks, any webhook, or mail."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from everloop.core.events import Event
from everloop.core.policy import Firing, Notify
from everloop.core.time import span_text
from everloop.core.webhook import is_tried_again
from everloop.errors import BackendError, InvalidInput
from everloop.ports.notifier import Notifier, Receipt

__all__ = ["Later", "Messenger", "text_of"]

_log = logging.getLogger("everloop.automation")

_FIELD = re.compile(r"\{(\w+)\}")
_MOST_TEXT = 3_000
#: Fields of an event's body that say best what happened.
_TELLING = ("error", "reason", "reasons", "monitor", "alias", "question")


class Later(Exception):
    """It could not be told now and can be tried again; `after_s` is what the receiver asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Messenger:
    """Sends messages.

    Args:
        post: Sends to webhooks.
        mail: Sends mail.
        secret: What a reference such as ``env:SLACK_WEBHOOK`` stands for.
    """

    def __init__(self, post: Notifier, mail: Notifier, secret: Callable[[str], str]) -> None:
        self._post, self._mail, self._secret = post, mail, secret

    def tell(self, action: Notify, firing: Firing, events: list[Event]) -> str:
        """Send one message; where it went, without what is secret.

        The same firing has the same id however often it is sent.

        Raises:
            Later: If it can be tried again.
            InvalidInput: If the address is wrong, or the receiver does not take the message.
        """
        channel, _, address = action.to.partition(":")
        text = text_of(action, firing, events)
        if channel == "log":
            _log.warning("%s: %s", firing.loop, text)
            return "log"
        if address.startswith(("env:", "file:")):
            address = self._secret(address)
        try:
            receipt = self._send(channel, address, text, firing, events)
        except BackendError as error:
            raise Later(error.message) from error
        if is_tried_again(receipt.status):
            raise Later(f"{channel} answered {receipt.status}", receipt.retry_after_s)
        if not 200 <= receipt.status < 300:
            raise InvalidInput(f"{channel} answered {receipt.status}: {receipt.body[:200]}")
        return action.to if action.to.partition(":")[2].startswith(("env:", "file:")) else channel

    def _send(
        self, channel: str, address: str, text: str, firing: Firing, events: list[Event]
    ) -> Receipt:
        if channel == "mail":
            headers = {
                "Subject": text.splitlines()[0][:150],
                "Message-ID": f"<{firing.id}@everloop>",
            }
            return self._mail.send(f"mailto:{address}", f"{text}\n".encode(), headers)
        body: dict[str, Any] = {"text": text}
        if channel == "webhook":
            body |= {"automation": firing.loop, "firing": firing.id, "at": firing.created_at}
            body |= {"events": events, "merged": firing.body.get("merged", 0)}
        headers = {"Content-Type": "application/json", "webhook-id": firing.id}
        return self._post.send(address, msgspec.json.encode(body), headers)


def text_of(action: Notify, firing: Firing, events: list[Event]) -> str:
    """What is said: the declared text with its fields filled in, or a sentence of our own."""
    first = events[0] if events else None
    known: dict[str, Any] = {"name": firing.loop, "at": firing.scheduled_for.isoformat()}
    if first is not None:
        known |= first.body
        known |= {"kind": first.kind, "subject": first.subject, "at": first.at.isoformat()}
    if action.text:
        # Names alone: a format of Python's could reach into objects.
        text = _FIELD.sub(lambda match: str(known.get(match[1], match[0])), action.text)
    else:
        text = _sentence(first, known)
    merged = firing.body.get("merged", 0)
    return (f"{text} (and {merged} more)" if merged else text)[:_MOST_TEXT]


def _sentence(event: Event | None, known: Mapping[str, Any]) -> str:
    if event is None:
        return f"{known['name']} at {known['at']}"
    told = next((str(known[name]) for name in _TELLING if known.get(name)), "")
    broken = event.body.get("evidence") or {}
    if "promised" in broken:
        took, most = span_text(broken["value"]), span_text(broken["promised"])
        told += f": {took}, promised at most {most}"
    about = event.body.get("pipeline") or event.body.get("deployment") or event.body.get("loop")
    return f"{event.kind} {event.subject}{f' ({about})' if about else ''}: {told}".rstrip(": ")
