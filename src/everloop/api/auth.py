"""Who asks: every request is authenticated before any door sees it, and refused if it cannot be.

As long as a workspace has no user, nobody is asked, as on a laptop. From the first user on only the
paths of ``OPEN`` are answered without credentials. Whom a request is from is put into its context
(``everloop.core.context``), where it is the actor, whatever a header states.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.access.directory import Snapshot
from everloop.access.login import Login
from everloop.access.policy import Authorizer
from everloop.access.roles import RoleAuthorizer
from everloop.api.errors import native_error
from everloop.api.mlflow_calls import answer_json
from everloop.api.mlflow_wire import error_answer
from everloop.core.access import Principal
from everloop.core.context import authenticated
from everloop.errors import EverloopError, NotAuthenticated, Throttled

__all__ = ["OPEN", "RECHECK", "SERVING", "Authentication", "is_open"]

_log = logging.getLogger(__name__)

#: What anybody may ask: whether this process lives and is ready.
OPEN = frozenset({"/health", "/v2/health/live", "/v2/health/ready"})
# MLflow's clients send the parts of an upload without credentials. The URL of a part is the right
# to send it: it holds 128 random bits, given to whoever was allowed to begin the upload.
_PART = re.compile(r"/(ajax-)?api/[23]\.0/mlflow-artifacts/mpu/parts/[0-9a-f]{32}/[0-9]{1,5}")

# Webhooks of others are known by their signature.
_HOOK = re.compile(r"/hooks/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: The paths of inference, which need the right to ask for predictions.
SERVING = ("/v2", "/invocations", "/ping")
_MLFLOW = (
    "/api/2.0/", "/api/3.0/", "/ajax-api/", "/get-artifact", "/model-versions/", "/v1/traces",
    "/graphql", "/version",
)  # fmt: skip

#: Where in a request's scope an answer that goes on for long finds how to ask again who it is for.
RECHECK = "everloop.recheck"

#: A snapshot older than this is looked after; one older than the second is waited for, seconds.
_FRESH_S, _STALE_S = 1.0, 3.0
#: So long a request waits for a catalog that does not answer, before what was last seen counts.
_PATIENCE_S = 2.0

_BASIC = (b"www-authenticate", b'Basic realm="everloop", charset="UTF-8"')
_BEARER = (b"www-authenticate", b'Bearer realm="everloop"')
_MLFLOW_BASIC = (b"www-authenticate", b'Basic realm="mlflow"')

#: May do nothing: for what is open to anybody.
_NOBODY = Principal("nobody")


def is_open(scope: Scope) -> bool:
    """Whether a request is answered without credentials."""
    path = scope["path"]
    if path in OPEN:
        # Only when written plainly: a door may read an encoded path otherwise than we do.
        return bool(scope.get("raw_path") in (None, path.encode()))
    if scope["method"] == "POST" and _HOOK.fullmatch(path) is not None:
        return bool(scope.get("raw_path") in (None, path.encode()))
    return scope["method"] == "PUT" and _PART.fullmatch(path) is not None


class Authentication:
    """Passes requests on to `app` in the name of whoever sent them, or refuses them.

    Args:
        app: The application behind.
        login: Tells who asks.
        authorizer: Decides who may ask for predictions, which no service does.
    """

    def __init__(self, app: ASGIApp, login: Login, authorizer: Authorizer | None = None) -> None:
        self._app = app
        self._login = login
        self._authorizer = authorizer or RoleAuthorizer()
        self._looking: Future[Snapshot] | None = None
        self._looked_s = 0.0
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="directory")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        try:
            principal = await self.identify(scope)
        except EverloopError as error:
            await _refusal(error, scope)(scope, receive, send)
            return
        if principal is not None:
            scope[RECHECK] = lambda: self.identify(scope)
        with authenticated(principal):
            await self._app(scope, receive, send)

    async def identify(self, scope: Scope) -> Principal | None:
        """Whom a request is from; None where nobody is asked.

        Raises:
            NotAuthenticated: If nobody knows.
            NotAllowed: If it asks for predictions and may not.
            Throttled: If a wrong password was tried too often.
            BackendError: If the catalog was never read and does not answer.
        """
        snapshot = await self._current()
        if not snapshot.accounts:
            return None
        if is_open(scope):
            return _NOBODY
        principal = await self._authenticate(scope, snapshot)
        if scope["path"].startswith(SERVING):
            self._authorizer.authorize(principal, "prediction:ask", "")
        return principal

    async def _authenticate(self, scope: Scope, snapshot: Snapshot) -> Principal:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            raise NotAuthenticated(
                "log in to this server",
                hint="with a token (Authorization: Bearer) or name and password (Basic)",
            )
        if len(given) > 1:
            raise NotAuthenticated("there are several Authorization headers; send one")
        known = self._login.known(given[0], snapshot)
        if known is None:
            address = (scope.get("client") or ("",))[0]
            checking = self._login.check(given[0], address, snapshot)
            # Shielded: others may wait for the same check when this client goes away.
            if await asyncio.shield(asyncio.wrap_future(checking)):
                known = self._login.known(given[0], snapshot)
        if known is None:
            raise NotAuthenticated("the name or the password is wrong")
        return known

    async def _current(self) -> Snapshot:
        """The users and tokens as they were a moment ago; waits only for what is too old."""
        directory = self._login.directory
        while True:
            known, age_s = directory.snapshot, directory.age_s
            if known is not None and age_s < _FRESH_S:
                return known
            looking = self._look()
            began_s = time.monotonic() - self._looked_s
            if known is not None and (age_s < _STALE_S or began_s > _PATIENCE_S):
                return known
            try:
                await asyncio.wait_for(
                    asyncio.shield(asyncio.wrap_future(looking)),
                    None if known is None else _PATIENCE_S - began_s,
                )
            except (EverloopError, TimeoutError):
                if known is None:
                    raise
                # Whoever was let in still is: nobody can revoke through a catalog that is away.
                return known

    def _look(self) -> Future[Snapshot]:
        """The look at the catalog that is under way, or a new one; a failed one rests a while."""
        looking, now_s = self._looking, time.monotonic()
        if looking is not None:
            has_failed = looking.done() and looking.exception() is not None
            if not looking.done() or (has_failed and now_s - self._looked_s < _FRESH_S):
                return looking
        self._looked_s = now_s
        self._looking = looking = self._looker.submit(self._login.directory.refresh)
        looking.add_done_callback(_tell_failure)
        return looking

    def close(self) -> None:
        """Let the thread end."""
        self._looker.shutdown(wait=False, cancel_futures=True)


def _tell_failure(looked: Future[Snapshot]) -> None:
    if not looked.cancelled() and (error := looked.exception()) is not None:
        _log.warning("users and tokens cannot be looked at, what was last seen counts: %s", error)


def _refusal(error: EverloopError, scope: Scope) -> Response:
    """The answer to whoever is refused, in the words of the door that they knocked at."""
    path = scope["path"]
    if path.startswith(SERVING):
        answer = answer_json({"error": str(error)}, error.status)
    elif path.startswith(_MLFLOW):
        status, body = error_answer(error)
        answer = answer_json(body, status)
    else:
        answer = native_error(error)
    if isinstance(error, NotAuthenticated):
        is_mlflow = path.startswith(_MLFLOW)
        answer.raw_headers += [_MLFLOW_BASIC] if is_mlflow else [_BEARER, _BASIC]
    if isinstance(error, Throttled):
        seconds = str(error.details.get("retry_after_s", 1))
        answer.headers["retry-after"] = seconds
    answer.headers["cache-control"] = "no-store"
    return answer
