"""What always holds for the tree as a whole. The floors themselves are checked by lint-imports."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import everloop

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 700
MOST_MODULES = 120
#: What a run needs as little of as an import does, and what each process would wait for.
NOT_TO_RUN = {"alembic", "email", "sqlalchemy", "statistics", "zipfile"}
HEAVY = {
    "duckdb",
    "lightgbm",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "sklearn",
    "sqlalchemy",
    "starlette",
}
CODE = {".css", ".html", ".js", ".py", ".sql"}
NOT_OURS = {".bench", ".everloop", ".git", ".venv", "__pycache__", "build", "dist"}

# A letter in brackets keeps a pattern from finding itself.
PLACES_OF_ONE_MACHINE = {
    "a package registry": re.compile(
        r"pypi[.](?:org|python)|pythonhoste[d]|npmj[s]|(?:deb|security)[.]debian[.]org"
        r"|(?<!\S)[-]-(?:extra-)?index-url"
    ),
    "a folder of one machine": re.compile(
        r"(?<![\w.~:/-])/(?:root|work|workspace|builds|home/\w+|Users/\w+)/|"
        + re.escape(f"{ROOT}/")
    ),
    "a tool of one workplace": re.compile(r"\bfa[r]m-"),
}


def tracked_files() -> Iterator[Path]:
    """Yield the files that git tracks or would; without git, all that are not made by tools."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        found = (path for path in ROOT.rglob("*") if not NOT_OURS & set(path.parts))
    else:
        found = (ROOT / name for name in done.stdout.split("\0") if name)
    yield from (path for path in found if path.is_file())


def in_fresh_python(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def test_no_file_is_too_long() -> None:
    folders = {"benchmarks", "examples", "src", "tests"}
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for path in tracked_files()
        if path.suffix in CODE and path.relative_to(ROOT).parts[0] in folders
    }
    assert lengths, "no file of ours was found"
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_leftover_of_a_run_is_tracked() -> None:
    ends = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".pack", ".lmdb", ".pyc")
    names = [path.relative_to(ROOT) for path in tracked_files()]
    left = [str(name) for name in names if name.name.endswith(ends) or ".bench" in name.parts[0]]
    assert left == []


def test_import_is_light() -> None:
    modules = in_fresh_python("import everloop, sys; print(*sys.modules)")
    assert len(modules) < MOST_MODULES
    assert HEAVY & set(modules) == set()


def test_pipeline_on_sqlite_runs_without_sqlalchemy(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(
        "import everloop as ev\n"
        "@ev.step\n"
        "def increase(x: int) -> int:\n    return x + 1\n"
        "@ev.pipeline\n"
        "def main() -> int:\n    return increase(increase(0))\n"
    )
    code = (
        f"import os, sys; sys.path.insert(0, {str(tmp_path)!r}); os.environ['EVERLOOP_DIR'] = "
        f"{str(tmp_path / 'ws')!r}; import flow; print(flow.main.run(), *sys.modules)"
    )
    assert "sqlalchemy" in in_fresh_python(code)  # it makes the tables
    result, *modules = in_fresh_python(code)
    assert result == "2"
    assert not [name for name in modules if name.partition(".")[0] in NOT_TO_RUN]


def test_tree_names_no_place_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # an image or the like
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number} names {what}"
            for number, line in enumerate(lines, 1)
            for what, pattern in PLACES_OF_ONE_MACHINE.items()
            if pattern.search(line)
        ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("https://" + "pypi" + ".org/simple", "a package registry"),
        ("--index" + "-url https://example.org", "a package registry"),
        ("path = '" + "/home" + "/ann/data'", "a folder of one machine"),
        (f"see {ROOT}/README.md", "a folder of one machine"),
        ("run farm" + "-tool", "a tool of one workplace"),
    ],
)
def test_places_of_one_machine_are_recognised(line: str, what: str) -> None:
    assert PLACES_OF_ONE_MACHINE[what].search(line)


@pytest.mark.parametrize("line", ["GET /api/builds/1", "chroot/x", "pip install everloop"])
def test_other_lines_are_left_alone(line: str) -> None:
    assert not any(pattern.search(line) for pattern in PLACES_OF_ONE_MACHINE.values())


def test_the_wheel_has_the_examples_that_the_demo_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    prefix = "everloop/examples/"
    tracked = [path for path in tracked_files() if path.is_relative_to(ROOT / "examples")]
    example = {str(path.relative_to(ROOT / "examples")): path.read_bytes() for path in tracked}
    with zipfile.ZipFile(wheel) as archive:
        shipped = {
            name.removeprefix(prefix): archive.read(name)
            for name in archive.namelist()
            if name.startswith(prefix)
        }
    assert shipped == example


def test_no_public_name_is_hidden_by_a_room_of_the_same_name() -> None:
    """Importing a package makes it an attribute of the one above, in place of a function there."""
    rooms = {path.parent.name for path in (ROOT / "src/everloop").glob("*/__init__.py")}
    hidden = {name for name in rooms & set(everloop.__all__) if not callable(_room(name))}
    assert not hidden


def _room(name: str) -> object:
    return importlib.import_module(f"everloop.{name}")
