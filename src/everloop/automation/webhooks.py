"""WebhookService: who is told of what happens in the registry, and what could not be delivered.

A webhook's secret is kept sealed (``everloop.ports.secrets``) and shown to nobody. Deliveries are
made by ``everloop.automation.courier`` in the server: what happens while none runs is delivered
when one does. Here they are only listed.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from sqlalchemy import Row, delete, select, update

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.automation.courier import post
from everloop.automation.messages import example, payload
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import webhook_deliveries, webhooks
from everloop.catalog.transaction import Transaction
from everloop.core.ids import is_id, new_id
from everloop.core.webhook import (
    TOPICS,
    Delivery,
    DeliveryPage,
    Webhook,
    WebhookPage,
    WebhookTest,
)
from everloop.errors import BackendError, Fault, InvalidInput, NotFound
from everloop.ports.notifier import Notifier
from everloop.ports.secrets import SecretBox

__all__ = ["WebhookService"]

_MAX_NAME, _MAX_TEXT, _MAX_SECRET, _MAX_PAGE = 256, 5000, 1024, 1000
_T = TypeVar("_T")


class WebhookService(Service):
    """Webhooks and their deliveries."""

    area = "webhooks"

    def __init__(
        self, catalog: Catalog, authorizer: Authorizer, notifier: Notifier, box: SecretBox
    ) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._notifier = notifier
        self._box = box

    @action("webhook:write")
    def create(
        self,
        name: str,
        url: str,
        topics: list[str],
        *,
        description: str = "",
        secret: str = "",
        active: bool = True,
    ) -> Webhook:
        """Make a webhook; it is told of what happens from now on.

        Args:
            name: For people.
            url: HTTPS, of a host on the public internet, or one that the administrator allowed.
            topics: Some of ``everloop.core.webhook.TOPICS``.
            description: For people.
            secret: Signs what is delivered, so that the receiver knows who sent it.
            active: Whether it is told of anything.

        Raises:
            InvalidInput: With everything that is wrong, or why the URL is refused.
            MissingExtra: If a secret is given and cannot be kept.
        """
        _check(name=name, description=description, secret=secret, topics=topics)
        self._notifier.check(url)
        sealed = self._box.seal(secret) if secret else ""
        id_ = new_id()
        with self._catalog.write() as tx:
            told = tx.append("webhook.Created", f"webhook:{id_}", {"topics": topics})
            row = {
                "id": id_,
                "name": name,
                "description": description,
                "url": url,
                "topics": list(dict.fromkeys(topics)),
                "secret": sealed,
                "active": active,
                "since": told.seq,
                "created_at": tx.now,
                "updated_at": tx.now,
            }
            tx.execute(webhooks.insert().values(row))
            return _webhook(_row(tx, id_))

    @action("webhook:read", on="id")
    def webhook(self, id: str) -> Webhook:
        """A webhook; raises NotFound if there is none."""
        with self._catalog.read() as tx:
            return _webhook(_row(tx, id))

    @action("webhook:read")
    def webhooks(self, *, limit: int = 100, page_token: str = "") -> WebhookPage:
        """All webhooks, oldest first.

        Args:
            limit: Most to return, 1 to 1,000.
            page_token: Of the page before.
        """
        query = select(webhooks).where(webhooks.c.id > _place(page_token))
        with self._catalog.read() as tx:
            rows = tx.all(query.order_by(webhooks.c.id).limit(_checked(limit) + 1))
        shown, token = _page([_webhook(row) for row in rows], limit)
        return WebhookPage(webhooks=tuple(shown), next_page_token=token)

    @action("webhook:write", on="id")
    def update(
        self,
        id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        topics: list[str] | None = None,
        description: str | None = None,
        secret: str | None = None,
        active: bool | None = None,
    ) -> Webhook:
        """Change a webhook; None leaves what it is.

        Raises:
            NotFound: If there is none.
            InvalidInput: As in :meth:`create`.
        """
        _check(name=name, description=description, secret=secret, topics=topics)
        if url is not None:
            self._notifier.check(url)
        changes: dict[str, Any] = {
            "name": name,
            "url": url,
            "topics": None if topics is None else list(dict.fromkeys(topics)),
            "description": description,
            "secret": None if secret is None else self._box.seal(secret) if secret else "",
            "active": active,
        }
        values = {key: value for key, value in changes.items() if value is not None}
        with self._catalog.write() as tx:
            _row(tx, id)
            values["updated_at"] = tx.now
            tx.execute(update(webhooks).where(webhooks.c.id == id).values(**values))
            tx.append("webhook.Changed", f"webhook:{id}", {"fields": sorted(values)})
            return _webhook(_row(tx, id))

    @action("webhook:write", on="id")
    def delete(self, id: str) -> None:
        """Delete a webhook with what was still to be delivered to it.

        Raises:
            NotFound: If there is none.
        """
        with self._catalog.write() as tx:
            _row(tx, id)
            table = webhook_deliveries
            tx.execute(delete(table).where(table.c.webhook_id == id))
            tx.execute(delete(webhooks).where(webhooks.c.id == id))
            tx.append("webhook.Deleted", f"webhook:{id}")

    @action("webhook:write", on="id")
    def test(self, id: str, topic: str = "") -> WebhookTest:
        """Send an example to a webhook, once, and say what it answered.

        Args:
            id: Of the webhook.
            topic: What the example is of; the first that it listens to if not given.
        """
        if topic:
            _check(topics=[topic])
        with self._catalog.read() as tx:
            row = _row(tx, id)
            now = tx.now
        text = payload(example(topic or row.topics[0]), now)
        try:
            receipt = post(self._notifier, self._box, row.url, row.secret, new_id(), text)
        except (BackendError, InvalidInput) as error:
            return WebhookTest(success=False, error=error.message)
        return WebhookTest(
            success=200 <= receipt.status < 300, status=receipt.status, body=receipt.body
        )

    # --- deliveries ---------------------------------------------------------------------------

    @action("webhook:read", on="webhook")
    def deliveries(
        self,
        webhook: str = "",
        *,
        state: Literal["pending", "dead"] = "dead",
        limit: int = 100,
        page_token: str = "",
    ) -> DeliveryPage:
        """What could not be delivered, or is still to be; oldest first.

        Args:
            webhook: Of this one; of all if not given.
            state: ``dead`` was given up, ``pending`` is tried (again).
            limit: Most to return, 1 to 1,000.
            page_token: Of the page before.
        """
        table = webhook_deliveries
        query = select(table).where(table.c.state == state, table.c.id > _place(page_token))
        if webhook:
            query = query.where(table.c.webhook_id == webhook)
        with self._catalog.read() as tx:
            rows = tx.all(query.order_by(table.c.id).limit(_checked(limit) + 1))
        shown, token = _page([Delivery(**row._asdict()) for row in rows], limit)
        return DeliveryPage(deliveries=tuple(shown), next_page_token=token)

    @action("webhook:write", on="id")
    def resend(self, id: str) -> Delivery:
        """Try a delivery that was given up again, from the beginning.

        Raises:
            NotFound: If there is none.
        """
        table = webhook_deliveries
        with self._catalog.write() as tx:
            fresh = {"state": "pending", "attempts": 0, "due_at": tx.now, "updated_at": tx.now}
            tx.execute(update(table).where(table.c.id == id).values(**fresh))
            row = tx.first(select(table).where(table.c.id == id))
            if row is None:
                raise NotFound(f"no delivery {id[:80]!r}", hint="it may have arrived since")
            return Delivery(**row._asdict())


def _check(
    *,
    name: str | None = None,
    description: str | None = None,
    secret: str | None = None,
    topics: list[str] | None = None,
) -> None:
    faults = []
    texts = {
        "name": (name, _MAX_NAME),
        "description": (description, _MAX_TEXT),
        "secret": (secret, _MAX_SECRET),
    }
    for path, (text, longest) in texts.items():
        if text is not None and (len(text) > longest or "\0" in text):
            faults.append(Fault(path, f"must be at most {longest} characters, none of them NUL"))
    if name is not None and not name.strip():
        faults.append(Fault("name", "must not be blank"))
    if topics is not None and not topics:
        faults.append(Fault("events", "must name at least one"))
    for index, topic in enumerate(topics or ()):
        if topic not in TOPICS:
            faults.append(Fault(f"events[{index}]", f"{topic[:80]!r} is none of {list(TOPICS)}"))
    if faults:
        raise InvalidInput("Invalid webhook", faults)


def _row(tx: Transaction, id_: str) -> Row[Any]:
    row = tx.first(select(webhooks).where(webhooks.c.id == id_))
    if row is None:
        raise NotFound(
            f"Webhook with ID {id_[:80]!r} not found.", details={"kind": "webhook", "name": id_}
        )
    return row


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        id=row.id,
        name=row.name,
        description=row.description,
        url=row.url,
        topics=tuple(row.topics),
        active=row.active,
        signed=bool(row.secret),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _checked(limit: int) -> int:
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidInput(
            f"Invalid value {limit} for parameter 'max_results' supplied",
            [("max_results", f"must be from 1 to {_MAX_PAGE}")],
        )
    return limit


def _place(token: str) -> str:
    """Where a page began: the id that the one before ended with."""
    if token and not is_id(token):
        raise InvalidInput("Invalid page token", hint="begin again")
    return token


def _page(items: list[_T], limit: int) -> tuple[list[_T], str]:
    more = len(items) > limit
    shown = items[:limit]
    return shown, str(getattr(shown[-1], "id", "")) if more else ""
