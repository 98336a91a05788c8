"""Webhooks: every event of the registry once to each that listens, again until it is taken."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from everloop.automation.courier import Courier
from everloop.automation.messages import example
from everloop.backends.secrets.fernet import FernetBox
from everloop.catalog.tables import webhook_deliveries, webhooks
from everloop.core.time import ManualClock
from everloop.core.webhook import TOPICS, is_tried_again, retry_after_s, signature
from everloop.errors import BackendError, InvalidInput, NotFound
from everloop.ports.notifier import Receipt
from everloop.workspace import Workspace
from tests.receivers import Receiver, receiving
from tests.workspaces import START

VERSIONS = ["model_version.created"]


class FakeNotifier:
    """Takes every address; answers what it is told to, then 200."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.answers: list[Receipt | BaseException] = []

    def check(self, url: str) -> None:
        pass

    def send(self, url: str, body: bytes, headers: dict[str, str]) -> Receipt:
        self.sent.append((url, json.loads(body), headers))
        answer = self.answers.pop(0) if self.answers else Receipt(200)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as opened:
        monkeypatch.setenv("EVERLOOP_WEBHOOK_HOSTS", opened.host)
        yield opened


@pytest.fixture
def embedded(
    request: pytest.FixtureRequest, tmp_path: Any, clock: ManualClock, receiver: Receiver
) -> Iterator[Workspace]:
    location = str(tmp_path / ".everloop")
    if getattr(request, "param", "sqlite") == "postgres":
        location = request.getfixturevalue("postgres_database")
    objects = str(tmp_path / "objects")
    with Workspace(location, objects=objects, clock=clock, actor="tester") as opened:
        opened.folder = tmp_path
        yield opened


@pytest.fixture
def notifier() -> FakeNotifier:
    return FakeNotifier()


@pytest.fixture
def courier(embedded: Workspace, notifier: FakeNotifier) -> Courier:
    assert embedded.catalog is not None
    return Courier(embedded.catalog, notifier, embedded._secrets)


def register(ws: Workspace, name: str = "m", **more: Any) -> None:
    if name not in [model.name for model in ws.registry.models()]:
        ws.registry.create_model(name, **more)
    ws.registry.register_source(name, "s3://bucket/x")


def topics(notifier: FakeNotifier) -> list[str]:
    return [f"{body['entity']}.{body['action']}" for _, body, _ in notifier.sent]


def test_webhook_is_told_of_what_happens_after_it_was_made(
    embedded: Workspace, courier: Courier, notifier: FakeNotifier, receiver: Receiver
) -> None:
    register(embedded)
    embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    assert courier.plan() == 1
    assert courier.deliver_due() == 1
    [(url, body, headers)] = notifier.sent
    assert url == receiver.url
    assert body == {
        "entity": "model_version",
        "action": "created",
        "timestamp": START.isoformat(),
        "data": {
            "name": "m",
            "version": "2",
            "source": "s3://bucket/x",
            "run_id": None,
            "tags": {},
            "description": None,
        },
    }
    assert "X-MLflow-Signature" not in headers
    assert (courier.plan(), courier.deliver_due()) == (0, 0)


def test_another_courier_goes_on_where_the_first_ended(
    embedded: Workspace, courier: Courier, notifier: FakeNotifier, receiver: Receiver
) -> None:
    embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    courier.plan()
    register(embedded)
    assert embedded.catalog is not None
    other = Courier(embedded.catalog, notifier, embedded._secrets)
    assert (other.plan(), other.deliver_due()) == (1, 2)
    assert [body["data"]["version"] for _, body, _ in notifier.sent] == ["1", "2"]


def test_delivery_of_a_courier_that_died_is_sent_again_under_its_id(
    embedded: Workspace,
    courier: Courier,
    notifier: FakeNotifier,
    receiver: Receiver,
    clock: ManualClock,
) -> None:
    embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    courier.plan()
    notifier.answers = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        courier.deliver_due()
    assert embedded.catalog is not None
    other = Courier(embedded.catalog, notifier, embedded._secrets)
    assert other.deliver_due() == 0
    clock.advance(seconds=61)
    assert other.deliver_due() == 1
    ids = [headers["X-MLflow-Delivery-Id"] for *_, headers in notifier.sent]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_slow_receiver_does_not_hold_up_the_others(embedded: Workspace, receiver: Receiver) -> None:
    assert embedded.catalog is not None
    released, stop = threading.Event(), threading.Event()

    class Slow(FakeNotifier):
        def send(self, url: str, body: bytes, headers: dict[str, str]) -> Receipt:
            if url.endswith("/slow"):
                assert released.wait(120)
            elif len(self.sent) == 2:
                released.set()
            return super().send(url, body, headers)

    notifier = Slow()
    for path in ("slow", "quick"):
        embedded.webhooks.create(path, f"{receiver.url}/{path}", VERSIONS)
    for _ in range(3):
        register(embedded)
    courier = Courier(embedded.catalog, notifier, embedded._secrets)
    thread = threading.Thread(target=courier.run_forever, args=(stop, 0.01))
    thread.start()
    assert released.wait(120), "the slow one held up the quick one"
    deadline = time.monotonic() + 30
    while embedded.webhooks.deliveries(state="pending").deliveries:
        assert time.monotonic() < deadline
        stop.wait(0.01)
    stop.set()
    thread.join()
    urls = [url.rpartition("/")[2] for url, *_ in notifier.sent]
    assert sorted(urls) == ["quick"] * 3 + ["slow"] * 3
    assert urls[:2] == ["quick"] * 2


