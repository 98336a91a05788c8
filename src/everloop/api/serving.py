"""Inference as a worker offers it, and within the server's own process."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from everloop.access.login import Login
from everloop.api.auth import Authentication
from everloop.api.guard import Guard
from everloop.api.oip import InferenceApp
from everloop.serving.follower import Follower
from everloop.serving.loader import Router
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.workspace import Workspace

__all__ = ["ServerInference", "WorkerInference"]

_POLL_S = 0.5


class WorkerInference(Guard):
    """The door of a serving worker, guarded as the server's doors are.

    Args:
        router: The routes; somebody else refreshes them.
        log: Takes over what was answered.
        metrics: Counts what was answered.
        host: The address that the worker is bound to.
        names: Further names that it answers under.
        login: Tells who asks; None where nobody is asked.
    """

    def __init__(
        self,
        router: Router,
        log: PredictionLog,
        metrics: ServingMetrics,
        host: str,
        *,
        names: Iterable[str] = (),
        login: Login | None = None,
    ) -> None:
        self._inference = InferenceApp(router, log, metrics)
        app: ASGIApp = self._inference
        if login is not None:
            app = Authentication(app, login)
        super().__init__(app, host=host, names=names)

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""
        return self._inference.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._inference.draining = value


class ServerInference:
    """Inference within the server's own process; its routes are loaded when it is made.

    Attributes:
        app: The door; the server guards it.
    """

    def __init__(self, workspace: Workspace, registry: CollectorRegistry) -> None:
        router = workspace.open_router(worker=f"server-{os.getpid()}")
        self._follower = Follower(router, _POLL_S)
        self._follower.update()
        metrics = ServingMetrics(registry)
        self._log = PredictionLog(workspace.predictions, on_drop=metrics.dropped)
        self.app = InferenceApp(router, self._log, metrics)
        self._follower.start()

    def close(self) -> None:
        """Store what was answered; the workspace must be open still.

        Raises:
            StateError: If not all could be stored.
        """
        self._follower.stop()
        self.app.close()
        self._log.close()
