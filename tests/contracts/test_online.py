"""The online store in LMDB: the contract, and what only processes and full maps can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from everloop.backends.online.lmdb import LmdbOnline
from everloop.errors import BackendError, StateError
from everloop.testing.online import OnlineStoreContract


class TestLmdbOnline(OnlineStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Callable[[], LmdbOnline]:
        return lambda: LmdbOnline(tmp_path / "online")


def test_full_map_grows(tmp_path: Path) -> None:
    store = LmdbOnline(tmp_path, first_size=1 << 16)
    values = {str(n).encode(): bytes([n]) * 20_000 for n in range(60)}
    store.write({"v": values})
    assert store.read("v", list(values)) == list(values.values())
    store.close()


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys\nfrom everloop.backends.online.lmdb import LmdbOnline\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_reader_follows_a_map_that_another_process_made_larger(tmp_path: Path) -> None:
    LmdbOnline(tmp_path, first_size=1 << 16).close()
    reader = run(
        "store = LmdbOnline(sys.argv[1], readonly=True, first_size=1 << 16)\n"
        "print(store.read('v', [b'59']), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(len(store.read('v', [b'59'])[0]), flush=True)\n",
        tmp_path,
    )
    assert said(reader) == "[None]"
    store = LmdbOnline(tmp_path, first_size=1 << 16)
    store.write({"v": {str(n).encode(): bytes(20_000) for n in range(60)}})
    assert reader.stdin is not None
    print(file=reader.stdin, flush=True)
    assert said(reader) == "20000"
    reader.communicate()
    store.close()


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    writer = run(
        "store = LmdbOnline(sys.argv[1])\n"
        "for n in range(10**9):\n"
        "    store.write({'v': {b'n': str(n).encode(), b'm': str(n).encode() * 500}})\n"
        "    print(n, flush=True)\n",
        tmp_path,
    )
    acknowledged = [int(said(writer)) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.stdout is not None
    rest = [line for line in writer.stdout.read().split("\n")[:-1] if line]
    writer.communicate()
    last = int(rest[-1]) if rest else acknowledged[-1]
    store = LmdbOnline(tmp_path)
    number, copies = store.read("v", [b"n", b"m"])
    assert number is not None
    assert int(number) >= last
    assert copies == number * 500
    store.write({"v": {b"n": b"again"}})
    assert store.read("v", [b"n"]) == [b"again"]
    store.close()


def test_reader_that_was_killed_does_not_block_the_writer(tmp_path: Path) -> None:
    LmdbOnline(tmp_path).close()
    reader = run(
        "store = LmdbOnline(sys.argv[1], readonly=True)\n"
        "print(store.read('v', [b'a']), flush=True)\nsys.stdin.readline()\n",
        tmp_path,
    )
    said(reader)
    os.kill(reader.pid, signal.SIGKILL)
    reader.communicate()
    store = LmdbOnline(tmp_path)
    store.write({"v": {b"a": b"1"}})
    assert store.read("v", [b"a"]) == [b"1"]
    store.close()


def test_handle_survives_a_fork(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "store = LmdbOnline(sys.argv[1])\n"
        "store.write({'v': {b'a': b'1'}})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    ok = store.read('v', [b'a']) == [b'1']\n"
        "    store.write({'v': {b'b': b'2'}})\n"
        "    os._exit(0 if ok else 1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "print(status, store.read('v', [b'a', b'b']), flush=True)\n"
    )
    process = run(code, tmp_path)
    out, _ = process.communicate()
    assert out.strip() == "0 [b'1', b'2']"


def test_reading_handle_refuses_to_write(tmp_path: Path) -> None:
    store = LmdbOnline(tmp_path, readonly=True)
    with pytest.raises(StateError, match="read only"):
        store.write({"v": {b"a": b"1"}})
    with pytest.raises(StateError, match="read only"):
        store.clear("v")
    store.close()


def test_closed_handle_says_so(tmp_path: Path) -> None:
    store = LmdbOnline(tmp_path)
    store.close()
    with pytest.raises(StateError, match="is closed"):
        store.read("v", [b"a"])


def test_folder_that_is_a_file_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("")
    with pytest.raises(BackendError, match="cannot open the online store"):
        LmdbOnline(tmp_path / "online")
