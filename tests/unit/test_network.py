"""SQLite on a network file system: noticed, said, and kept without its log shared in memory."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

import pytest

import everloop as ev
from everloop.catalog import engine
from everloop.catalog.network import network_type

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw shared:2 - nfs4 server:/data rw
31 30 0:41 / /data/me/local rw - ext4 /dev/sdb1 rw
32 22 0:42 / /mnt/with\\040space rw - cifs //server/share rw
33 22 0:43 / /mnt/auto rw - autofs systemd-1 rw
34 33 0:44 / /mnt/auto rw - nfs server:/auto rw
35 22 0:45 / /mnt/ssh rw - fuse.sshfs me@server: rw
a line that is none
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", ""),
        ("/var/lib", ""),
        ("/data/me/project/.everloop", "nfs4"),
        ("/database", ""),
        ("/data/me/local/x", ""),
        ("/mnt/with space/x", "cifs"),
        ("/mnt/auto", "nfs"),
        ("/mnt/ssh/x", "fuse.sshfs"),
    ],
)
def test_kind_is_that_of_the_nearest_mount(folder: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert network_type(folder, mounts) == kind


def test_system_that_does_not_tell_is_taken_for_local(tmp_path: Path) -> None:
    assert network_type("/", tmp_path / "absent") == ""


def test_this_folder_is_local_and_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ev.open(tmp_path / ".everloop"):
        pass
    assert not caplog.records


def test_catalog_there_has_no_shared_log_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ev.open(tmp_path / ".everloop") as local:  # it was made on a local disk, and copied
        local.tracking.create_run("e")
    monkeypatch.setattr(engine, "network_type", lambda folder: "nfs4")
    with caplog.at_level(logging.WARNING), ev.open(tmp_path / ".everloop") as ws:
        assert "network file system (nfs4)" in caplog.text
        assert "PostgreSQL" in caplog.text

        def write() -> None:
            for _ in range(5):
                ws.tracking.create_run("e")

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(ws.tracking.runs().runs) == 21
    with sqlite3.connect(tmp_path / ".everloop" / "catalog.sqlite") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    raw.close()
