"""Users and tokens, on each database: who may what, what is kept, and what the log says of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from everloop.access import secrets
from everloop.access.directory import Directory
from everloop.access.roles import RoleAuthorizer
from everloop.access.users import AccessService
from everloop.catalog.engine import Catalog
from everloop.core.access import Principal
from everloop.core.context import authenticated
from everloop.core.time import ManualClock
from everloop.errors import Conflict, InvalidInput, NotAllowed, NotFound, StateError

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick hash: how slow it is is not what is tried here."""
    monkeypatch.setattr(secrets, "_LOG_N", 4)


@pytest.fixture
def directory(catalog: Catalog) -> Directory:
    return Directory(catalog)


@pytest.fixture
def access(catalog: Catalog, directory: Directory, reach: Any) -> AccessService:
    made = AccessService(catalog, RoleAuthorizer(), directory)
    return reach(made)  # type: ignore[no-any-return]


@pytest.fixture
def ann(access: AccessService) -> Principal:
    access.create_user("ann", "admin", password=PASSWORD)
    return Principal("ann", "admin")


@pytest.fixture
def bob(access: AccessService, ann: Principal) -> Principal:
    access.create_user("bob", "contributor", password=PASSWORD)
    return Principal("bob", "contributor")


def kinds(catalog: Catalog) -> list[str]:
    return [event.kind for event in catalog.events()]


def test_what_changes_is_in_the_log_with_who_did_it_and_without_secrets(
    access: AccessService, ann: Principal, catalog: Catalog
) -> None:
    with authenticated(ann):
        access.create_user("bob", "viewer", password=PASSWORD)
        access.set_role("bob", "contributor")
        made = access.create_token("bob", note="ci")
        access.revoke_token(made.token.id)
        access.set_password("bob", "another long one")
        access.disable("bob", reason="left")
        access.disable("bob", False)
    events = catalog.events()
    assert [event.kind for event in events] == [
        "access.UserCreated",
        "access.UserCreated",
        "access.RoleChanged",
        "access.TokenCreated",
        "access.TokenRevoked",
        "access.PasswordChanged",
        "access.UserDisabled",
        "access.UserEnabled",
    ]
    assert {event.actor for event in events[1:]} == {"ann"}
    assert events[2].body == {"before": "viewer", "role": "contributor"}
    told = msgspec.json.encode(events).decode()
    for secret in (
        PASSWORD,
        "another long one",
        made.secret,
        "scrypt",
        secrets.token_digest(made.secret),
    ):
        assert secret not in told


def test_doing_it_again_changes_nothing(
    access: AccessService, ann: Principal, bob: Principal, catalog: Catalog
) -> None:
    before = kinds(catalog)
    access.set_role("bob", "contributor")
    access.disable("bob", False)
    assert kinds(catalog) == before
    made = access.create_token("bob")
    first = access.revoke_token(made.token.id)
    assert access.revoke_token(made.token.id) == first
    assert kinds(catalog).count("access.TokenRevoked") == 1


def test_the_first_user_must_be_an_admin(access: AccessService) -> None:
    with pytest.raises(InvalidInput, match="the first user must be an admin"):
        access.create_user("vic", "viewer", password=PASSWORD)
    assert access.users() == []


@pytest.mark.parametrize("name", [
    "", " ann", "ann ", "a:b", "loop:x", "a/b", "a\nb", "a\0b", "x" * 129, "ﬁt", "Ａnn", "a\u200bb",
])  # fmt: skip
def test_names_that_cannot_be_are_refused(access: AccessService, name: str) -> None:
    with pytest.raises(InvalidInput):
        access.create_user(name, "admin", password=PASSWORD)


@pytest.mark.parametrize("name", ["Łukasz", "Zoë & co", "ops@example.org", "x" * 128, "李雷"])
def test_names_of_people_are_taken(access: AccessService, name: str) -> None:
    assert access.create_user(name, "admin").name == name


def test_a_name_is_one_persons_for_ever(access: AccessService, ann: Principal) -> None:
    for name in ("ann", "Ann", "ANN"):
        with pytest.raises(Conflict) as caught:
            access.create_user(name, "admin")
        assert caught.value.details == {"winner": "ann"}


def test_one_name_is_made_once_however_many_try(access: AccessService, ann: Principal) -> None:
    ready = threading.Barrier(6)

    def make(number: int) -> bool:
        ready.wait(20)
        try:
            access.create_user("Bob" if number % 2 else "bob", "viewer")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(make, range(6))).count(True) == 1
    assert len(access.users()) == 2


def test_the_last_admin_cannot_be_shut_out(access: AccessService, ann: Principal) -> None:
    for change in (lambda: access.disable("ann"), lambda: access.set_role("ann", "viewer")):
        with pytest.raises(StateError, match="only admin"):
            change()
    access.create_user("eva", "admin")
    access.disable("ann")
    with pytest.raises(StateError, match="eva is the only admin"):
        access.set_role("eva", "maintainer")


def test_two_admins_who_shut_out_each_other_leave_one(
    access: AccessService, ann: Principal
) -> None:
    access.create_user("eva", "admin")
    ready = threading.Barrier(2)

    def shut_out(name: str) -> bool:
        ready.wait(20)
        try:
            access.disable(name)
        except StateError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(shut_out, ["ann", "eva"])) == [False, True]


