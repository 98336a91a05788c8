"""What is told to people arrives: in mail, Slack's form, a webhook; again where it did not."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import everloop as ev
from everloop.backends.notify.mail import MailNotifier
from everloop.core.policy import Firing
from everloop.core.time import ManualClock
from everloop.errors import BackendError, InvalidInput
from everloop.workspace import Workspace
from tests.receivers import MailBox, receiving, receiving_mail

NOW = datetime(2013, 4, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def ws(tmp_path: Path, clock: ManualClock) -> Iterator[Workspace]:
    with ev.open(tmp_path / ".everloop", clock=clock, actor="tester") as workspace:
        yield workspace


def fail(ws: Workspace) -> None:
    assert ws.catalog is not None
    with ws.catalog.write() as tx:
        body = {"pipeline": "loop.retrain", "state": "failed", "error": "no rows came"}
        tx.append("run.Failed", "run:r1", body)


def tell(ws: Workspace, to: str, text: str = "") -> Firing:
    ws.automation.automate(ev.on(ev.run_failed(), name="told").notify(to, text))
    fail(ws)
    ws.loop_runner().tick()
    return ws.automation.firings("told")[0]


def test_a_failed_run_is_told_to_slack_by_a_named_secret(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("EVERLOOP_WEBHOOK_HOSTS", receiver.host)
        monkeypatch.setenv("SLACK_WEBHOOK", f"{receiver.url}/secret-path")
        told = tell(ws, "slack:env:SLACK_WEBHOOK", "{subject} of {pipeline}: {error} {unknown}")
        [came] = receiver.wait_for(1)
    assert json.loads(came.body) == {"text": "run:r1 of loop.retrain: no rows came {unknown}"}
    assert (told.outcome, came.headers["webhook-id"]) == ("done", told.id)
    assert "secret-path" not in str(ws.automation.firings())


def test_what_is_not_taken_is_told_again_later_under_the_same_id(
    ws: Workspace, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("EVERLOOP_WEBHOOK_HOSTS", receiver.host)
        receiver.answers = [(503, {}), (429, {"Retry-After": "60"})]
        assert tell(ws, f"webhook:{receiver.url}/x").outcome == "queued"
        runner = ws.loop_runner()
        assert runner.tick().finished == ()
        clock.advance(seconds=5)
        runner.tick()
        clock.advance(seconds=59)
        assert runner.tick().finished == ()
        clock.advance(seconds=1)
        assert [f.outcome for f in runner.tick().finished] == ["done"]
        bodies = [json.loads(item.body) for item in receiver.wait_for(3)]
    assert len({body["firing"] for body in bodies}) == 1
    assert bodies[0]["events"][0]["body"]["error"] == "no rows came"


def test_what_nobody_takes_is_given_up_and_a_wrong_address_at_once(
    ws: Workspace, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("EVERLOOP_WEBHOOK_HOSTS", receiver.host)
        receiver.answers = [(404, {})]
        assert tell(ws, f"slack:{receiver.url}/x").outcome == "failed"
        receiver.answers = [(500, {})] * 9
        fail(ws)
        runner = ws.loop_runner()
        for _ in range(9):
            runner.tick()
            clock.advance(hours=7)
        assert len(receiver.came) == 1 + 7
    # What fails to tell of failures does not tell of that.
    assert {f.outcome for f in ws.automation.firings("told")} == {"failed", "guarded"}
    monkeypatch.delenv("SLACK", raising=False)
    assert "no secret at env:SLACK" in tell(ws, "slack:env:SLACK").reason


def test_mail_is_sent_with_one_id_and_one_line_as_subject(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving_mail() as box:
        monkeypatch.setenv("EVERLOOP_SMTP", f"smtp+plain://127.0.0.1:{box.port}")
        monkeypatch.setenv("EVERLOOP_MAIL_FROM", "loop@example.org")
        told = tell(ws, "mail:ops@example.org,more@example.org", "failed:\n{error}")
    assert told.outcome == "done"
    [mail] = box.mails
    assert f"Message-ID: <{told.id}@everloop>" in mail
    assert "Subject: failed:\r\n" in mail
    assert "From: loop@example.org" in mail
    assert "failed:\r\nno rows came\r\n" in mail
    assert sum(line.lower().startswith("rcpt to") for line in box.said) == 2


def test_mail_goes_encrypted_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = certificate_in(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with receiving_mail(context) as box, receiving_mail() as open_box:
        url = f"smtp://me:p%40ss@localhost:{box.port}"
        with pytest.raises(BackendError, match="certificate"):
            send(url)  # nobody vouches for it
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send(url)
        assert box.encrypted == [True]
        assert any(line.startswith("AUTH PLAIN") for line in box.said)
        with pytest.raises(InvalidInput, match="STARTTLS"):
            send(f"smtp://localhost:{open_box.port}")
        assert not open_box.mails
    with pytest.raises(BackendError, match="did not take"):
        send(url)  # it is gone


def test_what_a_mail_server_refuses_is_told_apart() -> None:
    with receiving_mail() as box:
        url = f"smtp+plain://127.0.0.1:{box.port}"
        box.answers = {"RCPT": "550 nobody"}
        assert send(url) == 400
        box.answers = {"RCPT": "450 later"}
        with pytest.raises(BackendError, match="450"):
            send(url)
        box.answers = {"MAIL": "451 later"}
        with pytest.raises(BackendError):
            send(url)
    assert isinstance(box, MailBox)
    assert box.mails == []


@pytest.mark.parametrize(
    "server", ["", "http://x", "smtp+plain://me:secret@host", "smtp://host:nan", "smtp://"]
)
def test_a_wrong_server_of_mail_is_refused_without_its_password(server: str) -> None:
    with pytest.raises(InvalidInput) as error:
        send(server)
    assert "secret" not in str(error.value)


def send(server: str, to: str = "mailto:ops@example.org") -> int:
    notifier = MailNotifier(server, "loop@example.org", timeout_s=5)
    return notifier.send(to, b"text\n", {"Subject": "a"}).status


def certificate_in(folder: Path) -> Path:
    """A certificate of localhost with its key, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, form, plain) + made.public_bytes(pem))
    return path
