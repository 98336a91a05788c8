"""The command line as a person or a script meets it: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.core.context import using

LISTS = [["data", "list"], ["model", "list"], ["run", "list"], ["deploy", "status"], ["events"]]


def everloop(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "everloop", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    done = everloop("init", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = everloop("run", "loop.py:retrain", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_pipeline_that_ran_is_not_run_again(project: Path) -> None:
    done = everloop("run", "loop.py:retrain", "--json", cwd=project)
    document = json.loads(done.stdout)
    assert document["run"]["state"] == "finished"
    assert {step["outcome"] for step in document["steps"]} == {"cached"}


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_every_list_speaks_json_and_tabs(project: Path, command: list[str]) -> None:
    done = everloop(*command, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)
    piped = everloop(*command, cwd=project)
    assert piped.returncode == 0
    assert "\t" in piped.stdout.splitlines()[0]
    assert "\033" not in piped.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["data", "show", "row"], 5, "did you mean 'rows'"),
        (["model", "show", "my-modle/1"], 5, "my-model"),
        (["model", "show", "my-model/x"], 2, "write it as name/3"),
        (["run", "loop.py"], 2, "write it as loop.py:retrain"),
        (["model", "promote", "my-model/99", "--reason", "x"], 5, "99"),
        (["run", "show", "nothing"], 5, "nothing"),
        (["run", "loop.py:retrian"], 5, "retrain"),
        (["run", "nowhere.py:retrain"], 5, "nowhere.py"),
        (["run", "loop.py:retrain", "untill=2025-01-01"], 2, "until"),
        (["run", "loop.py:retrain", "until=soon"], 2, "no time"),
        (["why", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], 5, "01ARZ3"),
        (["story", "my-modl"], 5, "my-model"),
        (["lineage", "upstream", "my-model"], 2, "kind:name"),
        (["lineage", "downstream", "model:my-model/1", "--depth", "0"], 2, "depth"),
        (["lineage", "export", "--to", "http://"], 2, "no address"),
        (["dta", "list"], 2, "Did you mean 'data'"),
        (["server", "--host", "0.0.0.0"], 2, "everloop user add"),
        (["data", "list", "--dir", "ftp://x"], 2, "ftp"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_a_sentence_and_its_exit_code(
    project: Path, arguments: list[str], status: int, said: str
) -> None:
    done = everloop(*arguments, cwd=project)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status


def test_lineage_is_walked_both_ways(project: Path) -> None:
    done = everloop("lineage", "upstream", "model:my-model/1", "--json", cwd=project)
    found = json.loads(done.stdout)
    assert found["root"] == "model:my-model/1"
    assert {"ref": "dataset:rows@1", "depth": 2} in found["nodes"]
    piped = everloop("lineage", "downstream", "dataset:rows@1", cwd=project)
    rows = [line.split("\t") for line in piped.stdout.splitlines()]
    assert rows[0] == ["source", "was", "target"]
    assert {row[2] for row in rows} >= {"model:my-model/1"}
    nothing = everloop("lineage", "upstream", "run:none", cwd=project)
    assert (nothing.returncode, nothing.stdout) == (0, "source\twas\ttarget\n")
    assert "nothing is recorded" in nothing.stderr
    near = everloop("lineage", "upstream", "model:my-model/1", "--limit", "1", cwd=project)
    assert "there is more" in near.stderr


def test_log_is_exported_once_to_each_target(project: Path) -> None:
    whole = everloop("lineage", "export", cwd=project).stdout.splitlines()
    assert {"START", "COMPLETE"} <= {json.loads(line).get("eventType") for line in whole}
    env = {"EVERLOOP_OPENLINEAGE": "out.ndjson", "EVERLOOP_OPENLINEAGE_NAMESPACE": "mine"}
    for arguments, env_ in (((), env), (("--to", "out.ndjson"), {})):
        done = everloop("lineage", "export", *arguments, cwd=project, env=env_)
        assert done.returncode == 0, done.stderr
    lines = (project / "out.ndjson").read_text().splitlines()
    assert len(lines) == len(whole)
    assert json.loads(lines[0])["job"]["namespace"] == "mine"


def test_init_twice_changes_nothing(project: Path) -> None:
    before = (project / "loop.py").read_text()
    done = everloop("init", cwd=project)
    assert done.returncode == 6
    assert (project / "loop.py").read_text() == before


def test_init_elsewhere_says_where_to_go(tmp_path: Path) -> None:
    done = everloop("init", "my loop", cwd=tmp_path)
    assert "next:  cd 'my loop'   then   everloop run loop.py:retrain" in done.stderr
    assert "cd " not in everloop("init", cwd=tmp_path).stderr


def test_up_refuses_a_loop_file_that_is_not_there(tmp_path: Path) -> None:
    done = everloop("up", "loop.py", "--port", "0", cwd=tmp_path)
    assert done.returncode == 5
    assert "there is no file loop.py" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--dir", "full"], 6, "holds something else than a replay"),
        (["--dir", "full/file"], 2, "is a file, not a folder"),
        (["--dir", "http://127.0.0.1:1"], 2, "is no folder"),
        (["--until", "2013-03-31"], 2, "is no day of the replay"),
        (["--until", "soon"], 2, "is no time"),
        (["--http-every", "0"], 2, "--http-every"),
    ],
    ids=str,
)
def test_a_demo_that_cannot_be_says_why_and_touches_nothing(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    done = everloop("demo", *arguments, "--json", cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "full",
        "full/file",
    ]


def test_looking_does_not_make_a_workspace(tmp_path: Path) -> None:
    done = everloop("model", "list", cwd=tmp_path)
    assert done.returncode == 5
    assert "everloop init" in done.stderr
    assert not (tmp_path / ".everloop").exists()


def test_a_port_in_use_is_said(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = everloop("server", "--port", str(port), cwd=project)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_a_step_that_raises_shows_the_users_traceback_first_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    (tmp_path / "work.py").write_text(
        "import os\nimport everloop as ev\n\n"
        "@ev.step\ndef first() -> int:\n    return 1\n\n"
        "@ev.step(environment=['BROKEN'])\ndef second(x: int) -> int:\n"
        "    if os.environ.get('BROKEN'):\n        raise RuntimeError('out of cheese')\n"
        "    return x + 1\n\n"
        "@ev.pipeline\ndef work() -> int:\n    return second(first())\n"
    )
    done = everloop("run", "work.py:work", cwd=tmp_path, env={"BROKEN": "1"})
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: Traceback")
    assert "out of cheese" in done.stderr
    assert "everloop/pipelines" not in done.stderr
    runs = json.loads(everloop("run", "list", "--json", cwd=tmp_path).stdout)
    assert runs[0]["state"] == "failed"
    again = everloop("run", "work.py:work", "--resume", runs[0]["id"], "--json", cwd=tmp_path)
    document = json.loads(again.stdout)
    assert document["result"] == 2
    assert document["run"]["id"] == runs[0]["id"]


def test_a_fan_out_of_a_file_reaches_its_workers_and_can_be_forced(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("FACTOR = 2\n")
    (tmp_path / "work.py").write_text(
        "import os\nimport beside\nimport everloop as ev\n\n"
        "@ev.step\ndef double(x: int) -> dict[str, int]:\n"
        "    return {'value': x * beside.FACTOR, 'pid': os.getpid()}\n\n"
        "@ev.pipeline\ndef work(n: int) -> list[int]:\n"
        "    done = double.map(range(n))\n"
        "    return [sum(d['value'] for d in done), len({d['pid'] for d in done})]\n"
    )

    def outcomes(*options: str) -> set[str]:
        done = everloop("run", "work.py:work", "n=30", "--json", *options, cwd=tmp_path)
        document = json.loads(done.stdout)
        assert document["result"] == "[870, 1]", "one process did them all"
        return {step["outcome"] for step in document["steps"]}

    assert outcomes("--workers", "1") == {"ran"}
    assert outcomes() == {"cached"}
    assert outcomes("--force", "--workers", "1") == {"ran"}
    assert everloop("run", "work.py:work", "n=1", "--workers", "0", cwd=tmp_path).returncode == 2


def test_runs_are_compared_side_by_side(tmp_path: Path) -> None:

    with ev.open(tmp_path / ".everloop") as ws:
        ids = []
        for lr in (0.1, 0.2):
            with ev.run("e", params={"lr": lr, "same": 1}, workspace=ws) as run:
                run.log(auc=lr)
            ids.append(run.id)
    done = everloop("run", "compare", *ids, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert [found["id"] for found in document["runs"]] == ids
    assert {"param lr", "metric auc", "name"} <= set(document["differ"])
    assert not {"param same", "state"} & set(document["differ"])
    lines = everloop("run", "compare", *ids, cwd=tmp_path).stdout.splitlines()
    assert lines[0].split("\t")[1:] == ids
    assert "param lr\t0.1\t0.2" in lines
    assert "metric auc\t0.1\t0.2" in lines
    whole = everloop("run", "compare", "--experiment", "e", "--all", cwd=tmp_path).stdout
    assert "param same\t1\t1" in whole.splitlines()
    assert everloop("run", "compare", cwd=tmp_path).returncode == 2
    assert everloop("run", "compare", "nothing", cwd=tmp_path).returncode == 5


def test_a_directory_is_added_compared_and_checked_out(project: Path) -> None:
    source = project / "photos"
    (source / "cats").mkdir(parents=True)
    (source / "cats/1").write_bytes(b"one")

    def data(*arguments: str, code: int = 0) -> Any:
        done = everloop("data", *arguments, "--json", cwd=project)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    first = data("add", "photos", "--name", "photos", "--note", "first batch")
    assert (first["number"], first["kind"], first["files"], first["size"]) == (1, "directory", 1, 3)
    assert data("status", "photos", "photos") == []
    (source / "cats/\udcff").write_bytes(b"two")
    change = {"path": "cats/\\xff", "what": "added", "old_size": None, "new_size": 3}
    assert data("status", "photos", "photos@1", code=1) == [change]
    assert data("add", "photos", "--name", "photos")["number"] == 2
    assert data("diff", "photos@1", "photos@2") == [change]
    assert data("ls", "photos@1", "cats") == [{"path": "cats/1", "kind": "file", "size": 3}]
    assert data("checkout", "photos@2", "out") == {"written": 2, "removed": 0, "left": []}
    (project / "out/cats/1").write_bytes(b"mine")
    assert "cats/1" in data("checkout", "photos@1", "out", code=6)
    assert data("checkout", "photos@1", "out", "--force")["removed"] == 1

    def fsck(code: int) -> Any:
        done = everloop("fsck", "--read-data", "--json", cwd=project)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    assert fsck(0)["damaged"] == []
    for file in (project / ".everloop/objects").rglob("*"):
        if file.is_file() and b"two" in (stored := file.read_bytes()):
            file.write_bytes(stored.replace(b"two", b"twO"))
    assert ["photos@2/cats/\\xff"] in [bad["places"] for bad in fsck(1)["damaged"]]
    assert "no tag or branch of dataset photos called 'x'" in data("ls", "photos@x", code=5)
    assert "versions of two datasets" in data("diff", "photos@1", "rows@1", code=2)


def test_a_branch_in_conflict_is_told_and_decided(project: Path) -> None:
    fields = (ev.Field("id", "int64", nullable=False), ev.Field("x", "string"))
    schema = ev.Schema(fields, key=("id",))
    with ev.open(project / ".everloop") as ws, using(ws):
        ev.commit("loans", {"id": [1, 2], "x": ["a", "b"]}, schema=schema)
        ws.data.branch("loans", "fix")
        ev.commit("loans@fix", {"id": [1, 2], "x": ["theirs", "b"]})
        ev.commit("loans", {"id": [1, 2], "x": ["ours", "b"]})
    refused = everloop("data", "merge", "loans@fix", cwd=project)
    assert refused.returncode == 6
    assert "id 1 x: 'a' became 'ours' and 'theirs'" in refused.stderr
    done = everloop("data", "merge", "loans@fix", "--strategy", "theirs", cwd=project)
    assert '{"id": 1}\tx\ta\tours\ttheirs' in done.stdout.splitlines()
    log = json.loads(everloop("data", "log", "loans", "--all", "--json", cwd=project).stdout)
    assert [(v["number"], v["branch"], v["merged"]) for v in log] == [
        (4, "main", 2), (3, "main", 0), (2, "fix", 0), (1, "main", 0),
    ]  # fmt: skip
    exported = everloop("data", "export", "loans", "--to", "exported", "--json", cwd=project)
    assert json.loads(exported.stdout)["version"] == "loans@4"
    again = everloop("data", "export", "loans", "--to", "exported", cwd=project)
    assert (again.returncode, "export to a new folder" in again.stderr) == (6, True)
    assert everloop("data", "merge", "loans", cwd=project).returncode == 2
