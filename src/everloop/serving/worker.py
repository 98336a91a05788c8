"""One serving worker: loads the routes, answers on the inherited socket, follows the catalog.

The ASGI app is given by the door (``everloop.api.serving``); this module only runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import uvicorn
from prometheus_client import CollectorRegistry

from everloop.core.model import ModelVersion
from everloop.core.process import watch_lifeline
from everloop.serving.follower import Follower
from everloop.serving.loader import Deployments, FeatureSource, Models, RouteLoader, Router
from everloop.serving.log import PredictionLog, PredictionSink
from everloop.serving.metrics import ServingMetrics
from everloop.serving.route import Predictor

__all__ = ["DrainableApp", "MakeApp", "ServingServices", "run_worker", "uvicorn_config"]

#: While it drains, a worker answers requests on open connections for so long, and closes each
#: after its answer; only then are idle ones closed. Seconds.
_DRAIN_S = 0.5


@dataclass(frozen=True)
class ServingServices:
    """What a worker is composed of.

    Attributes:
        deployments: DeploymentService.
        models: RegistryService.
        predictions: PredictionService.
        load: Makes a predictor of a version and its files.
        features: Gives feature sets, or None.
        close: Releases what was opened.
    """

    deployments: Deployments
    models: Models
    predictions: PredictionSink
    load: Callable[[ModelVersion, dict[str, bytes]], Predictor]
    features: FeatureSource | None = None
    close: Callable[[], None] = lambda: None


class DrainableApp(Protocol):
    """An ASGI app that can be told that its worker is about to stop."""

    draining: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


#: Takes, last, the address that the worker is bound to.
MakeApp = Callable[[Router, PredictionLog, ServingMetrics, str], DrainableApp]


def run_worker(
    sock_fd: int,
    services: ServingServices,
    make_app: MakeApp,
    *,
    deployments: tuple[str, ...] = (),
    worker: str = "worker-0",
    poll_s: float = 0.25,
    max_loss_s: float = 1.0,
) -> int:
    """Serve until SIGTERM; in-flight requests are finished and the log is stored before it returns.

    Args:
        sock_fd: A listening socket, inherited.
        services: Closed at the end.
        make_app: Makes the door.
        deployments: Names to serve; empty means all.
        worker: Name under which revisions are acknowledged.
        poll_s: How often the catalog is asked for new revisions.
        max_loss_s: Age at which a prediction must be in the log.

    Returns:
        The exit status.
    """
    watch_lifeline()
    loader = RouteLoader(services.models, services.load, services.features)
    router = Router(services.deployments, loader, only=deployments, worker=worker, pid=os.getpid())
    metrics = ServingMetrics(CollectorRegistry())
    log = PredictionLog(services.predictions, max_loss_s=max_loss_s, on_drop=metrics.dropped)
    listening = socket.socket(fileno=sock_fd)
    app = make_app(router, log, metrics, str(listening.getsockname()[0]))
    follower = Follower(router, poll_s)
    # No request is accepted before the routes are loaded: until then the other workers answer.
    follower.update()
    follower.start()
    try:
        server = _Server(uvicorn_config(app), app)
        server.run(sockets=[listening])
    finally:
        follower.stop()
        try:
            log.close()
        finally:
            services.close()
    return 0


def uvicorn_config(app: Any) -> uvicorn.Config:
    """How a worker runs its app; also what a benchmark must give to whatever it compares."""
    return uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop" if os.name == "posix" else "asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32 << 10,
    )


class _Server(uvicorn.Server):
    """Drains before it closes, and returns from :meth:`run` after a signal."""

    def __init__(self, config: uvicorn.Config, app: DrainableApp) -> None:
        super().__init__(config)
        self._app = app

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The base class raises the signal again at the end, which would cut off the log's last
        # second.
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.draining = True
        for server in self.servers:
            server.close()
        if self.server_state.connections:
            await asyncio.sleep(_DRAIN_S)
        await super().shutdown(sockets)
