"""Secrets are used by name: their values are not stored, in no key, and masked where shown."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import everloop
from everloop.core.secret import Secret
from everloop.errors import InvalidInput, NotFound
from everloop.pipelines import api as ev
from everloop.workspace import open_workspace

VALUE = "s3cr3t-value\nof-two-lines"
SCRIPT = """
    import logging
    import sys

    import everloop as ev

    TOKEN = ev.Secret("PROBE_TOKEN")


    @ev.step(retries=1)
    def leaks(where: str, token: ev.Secret) -> int:
        value = token.reveal()
        print("printed", value)
        sys.stderr.write(f"told {value}")
        logging.getLogger("probe").warning("logged %s", value)
        raise ValueError(f"refused {value}")


    @ev.step
    def uses() -> int:
        return len(TOKEN.reveal())


    @ev.pipeline
    def main(where: str, token: ev.Secret = TOKEN) -> int:
        if where == "fine":
            return uses()
        return leaks.submit(where, token).result() if where == "worker" else leaks(where, token)


    if __name__ == "__main__":
        logging.basicConfig(level="INFO", stream=sys.stdout)
        print("result", main.run(where=sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "leaky.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return file


def ran(script: Path, where: str, value: str = VALUE) -> str:
    environment = os.environ | {"EVERLOOP_DIR": str(script.parent / "ws"), "PROBE_TOKEN": value}
    done = subprocess.run(
        [sys.executable, str(script), where],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("where", ["here", "worker"])
def test_a_value_is_shown_nowhere(script: Path, where: str) -> None:
    said = ran(script, where)
    for line in ("printed ***", "told ***", "logged ***", "ValueError: refused ***"):
        assert line in said
    parts = [VALUE, *VALUE.splitlines()]
    assert not [part for part in parts if part in said]
    with open_workspace(script.parent / "ws") as workspace:
        [run] = workspace.tracking.runs().runs
        [row] = workspace.pipelines.steps(run.id)
        assert "refused ***" in run.error
        assert "refused ***" in row.error
        assert run.params["token"] == "PROBE_TOKEN"
        workspace.catalog.close()  # type: ignore[union-attr]
    kept = b"".join(f.read_bytes() for f in (script.parent / "ws").rglob("*") if f.is_file())
    assert b"PROBE_TOKEN" in kept
    assert not [part for part in parts if part.encode() in kept]


def test_another_value_is_a_hit(script: Path) -> None:
    assert "result 5" in ran(script, "fine", "short")
    assert "result 5" in ran(script, "fine", "another value")


@ev.step
def takes(token: Secret) -> str:
    return token.name


@ev.pipeline
def versions(version: str) -> str:
    return takes(Secret("TOKEN", version=version))


def test_another_version_is_a_miss(sqlite_workspace: Any) -> None:
    outcomes = []
    for version in ("1", "1", "2"):
        assert versions.run(version=version) == "TOKEN"
        outcomes += [row.outcome for row in sqlite_workspace.pipelines.steps(versions.run_id)]
    assert outcomes == ["ran", "cached", "ran"]


@ev.step
def returns() -> Secret:
    return Secret("TOKEN", version="3")


@ev.pipeline
def passes() -> str:
    return f"{returns()!r}"


def test_a_secret_is_stored_by_name(sqlite_workspace: Any) -> None:
    for _ in range(2):
        assert passes.run() == "Secret('TOKEN', version='3')"


def test_a_secret_without_a_value_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("NO_SUCH_TOKEN", value)
        with pytest.raises(NotFound, match="NO_SUCH_TOKEN") as caught:
            Secret("NO_SUCH_TOKEN").reveal()
        assert "set the environment variable" in caught.value.hint


@pytest.mark.parametrize("name", ["", "hunter2!", "a b", 5])
def test_a_value_in_place_of_the_name_is_refused_and_not_repeated(name: Any) -> None:
    with pytest.raises(InvalidInput, match="name of an environment variable") as caught:
        Secret(name)
    assert "hunter2" not in str(caught.value)


def test_secrets_are_equal_by_name_and_version() -> None:
    assert everloop.Secret is Secret
    one = Secret("A", version="1")
    assert pickle.loads(pickle.dumps(one)) == one == Secret("A", version="1")
    assert len({one, Secret("A", version="1"), Secret("A"), Secret("B")}) == 3
