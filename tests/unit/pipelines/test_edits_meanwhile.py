"""Code that is edited while a run is on counts for the next run, in worker processes too."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

MAIN = """
    import sys
    from pathlib import Path

    import everloop as ev
    import flow

    if __name__ == "__main__":
        print(*flow.main.run(edit=sys.argv[1] == "edit"))
"""
FLOW = """
    import everloop as ev
    from pkg.helper import FACTOR, scaled


    @ev.step
    def times(x: int) -> int:
        return scaled(x) * 1


    @ev.step(isolate=True)
    def apart(x: int) -> int:
        return x + FACTOR


    @ev.pipeline
    def main(edit: bool) -> list[int]:
        if edit:
            import edits

            edits.make()
        return [*times.map([1, 2]), times.submit(3).result(), apart(1), times(4)]
"""
EDITS = """
    from pathlib import Path


    def make() -> None:
        Path("pkg/helper.py").write_text(
            "FACTOR = 100\\n\\n\\ndef scaled(x):\\n    return x * FACTOR\\n"
        )
        flow = Path("flow.py").read_text()
        Path("flow.py").write_text(flow.replace("* 1", "* 1000"))
"""


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"EVERLOOP_DIR": str(folder / "ws"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_workers_execute_what_the_run_began_with(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/helper.py").write_text(
        "FACTOR = 10\n\n\ndef scaled(x):\n    return x * FACTOR\n"
    )
    for name, text in (("main", MAIN), ("flow", FLOW), ("edits", EDITS)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    assert run(tmp_path, "edit") == "10 20 30 11 40", "the code of its start"
    edited = "100000 200000 300000 101 400000"
    assert run(tmp_path, "no") == edited, "the edit counts now, and nothing old is a hit"
    assert run(tmp_path, "no") == edited
