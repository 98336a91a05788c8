"""The inference application of this process: routes that follow the catalog, a log, metrics."""

from __future__ import annotations

import os
import threading
from typing import Any

from prometheus_client import CollectorRegistry

from everloop.api.oip import InferenceApp
from everloop.errors import EverloopError
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.workspace import Workspace

__all__ = ["make_inference_app", "serving_app"]

_POLL_S = 0.5


def make_inference_app(router: Any, log: Any, metrics: Any) -> InferenceApp:
    """The door of a serving worker."""
    return InferenceApp(router, log, metrics)


def serving_app(workspace: Workspace, registry: CollectorRegistry) -> InferenceApp:
    """Inference within the server's own process; its routes are loaded before this returns."""
    router = workspace.open_router(worker=f"server-{os.getpid()}")
    metrics = ServingMetrics(registry)
    log = PredictionLog(workspace.predictions, on_drop=metrics.dropped)
    router.refresh()
    follow = threading.Thread(target=_follow, args=(router,), name="routes", daemon=True)
    follow.start()
    return InferenceApp(router, log, metrics)


def _follow(router: Any) -> None:
    pause = threading.Event()
    while not pause.wait(_POLL_S):
        try:
            if router.refresh():
                router.acknowledge()
        except EverloopError:
            # The catalog may be away for a while; what is loaded goes on being served.
            continue
