"""What a run records of the machine and the repository it ran on."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from everloop.backends.blobs.local import LocalBlobs
from everloop.errors import InvalidInput
from everloop.experiments import system
from everloop.experiments.describe import command_line
from everloop.experiments.system import SystemMetrics, read_system
from everloop.tracking.surroundings import diff_of, git_of


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_uncommitted_changes_are_kept(tmp_path: Path) -> None:
    blobs, repository = LocalBlobs(tmp_path / "objects"), tmp_path / "project"
    repository.mkdir()
    assert git_of(repository) == {}
    assert diff_of(repository, blobs) == ""
    git(repository, "init", "-b", "main")
    (repository / "train.py").write_text("lr = 1\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "first")
    assert git_of(repository)["dirty"] == "no"
    assert diff_of(repository, blobs) == ""
    (repository / "train.py").write_text("lr = 2\n")
    found = git_of(repository)
    assert (found["dirty"], found["branch"], len(found["commit"])) == ("yes", "main", 40)
    diff = blobs.get(diff_of(repository, blobs)).decode()
    assert "-lr = 1\n+lr = 2\n" in diff


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["python", "train.py", "--lr", "0.1"], "python train.py --lr 0.1"),
        (
            ["p", "--api-key=abc", "--db-password", "x y", "z"],
            "p --api-key=*** --db-password *** z",
        ),
        (["p", "TOKEN=abc", "a b"], "p TOKEN=*** 'a b'"),
        (["p", "--secret", "--lr", "1"], "p --secret --lr 1"),
    ],
)
def test_command_line_hides_secrets(given: list[str], shown: str) -> None:
    assert command_line(given) == shown


STAT = "cpu  {} 0 0 {} 0 0 0 0 0 0\n"
NET = "a\nb\n  lo: 9 9 0 0 0 0 0 0 9 9\n  eth0: {} 1 0 0 0 0 0 0 {} 1\n"


def machine(folder: Path, busy: int, idle: int, received: int, sent: int) -> None:
    (folder / "net").mkdir(exist_ok=True)
    (folder / "stat").write_text(STAT.format(busy, idle))
    (folder / "net" / "dev").write_text(NET.format(received, sent))
    (folder / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 250 kB\n")


def test_system_metrics_are_those_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_PROC", tmp_path)
    machine(tmp_path, 100, 100, 0, 0)
    before = system._counters()
    machine(tmp_path, 130, 110, 2_000_000, 500_000)
    found = read_system(before, system._counters(), tmp_path)
    assert found["system/cpu_utilization_percentage"] == pytest.approx(75)
    assert found["system/system_memory_usage_percentage"] == pytest.approx(75)
    assert found["system/system_memory_usage_megabytes"] == pytest.approx(0.768)
    assert found["system/network_receive_megabytes"] == pytest.approx(2)
    assert found["system/network_transmit_megabytes"] == pytest.approx(0.5)
    assert 0 < found["system/disk_usage_percentage"] <= 100


def test_without_proc_the_own_process_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_PROC", tmp_path / "nothing")
    found = read_system(system._counters(), system._counters(), tmp_path)
    assert found["system/process_memory_peak_megabytes"] > 1
    assert "system/network_receive_megabytes" not in found


def test_system_metrics_come_by_step_until_closed(tmp_path: Path) -> None:
    steps: list[int] = []
    enough = threading.Event()

    def log(metrics: dict[str, Any], *, step: int) -> None:
        assert all(name.startswith("system/") for name in metrics)
        steps.append(step)
        if step == 2:
            enough.set()

    metrics = SystemMetrics(log, 0.001, tmp_path)
    assert enough.wait(120)
    metrics.close()
    assert steps == list(range(len(steps)))
    with pytest.raises(InvalidInput, match="above 0"):
        SystemMetrics(log, 0, tmp_path)
