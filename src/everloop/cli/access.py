"""``everloop user`` and ``everloop token``: who may log in, and what they may do."""

from __future__ import annotations

import sys

import click

from everloop.access.roles import RIGHTS, is_allowed
from everloop.access.secrets import new_password
from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.access import ROLES, Role, User
from everloop.errors import InvalidInput

__all__ = ["token", "user"]

_ROLE = click.Choice(ROLES)


@click.group()
def user() -> None:
    """Users and their roles; from the first one on the server asks who is there."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=_ROLE, required=True, help="What the user may do.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--generate-password", is_flag=True, help="Make a random password and print it.")
@click.option("--no-password", is_flag=True, help="For a program, which logs in with tokens.")
@common
def add(
    name: str,
    role: Role,
    password_stdin: bool,
    generate_password: bool,
    no_password: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Make a user. Without an option the password is asked for."""
    password = "" if no_password else _password(password_stdin, generate_password)
    with open_workspace(location, must_exist=False) as workspace:
        made = workspace.access.create_user(name, role, password=password)
    _show(made, password if generate_password and not no_password else "", as_json)


@user.command("list")
@common
def list_users(location: str | None, as_json: bool) -> None:
    """All users."""
    with open_workspace(location) as workspace:
        found = workspace.access.users()
    if as_json:
        return json_document(found)
    table(
        ("name", "role", "password", "disabled", "since"),
        [(u.name, u.role, u.has_password, u.disabled, u.created_at) for u in found],
    )


@user.command("role")
@click.argument("name")
@click.argument("role", type=_ROLE)
@common
def set_role(name: str, role: Role, location: str | None, as_json: bool) -> None:
    """Change what a user may do."""
    with open_workspace(location) as workspace:
        _show(workspace.access.set_role(name, role), "", as_json)


@user.command("disable")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Let the user in again.")
@click.option("--reason", default="", help="Why; kept with the event.")
@common
def disable(name: str, undo: bool, reason: str, location: str | None, as_json: bool) -> None:
    """Keep a user out, with all tokens. Users are never deleted: a name stays one person's."""
    with open_workspace(location) as workspace:
        _show(workspace.access.disable(name, not undo, reason=reason), "", as_json)


@user.command("password")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read it from standard input.")
@click.option("--generate-password", is_flag=True, help="Make a random one and print it.")
@common
def set_password(
    name: str,
    password_stdin: bool,
    generate_password: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Set a user's password. For one's own through a server, the one before is asked for."""
    with open_workspace(location) as workspace:
        current = ""
        if workspace.is_remote and sys.stdin.isatty():
            current = click.prompt(
                "Current password (nothing, if it is another's)",
                default="",
                hide_input=True,
                show_default=False,
                err=True,
            )
        password = _password(password_stdin, generate_password)
        changed = workspace.access.set_password(name, password, current=current)
    _show(changed, password if generate_password else "", as_json)


@user.command("roles")
@common
def roles(location: str | None, as_json: bool) -> None:
    """What each role may do: the whole table."""
    if as_json:
        actions = sorted(action for rights in RIGHTS.values() for action in rights)
        return json_document(
            {action: [role for role in ROLES if is_allowed(role, action)] for action in actions}
        )
    table(
        ("action", *ROLES),
        [
            (action, *(is_allowed(role, action) for role in ROLES))
            for rights in RIGHTS.values()
            for action in sorted(rights)
        ],
    )


@click.group()
def token() -> None:
    """Tokens: what programs log in with."""


@token.command("create")
@click.option("--user", "name", default="", help="For whom (default: whoever is logged in).")
@click.option("--note", default="", help="What it is for.")
@click.option("--role", type=_ROLE, default=None, help="The most it may do (default: its user's).")
@click.option("--expires", default="", metavar="TIME", help="After so long, such as 90d.")
@common
def create(
    name: str, note: str, role: Role | None, expires: str, location: str | None, as_json: bool
) -> None:
    """Make a token. It is shown this once; set it as EVERLOOP_TOKEN or MLFLOW_TRACKING_TOKEN."""
    with open_workspace(location) as workspace:
        made = workspace.access.create_token(name, note=note, role=role, expires=expires)
    if as_json:
        return json_document(made)
    key_values(
        [
            ("token", made.secret),
            ("id", made.token.id),
            ("user", made.token.user),
            ("role", made.token.role),
            ("expires", made.token.expires_at or "never"),
        ]
    )
    say("it is shown this once: keep it where secrets are kept")


@token.command("list")
@click.option(
    "--user", "name", default="", help="Of this user (default: one's own; an admin's: all)."
)
@common
def list_tokens(name: str, location: str | None, as_json: bool) -> None:
    """Tokens, without their secrets."""
    with open_workspace(location) as workspace:
        found = workspace.access.tokens(name)
    if as_json:
        return json_document(found)
    table(
        ("id", "user", "role", "note", "since", "expires", "revoked"),
        [
            (t.id, t.user, t.role, t.note, t.created_at, t.expires_at or "never", t.revoked_at)
            for t in found
        ],
    )


@token.command("revoke")
@click.argument("id")
@common
def revoke(id: str, location: str | None, as_json: bool) -> None:
    """End a token."""
    with open_workspace(location) as workspace:
        ended = workspace.access.revoke_token(id)
    if as_json:
        return json_document(ended)
    say(f"token {ended.id} of {ended.user} is revoked; every process heeds it within 5 seconds")


def _password(from_stdin: bool, generate: bool) -> str:
    if from_stdin and generate:
        raise InvalidInput("give --password-stdin or --generate-password, not both")
    if generate:
        return new_password()
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInput(
            "there is no terminal to ask for a password",
            hint="use --password-stdin or --generate-password",
        )
    typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return typed


def _show(found: User, password: str, as_json: bool) -> None:
    if as_json:
        return json_document({"user": found, **({"password": password} if password else {})})
    shown = [("user", found.name), ("role", found.role), ("disabled", found.disabled)]
    key_values([*shown, *([("password", password)] if password else [])])
    if password:
        say("the password is shown this once")
