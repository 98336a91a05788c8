"""MailNotifier: messages by SMTP. The connection is encrypted unless the address says otherwise."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

from everloop.errors import BackendError, InvalidInput
from everloop.ports.notifier import Receipt

__all__ = ["MailNotifier"]

_PORTS = {"smtp": 587, "smtps": 465, "smtp+plain": 25}


class MailNotifier:
    """Sends mail through one server.

    Args:
        server: ``smtp://user:password@host:587`` (STARTTLS, or nothing is sent), ``smtps://`` (TLS
            from the beginning) or ``smtp+plain://`` (unencrypted, and without a password).
        sender: Who it is from.
        timeout_s: For each answer of the server.
    """

    def __init__(self, server: str, sender: str, *, timeout_s: float = 15.0) -> None:
        self._server, self._sender, self._timeout = server, sender, timeout_s

    def check(self, url: str) -> None:
        """Return if there is a server and `url` is ``mailto:`` with addresses."""
        if not self._server:
            raise InvalidInput(
                "there is no server of mail",
                hint="set EVERLOOP_SMTP=smtp://user:password@host:587",
            )
        try:
            parts = urlsplit(self._server)
            port = parts.port
        except ValueError:  # not quoted: there may be a password in it
            raise InvalidInput("EVERLOOP_SMTP cannot be read") from None
        if parts.scheme not in _PORTS or not parts.hostname or port == 0:
            raise InvalidInput(f"EVERLOOP_SMTP must begin with one of {', '.join(_PORTS)}")
        if parts.scheme == "smtp+plain" and parts.password:
            raise InvalidInput("a password is not sent unencrypted", hint="use smtp:// or smtps://")
        if not url.startswith("mailto:") or "@" not in url or any(sign in url for sign in "\r\n"):
            raise InvalidInput(f"{url[:80]!r} is no address of mail")

    def send(self, url: str, body: bytes, headers: dict[str, str]) -> Receipt:
        """Send one message; `headers` may name ``Subject`` and ``Message-ID``."""
        self.check(url)
        message = EmailMessage()
        message["From"], message["To"] = self._sender, url.removeprefix("mailto:")
        message["Date"] = formatdate()
        for name, value in headers.items():
            message[name] = " ".join(value.split())
        message.set_content(body.decode())
        parts = urlsplit(self._server)
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        try:
            with self._connect(parts.scheme, host, port) as client:
                if parts.username:
                    client.login(unquote(parts.username), unquote(parts.password or ""))
                client.send_message(message)
        except (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError) as error:
            raise InvalidInput(f"{host} does not take our name: {_said(error)}") from error
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            if all(code >= 500 for code in codes):
                return Receipt(400, f"refused: {codes}")
            raise BackendError(f"{host} does not take the mail now: {codes}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise BackendError(f"{host}:{port} did not take the mail: {_said(error)}") from error
        return Receipt(200)

    def _connect(self, scheme: str, host: str, port: int) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if scheme == "smtps":
            return smtplib.SMTP_SSL(host, port, timeout=self._timeout, context=context)
        client = smtplib.SMTP(host, port, timeout=self._timeout)
        if scheme == "smtp":
            try:
                client.starttls(context=context)
            except BaseException:  # nothing is sent in the open; and nothing stays open
                client.close()
                raise
        return client


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
