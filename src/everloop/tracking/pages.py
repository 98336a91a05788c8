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
    # As text, a float keeps infinities, which JSON has not.
    shown = [repr(item) if isinstance(item, float) else item for item in place]
    text = msgspec.json.encode([search, *shown])
    return base64.urlsafe_b64encode(text).decode()


def decode_token(token: str, search: str, kinds: list[type]) -> list[Any]:
    """The place that a token names.

    Raises:
        InvalidInput: If the token is not one of ours, or belongs to another search.
    """
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token.encode()), type=list[Any])
    except (binascii.Error, msgspec.DecodeError, ValueError):
        found = []
    wanted = [str if kind is float else kind for kind in kinds]
    if found[:1] == [search] and [type(item) for item in found[1:]] == wanted:
        try:
            return [kind(item) for item, kind in zip(found[1:], kinds, strict=True)]
        except ValueError:  # a text that is no float
            found = []
    raise InvalidInput(
        "Invalid page token", [("page_token", "is not of this search")], hint="begin again"
    )
