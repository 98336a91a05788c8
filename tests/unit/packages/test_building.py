"""Packages of a project: what is packed, what is refused, and what of it runs where."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import everloop as ev
from everloop.automation import deploying, packaging
from everloop.automation.deploying import Deployer
from everloop.automation.packaging import Built, Contents, build_package
from everloop.automation.places import folder_of
from everloop.automation.triggers import collecting
from everloop.core.package import PACKAGE_TAG
from everloop.core.pipeline import PartChange
from everloop.core.policy import LoopSpec
from everloop.errors import Conflict, InvalidInput, NotFound, StateError, TooLarge, UserCodeError
from everloop.packages import environment
from everloop.packages.compare import compare
from everloop.packages.environment import differences, find_lock, pins, unpinned
from everloop.pipelines import snapshot
from everloop.pipelines.snapshot import read_tree
from everloop.pipelines.values import load
from everloop.tracking.surroundings import unknown_to_git
from everloop.workspace import Workspace

LOOP = """
import os
from pathlib import Path
import numpy
import everloop as ev
from shop.prices import price

@ev.step(memory="1 GB")
def hungry(amount: int) -> int:
    return amount

@ev.step
def total(amount: int) -> int:
    return int(numpy.int64(amount)) * price() + len(Path("query.sql").read_text())

@ev.pipeline
def night(amount: int, stop: bool = False) -> int:
    found = total(amount)
    if stop and os.environ.get("STOP"):
        raise ValueError("as asked")
    return found

