"""Jobs as processes on this machine."""

from __future__ import annotations

import os
import sys
import threading

from everloop.core.ids import new_id
from everloop.core.process import ChildProcess
from everloop.errors import BackendError, NotFound, StateError
from everloop.ports.executor import JobSpec, JobState

__all__ = ["LocalExecutor"]


class LocalExecutor:
    """An Executor that starts each job as ``python -m everloop ...``.

    A job ends with this process, however this process ends.

    Args:
        slots: Jobs at once; 0 means one for each core.
        grace_s: Time that a cancelled job has before it is killed.
    """

    def __init__(self, slots: int = 0, *, grace_s: float = 5.0) -> None:
        self._slots = slots or os.cpu_count() or 1
        self._grace_s = grace_s
        self._jobs: dict[str, ChildProcess] = {}
        self._lock = threading.Lock()

    def submit(self, spec: JobSpec) -> str:
        with self._lock:
            if self._free() <= 0:
                raise StateError(
                    f"all {self._slots} slots are busy", hint="ask capacity() before submitting"
                )
            try:
                job = ChildProcess(
                    (sys.executable, "-m", "everloop", *spec.arguments),
                    environment=spec.environment,
                    directory=spec.directory,
                )
            except OSError as error:
                raise BackendError(
                    f"could not start {spec.name}: {error.strerror}",
                    hint="check the folder of the job and the memory of the machine",
                ) from error
            handle = new_id()
            self._jobs[handle] = job
            return handle

    def poll(self, handle: str) -> JobState:
        with self._lock:
            status = self._job(handle).poll()
        if status is None:
            return "running"
        return "done" if status == 0 else "failed"

    def cancel(self, handle: str) -> None:
        with self._lock:
            job = self._job(handle)
            job.terminate()
        if not job.wait(self._grace_s):
            job.kill()
            job.wait(self._grace_s)

    def capacity(self) -> int:
        with self._lock:
            return max(self._free(), 0)

    def _free(self) -> int:
        return self._slots - sum(job.poll() is None for job in self._jobs.values())

    def _job(self, handle: str) -> ChildProcess:
        if handle not in self._jobs:
            raise NotFound(f"no job {handle!r}", hint="handles live as long as the executor")
        return self._jobs[handle]
