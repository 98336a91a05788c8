"""The arguments of a pipeline's run: as they are kept for a resume, and as people read them."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.errors import storable
from everloop.pipelines.values import store

__all__ = ["shown_arguments", "stored_arguments"]


def stored_arguments(bound: dict[str, Any], blobs: Any, where: str) -> dict[str, Any]:
    """Arguments in stored form, for a resume.

    Raises:
        InvalidInput: If one of them has no stored form.
    """
    return {
        name: msgspec.to_builtins(store(value, blobs, f"{where}, argument {name},")[0])
        for name, value in bound.items()
    }


def shown_arguments(stored: dict[str, Any]) -> dict[str, str]:
    """Arguments as text for people: short ones as they are, others by their digest."""
    shown = {}
    for name, value in stored.items():
        text = value["meta"].get("text", "")
        plain = msgspec.json.decode(text) if text else None
        if isinstance(plain, str):
            shown[name] = storable(plain)
        elif isinstance(plain, dict) and "$datetime" in plain:
            shown[name] = plain["$datetime"]
        elif isinstance(plain, dict) and "$date" in plain:
            shown[name] = plain["$date"]
        elif isinstance(plain, dict) and "$path" in plain:
            shown[name] = plain["$path"]
        elif isinstance(plain, dict) and "$secret" in plain:
            shown[name] = plain["$secret"]
        elif value["kind"] == "json" and text and len(text) <= 500:
            shown[name] = text
        else:
            shown[name] = f"{value['kind']}:{value['digest'][:16]}"
    return shown
