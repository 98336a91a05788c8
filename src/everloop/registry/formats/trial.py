"""Lets a process of its own load a model file first: if the file ends that one, it ends no other.

For formats whose library follows the numbers of a file unseen, and which are not read here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict

from blake3 import blake3

from everloop.errors import InvalidInput

__all__ = ["survive"]

_TIMEOUT_S = 120
_MEMORY = 8 << 30
_KNOWN = 10_000
_TOO_LARGE = 7
#: What a child does before its work: no file of its memory if it dies, and not all memory there is.
_LIMITS = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, resource.getrlimit(resource.RLIMIT_AS)[1]))
data = sys.stdin.buffer.read()
try:
    exec(sys.argv.pop())
except MemoryError:
    sys.exit({_TOO_LARGE})
"""

_survived: OrderedDict[tuple[str, str], None] = OrderedDict()
_lock = threading.Lock()


def survive(code: str, data: bytes, argument: str, *, known: bool = False) -> None:
    """Have a child process run `code` over `data`, once in this process for the same bytes.

    Args:
        code: Python that works on ``data`` and ``sys.argv[1]``. What it raises does not count: the
            caller meets it too, as an error that can be caught.
        data: Bytes of a file.
        argument: Given to the code.
        known: Whether the bytes were just written by the library itself, and need no trial.

    Raises:
        InvalidInput: If the child was killed, crashed or did not end within two minutes.
    """
    key = (argument, blake3(data).hexdigest())
    with _lock:
        if key in _survived:
            return
    if not known:
        _try(code, data, argument)
    with _lock:
        _survived[key] = None
        if len(_survived) > _KNOWN:
            _survived.popitem(last=False)


def _try(code: str, data: bytes, argument: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _LIMITS, argument, code]
    try:
        done = subprocess.run(
            command,
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(
            f"the file was still being loaded after {_TIMEOUT_S} seconds",
            hint="it is damaged, or crafted to keep a server busy",
        ) from None
    if done.returncode == _TOO_LARGE:
        raise InvalidInput(f"the file asks for more than {_MEMORY >> 30} GiB of memory")
    if done.returncode < 0:
        raise InvalidInput(
            f"the file ends the process that loads it (signal {-done.returncode})",
            hint="it is damaged or crafted: restore it from a copy, or train the model again",
        )
