"""System metrics, named as MLflow names them: from ``/proc`` on Linux, else what `os` tells.

GPUs are read where ``pynvml`` is installed and finds some.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everloop.errors import EverloopError, InvalidInput

__all__ = ["SystemMetrics", "read_system"]

_MB = 1e6
_PROC = Path("/proc")

Counters = dict[str, float]


class SystemMetrics:
    """A thread that logs how the machine does.

    Args:
        log: Takes the metrics and a step.
        interval_s: Seconds between two readings; the first comes after one.
        folder: The disk of this folder is watched.
    """

    def __init__(self, log: Callable[..., None], interval_s: float, folder: Path) -> None:
        if not interval_s > 0:
            raise InvalidInput(
                "the interval of system metrics is wrong",
                [("system_metrics", f"must be above 0 seconds, got {interval_s}")],
            )
        self._log = log
        self._interval_s = interval_s
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="everloop-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; safe to call twice."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _work(self) -> None:
        before, step, gpus = _counters(), 0, _open_gpus()
        while not self._stop.wait(self._interval_s):
            now = _counters()
            try:
                self._log({**read_system(before, now, self._folder), **_gpus(gpus)}, step=step)
            except EverloopError:
                # The writer tells the program at its next call; we may not be the last to log.
                continue
            before, step = now, step + 1


def read_system(before: Counters, now: Counters, folder: Path) -> dict[str, float]:
    """The metrics between two readings of the counters; what the system does not tell is absent."""
    found = _cpu(before, now) | _memory() | _disk(folder)
    if "received" in now and "received" in before:
        received, sent = (now[n] - before[n] for n in ("received", "sent"))
        found["network_receive_megabytes"] = received / _MB
        found["network_transmit_megabytes"] = sent / _MB
    return {f"system/{name}": value for name, value in found.items()}


def _counters() -> Counters:
    found: Counters = {"at": time.monotonic(), "process": time.process_time()}
    stat = _lines("stat")
    if stat and stat[0].startswith("cpu "):
        ticks = [float(word) for word in stat[0].split()[1:9]]
        found |= {"busy": sum(ticks) - ticks[3] - ticks[4], "total": sum(ticks)}
    interfaces = [line.replace(":", " ").split() for line in _lines("net/dev")[2:]]
    outer = [words for words in interfaces if words[0] != "lo"]
    if interfaces:
        found["received"] = sum(float(words[1]) for words in outer)
        found["sent"] = sum(float(words[9]) for words in outer)
    return found


def _lines(name: str) -> list[str]:
    try:
        return (_PROC / name).read_text().splitlines()
    except OSError:
        return []


def _cpu(before: Counters, now: Counters) -> dict[str, float]:
    if "total" in now and now["total"] > before.get("total", now["total"]):
        share = (now["busy"] - before["busy"]) / (now["total"] - before["total"])
    else:  # no /proc: this process alone
        passed = max(now["at"] - before["at"], 1e-9) * (os.cpu_count() or 1)
        share = (now["process"] - before["process"]) / passed
    return {"cpu_utilization_percentage": 100 * share}


def _memory() -> dict[str, float]:
    kilobytes = {}
    for line in _lines("meminfo"):
        name, _, rest = line.partition(":")
        kilobytes[name] = float(rest.split()[0])
    if "MemTotal" in kilobytes and "MemAvailable" in kilobytes:
        used = kilobytes["MemTotal"] - kilobytes["MemAvailable"]
        return {
            "system_memory_usage_megabytes": used * 1024 / _MB,
            "system_memory_usage_percentage": 100 * used / kilobytes["MemTotal"],
        }
    return _own_memory()


def _own_memory() -> dict[str, float]:
    try:
        import resource
    except ImportError:  # Windows
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {"process_memory_peak_megabytes": peak * unit / _MB}


def _disk(folder: Path) -> dict[str, float]:
    try:
        total, used, free = shutil.disk_usage(folder)
    except OSError:
        return {}
    return {
        "disk_usage_megabytes": used / _MB,
        "disk_usage_percentage": 100 * used / total,
        "disk_available_megabytes": free / _MB,
    }


def _open_gpus() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):  # no driver or no card
        return None
    return pynvml


def _gpus(nvml: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        name = f"system/gpu_{index}"
        found[f"{name}_memory_usage_megabytes"] = memory.used / _MB
        found[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
        rates = nvml.nvmlDeviceGetUtilizationRates(device)
        found[f"{name}_utilization_percentage"] = float(rates.gpu)
        found[f"{name}_power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
    return found