@pytest.mark.parametrize(
    ("embedded", "trouble"),
    [
        ("sqlite", Receipt(500)),
        ("sqlite", Receipt(429)),
        ("sqlite", BackendError("no answer")),
        ("postgres", Receipt(503)),
    ],
    indirect=["embedded"],
)
def test_passing_trouble_is_tried_again_until_it_is_given_up(
    embedded: Workspace,
    courier: Courier,
    notifier: FakeNotifier,
    receiver: Receiver,
    clock: ManualClock,
    trouble: Any,
) -> None:
    hook = embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    courier.plan()
    notifier.answers = [trouble] * 20
    tried = 0
    while embedded.webhooks.deliveries(state="pending").deliveries:
        assert courier.deliver_due() == 1
        assert courier.deliver_due() == 0
        clock.advance(hours=7)
        tried += 1
    assert tried == len(notifier.sent) == 7
    [dead] = embedded.webhooks.deliveries(hook.id).deliveries
    assert (dead.state, dead.topic, dead.attempts) == ("dead", VERSIONS[0], 7)
    assert dead.status == getattr(trouble, "status", 0) or isinstance(trouble, BackendError)
    assert dead.error
    assert embedded.lineage.events(kind="webhook.DeliveryFailed")[0].body["delivery"] == dead.id
    notifier.answers = []
    embedded.webhooks.resend(dead.id)
    assert courier.deliver_due() == 1
    assert embedded.webhooks.deliveries().deliveries == ()


@pytest.mark.parametrize("trouble", [Receipt(400), Receipt(404), Receipt(302), InvalidInput("no")])
def test_refusal_is_given_up_at_once(
    embedded: Workspace,
    courier: Courier,
    notifier: FakeNotifier,
    receiver: Receiver,
    trouble: Any,
) -> None:
    embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    courier.plan()
    notifier.answers = [trouble]
    courier.deliver_due()
    [dead] = embedded.webhooks.deliveries().deliveries
    assert dead.attempts == 1


def test_receiver_is_not_asked_before_it_wants_to_be(
    embedded: Workspace,
    courier: Courier,
    notifier: FakeNotifier,
    receiver: Receiver,
    clock: ManualClock,
) -> None:
    embedded.webhooks.create("w", receiver.url, VERSIONS)
    register(embedded)
    courier.plan()
    notifier.answers = [Receipt(429, "", 900.0)]
    courier.deliver_due()
    clock.advance(seconds=899)
    assert courier.deliver_due() == 0
    clock.advance(seconds=2)
    assert courier.deliver_due() == 1


@pytest.mark.parametrize("embedded", ["sqlite", "postgres"], indirect=True)
def test_tags_aliases_and_prompts_have_topics_of_their_own(
    embedded: Workspace, courier: Courier, notifier: FakeNotifier, receiver: Receiver
) -> None:
    embedded.webhooks.create("w", receiver.url, list(TOPICS))
    register(embedded, tags={"team": "ops"})
    embedded.registry.tag_model("m", {"a": "1"})
    embedded.registry.tag_version("m", 1, {"a": "1", "b": None})
    embedded.registry.set_alias("m", "champion", 1)
    embedded.registry.delete_alias("m", "champion")
    register(embedded, "p", tags={"mlflow.prompt.is_prompt": "true", "team": "x"})
    embedded.registry.tag_model("p", {"a": "1"})
    embedded.registry.tag_version("p", 1, {"a": None})
    embedded.registry.set_alias("p", "champion", 1)
    courier.plan()
    courier.deliver_due()
    assert topics(notifier) == [
        "registered_model.created",
        "model_version.created",
        "model_version_tag.set",
        "model_version_tag.deleted",
        "model_version_alias.created",
        "model_version_alias.deleted",
        "prompt.created",
        "prompt_version.created",
        "prompt_tag.set",
        "prompt_version_tag.deleted",
        "prompt_alias.created",
    ]
    data = [body["data"] for _, body, _ in notifier.sent]
    assert data[0] == {"name": "m", "tags": {"team": "ops"}, "description": None}
    assert data[2] == {"name": "m", "version": "1", "key": "a", "value": "1"}
    assert data[5] == {"name": "m", "alias": "champion"}
    assert data[6] == {"name": "p", "tags": {"team": "x"}, "description": None}
    assert data[7]["template"] == ""


