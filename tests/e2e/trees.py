"""Looking at process trees from outside: what runs, what answers, what is left."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Long enough for a busy machine: what waits ends as soon as there is something to see.
WAIT_S = 180.0


def wait_for(what: str, check: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen in {within_s:.0f} s")


def answers(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.read().decode() or "empty"
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, with its command line."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
            found[int(entry.name)] = f"{parent} {command}"
    tree, grew = {pid}, True
    while grew:
        more = {child for child, line in found.items() if int(line.split()[0]) in tree}
        grew = not more <= tree
        tree |= more
    return {child: found[child] for child in tree - {pid} if child in found}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
