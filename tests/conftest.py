"""What all tests share."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["tests.services", "tests.workspaces"]

# Read by Keras as it is imported; the back end that the lock file has.
os.environ.setdefault("KERAS_BACKEND", "openvino")

# The only tests that may be left out: PyTorch brings gigabytes that the lock file spares.
_NEEDS_TORCH = {"test_torch.py"}
_has_torch = find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name in _NEEDS_TORCH and not _has_torch else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _has_torch:
        left_out = ", ".join(sorted(_NEEDS_TORCH))
        terminalreporter.write_line(f"left out: {left_out}, as PyTorch is not installed here")
