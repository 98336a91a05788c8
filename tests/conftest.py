"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.memory import in_memory

pytest_plugins = ["tests.services", "tests.workspaces", "tests.folders"]

# Read by Keras as it is imported; the back end that the lock file has.
os.environ.setdefault("KERAS_BACKEND", "openvino")

# Two workers share two cores, and a thread of OpenMP that waits for another one spins: with more
# threads than free cores a small training takes ten times as long. Inherited by child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Where `tmp_path` and other temporary files are. Most of what tests write is fsynced, and a disk
# makes them wait for that.
if (memory := in_memory()) is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    tempfile.tempdir = str(memory)

# A worker takes whole files. These take longest, and a long one that begins last is waited for by
# all; so they come first, the longest at the front.
LONGEST = (
    "e2e/test_demo.py",
    "e2e/test_loop.py",
    "compat/test_import_mlflow.py",
    "e2e/test_up.py",
    "e2e/test_credit.py",
    "e2e/test_package.py",
    "e2e/test_kill_worker.py",
    "e2e/test_pages.py",
    "compat/test_mlflow_classic.py",
    "compat/test_mlflow_models.py",
    "compat/test_mlflow.py",
    "e2e/test_leakage.py",
)

# The only tests that may be left out: PyTorch brings gigabytes that the lock file spares.
_NEEDS_TORCH = {"test_torch.py"}
_has_torch = find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name in _NEEDS_TORCH and not _has_torch else None


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would begin with the files that have most tests, which are not the longest.
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    place = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _has_torch:
        left_out = ", ".join(sorted(_NEEDS_TORCH))
        terminalreporter.write_line(f"left out: {left_out}, as PyTorch is not installed here")
