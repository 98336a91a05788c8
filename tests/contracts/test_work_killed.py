"""Rows that are handed back by a process that is killed: nothing lost, nothing twice.

The suite tries a few steps; ``EVERLOOP_TEST_STEPS=all`` tries every one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_fix_that_is_killed_is_done_or_not_begun(tmp_path: Path) -> None:
    script = Path(__file__).with_name("work_killed.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = ["all"] if os.environ.get("EVERLOOP_TEST_STEPS") == "all" else []
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *asked], capture_output=True, text=True,
        env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    count, before, after = map(int, done.stdout.split())
    assert count > 10
    assert before >= 2
    assert after >= 1
