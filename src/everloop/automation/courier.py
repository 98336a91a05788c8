"""Courier: reads the event log with a cursor and delivers to webhooks what it says, in a thread.

Planning puts one row for each message and webhook into the catalog and moves the cursor, in one
transaction: no event is lost and none is planned twice. A row is claimed by moving its due time
ahead, sent, and deleted once the receiver took it; a courier that dies in between sends it again
later. So a message comes at least once, under one id however often it is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from everloop.automation.messages import KINDS, messages_of, payload
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import cursors, events, webhook_deliveries, webhooks
from everloop.catalog.transaction import Transaction
from everloop.core.events import Event
from everloop.core.ids import new_id
from everloop.core.webhook import is_tried_again, retry_after_s, signature
from everloop.errors import BackendError, EverloopError
from everloop.ports.notifier import Notifier, Receipt
from everloop.ports.secrets import SecretBox

__all__ = ["Courier", "post"]

_log = logging.getLogger("everloop.automation")

_CURSOR = "webhooks"
_BATCH = 500
_AT_ONCE = 8
_AFTER_TROUBLE_S = 5.0
#: Longer than a delivery may take, so that nobody sends what another one is sending.
_CLAIM = timedelta(seconds=60)
#: A delivery that was given up is forgotten after this long.
_KEPT = timedelta(days=30)


def post(
    notifier: Notifier, box: SecretBox, url: str, sealed: str, delivery_id: str, text: str
) -> Receipt:
    """Send one message to a webhook, signed if it has a secret; raises as ``Notifier.send``."""
    timestamp = str(int(time.time()))  # the receiver's clock judges it, not the workspace's
    headers = {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": timestamp,
    }
    if sealed:
        headers["X-MLflow-Signature"] = signature(box.open(sealed), delivery_id, timestamp, text)
    return notifier.send(url, text.encode(), headers)


class Courier:
    """Delivers to the webhooks of a catalog.

    Several may run, in one process or in many; each message is sent by one of them at a time.
    """

    def __init__(self, catalog: Catalog, notifier: Notifier, box: SecretBox) -> None:
        self._catalog = catalog
        self._notifier = notifier
        self._box = box
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def run_forever(self, stop: threading.Event, interval_s: float = 0.5) -> None:
        """Plan and deliver until `stop` is set; what is being sent then is finished first."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="everloop-webhook") as pool:
            while not stop.is_set():
                wait = interval_s
                try:
                    self.plan()
                    while not stop.is_set() and (row := self._claim()) is not None:
                        pool.submit(self._deliver, row)
                except Exception:  # noqa: BLE001 (a dead thread would be noticed by nobody)
                    # Most likely the catalog is away for a while; the courier outlives that.
                    _log.exception("webhooks could not be looked after; it is tried again")
                    wait = _AFTER_TROUBLE_S
                stop.wait(wait)

    def plan(self) -> int:
        """Turn new events into deliveries; returns how many there are of them."""
        with self._catalog.read() as tx:
            if not self._new_events(tx, 1):
                return 0
        with self._catalog.write() as tx:
            found = self._new_events(tx, _BATCH)
            targets = tx.all(select(webhooks).where(webhooks.c.active))
            rows = [row for event in found for row in _rows_of(tx, event, targets)]
            if rows:
                tx.execute(webhook_deliveries.insert(), rows)
            if found:
                tx.upsert(cursors, {"name": _CURSOR, "seq": found[-1].seq}, ["name"])
            table = webhook_deliveries
            old = (table.c.state == "dead") & (table.c.updated_at < tx.now - _KEPT)
            tx.execute(delete(table).where(old))
            return len(rows)

    def deliver_due(self) -> int:
        """Send all that is due, one after the other; returns how many were tried."""
        tried = 0
        while (row := self._claim()) is not None:
            self._deliver(row)
            tried += 1
        return tried

    def _new_events(self, tx: Transaction, limit: int) -> list[Event]:
        seen = tx.scalar(select(cursors.c.seq).where(cursors.c.name == _CURSOR)) or 0
        query = select(events).where(events.c.kind.in_(KINDS), events.c.seq > seen)
        rows = tx.all(query.order_by(events.c.seq).limit(limit))
        return [Event(**row._asdict()) for row in rows]

    def _claim(self) -> Row[Any] | None:
        """A delivery that is due, of a webhook that nothing is being sent to; ours for a while."""
        table = webhook_deliveries
        with self._lock:
            busy = sorted(self._busy)
        if len(busy) >= _AT_ONCE:
            return None
        query = (
            select(table.c.id, table.c.due_at)
            .join(webhooks, webhooks.c.id == table.c.webhook_id)
            .where(table.c.state == "pending", webhooks.c.active, table.c.webhook_id.not_in(busy))
            .order_by(table.c.due_at, table.c.id)
            .limit(1)
        )
        with self._catalog.read() as tx:
            row = tx.first(query.where(table.c.due_at <= tx.now))
        if row is None:
            return None
        with self._catalog.write() as tx:
            mine = (table.c.id == row.id) & (table.c.due_at == row.due_at)
            claim = update(table).where(mine, table.c.state == "pending")
            values = {"due_at": tx.now + _CLAIM, "attempts": table.c.attempts + 1}
            if not tx.execute(claim.values(**values)).rowcount:
                return None  # another courier was first; there is a next time
            wanted = select(
                table.c.id,
                table.c.webhook_id,
                table.c.payload,
                table.c.attempts,
                webhooks.c.url,
                webhooks.c.secret,
            ).join(webhooks, webhooks.c.id == table.c.webhook_id)
            claimed = tx.first(wanted.where(table.c.id == row.id))
        if claimed is not None:
            with self._lock:
                self._busy.add(claimed.webhook_id)
        return claimed

    def _deliver(self, row: Row[Any]) -> None:
        try:
            self._settle(row, *self._send(row))
        except Exception:  # noqa: BLE001 (nobody waits for a thread of the pool to raise)
            # Its claim runs out and it is sent again: at least once, never not at all.
            _log.exception("the outcome of webhook delivery %s could not be kept", row.id)
        finally:
            with self._lock:
                self._busy.discard(row.webhook_id)

    def _send(self, row: Row[Any]) -> tuple[Receipt, str, bool]:
        """What came of it: the answer, what was wrong, and whether to try again."""
        try:
            receipt = post(self._notifier, self._box, row.url, row.secret, row.id, row.payload)
        except BackendError as error:
            return Receipt(0), error.message, True
        except EverloopError as error:
            return Receipt(0), error.message, False
        if 200 <= receipt.status < 300:
            return receipt, "", False
        return receipt, f"it answered {receipt.status}", is_tried_again(receipt.status)

    def _settle(self, row: Row[Any], receipt: Receipt, error: str, again: bool) -> None:
        table = webhook_deliveries
        with self._catalog.write() as tx:
            if not error:
                tx.execute(delete(table).where(table.c.id == row.id))
                return
            wait = retry_after_s(row.attempts, receipt.retry_after_s) if again else None
            values: dict[str, Any] = {
                "status": receipt.status,
                "error": error.replace("\0", " ")[:1000],
                "updated_at": tx.now,
            }
            if wait is None:
                values["state"] = "dead"
                body = {"delivery": row.id, "error": values["error"]}
                tx.append("webhook.DeliveryFailed", f"webhook:{row.webhook_id}", body)
            else:
                values["due_at"] = tx.now + timedelta(seconds=wait)
            tx.execute(update(table).where(table.c.id == row.id).values(**values))


def _rows_of(tx: Transaction, event: Event, targets: Any) -> list[dict[str, Any]]:
    """A row for each message of an event and each webhook that listens to it."""
    listening = [row for row in targets if row.since < event.seq]
    if not listening:
        return []
    return [
        {
            "id": new_id(),
            "webhook_id": row.id,
            "event_id": event.id,
            "topic": message.topic,
            "payload": payload(message, event.at),
            "state": "pending",
            "attempts": 0,
            "due_at": tx.now,
            "status": 0,
            "error": "",
            "created_at": tx.now,
            "updated_at": tx.now,
        }
        for message in messages_of(tx, event)
        for row in listening
        if message.topic in row.topics
    ]
