"""Signatures by a key that both sides have: HMAC-SHA256, from the standard library.

Whoever has the key can make one and check one. It proves that something is as somebody with the
key made it, whatever happened to it since; it does not prove to others who that was.
"""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["SCHEME", "key_id", "mac_of"]

SCHEME = "hmac-sha256"


def key_id(key: str) -> str:
    """What a key is called: it tells keys apart and gives nothing of them away."""
    return mac_of(b"everloop key id", key)[:16]


def mac_of(data: bytes, key: str) -> str:
    """The signature of `data`, 64 hex digits."""
    return hmac.new(key.encode(), data, hashlib.sha256).hexdigest()
