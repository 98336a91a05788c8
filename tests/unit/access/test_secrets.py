"""What is kept of passwords and tokens tells nothing; a wrong one costs as much as a right one."""

from __future__ import annotations

import hashlib
import re
from unittest import mock

import pytest

from everloop.access import secrets
from everloop.errors import InvalidInput

GOOD = "correct horse battery"


def test_a_password_matches_what_was_kept_of_it_and_nothing_else() -> None:
    kept = secrets.hash_password(GOOD)
    assert secrets.matches(GOOD, kept)
    assert not secrets.matches(GOOD + " ", kept)
    assert not secrets.matches("", kept)
    assert GOOD not in kept
    assert secrets.hash_password(GOOD) != kept


def test_the_cost_is_written_down_and_what_the_page_says() -> None:
    assert secrets.hash_password(GOOD).startswith("scrypt$15$8$3$")


def test_nobody_costs_what_somebody_does() -> None:
    asked = []
    kept = secrets.hash_password(GOOD)
    real = hashlib.scrypt

    def counted(*args: object, **options: object) -> bytes:
        asked.append((options["n"], options["r"], options["p"], options["dklen"]))
        return real(*args, **options)  # type: ignore[arg-type]

    with mock.patch.object(hashlib, "scrypt", counted):
        assert not secrets.matches("wrong password", kept)
        assert not secrets.matches("wrong password", "")
    assert len(asked) == 2
    assert asked[0] == asked[1]


@pytest.mark.parametrize("password", [
    "", "short", "eleven char", "aaaaaaaaaaaaaaaa", "abcabcabcabcabc", "x" * 1025,
    "new\nline in it", "nul\0nul\0nul\0nul", "half \ud800 a pair of", "Somebody@example.org",
])  # fmt: skip
def test_bad_passwords_are_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        secrets.check_password("somebody@example.org", password)
    if password:
        assert password not in str(caught.value)


def test_long_and_foreign_passwords_are_good() -> None:
    for password in ("пароль для входа", "a phrase " * 100, secrets.new_password()):
        secrets.check_password("ann", password)


def test_tokens_are_known_by_their_form_and_never_twice() -> None:
    tokens = {secrets.new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    for token in tokens:
        assert re.fullmatch(r"evl_[0-9A-Za-z]{49}", token)
    digest = secrets.token_digest(token)
    assert len(digest) == 64
    assert secrets.token_digest(token) == digest


def test_generated_passwords_have_enough_in_them() -> None:
    made = {secrets.new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) == 29 for password in made)
