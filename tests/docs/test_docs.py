"""Every command in the documentation is run, and every promise names a test that exists."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import everloop as ev
from everloop.backends.blobs.s3_bucket import Bucket
from everloop.cli.main import main
from everloop.core.artifact import ModelArtifact
from everloop.core.gate import Gate, GateResult, Verdict

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
# `everloop up` runs until it is stopped: tests/e2e/test_up.py runs it.
RUNS_ON = "everloop up"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line[2:].split("   #")[0] for line in lines if line.startswith("$ ")]


def files(page: Path) -> dict[str, str]:
    """The programs of a page: blocks of Python that begin with their file's name."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return {block.split()[1]: block for block in blocks if re.match(r"# \w+\.py\n", block)}


def prepare_mlflow(folder: Path) -> None:
    """A store of MLflow's, and a workspace that came from elsewhere."""
    run = folder / "mlruns" / "1" / ("a" * 32)
    run.mkdir(parents=True)
    (run.parent / "meta.yaml").write_text("experiment_id: '1'\nname: first\n")
    (run / "meta.yaml").write_text(f"run_id: {run.name}\nstatus: 3\n")
    with ev.open(folder / "cluster" / ".everloop") as cluster:
        cluster.tracking.create_run("of a cluster")


def prepare_registry(folder: Path) -> None:
    """Seven versions of a model: the sixth is champion, the seventh passed its gates."""
    gates = (
        Gate(kind="beats_champion", metric="brier"),
        Gate(kind="no_group_worse", metric="tpr", group="region"),
    )
    results = tuple(
        GateResult(gate=gate, passed=True, estimate=0, low=0, high=0, rows=9, reason="seen")
        for gate in gates
    )
    with ev.open(folder / ".everloop", actor="the maker") as ws:
        for number in range(1, 8):
            files = {"model.txt": str(number).encode()}
            ws.registry.register("churn", ModelArtifact(flavor="lightgbm", files=files))
        ws.registry.set_alias("churn", "champion", 6)
        ws.evaluation.record(
            Verdict(
                id="v", model="churn", candidate=7, champion=6, passed=True,
                results=results, at=ws.clock.now(),
            )
        )  # fmt: skip


def prepare_gates(folder: Path) -> None:
    """A second version of a model that was judged against the first."""
    with ev.open(folder / ".everloop", actor="the maker") as ws:
        for number in (1, 2):
            files = {"model.txt": str(number).encode()}
            ws.registry.register("flights-delay", ModelArtifact(flavor="lightgbm", files=files))
        result = GateResult(
            gate=ev.beats_champion("brier"), passed=False, estimate=4e-4, low=-5e-4, high=1e-3,
            rows=12561, reason="brier is not shown to be better", answer="refused",
        )  # fmt: skip
        ws.evaluation.record(
            Verdict(
                id="v", model="flights-delay", candidate=2, champion=1, passed=False,
                results=(result,), holdout={"rows": 12561, "days": 14}, at=ws.clock.now(),
            )
        )  # fmt: skip


def prepare_files(folder: Path) -> None:
    """A directory of images."""
    for name in ("cats/1", "cats/2", "dogs/1"):
        file = folder / "images" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())


def prepare_s3(folder: Path) -> None:
    """The bucket of the page; the server of the tests is in the environment."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with contextlib.suppress(urllib.error.HTTPError):  # it is there already
        urllib.request.urlopen(
            urllib.request.Request(f"{endpoint}/ml-team", method="PUT"), timeout=30
        ).close()
    bucket = Bucket("s3://ml-team", endpoint=endpoint)
    bucket.delete([entry.key for entry in bucket.list("")])


def prepare_dvc(folder: Path) -> None:
    """A DVC repository of two commits, with what DVC would have in its cache."""
    repo = folder / "repo"
    cache = repo / ".dvc/cache/files/md5"

    def put(data: bytes, end: str = "") -> str:
        digest = hashlib.md5(data).hexdigest()
        file = cache / digest[:2] / (digest[2:] + end)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return digest + end

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *words], cwd=repo, check=True, capture_output=True)

    (repo / "data").mkdir(parents=True)
    git("init", "-q")
    for tag, names in (("v1", ("1", "2")), ("v2", ("1", "3"))):
        items = [{"md5": put(n.encode()), "relpath": f"cats/{n}.jpg"} for n in names]
        out = f"md5: {put(json.dumps(items).encode(), '.dir')}\n  hash: md5\n  path: images\n"
        (repo / "data/images.dvc").write_text(f"outs:\n- {out}")
        git("add", "data")
        git("commit", "-qm", tag)
        git("tag", tag)


PREPARED: dict[str, Callable[[Path], None]] = {
    "coming-from-dvc": prepare_dvc,
    "coming-from-mlflow": prepare_mlflow,
    "files": prepare_files,
    "gates": prepare_gates,
    "registry": prepare_registry,
    "s3": prepare_s3,
}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_work_one_after_the_other(
    tmp_path: Path, page: Path, request: pytest.FixtureRequest
) -> None:
    if page.stem == "s3":
        request.getfixturevalue("s3")  # how to get there
    PREPARED.get(page.stem, lambda folder: None)(tmp_path)
    for name, text in files(page).items():
        (tmp_path / name).write_text(text)
    ran = 0
    for command in commands(page):
        if command.startswith(RUNS_ON):
            continue
        words = shlex.split(command)
        assert words[0] in ("everloop", "python")
        # Two people: who approves a version is not who moves the alias.
        actor = "a reviewer" if "approve" in words else "an engineer"
        done = subprocess.run(
            [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])],
            cwd=tmp_path,
            env={**os.environ, "EVERLOOP_ACTOR": actor},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran += 1
    assert ran >= 3


def test_the_commands_of_the_readme_are_known() -> None:
    for command in commands(ROOT / "README.md"):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        elif words[0] == "everloop":
            assert words[1] in main.list_commands(None)  # type: ignore[arg-type]
        else:
            assert words[0] == "cd"


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reference" / "promises.md").read_text()
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert len(named) >= 10
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_public_names_are_listed_once_and_load() -> None:
    assert sorted(ev.__all__) == ev.__all__
    assert set(ev.__all__) == {*ev._HOMES, "__version__"}
    for name in ev.__all__:
        assert getattr(ev, name) is not None
