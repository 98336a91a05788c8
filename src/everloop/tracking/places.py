"""Where the artifacts of experiments lie: in this store under a path, or elsewhere by a URI."""

from __future__ import annotations

import re
from urllib.parse import unquote

from everloop.core.places import OURS, path_within
from everloop.errors import InvalidInput
from everloop.tracking.limits import clean_path

__all__ = ["OURS", "check_location", "check_uri", "path_within"]

_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):")
_FOREIGN = ("runs", "models")


def check_location(location: str) -> None:
    """Check where the artifacts of an experiment are to lie.

    Raises:
        InvalidInput: If it climbs, has a query or fragment, or names a run or model.
    """
    scheme = _SCHEME.match(location)
    if scheme and scheme[1].lower() in _FOREIGN:
        raise _wrong(location, f"Artifact location cannot be a {scheme[1].lower()}:/ URI")
    if not location.strip() or re.search(r"[?#;]", location):
        raise _wrong(location, "URL can't include a query, fragments or params")
    check_uri(location, _wrong(location, "must not contain '..'"))
    if scheme and scheme[1].lower() == "mlflow-artifacts":
        if not location.startswith(OURS) or location.startswith(f"{OURS}/"):
            raise _wrong(location, f"artifacts of another server; begin it with {OURS}")
        try:
            clean_path(location.removeprefix(OURS))
        except InvalidInput:
            raise _wrong(location, "is no plain path of this store") from None


def check_uri(uri: str, error: InvalidInput) -> None:
    """Raise `error` if `uri` climbs or holds what no URI may, also behind percent signs."""
    plain, before = uri, ""
    while plain != before:
        before, plain = plain, unquote(plain)
    climbs = ".." in re.split(r"[/\\;]", plain.partition(":")[2] or plain)
    if climbs or "\\" in plain or re.search("[\x00-\x1f\ud800-\udfff]", plain):
        raise error


def _wrong(location: str, why: str) -> InvalidInput:
    return InvalidInput(
        "Invalid value for parameter 'artifact_location' supplied",
        [("artifact_location", why)],
        details={"value": location[:200]},
    )
