"""``everloop user`` and ``everloop token``, and where a server may listen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from tests.servers import serve

PASSWORD = "correct horse battery"


def everloop(
    folder: Path, *arguments: str, status: int = 0, text: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "everloop", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, input=text,
        env={**os.environ, "NETRC": str(folder / "none"), **env},
    )  # fmt: skip
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def document(folder: Path, *arguments: str, text: str = "", **env: str) -> Any:
    return json.loads(everloop(folder, *arguments, "--json", text=text, **env).stdout)


def test_users_and_tokens_from_a_shell(tmp_path: Path) -> None:
    made = document(
        tmp_path, "user", "add", "ann", "--role", "admin", "--password-stdin", text=f"{PASSWORD}\n"
    )
    assert made["user"]["name"] == "ann"
    assert "password" not in made
    made = document(tmp_path, "user", "add", "bob", "--role", "viewer", "--generate-password")
    assert len(made["password"]) == 29
    everloop(tmp_path, "user", "role", "bob", "maintainer")
    everloop(tmp_path, "user", "disable", "bob", "--reason", "left")
    assert [(u["name"], u["role"], u["disabled"]) for u in document(tmp_path, "user", "list")] == [
        ("ann", "admin", False),
        ("bob", "maintainer", True),
    ]
    everloop(tmp_path, "user", "disable", "bob", "--undo")
    everloop(tmp_path, "user", "password", "bob", "--generate-password")
    token = document(tmp_path, "token", "create", "--user", "bob", "--expires", "1d")
    [listed] = document(tmp_path, "token", "list")
    assert listed == token["token"]
    assert document(tmp_path, "token", "revoke", listed["id"])["revoked_at"]
    told = everloop(tmp_path, "events", "--json").stdout
    assert token["secret"] not in told
    roles = document(tmp_path, "user", "roles")
    assert roles["model:promote"] == ["maintainer", "admin"]


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (("user", "add", "vic", "--role", "viewer", "--no-password"), 2, "first user must be an admin"),
    (("user", "add", "ann", "--role", "root", "--no-password"), 2, "not one of"),
    (("user", "add", "a:b", "--role", "admin", "--no-password"), 2, "must not hold"),
    (("user", "add", "ann", "--role", "admin"), 2, "--password-stdin"),
    (("user", "add", "ann", "--role", "admin", "--password-stdin"), 2, "at least 12"),
    (("user", "role", "eve", "viewer"), 5, "no"),
    (("token", "revoke", "x"), 5, "no"),
    (("server", "--host", "0.0.0.0", "--port", "0"), 2, "everloop user add NAME --role admin"),
    (("up", "--host", "::", "--port", "0"), 2, "--allow-anonymous"),
    (("server", "--host", "example.org"), 2, "no address"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = everloop(tmp_path, *arguments, status=status, text="short\n")
    assert said in done.stderr
    assert "short" not in done.stderr.replace("shorter", "")
    if arguments[0] in ("server", "up"):  # what was refused made nothing
        assert not (tmp_path / ".everloop").exists()


def test_commands_log_in_to_a_server(tmp_path: Path) -> None:
    with ev.open(tmp_path / ".everloop") as workspace:
        workspace.access.create_user("ann", "admin", password=PASSWORD)
        workspace.access.create_user("vic", "viewer", password=PASSWORD)
        with serve(workspace) as url:
            host, secret = url.removeprefix("http://"), PASSWORD.replace(" ", "%20")
            ann, vic = (f"http://{name}:{secret}@{host}" for name in ("ann", "vic"))
            done = everloop(tmp_path, "model", "list", "--dir", url, status=4)
            assert "EVERLOOP_TOKEN" in done.stderr
            for shown in (("model", "list"), ("run", "list"), ("data", "list"), ("events",)):
                everloop(tmp_path, *shown, "--dir", vic)
            everloop(tmp_path, "user", "list", "--dir", vic, status=4)
            made = document(tmp_path, "token", "create", "--dir", ann)
            token = {"EVERLOOP_TOKEN": made["secret"]}
            everloop(tmp_path, "user", "list", "--dir", url, **token)
            everloop(tmp_path, "token", "create", "--dir", url, status=4, **token)
            everloop(tmp_path, "token", "revoke", made["token"]["id"], "--dir", url, **token)
            everloop(tmp_path, "user", "list", "--dir", url, status=4, **token)
            own = ("user", "password", "vic", "--password-stdin", "--dir", vic)
            everloop(tmp_path, *own, text="another long one\n", status=4)
            everloop(tmp_path, *own, text="wrong password\nanother long one\n", status=4)
            everloop(tmp_path, *own, text=f"{PASSWORD}\nanother long one\n")
            everloop(tmp_path, "model", "list", "--dir", vic, status=4)
            vic = f"http://vic:another%20long%20one@{host}"
            change = ("user", "role", "vic", "contributor")
            done = everloop(tmp_path, *change, "--dir", vic, status=4)
            assert "vic (viewer) may not user:write" in done.stderr
            assert PASSWORD not in done.stderr
            assert secret not in done.stderr
