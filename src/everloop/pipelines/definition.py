"""What a step is: a function with how it is cached. The call itself is in ``api``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from everloop.core.project import module_name
from everloop.pipelines.signature import Signature

__all__ = ["Step", "environment_parts", "full_name"]


class Step:
    """A plain function and how its results are kept.

    Attributes:
        name: ``module.qualname``; for the main script the name it would be imported by.
        function: The function itself.
        cache: Whether its results serve other runs.
        version: A salt that the user may change.
        environment: Environment variables that it depends on.
        retries: How often it is tried again when it raises.
        backoff_s: Seconds before the first new try; twice as long before each further one.
        timeout_s: Seconds that one try may take; None is no limit.
        memory: Bytes that one try may use; 0 is no limit.
        isolate: Whether each call is executed in a process of its own.
        cpus: Processors that a call takes on a cluster.
        gpus: Graphics cards that it takes there.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        cache: bool = True,
        version: str = "",
        environment: tuple[str, ...] = (),
        retries: int = 0,
        backoff_s: float = 0,
        timeout_s: float | None = None,
        memory: int = 0,
        isolate: bool = False,
        cpus: float = 1,
        gpus: float = 0,
    ) -> None:
        self.name = full_name(function)
        self.function = function
        self.cache = cache
        self.version = version
        self.environment = environment
        self.retries = retries
        self.backoff_s = backoff_s
        self.timeout_s = timeout_s
        self.memory = memory
        # Only a process can be stopped, or be given a limit of memory.
        self.isolate = isolate or timeout_s is not None or memory > 0
        self.cpus = cpus
        self.gpus = gpus
        self.signature = Signature(function, "step", self.name)


def full_name(function: Callable[..., Any]) -> str:
    """``module.qualname``."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{module_name(getattr(function, '__module__', '') or '')}.{name}"


def environment_parts(step: Step) -> dict[str, str]:
    """Digests of the environment variables that a step depends on; never their values."""
    if not step.environment:
        return {}
    values = {name: os.environ.get(name) for name in step.environment}
    return {
        f"env:{name}": "unset" if value is None else blake3(value.encode()).hexdigest()[:16]
        for name, value in values.items()
    }
