"""Payloads on a Ray cluster that runs already; none is ever started here.

Each payload is one task, which Ray does not try again: whether it was executed only its caller can
tell. Results are small; large ones go through the object store of the workspace.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from typing import Any

from everloop.errors import BackendError, EverloopError, InvalidInput, MissingExtra, StateError
from everloop.ports.executor import Needs, WorkerLost

__all__ = ["RayExecutor"]

_logger = logging.getLogger(__name__)

#: Tasks waited for at once; each takes a thread of the driver.
_MOST = 1_000
_HINT = "start one (ray start --head), and say where: --on ray://host:10001, or RAY_ADDRESS"

# Connections of this process: Ray has one, whoever asks for it.
#: Tries to connect to a cluster that answers.
_TRIES = 3
_lock = threading.Lock()
_users = 0
_ours = ""


class RayExecutor:
    """The cluster at an address.

    Args:
        address: ``ray://host:port`` of its client server, ``host:port`` of its head, or ``auto``
            for the one that this machine is a node of. Where this process is connected already,
            ``auto`` is that cluster.

    Raises:
        MissingExtra: If Ray is not installed.
        InvalidInput: If the address would start a cluster, or is none of a cluster.
        BackendError: If no cluster answers there.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        _check(address)
        try:
            import ray
        except ImportError as error:
            raise MissingExtra.of("ray", "executing on a Ray cluster") from error
        self._ray: Any = ray
        self._pending: set[Any] = set()
        self._told: set[Needs] = set()
        self._closing = threading.Lock()
        self._is_closed = False
        _connect(ray, address)
        self._task = ray.remote(_task_function())

    def capacity(self, needs: Needs) -> int:
        try:
            nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        except Exception as error:  # whatever Ray's client raises where the cluster is gone
            raise self._unreachable(error) from error
        wanted = _resources(needs)
        places = sum(_fitting(node, wanted) for node in nodes)
        if places == 0 and needs not in self._told:
            self._told.add(needs)
            asked = ", ".join(f"{value:g} {name}" for name, value in wanted.items())
            nothing: dict[str, float] = {}
            largest = max(nodes, key=lambda node: float(node.get("CPU", 0)), default=nothing)
            has = ", ".join(f"{name} {largest[name]:g}" for name in sorted(_KINDS & {*largest}))
            _logger.warning(
                "no node of the Ray cluster has %s (the largest has %s): waiting for one that does",
                asked,
                has or "nothing",
            )
        return max(1, min(_MOST, places))

    def execute(self, entry: str, payload: bytes, needs: Needs, name: str) -> bytes:
        errors = self._ray.exceptions
        with self._closing:
            if self._is_closed:
                raise StateError("the run ended")
            reference = self._submit(entry, payload, needs, name)
            self._pending.add(reference)
        try:
            return bytes(self._ray.get(reference))
        except errors.TaskCancelledError as error:
            raise StateError("the run ended, and what it executed with it") from error
        except errors.RayTaskError as error:
            raise BackendError(
                f"a worker of the Ray cluster cannot execute steps: {_short(error)}",
                hint="install the same Everloop on every node, with the packages of the steps",
            ) from error
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.LocalRayletDiedError,
        ) as error:
            if self._is_closed:
                raise StateError("the run ended, and what it executed with it") from error
            raise WorkerLost(_short(error)) from error
        except EverloopError:
            raise
        except Exception as error:  # whatever Ray's client raises where the cluster is gone
            raise self._unreachable(error) from error
        finally:
            with self._closing:
                self._pending.discard(reference)

    def _submit(self, entry: str, payload: bytes, needs: Needs, name: str) -> Any:
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        if needs.memory:
            options["memory"] = needs.memory
        try:
            task = self._task.options(name=name, max_retries=0, **options)
            return task.remote(entry, payload)
        except Exception as error:  # as above
            raise self._unreachable(error) from error

    def close(self) -> None:
        with self._closing:
            was_closed, self._is_closed = self._is_closed, True
            pending = list(self._pending)
        for reference in pending:
            # The cluster may be gone, and with it what was to be ended.
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        if not was_closed:
            _disconnect(self._ray)

    def _unreachable(self, error: Exception) -> BackendError:
        return BackendError(
            f"the Ray cluster at {self._address} does not answer: {_short(error)}", hint=_HINT
        )


_KINDS = {"CPU", "GPU", "memory"}


def _resources(needs: Needs) -> dict[str, float]:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": float(needs.memory)}
    return {name: value for name, value in wanted.items() if value}


def _fitting(node: dict[str, Any], wanted: dict[str, float]) -> int:
    if not wanted:
        return int(node.get("CPU", 1)) or 1
    return min(int(node.get(name, 0) / value) for name, value in wanted.items())


def _task_function() -> Any:
    # Within a function, so that it travels itself: a node without Everloop can then say so.
    def everloop_task(entry: str, payload: bytes) -> bytes:
        import importlib
        import os
        import socket

        import ray

        context = ray.get_runtime_context()
        # What a step starts itself finds this cluster.
        os.environ.setdefault("RAY_ADDRESS", context.gcs_address)
        module, _, name = entry.partition(":")
        function = getattr(importlib.import_module(module), name)
        node = f"{socket.gethostname()} (Ray node {context.get_node_id()[:12]})"
        made: bytes = function(payload, node)
        return made

    return everloop_task


def _check(address: str) -> None:
    if address == "local":
        raise InvalidInput(
            "RAY_ADDRESS=local would start a cluster of its own",
            hint="leave --on away to run here, or name a cluster that runs",
        )
    if address.startswith(("http://", "https://")):
        raise InvalidInput(
            f"{address} takes jobs, it is not the cluster itself", hint="use ray://host:10001"
        )


def _init(ray: Any, address: str) -> None:
    for left in reversed(range(_TRIES)):
        try:
            ray.init(address=address, namespace="everloop", logging_level="WARNING")
        except ConnectionAbortedError:
            # The cluster is there, and failed to start the server of this client: most often
            # because something else took the port that it chose. It chooses another one.
            if not left:
                raise
        else:
            return


def _connect(ray: Any, address: str) -> None:
    global _users, _ours
    with _lock:
        if not ray.is_initialized():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of Ray's own future
                try:
                    _init(ray, address)
                except Exception as error:  # a different class for each way not to be there
                    raise BackendError(
                        f"no Ray cluster answers at {address}: {_short(error)}", hint=_HINT
                    ) from error
            _ours = address
        elif address not in ("auto", _ours, ray.get_runtime_context().gcs_address):
            raise StateError(
                f"this process is connected to another Ray cluster than {address}",
                hint='run on="ray" to use that one, or call ray.shutdown() before',
            )
        _users += 1


def _disconnect(ray: Any) -> None:
    global _users, _ours
    with _lock:
        _users -= 1
        if _users == 0 and _ours:
            _ours = ""
            ray.shutdown()


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