ev.on(ev.schedule("0 3 * * *"), name="nightly", owner="ops").run(night, amount=2)
"""
PRICES = "def price():\n    return 3\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project").resolve()
    (folder / "shop").mkdir()
    for name, text in {
        "loop.py": LOOP,
        "shop/__init__.py": "",
        "shop/prices.py": PRICES,
        "shop/unused.py": "no = Python",
        "query.sql": "select 1",
        ".env": "TOKEN=secret",
        ".gitignore": "*.cache\nlocal.py\n.everloop\n",
        "requirements.lock": "# all of it\npolars==0.0.1\n",
    }.items():
        (folder / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b@c",
                  "commit", "-qm", "first"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def ws(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    monkeypatch.chdir(project)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with ev.open(tmp_path / ".everloop", actor="ann") as workspace:
        yield workspace


def files(ws: Workspace, built: Built) -> set[str]:
    return set(read_tree(ws.blobs.get(built.package.manifest.code)))


def test_a_package_holds_its_code_and_runs_it_wherever_the_working_tree_is(
    ws: Workspace, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_package(ws, Path("loop.py"), name="sales")
    assert (first.is_new, first.package.name) == (True, "sales")
    assert files(ws, first) == {"loop.py", "shop/__init__.py", "shop/prices.py", "query.sql"}
    made = first.package.manifest
    assert (made.entry, made.pipelines, made.memory) == ("loop.py", ("night",), 10**9)
    assert made.distributions.keys() == {"everloop", "numpy"}
    assert (made.lock_name, first.package.git["dirty"]) == ("requirements.lock", "no")
    assert [one.name for one in made.automations] == ["nightly"]
    (project / "README").write_text("of no interest")
    assert build_package(ws, Path("loop.py"), name="sales") == Built(
        package=first.package, is_new=False, left_out={}
    )

    (project / "shop" / "prices.py").write_text(PRICES.replace("3", "5"))
    second = build_package(ws, Path("loop.py"), name="sales")
    assert [one.part for one in compare(made, second.package.manifest, ws.blobs)] == [
        "file shop/prices.py"
    ]
    assert second.package.git["dirty"] == "yes"

    # Somewhere else, with another loop.py in the way.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").write_text("raise ImportError('the working tree')")
    runner = ws.loop_runner()
    deployer = Deployer(ws, ["sales@staging"])
    ws.packages.promote(first.package.ref, "staging", reason="r", force=True)

    def result() -> tuple[object, str]:
        ws.automation.fire("nightly")
        [done] = runner.tick().finished
        assert done.outcome == "done", done.reason
        run = ws.tracking.run(done.run_id)
        [step] = ws.pipelines.steps(run.id)
        memo = ws.pipelines.memo(step.key)
        assert memo is not None
        assert run.tags[PACKAGE_TAG].startswith("sales@")
        return load(memo.value, ws.blobs), run.code

    assert deployer.deploy() == [first.package]
    monkeypatch.setattr(deploying, "look_at", lambda entry, folder: seen())
    assert deployer.follow() == []
    assert result() == (14, made.code)
    ws.packages.promote("sales@dev", "staging", reason="r")
    assert deployer.follow() == [second.package]
    assert result() == (18, second.package.manifest.code)
    ws.packages.rollback("sales", "staging", reason="r")
    assert deployer.follow() == [first.package]
    # Somebody was at the unpacked code.
    folder = folder_of(first.package, ws.blobs)
    (folder / "shop" / "prices.py").write_text("def price(): return 0")
    assert result() == (14, made.code)
    assert (folder / "shop" / "prices.py").read_text() == PRICES

    # A run that stopped with one package goes on with it, whatever is deployed by then.
    path = ws.automation.automation("nightly").action.pipeline  # type: ignore[union-attr]
    monkeypatch.setenv("STOP", "yes")
    with (
        runner._places.loaded(path) as (pipeline, watcher),
        pytest.raises(UserCodeError, match="as asked"),
    ):
        pipeline.run_watched(watcher, {"amount": 1, "stop": True})
    monkeypatch.delenv("STOP")
    ws.packages.promote("sales@dev", "staging", reason="r")
    assert deployer.follow() == [second.package]
    newer = ws.automation.automation("nightly").action.pipeline  # type: ignore[union-attr]
    asked = f"{folder}/loop.py:night"  # where a run that waits for an approval says it stands
    with runner._places.loaded(asked, pipeline.run_id) as (waiting, _):
        assert waiting.name == "loop.night"
    with runner._places.loaded(newer, pipeline.run_id) as (resumed, _):
        assert resumed.run(resume=pipeline.run_id) == 11


def test_code_that_cannot_be_imported_by_itself_is_no_package(ws: Workspace, project: Path) -> None:
    (project / "bad.py").write_text("import shop\n\ndef f():\n    raise OSError('no')\n\nf()\n")
    with pytest.raises(UserCodeError, match=r"bad\.py.*line 4, in f(?s:.*)OSError: no"):
        build_package(ws, Path("bad.py"))
    (project / "config.json").write_text("{}")
    (project / "empty.py").write_text("import everloop as ev\n")
    with pytest.raises(InvalidInput, match="declares neither"):
        build_package(ws, Path("empty.py"))
    (project / "needs.py").write_text(
        "import everloop as ev\nopen('config.json')\n\n@ev.pipeline\ndef p():\n    return 1\n"
    )
    with pytest.raises(UserCodeError, match=r"No such file(?s:.*)config\.json"):
        build_package(ws, Path("needs.py"))
    with pytest.raises(NotFound, match="no file none"):
        build_package(ws, Path("none.py"))
    assert ws.packages.packages() == []


def seen(**changes: Any) -> Contents:
    made: dict[str, Any] = {"files": {}, "data": {}, "left_out": (), "outside": {}, "pipelines": ()}
    made |= {"loop_codes": {}, "distributions": (), "loops": (), "automations": (), "memory": 0}
    return Contents(**{**made, **changes})


def test_secrets_and_what_git_ignores_stay_behind(project: Path) -> None:
    for name in ("local.py", "big.cache", "server.pem"):
        (project / name).write_text("x")
    data = {name: str(project / name) for name in (".env", "big.cache", "query.sql", "server.pem")}
    packed, skipped = packaging._data(
        seen(data=data, left_out=("far.csv",)), (Path("query.sql"), Path("shop")), project, project
    )
    assert set(packed) == {"query.sql", "shop/__init__.py", "shop/prices.py", "shop/unused.py"}
    assert {Path(name).name: why for name, why in skipped.items()} == {
        ".env": "may hold a secret",
        "server.pem": "may hold a secret",
        "big.cache": "ignored by git",
        "far.csv": "larger than 16 MB, or not below the project",
    }
    wrong = seen(files={"local": str(project / "local.py")})
    include = (Path(".env"), Path("../elsewhere"), Path("/etc/passwd"))
    with pytest.raises(InvalidInput) as error:
        packaging._data(wrong, include, project, project)
    assert sorted((Path(f.path).name, f.message) for f in error.value.faults) == [
        (".env", "may hold a secret"),
        ("elsewhere", "is no file, and no folder with files"),
        ("local.py", "is a module that git ignores"),
        ("passwd", "lies outside of the current folder"),
    ]


def test_too_much_code_is_told_with_the_largest_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_CODE", 10)
    with pytest.raises(TooLarge, match=r"query\.sql: 0\.0 MB"):
        snapshot.check_size({"query.sql": str(project / "query.sql"),
                             "loop.py": str(project / "loop.py")}, "the package")  # fmt: skip


LOCKS = {
    "requirements.lock": b"NumPy==2.1 ; python_version >= '3.11' \\\n  --hash=sha256:ab\n"
    b"numpy==2.0 ; python_version < '3.11'\nrich[x] == 13.1 # why\nfree>=1\n-r other.txt\n",
    "uv.lock": b'version = 1\n[[package]]\nname = "numpy"\nversion = "2.1"\n'
    b'[[package]]\nname = "numpy"\nversion = "2.0"\n[[package]]\nname = "rich"\nversion = "13.1"\n'
    b'[[package]]\nname = "itself"\nsource = { virtual = "." }\n',
    "pylock.toml": b'[[packages]]\nname = "numpy"\nversion = "2.1"\n'
    b'[[packages]]\nname = "Numpy"\nversion = "2.0"\n[[packages]]\nname="rich"\nversion="13.1"\n',
}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_pin(name: str, tmp_path: Path) -> None:
    found = pins(name, LOCKS[name])
    assert found == {"numpy": {"2.1", "2.0"}, "rich": {"13.1"}}
    assert unpinned({"numpy": "2.0", "rich": "14", "other": "1"}, found) == (
        PartChange(part="rich", before="13.1", now="14"),
    )
    with pytest.raises(InvalidInput):
        pins(name, b"\xff[[package")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / name).write_bytes(LOCKS[name])
    assert find_lock(tmp_path / "a" / "b", tmp_path) == tmp_path / name
    assert find_lock(tmp_path / "a" / "b", tmp_path / "a") is None


def test_a_file_that_git_does_not_know_is_told_as_a_change(project: Path) -> None:
    known, unknown = str(project / "query.sql"), str(project / "unknown.sql")
    Path(unknown).touch()
    assert not unknown_to_git(project, [known, "/etc/passwd"])
    assert unknown_to_git(project, [known, unknown])
    assert not unknown_to_git(project.parent, [known, unknown])


def test_what_does_not_fit_is_refused_with_all_differences_before_anything_is_changed(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.packages.test_promotion import package

    with collecting():
        nightly = ev.on(ev.schedule("0 3 * * *"), name="nightly").run("loop.py:night")
    made = package(
        ws, "import everloop", python="2.7", memory=1 << 60, automations=(nightly,),
        distributions={"numpy": "0.1", "no-such-thing": "1", "everloop": ev.__version__},
    )  # fmt: skip
    found = {one.part: (one.before, one.now) for one in differences(made.manifest)}
    assert found.keys() == {"python", "numpy", "no-such-thing", "memory"}
    assert found["python"][0] == "2.7"
    assert found["no-such-thing"] == ("1", "absent")
    with pytest.raises(StateError) as error:
        Deployer(ws, ["delay@dev"]).deploy()
    assert all(part in str(error.value) for part in found)
    assert ws.automation.automations() == []
    with pytest.raises(InvalidInput, match="reason"):
        Deployer(ws, ["delay@dev"], allow_differences=True)
    with pytest.raises(InvalidInput, match="is given twice"):
        Deployer(ws, ["delay@dev", "delay@staging"])
    with pytest.raises(InvalidInput, match="no environment"):
        Deployer(ws, ["delay"])
    # One that follows stays as it was, and says so once.
    follower = Deployer(ws, ["delay@dev"])
    assert (follower.follow(), follower.follow()) == ([], [])

    monkeypatch.setattr(deploying, "look_at", lambda entry, folder: seen())
    allowed = Deployer(ws, ["delay@dev"], allow_differences=True, reason="only a test")
    assert allowed.deploy() == [made]
    [declared] = ws.automation.automations()
    assert declared.source == "package:delay"
    events = [e for e in ws.lineage.events() if e.kind.startswith("package.Deploy")]
    assert [e.kind for e in events] == ["package.DeployRefused", "package.Deployed"]
    assert events[1].body["reason"] == "only a test"
    assert len(events[1].body["differences"]) == 4
    # A supervisor that begins then has nothing to do, and one that was killed in between has.
    assert Deployer(ws, ["delay@dev"]).follow() == []
    ws.automation.automate(msgspec.structs.replace(declared, name="stale"))
    again = Deployer(ws, ["delay@dev"], allow_differences=True, reason="only a test")
    assert (again.follow(), again.follow()) == ([made], [])
    assert [one.name for one in ws.automation.automations()] == ["nightly"]
    monkeypatch.setattr(environment, "_memory", lambda: 1 << 61)
    # The next one declares it no more.
    package(ws, "import everloop.errors", python=environment.python_version(), distributions={})
    assert len(Deployer(ws, ["delay@dev"]).deploy()) == 1
    assert ws.automation.automations() == []
    ws.automation.declare(
        ev.loop(
            "nightly", owner="o", pipeline="loop.py:night", retrain_on=[ev.schedule("0 3 * * *")]
        )
    )
    package(ws, "again", python=environment.python_version(), distributions={},
            automations=(nightly,))  # fmt: skip
    with pytest.raises(Conflict, match="both be called nightly"):
        Deployer(ws, ["delay@dev"]).deploy()


def test_a_loop_that_is_declared_no_more_rests_until_it_is_again(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.packages.test_promotion import package

    monkeypatch.setattr(deploying, "look_at", lambda entry, folder: seen())
    deployer = Deployer(ws, ["delay@dev"], allow_differences=True, reason="only a test")
    with collecting():
        loop, other = (ev.loop(n, owner="o", pipeline="loop.py:night") for n in ("one", "other"))

    def paused(*loops: LoopSpec) -> dict[str, bool]:
        package(ws, "import everloop", loops=loops)
        deployer.follow()
        return {known.name: known.paused for known in ws.automation.loops()}

    assert paused(loop, other) == {"one": False, "other": False}
    assert paused(loop) == {"one": False, "other": True}
    assert paused(loop, other) == {"one": False, "other": False}
    ws.automation.pause("one", True, "a person says so")
    assert paused(other) == {"one": True, "other": False}
    assert paused(loop, other) == {"one": True, "other": False}
