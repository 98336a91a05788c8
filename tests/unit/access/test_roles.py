"""The table of rights is whole: every action that a service declares, once, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import everloop as ev
from everloop.access.roles import RIGHTS, ROLE_OF, RoleAuthorizer, is_allowed
from everloop.access.service import Service, action, actions_of
from everloop.core.access import RANKS, ROLES, Principal, lower_role
from everloop.core.context import acting, authenticated, current_actor
from everloop.errors import NotAllowed
from everloop.workspace import AREAS

#: Asked by a door itself, as inference calls no service, or within a method about its rows.
OF_DOORS = {"prediction:ask", "dataset:read-personal"}


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    with ev.open(tmp_path_factory.mktemp("roles") / ".everloop") as ws:
        return {needed for area in AREAS for needed in actions_of(type(ws.service(area))).values()}


def test_every_declared_action_is_in_the_table_and_no_other(declared: set[str]) -> None:
    assert set(ROLE_OF) == declared | OF_DOORS


def test_every_action_is_listed_once() -> None:
    listed = Counter(name for rights in RIGHTS.values() for name in rights)
    assert {name for name, times in listed.items() if times > 1} == set()
    assert list(RIGHTS) == list(ROLES)


@pytest.mark.parametrize("role", [*ROLES, "", "root"])
def test_each_role_may_what_the_table_says_and_no_more(role: str) -> None:
    for name, needed in ROLE_OF.items():
        principal = Principal("ann", role)  # type: ignore[arg-type]
        expected = role in ROLES and RANKS[role] >= RANKS[needed]
        assert is_allowed(role, name) is expected
        if expected:
            RoleAuthorizer().authorize(principal, name, "x")
        else:
            with pytest.raises(NotAllowed, match=f"ann .* may not {name} on 'x'"):
                RoleAuthorizer().authorize(principal, name, "x")


def test_viewers_change_nothing() -> None:
    verbs = {name.split(":")[1] for name in RIGHTS["viewer"]}
    # Reaping notes what the catalog's clock has decided already, and every listing of runs does it.
    assert verbs == {"read", "ask", "own", "reap"}


def test_what_could_rewrite_who_did_what_takes_an_admin() -> None:
    for name in ROLE_OF:
        if name.endswith(":import") or name in ("user:write", "workspace:collect"):
            assert ROLE_OF[name] == "admin"


def test_what_is_not_in_the_table_is_allowed_to_nobody() -> None:
    assert not is_allowed("admin", "door:burn")
    with pytest.raises(NotAllowed):
        RoleAuthorizer().authorize(Principal("ann", "admin"), "door:burn", "")


class Thing(Service):
    area = "thing"

    def __init__(self) -> None:
        self._authorizer = RoleAuthorizer()

    @action("model:write", on="name")
    def change(self, name: str) -> str:
        return current_actor()


def test_a_principal_is_asked_for_and_a_program_of_ones_own_is_not() -> None:
    thing = Thing()
    with acting(actor="script"):
        assert thing.change("m") == "script"
        with authenticated(Principal("ann", "contributor")):
            assert thing.change("m") == "ann"
        with authenticated(Principal("vic", "viewer")), pytest.raises(NotAllowed):
            thing.change("m")
        with authenticated(Principal("nobody")), pytest.raises(NotAllowed):
            thing.change("m")


def test_nobody_can_state_another_name_once_authenticated() -> None:
    with authenticated(Principal("ann", "admin")), acting(actor="eve"):
        assert current_actor() == "ann"
        with authenticated(None):
            assert current_actor() == "eve"
    assert current_actor() == ""


@pytest.mark.parametrize(("one", "other", "lower"), [
    ("viewer", "admin", "viewer"), ("admin", "viewer", "viewer"), ("admin", "admin", "admin"),
])  # fmt: skip
def test_a_token_may_no_more_than_its_user(one: str, other: str, lower: str) -> None:
    assert lower_role(one, other) == lower  # type: ignore[arg-type]


def test_the_guide_has_no_table_of_its_own() -> None:
    """It would grow old: it names the command that prints this one."""
    guide = Path(__file__).parents[3] / "docs" / "guide" / "access.md"
    assert "everloop user roles" in guide.read_text()


def test_no_door_changes_threads_without_who_asks() -> None:
    """An executor forgets the context, and without a principal everything is allowed."""
    source = Path(ev.__file__).parent
    for file in [*source.glob("api/*.py"), *source.glob("ui/*.py"), source / "server.py"]:
        hops = re.findall(r"run_in_executor\((.*?)\)", file.read_text(), flags=re.DOTALL)
        assert all("context.run" in hop for hop in hops), file