def test_only_an_admin_manages_users(access: AccessService, bob: Principal) -> None:
    with authenticated(bob):
        for change in (
            lambda: access.create_user("eve", "admin"),
            lambda: access.set_role("bob", "admin"),
            lambda: access.disable("ann"),
            lambda: access.set_password("ann", "a password of mine"),
            lambda: access.create_token("ann"),
            lambda: access.tokens("ann"),
            lambda: access.users(),
        ):
            with pytest.raises(NotAllowed):
                change()


def test_ones_own_password_takes_the_one_before(access: AccessService, ann: Principal) -> None:
    with authenticated(ann):
        for wrong in ("", "wrong password"):
            with pytest.raises(NotAllowed, match="current password"):
                access.set_password("ann", "a new password", current=wrong)
        access.set_password("ann", "a new password", current=PASSWORD)


def test_a_token_sets_no_password_and_makes_no_token(
    access: AccessService, ann: Principal, bob: Principal
) -> None:
    with authenticated(Principal("ann", "admin", token="01J")):
        for change in (
            lambda: access.create_token(),
            lambda: access.create_token("bob"),
            lambda: access.set_password("ann", "a new password", current=PASSWORD),
            lambda: access.set_password("bob", "a new password"),
        ):
            with pytest.raises(NotAllowed, match="a token cannot"):
                change()


def test_tokens_are_ones_own_and_an_admin_sees_all(
    access: AccessService, ann: Principal, bob: Principal
) -> None:
    with authenticated(ann):
        of_ann = access.create_token(note="scraper", role="viewer").token
    with authenticated(bob):
        of_bob = access.create_token(role="admin", expires="2d")
        assert of_bob.token.role == "contributor"
        assert access.tokens() == [of_bob.token]
        with pytest.raises(NotFound):
            access.revoke_token(of_ann.id)
    assert of_bob.secret not in repr(of_bob)
    with authenticated(ann):
        assert access.tokens() == [of_ann, of_bob.token]
        assert access.tokens("bob") == [of_bob.token]
        access.revoke_token(of_bob.token.id)
    with authenticated(bob):
        assert access.tokens()[0].revoked_at is not None


def test_nobody_learns_names_by_a_near_miss(access: AccessService, bob: Principal) -> None:
    with authenticated(bob), pytest.raises(NotAllowed):
        access.tokens("an")
    with pytest.raises(NotFound, match="did you mean 'ann'"):
        access.set_role("anna", "viewer")


def test_bad_tokens_are_refused(access: AccessService, ann: Principal) -> None:
    for wrong in ({"expires": "soon"}, {"expires": "0d"}, {"note": "x" * 1001}, {"note": "a\nb"}):
        with pytest.raises(InvalidInput):
            access.create_token("ann", **wrong)
    with pytest.raises(InvalidInput, match="nobody is logged in"):
        access.create_token()
    with pytest.raises(NotFound):
        access.create_token("eve")


def test_only_digests_are_kept(access: AccessService, ann: Principal, catalog: Catalog) -> None:
    made = access.create_token("ann")
    from everloop.catalog.tables import principals, tokens

    with catalog.read() as tx:
        rows = [*tx.all(tokens.select()), *tx.all(principals.select())]
    assert made.secret not in str(rows)
    assert PASSWORD not in str(rows)


# The directory


def test_the_directory_sees_what_another_process_changed(
    access: AccessService, ann: Principal, bob: Principal, catalog: Catalog, clock: ManualClock
) -> None:
    other = Directory(catalog)
    made = access.create_token("bob", expires="1h")
    digest = secrets.token_digest(made.secret)
    bob_now = Principal("bob", "contributor", made.token.id)
    first = other.refresh()
    assert first.by_token(digest, clock.now()) == bob_now
    assert other.refresh() is first, "nothing changed, so nothing is read"
    access.set_role("bob", "viewer")
    assert other.refresh().by_token(digest, clock.now()) == Principal(
        "bob", "viewer", made.token.id
    )
    access.disable("bob")
    assert other.refresh().by_token(digest, clock.now()) is None
    access.disable("bob", False)
    again = other.refresh()
    assert again.by_token(digest, clock.now()) is not None
    clock.advance(hours=1)
    assert again.by_token(digest, clock.now()) is None, "it expired, with nothing read"
    clock.advance(hours=-1)
    access.revoke_token(made.token.id)
    assert other.refresh().tokens == {}


def test_what_this_process_changes_is_old_at_once(
    access: AccessService, ann: Principal, directory: Directory
) -> None:
    directory.refresh()
    assert directory.age_s < 5
    access.create_user("bob", "viewer")
    assert directory.age_s == float("inf")
    assert set(directory.refresh().accounts) == {"ann", "bob"}


def test_a_look_that_began_before_a_change_does_not_count(
    access: AccessService, ann: Principal, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.catalog import access as statements

    real = statements.load_principals

    def changed_meanwhile(tx: Any) -> Any:
        rows = real(tx)
        monkeypatch.setattr(statements, "load_principals", real)
        directory.expire()
        return rows

    monkeypatch.setattr(statements, "load_principals", changed_meanwhile)
    directory.refresh()
    assert directory.age_s == float("inf")


def test_looking_for_a_change_is_one_statement(
    access: AccessService, ann: Principal, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.catalog.transaction import Transaction

    directory.refresh()
    asked = []
    real = Transaction.first

    def counted(self: Transaction, statement: Any) -> Any:
        asked.append(statement)
        return real(self, statement)

    monkeypatch.setattr(Transaction, "first", counted)
    monkeypatch.setattr(Transaction, "all", lambda *_: pytest.fail("read again"))
    directory.refresh()
    assert len(asked) == 1
