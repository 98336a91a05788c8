"""Executor: executes payloads on the machines of a cluster."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Executor", "Needs", "WorkerLost"]


class Needs(NamedTuple):
    """What one payload takes while it is executed.

    Attributes:
        cpus: Processors; parts of one are possible.
        gpus: Graphics cards; parts of one are possible.
        memory: Bytes; 0 is not said.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


class WorkerLost(Exception):
    """The machine or process that executed a payload is gone; nobody knows how far it came."""


class Executor(Protocol):
    """Executes payloads. Its methods may be called by many threads at once.

    A payload goes to a function that the other side finds by its name, ``module:function``. It
    takes the payload and a text that names the machine for people, and gives back bytes.
    """

    def capacity(self, needs: Needs) -> int:
        """How many payloads of these needs fit at once now; at least 1.

        Raises:
            BackendError: If the cluster cannot be reached.
            MissingExtra: Without its library.
        """
        ...

    def execute(self, entry: str, payload: bytes, needs: Needs, name: str) -> bytes:
        """What the function `entry` makes of `payload`; waits for a free place and for the end.

        Args:
            entry: ``module:function``.
            payload: Its argument. It is executed at most once.
            needs: What it takes.
            name: For people who look at the cluster.

        Raises:
            WorkerLost: If the machine or the process died over it.
            StateError: If this executor was closed meanwhile.
            BackendError: If the cluster cannot be reached, or the function cannot be found there.
        """
        ...

    def close(self) -> None:
        """End what is being executed, and let go of the cluster; safe to call twice."""
        ...