def test_disabled_webhook_is_told_of_nothing(
    embedded: Workspace, courier: Courier, notifier: FakeNotifier, receiver: Receiver
) -> None:
    hook = embedded.webhooks.create("w", receiver.url, VERSIONS, active=False)
    register(embedded)
    assert courier.plan() == 0
    embedded.webhooks.update(hook.id, active=True)
    register(embedded)
    assert courier.plan() == 1
    embedded.webhooks.update(hook.id, active=False)
    assert courier.deliver_due() == 0
    embedded.webhooks.delete(hook.id)
    assert embedded.webhooks.deliveries(state="pending").deliveries == ()
    assert notifier.sent == []


def test_secret_is_sealed_in_the_catalog_and_signs_what_is_sent(
    embedded: Workspace, courier: Courier, notifier: FakeNotifier, receiver: Receiver
) -> None:
    hook = embedded.webhooks.create("w", receiver.url, VERSIONS, secret="kept")
    assert hook.signed
    assert embedded.catalog is not None
    with embedded.catalog.read() as tx:
        stored = tx.scalar(select(webhooks.c.secret))
    assert "kept" not in stored
    assert embedded._secrets.open(stored) == "kept"
    key = embedded.folder / "secret.key"
    assert key.stat().st_mode & 0o777 == 0o600
    register(embedded)
    courier.plan()
    with embedded.catalog.read() as tx:
        payload = tx.scalar(select(webhook_deliveries.c.payload))
    courier.deliver_due()
    [(_, _, headers)] = notifier.sent
    wanted = signature(
        "kept", headers["X-MLflow-Delivery-Id"], headers["X-MLflow-Timestamp"], payload
    )
    assert headers["X-MLflow-Signature"] == wanted
    embedded.webhooks.update(hook.id, secret="")
    assert not embedded.webhooks.webhook(hook.id).signed


def test_signature_is_the_one_that_receivers_check() -> None:
    # Computed with openssl: printf 'id.1.{}' | openssl dgst -sha256 -hmac key -binary | base64
    assert signature("key", "id", "1", "{}") == "v1,5PVmP2AfJGwnp9flV+flrzfukNWA9zyUdqvI+IQalVs="


def test_secret_of_another_key_does_not_open(tmp_path: Any) -> None:
    sealed = FernetBox(tmp_path / "a").seal("kept")
    assert FernetBox(tmp_path / "a").open(sealed) == "kept"
    with pytest.raises(BackendError, match="another key"):
        FernetBox(tmp_path / "b").open(sealed)
    with pytest.raises(InvalidInput, match="EVERLOOP_SECRET_KEY"):
        FernetBox(tmp_path / "c", "short").seal("kept")
    assert not (tmp_path / "c").exists()


def test_everything_wrong_with_a_webhook_is_told_together(
    embedded: Workspace, receiver: Receiver
) -> None:
    with pytest.raises(InvalidInput) as caught:
        embedded.webhooks.create(" ", receiver.url, ["x.y"], secret="s" * 2000)
    assert [fault.path for fault in caught.value.faults] == ["secret", "name", "events[0]"]
    with pytest.raises(InvalidInput, match="at least one"):
        embedded.webhooks.create("w", receiver.url, [])
    with pytest.raises(InvalidInput, match="private or reserved"):
        embedded.webhooks.create("w", "https://127.0.0.1/", VERSIONS)
    for token in ("x", "'", "0" * 26 + "x"):
        with pytest.raises(InvalidInput, match="page token"):
            embedded.webhooks.webhooks(page_token=token)
    assert embedded.webhooks.webhooks().webhooks == ()


def test_webhook_is_tried_out_with_an_example(embedded: Workspace, receiver: Receiver) -> None:
    hook = embedded.webhooks.create("w", f"{receiver.url}/x", VERSIONS, secret="kept")
    assert embedded.webhooks.test(hook.id).success
    receiver.answers = [(500, {})]
    told = embedded.webhooks.test(hook.id, "prompt.created")
    assert (told.success, told.status, told.body) == (False, 500, "taken")
    assert [item.path for item in receiver.came] == ["/x", "/x"]
    with pytest.raises(NotFound):
        embedded.webhooks.test("none")


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_an_example(topic: str) -> None:
    assert example(topic).topic == topic


def test_webhooks_through_every_kind_of_workspace(receiver: Receiver, ws: Workspace) -> None:
    made = [ws.webhooks.create(name, receiver.url, VERSIONS) for name in "abc"]
    page = ws.webhooks.webhooks(limit=2)
    assert page.webhooks == tuple(made[:2])
    assert ws.webhooks.webhooks(page_token=page.next_page_token).webhooks == (made[2],)
    assert ws.webhooks.update(made[0].id, name="z").name == "z"
    ws.webhooks.delete(made[0].id)
    with pytest.raises(NotFound):
        ws.webhooks.webhook(made[0].id)


def test_waits_grow_and_end() -> None:
    waits = [retry_after_s(attempts) for attempts in range(1, 8)]
    assert waits == [5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, None]
    assert retry_after_s(1, 60.0) == 60.0
    again = [status for status in (0, 200, 302, 400, 404, 429, 500, 599) if is_tried_again(status)]
    assert again == [0, 429, 500, 599]
