"""Files of others in a bucket: what is there, told by name."""

from __future__ import annotations

import re

from everloop.backends.blobs.s3_bucket import Bucket

__all__ = ["files_at"]

_MAGIC = re.compile(r"[*?\[]")


def files_at(pattern: str, *, endpoint: str = "", most: int) -> dict[str, str]:
    """The objects that match, as URL and what changes when one is written; `most` at most.

    Args:
        pattern: ``s3://bucket/prefix`` is all below it, or that one object; with signs as in
            ``s3://bucket/raw/**/*.parquet`` what matches them: ``*`` stays within a part of the
            path, ``**`` does not.
        endpoint: URL of the server, if it is not Amazon's.
        most: More are not looked at.

    Raises:
        InvalidInput: If it is no such pattern.
        BackendError: If the bucket cannot be listed.
    """
    place, _, path = pattern.removeprefix("s3://").partition("/")
    parts = path.strip("/").split("/")
    fixed = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    bucket = Bucket(f"s3://{place}", endpoint=endpoint)
    folder = "/".join(parts[:fixed])
    found = bucket.list(folder, most=most)
    if fixed == len(parts):
        alone = bucket.head(folder) if folder else None
        found += [alone] if alone is not None else []
        wanted = re.compile("(?s:.*)")
    else:
        wanted = re.compile(_expression(parts))
    return {
        f"s3://{place}/{entry.key}": f"{entry.size} {entry.e_tag}"
        for entry in found
        if wanted.fullmatch(entry.key)
    }


def _expression(parts: list[str]) -> str:
    told = ["(?:[^/]+/)*" if part == "**" else _part(part) + "/" for part in parts[:-1]]
    return "".join(told) + ("(?s:.+)" if parts[-1] == "**" else _part(parts[-1]))


def _part(part: str) -> str:
    """One part of a path with ``*``, ``?`` and ``[...]``."""
    found = ""
    for sign in re.findall(r"\[[^\]]+\]|.", part, flags=re.DOTALL):
        if len(sign) > 1:
            body = sign[1:-1].replace("\\", "\\\\")
            found += f"[{'^' + body[1:] if body[0] == '!' else body}]"
        else:
            found += {"*": "[^/]*", "?": "[^/]"}.get(sign, re.escape(sign))
    return found
