"""What may be logged: the limits that tracking clients rely on, all faults of one call together."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import unquote

from everloop.core.run import Metric
from everloop.errors import Fault, InvalidInput

__all__ = [
    "MAX_PAGE",
    "check_log",
    "check_page",
    "clean_path",
    "cut",
    "key_faults",
    "metric_faults",
    "text_faults",
]

MAX_METRICS, MAX_PARAMS, MAX_TAGS, MAX_TOTAL = 1000, 100, 100, 1000
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_NAME = 250, 6000, 8000, 500
MAX_PAGE = 50_000
_INT64 = 1 << 63
_KEY = re.compile(r"[\w./: -]+")
_UNSAFE_TEXT = re.compile("[\x00\ud800-\udfff]")


def cut(text: str, length: int) -> str:
    """`text`, cut to `length`; longer values of params and tags are cut, as clients expect."""
    return text if len(text) <= length else text[:length]


def text_faults(path: str, text: str, *, longest: int = 0, empty: bool = True) -> Iterable[Fault]:
    """What keeps `text` from being stored."""
    if _UNSAFE_TEXT.search(text):
        yield Fault(path, "holds a NUL or half a surrogate pair")
    if longest and len(text) > longest:
        yield Fault(path, f"is {len(text)} characters long, at most {longest} are allowed")
    if not empty and not text:
        yield Fault(path, "Missing value for required parameter")


def key_faults(path: str, key: str) -> Iterable[Fault]:
    """What keeps `key` from naming a metric, a parameter or a tag."""
    if not key:
        yield Fault(path, "Missing value for required parameter")
    elif len(key) > MAX_KEY:
        yield Fault(path, f"is {len(key)} characters long, at most {MAX_KEY} are allowed")
    elif not _KEY.fullmatch(key):
        yield Fault(path, f"{key!r} may hold only letters, digits, _ - . / : and spaces")
    elif posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        yield Fault(path, f"{key!r} must be a plain path, without .., // or a leading /")


@lru_cache(maxsize=10_000)
def _is_sound_key(key: str) -> bool:
    return not any(key_faults("", key))


def metric_faults(path: str, metric: Metric) -> Iterable[Fault]:
    """What keeps a point from being stored."""
    yield from key_faults(f"{path}.key", metric.key)
    if not _is_number(metric.value):
        yield Fault(f"{path}.value", f"wanted a number, got {type(metric.value).__name__}")
    if not -_INT64 <= metric.step < _INT64:
        yield Fault(f"{path}.step", f"{metric.step} is no 64-bit integer")
    if not 0 <= metric.at_ms < _INT64:
        yield Fault(f"{path}.timestamp", f"{metric.at_ms} is no time in milliseconds since 1970")


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str | bytes)


def check_log(
    metrics: Sequence[Metric], params: dict[str, str], tags: dict[str, str], *, of_client: bool
) -> None:
    """Check one batch.

    Args:
        metrics: Points.
        params: Parameters.
        tags: Tags.
        of_client: Whether the counts are limited; our own engine may write more at once.

    Raises:
        InvalidInput: With the index or key of everything that is wrong.
    """
    faults: list[Fault] = []
    if of_client:
        counts = (len(metrics), len(params), len(tags))
        limits = (MAX_METRICS, MAX_PARAMS, MAX_TAGS)
        for name, count, limit in zip(("metrics", "params", "tags"), counts, limits, strict=True):
            if count > limit:
                faults.append(Fault(name, f"{count} in one batch, at most {limit} are allowed"))
        if sum(counts) > MAX_TOTAL:
            faults.append(Fault("", f"{sum(counts)} entities in one batch, at most {MAX_TOTAL}"))
    for index, metric in enumerate(metrics):
        is_sound = (
            len(metric.key) <= MAX_KEY  # what is remembered is bounded
            and _is_sound_key(metric.key)
            and type(metric.value) is float
            and 0 <= metric.at_ms < _INT64
            and -_INT64 <= metric.step < _INT64
        )
        if not is_sound:
            faults += metric_faults(f"metrics[{index}]", metric)
    for name, values in (("params", params), ("tags", tags)):
        for index, (key, value) in enumerate(values.items()):
            faults += key_faults(f"{name}[{index}].key", key)
            faults += text_faults(f"{name}[{index}].value", value)
    if faults:
        raise InvalidInput("Invalid value supplied", faults)


def check_page(limit: int, most: int = MAX_PAGE) -> None:
    """Check the length of a page.

    Raises:
        InvalidInput: If it is not from 1 to `most`.
    """
    if not 1 <= limit <= most:
        raise InvalidInput(
            f"Invalid value {limit} for parameter 'max_results' supplied",
            [("max_results", f"must be from 1 to {most}")],
        )


def clean_path(path: str, *, empty: bool = False) -> str:
    """An artifact path without a trailing slash, safe to join.

    Raises:
        InvalidInput: If it is absolute, climbs, or hides either by percent signs.
    """
    plain, before = path, ""
    while plain != before:
        before, plain = plain, unquote(plain)
    parts = plain.rstrip("/").split("/")
    climbs = any(part in ("", ".", "..") for part in parts) and plain.rstrip("/") != ""
    drive = re.match(r"[A-Za-z]:", plain) is not None
    if climbs or drive or plain.startswith("/") or "\\" in plain or _UNSAFE_TEXT.search(plain):
        raise InvalidInput("Invalid path", [("path", repr(path))], hint="use a relative path")
    if not empty and not plain.rstrip("/"):
        raise InvalidInput("Invalid path", [("path", "is empty")])
    return path.rstrip("/")
