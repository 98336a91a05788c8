"""A server finishes erasures that were broken off."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop import server
from everloop.backends.blobs.local import LocalBlobs
from everloop.errors import BackendError
from tests.contracts.test_dataset_rows import KEYED, table
from tests.servers import serve


def test_a_server_finishes_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REAP_S", 0.05)
    erase = LocalBlobs.erase

    def broken(*_: Any) -> None:
        raise BackendError("broken off")

    with ev.open(tmp_path / ".everloop", actor="tester") as ws:
        ws.data.commit("d", table([(n, 0.0, "s") for n in range(9)]), schema=KEYED)
        old = ws.data.version("d").blocks[0].digest
        monkeypatch.setattr(LocalBlobs, "erase", broken)
        with pytest.raises(BackendError):
            ws.data.erase({"id": 7})
        monkeypatch.setattr(LocalBlobs, "erase", erase)
        with serve(ws) as url, ev.open(url) as remote:
            until = time.monotonic() + 30
            while not remote.data.receipts() and time.monotonic() < until:
                time.sleep(0.02)
            [receipt] = remote.data.receipts()
            assert remote.data.verify_receipt(receipt).is_good
            assert not ws.blobs.exists(old)
