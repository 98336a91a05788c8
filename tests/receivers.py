"""A receiver of webhooks on loopback: keeps what came, answers what it is told to."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

__all__ = ["MailBox", "Received", "Receiver", "receiving", "receiving_mail"]


class Received(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers each request with the next of `answers` (status, headers), then with 200."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.came: list[Received] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.act: Callable[[Any], None] | None = None
        self._changed = threading.Condition()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def take(self, received: Received) -> tuple[int, dict[str, str]]:
        with self._changed:
            self.came.append(received)
            self._changed.notify_all()
            return self.answers.pop(0) if self.answers else (200, {})

    def wait_for(self, count: int, path: str = "") -> list[Received]:
        """The requests to `path` once there are `count` of them."""
        deadline = time.monotonic() + 120
        with self._changed:
            while len(found := [item for item in self.came if item.path.startswith(path)]) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"only {len(found)} of {count} came: {found}"
                self._changed.wait(left)
            return found


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver within the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = receiver.take(Received(self.path, headers, body))
            if receiver.act is not None:
                receiver.act(self)
                return
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"taken")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


class MailBox:
    """What a server of mail took: the conversation of each connection, and the messages."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.said: list[str] = []
        self.mails: list[str] = []
        self.encrypted: list[bool] = []
        #: Answers to give in place of the usual ones, by command.
        self.answers: dict[str, str] = {}


@contextlib.contextmanager
def receiving_mail(tls: ssl.SSLContext | None = None) -> Iterator[MailBox]:
    """A server of mail (RFC 5321, with STARTTLS if `tls` is given) within the block."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            encrypted = False
            self._say("220 here")
            while line := self.rfile.readline().decode().strip():
                box.said.append(line)
                verb = line.split()[0].upper()
                if verb in box.answers:
                    self._say(box.answers[verb])
                elif verb == "EHLO":
                    more = "250-STARTTLS\r\n" if tls is not None and not encrypted else ""
                    self._say(f"250-here\r\n{more}250 AUTH PLAIN")
                elif verb == "STARTTLS" and tls is not None:
                    self._say("220 go on")
                    self.connection = tls.wrap_socket(self.connection, server_side=True)
                    self.rfile = self.connection.makefile("rb")
                    encrypted = True
                elif verb == "DATA":
                    self._say("354 go on")
                    lines = []
                    while (text := self.rfile.readline().decode()) != ".\r\n":
                        lines.append(text)
                    box.mails.append("".join(lines))
                    box.encrypted.append(encrypted)
                    self._say("250 taken")
                elif verb == "QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("235 welcome" if verb == "AUTH" else "250 fine")

        def _say(self, text: str) -> None:
            self.connection.sendall(f"{text}\r\n".encode())

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()
                self.connection.close()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        box = MailBox(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield box
        finally:
            server.shutdown()
            thread.join()
