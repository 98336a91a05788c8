"""What writes to a store, broken off: nothing acknowledged is lost, nothing else is seen.

The suite tries a few steps; ``EVERLOOP_TEST_STEPS=all`` tries every one of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: What is broken off, how, at which step, and what is left then. The last step of a kill comes
#: after the commit.
SOME = {
    "append:killed:41": "after",
    "replace:full:12": "before",
    "compact:killed:36": "before",
    "merge:full:5": "before",
    "files:killed:9": "before",
    "collect:killed:18": "before",
    "collect:full:1": "before",
    "expire:killed:24": "after",
}


def test_broken_off_at_any_step_it_is_done_or_not_begun(tmp_path: Path) -> None:
    """In one process that forks for each step, as a kill must not run any clean-up."""
    asked = [] if os.environ.get("EVERLOOP_TEST_STEPS") == "all" else list(SOME)
    script = Path(__file__).with_name("store_killed.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *asked], capture_output=True, text=True,
        env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    if not asked:
        sys.stderr.write(done.stdout)
        assert len(lines) == 14
        return
    found = ["after" if after == "1" else "before" for *_, after in lines]
    assert found == list(SOME.values())
