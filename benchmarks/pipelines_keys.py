"""What the key of a step costs that reaches 1,000 functions: CPU time, in processes of their own.

Started as ``python pipelines_keys.py FOLDER`` it measures one: the first key and those after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MODULES, FUNCTIONS = 20, 50


def write_project(folder: Path) -> None:
    for module in range(MODULES):
        lines = ["import math", f"LIMIT = {module}", ""]
        for number in range(FUNCTIONS):
            inner = f"f{number + 1}(x)" if number < FUNCTIONS - 1 else "x"
            lines += [
                f"def f{number}(x):",
                f"    '''The function {number} of module {module}.'''",
                f"    y = x * LIMIT + {number}  # of this module",
                f"    if y > {10 + module}:",
                "        y = math.sqrt(y)",
                f"    return [row + {inner} for row in (y, 1)]",
                "",
            ]
        (folder / f"m{module}.py").write_text("\n".join(lines))
    names = range(MODULES)
    head = [f"from m{m} import f0 as g{m}" for m in names]
    body = ["def step(x):", "    return (", *(f"        g{m}(x)," for m in names), "    )"]
    (folder / "flow.py").write_text("\n".join([*head, *body, ""]))


def measure(folder: Path) -> None:
    """Print seconds of CPU for the first key, for one more, for hashing the files, for stat."""
    from blake3 import blake3

    from everloop.pipelines.code import fingerprint

    sys.path.insert(0, str(folder))
    os.chdir(folder)
    import flow  # type: ignore[import-not-found]

    began = time.process_time_ns()
    made = fingerprint(flow.step)
    first = time.process_time_ns() - began
    again = []
    for _ in range(51):
        began = time.process_time_ns()
        fingerprint(flow.step)
        again.append(time.process_time_ns() - began)
    files = [folder / f"m{module}.py" for module in range(MODULES)]
    began = time.process_time_ns()
    for file in files:
        blake3(file.read_bytes()).hexdigest()
    hashed = time.process_time_ns() - began
    began = time.process_time_ns()
    for file in files:
        os.stat(file)
    looked = time.process_time_ns() - began
    figures = {"first": first, "again": median(again), "hash": hashed, "stat": looked}
    print(json.dumps({"digest": made.digest, **{k: v / 1e9 for k, v in figures.items()}}))


def key_rows(repeats: int) -> Iterator[dict[str, object]]:
    """Figures of the first process ever, of a new process, and of a key asked for again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        found: dict[str, list[dict[str, float]]] = {"first": [], "new": []}
        for _ in range(repeats):
            kept = folder / ".everloop"
            subprocess.run(["rm", "-rf", str(kept)], check=True)
            kept.mkdir()
            found["first"].append(_in_process(folder))
            found["new"].append(_in_process(folder))
    equal = len({str(figures["digest"]) for runs in found.values() for figures in runs}) == 1

    def row(work: str, runs: str, figure: str, limit: str, limit_name: str) -> dict[str, object]:
        return {
            "work": f"key of a step that reaches 1,000 functions, {work} (CPU)",
            "everloop": median(figures[figure] for figures in found[runs]),
            "limit": median(figures[limit] for figures in found[runs]),
            "limit_name": limit_name,
            "answers_equal": equal,
        }

    yield row("never seen before", "first", "first", "hash", "blake3 of the files")
    yield row("in a new process", "new", "first", "hash", "blake3 of the files")
    yield row("nothing changed", "new", "again", "stat", "stat of the files")


def _in_process(folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "EVERLOOP_DIR": str(folder / ".everloop")},
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    measure(Path(sys.argv[1]).resolve())
