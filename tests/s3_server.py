"""An S3 server for the tests: `python s3_server.py PORT`, with moto behind it.

Requests are answered one after the other: moto checks the condition of a conditional put and then
writes, which only together is what a server of S3 promises.
"""

import signal
import sys
import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_app = DomainDispatcherApplication(create_backend_app)
_lock = threading.Lock()


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True

    def log(self, *_: Any) -> None:
        """Say nothing."""


def _one_by_one(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    with _lock:
        return list(_app(environ, start_response))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the keeper ignores it, and so would we
    make_server(
        "127.0.0.1", int(sys.argv[1]), _one_by_one, threaded=True, request_handler=_Handler
    ).serve_forever()
