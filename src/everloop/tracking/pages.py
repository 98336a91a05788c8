"""Page tokens: where a page ended, bound to the search that it belongs to."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from blake3 import blake3

from everloop.errors import InvalidInput

__all__ = ["decode_token", "encode_token", "search_digest"]


def search_digest(*parts: Any) -> str:
    """Names a search; a token of another search is refused."""
    return blake3(msgspec.json.encode(parts)).hexdigest()[:16]


def encode_token(search: str, place: list[Any]) -> str:
    """A token for the page after `place`, the sort key of the last item."""
    text = msgspec.json.encode([search, *place])
    return base64.urlsafe_b64encode(text).decode()


def decode_token(token: str, search: str, kinds: list[type | tuple[type, ...]]) -> list[Any]:
    """The place that a token names.

    Raises:
        InvalidInput: If the token is not one of ours, or belongs to another search.
    """
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token.encode()), type=list[Any])
    except (binascii.Error, msgspec.DecodeError, ValueError):
        found = []
    place = found[1:]
    fits = len(place) == len(kinds) and all(
        isinstance(item, kind) and not (isinstance(item, bool))
        for item, kind in zip(place, kinds, strict=True)
    )
    if found[:1] != [search] or not fits:
        raise InvalidInput(
            "Invalid page token", [("page_token", "is not of this search")], hint="begin again"
        )
    return place
