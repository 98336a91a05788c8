"""Passwords and tokens: how they are made, and what is kept of them instead.

A password is kept as scrypt with a salt of its own: slow and hungry for memory, so that a stolen
catalog does not give passwords away. A token has 256 random bits, which nobody can try out: a plain
SHA-256 of it is enough, and costs a request nothing.

Source:
    RFC 7914 (scrypt); the parameters are of the OWASP Password Storage Cheat Sheet.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import string
import zlib

from everloop.errors import InvalidInput

__all__ = [
    "MIN_PASSWORD",
    "TOKEN_PREFIX",
    "check_password",
    "hash_password",
    "matches",
    "new_password",
    "new_token",
    "token_digest",
]

#: Fewest characters of a password.
MIN_PASSWORD = 12
_MAX_PASSWORD_BYTES = 1024

#: Scanners that look for leaked secrets know a token by this.
TOKEN_PREFIX = "evl_"

# N = 2^15, r = 8, p = 3: 32 MiB and a quarter of a second of a core.
_LOG_N, _R, _P = 15, 8, 3
_LENGTH = 32
_BASE62 = string.digits + string.ascii_letters
_TOKEN_LETTERS, _CHECK_LETTERS = 43, 6  # 62^43 is just above 2^256


def check_password(name: str, password: str) -> None:
    """Refuse a password that is too easy.

    Raises:
        InvalidInput: Says why; never quotes it.
    """
    if len(password) < MIN_PASSWORD:
        fault = f"must have at least {MIN_PASSWORD} characters"
    elif len(password.encode(errors="replace")) > _MAX_PASSWORD_BYTES:
        fault = f"must be at most {_MAX_PASSWORD_BYTES} bytes"
    elif password.casefold() == name.casefold() or len(set(password)) < 4:
        fault = "is too easy to guess"
    elif not password.isprintable():
        fault = "must not hold control characters"
    else:
        return
    raise InvalidInput("the password cannot be used", [("password", fault)])


def hash_password(password: str) -> str:
    """What is kept of a password, with a new salt."""
    salt = os.urandom(16)
    found = _scrypt(password, salt, _LOG_N, _R, _P)
    shown = (base64.b64encode(part).decode() for part in (salt, found))
    return "$".join(("scrypt", str(_LOG_N), str(_R), str(_P), *shown))


def matches(password: str, kept: str) -> bool:
    """Whether `password` is the one that `kept` was made of.

    With nothing kept it is False, after the same work: the time tells nobody whether a name exists.
    """
    _, log_n, r, p, salt, wanted = (kept or _nobody()).split("$")
    found = _scrypt(password, base64.b64decode(salt), int(log_n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(wanted)) and bool(kept)


def new_password() -> str:
    """A random password, 120 bits, in groups that can be typed."""
    letters = [secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(25)]
    return "-".join("".join(letters[at : at + 5]) for at in range(0, 25, 5))


def new_token() -> str:
    """A random token: its prefix, 256 bits, and a checksum by which scanners know a real one."""
    body = _base62(secrets.randbits(256), _TOKEN_LETTERS)
    return f"{TOKEN_PREFIX}{body}{_base62(zlib.crc32(body.encode()), _CHECK_LETTERS)}"


def token_digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _base62(value: int, letters: int) -> str:
    digits = []
    for _ in range(letters):
        value, digit = divmod(value, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def _nobody() -> str:
    """A hash that no password is of, as costly as any."""
    salt, wanted = (base64.b64encode(os.urandom(size)).decode() for size in (16, _LENGTH))
    return "$".join(("scrypt", str(_LOG_N), str(_R), str(_P), salt, wanted))


def _scrypt(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    n = 1 << log_n
    return hashlib.scrypt(
        password.encode(errors="replace"),
        salt=salt,
        n=n,
        r=r,
        p=p,
        maxmem=128 * r * (n + p + 2) + (1 << 20),
        dklen=_LENGTH,
    )
