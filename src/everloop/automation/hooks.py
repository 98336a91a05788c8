"""HookService: webhooks of others. What was signed, is fresh and is new becomes one event.

The headers are those of the Standard Webhooks specification, or those that our own webhooks send:
an id of the delivery, the time it was sent, and ``v1,`` with the HMAC-SHA256 of ``id.time.body``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import automations as queue
from everloop.catalog import loops as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import hook_deliveries
from everloop.catalog.transaction import Transaction
from everloop.errors import EverloopError, InvalidInput, NotAuthenticated

__all__ = ["MAX_BODY", "HookService"]

#: Bytes of one delivery.
MAX_BODY = 256 * 1024
#: How far the sender's clock may be off, seconds; and how late a delivery may come.
_TOLERANCE_S = 300
_KEPT = timedelta(seconds=4 * _TOLERANCE_S)
_ID = re.compile(r"[!-~]{1,200}")


class HookService(Service):
    """Takes what others post to ``/hooks/NAME``.

    Args:
        catalog: Where it is kept.
        authorizer: Not asked: who knows the secret of a hook may post to it.
        secret: What a reference such as ``env:RETRAIN_SECRET`` stands for.
    """

    area = "hooks"

    def __init__(
        self, catalog: Catalog, authorizer: Authorizer, secret: Callable[[str], str]
    ) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._secret = secret

    @action("hook:receive", on="name")
    def receive(
        self, name: str, body: bytes, delivery: str, timestamp: str, signatures: str
    ) -> bool:
        """Take a delivery; False if it came before.

        Args:
            name: Of the hook.
            body: As posted.
            delivery: Its id.
            timestamp: Seconds since 1970 at which it was sent.
            signatures: One or several, with blanks between.

        Raises:
            NotAuthenticated: If it is forged or too old, or there is no such hook: which of them is
                not said.
            InvalidInput: If it is signed well, and is no JSON.
        """
        with self._catalog.read() as tx:
            references = _secrets_of(tx, name)
        text = body.decode(errors="surrogateescape")
        known = [self._found(reference) for reference in references]
        is_ours = _ID.fullmatch(delivery) is not None and any(
            _is_signed(secret, delivery, timestamp, text, signatures) for secret in known if secret
        )
        if not is_ours or not _is_fresh(timestamp):
            raise NotAuthenticated(
                "the delivery is not signed as this hook asks for, or too old",
                hint="webhook-id, webhook-timestamp, webhook-signature: v1,BASE64(HMAC-SHA256 of "
                "id.timestamp.body)",
            )
        try:
            payload = msgspec.json.decode(body) if body.strip() else {}
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise InvalidInput("the body is no JSON") from None
        table = hook_deliveries
        with self._catalog.write() as tx:
            tx.execute(table.delete().where(table.c.at < tx.now - _KEPT))
            row = {"hook": name, "delivery": delivery, "at": tx.now}
            if not tx.insert_new(table, row):
                return False
            told = {"delivery": delivery, "payload": payload}
            tx.append("webhook.Received", f"webhook:{name}", told)
        return True

    def _found(self, reference: str) -> str:
        try:
            return self._secret(reference)
        except EverloopError:  # not set here: nothing is signed with it
            return ""


def _secrets_of(tx: Transaction, name: str) -> list[str]:
    specs = [spec.triggers for spec in queue.automations(tx)]
    specs += [spec.triggers for spec in statements.loops(tx)]
    found = [t.secret for ts in specs for t in ts if t.on == "webhook" and t.value == name]
    return list(dict.fromkeys(found))


def _is_fresh(timestamp: str) -> bool:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    # By the machine's clock, as the sender's: the workspace's may stand in a past that is replayed.
    return abs(time.time() - int(timestamp)) <= _TOLERANCE_S


def _is_signed(secret: str, delivery: str, timestamp: str, text: str, given: str) -> bool:
    wanted = {_sign(key, delivery, timestamp, text) for key in _keys(secret)}
    return any(
        hmac.compare_digest(one.encode(), found.encode(errors="surrogateescape"))
        for one in wanted
        for found in given.split()[:5]
    )


def _sign(key: bytes, delivery: str, timestamp: str, text: str) -> str:
    content = f"{delivery}.{timestamp}.{text}".encode(errors="surrogateescape")
    return "v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode()


def _keys(secret: str) -> list[bytes]:
    """The key: the secret itself, or what follows ``whsec_`` in base 64."""
    if secret.startswith("whsec_"):
        try:
            return [base64.b64decode(secret.removeprefix("whsec_"), validate=True)]
        except (binascii.Error, ValueError):
            return [secret.encode()]
    return [secret.encode()]
