"""What may be logged: the limits that tracking clients rely on, all faults of one call together."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from everloop.core.run import Metric, RunInput
from everloop.errors import Fault, InvalidInput

__all__ = [
    "MAX_EXPERIMENT_TAG",
    "MAX_NAME",
    "MAX_PAGE",
    "MAX_TAG",
    "check_inputs",
    "check_log",
    "check_page",
    "check_tags",
    "clean_path",
    "cut",
    "key_faults",
    "metric_faults",
    "refuse",
    "text_faults",
]

MAX_METRICS, MAX_PARAMS, MAX_TAGS, MAX_TOTAL = 1000, 100, 100, 1000
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_NAME = 250, 6000, 8000, 500
MAX_EXPERIMENT_TAG = 20_000
MAX_PAGE = 50_000
_INT64 = 1 << 63
_KEY = re.compile(r"[\w./: -]+")
_UNSAFE_TEXT = re.compile("[\x00\ud800-\udfff]")
_MAX_DIGEST, _MAX_OWN_DIGEST = 36, 64
_INPUT_FIELDS = {
    "source_type": MAX_NAME,
    "source": 65_535,
    "schema": 1_048_575,
    "profile": 16_777_215,
}


def cut(text: str, length: int) -> str:
    """`text`, cut to `length`; longer values of params and tags are cut, as clients expect."""
    return text if len(text) <= length else text[:length]


class _Wrong(Fault):
    """A fault that also knows the value, or the limit, for doors with words of their own."""

    value: Any = None
    longest: int = 0


def _wrong(path: str, message: str, value: Any = None, *, longest: int = 0) -> Fault:
    fault = _Wrong(path, message)
    fault.value, fault.longest = value, longest
    return fault


def refuse(message: str, found: Iterable[Fault]) -> None:
    """Raise if anything was found.

    Raises:
        InvalidInput: With all faults; ``details`` holds the value, or the limit, of the first.
    """
    faults = list(found)
    if not faults:
        return
    first = faults[0]
    details: dict[str, Any] = {}
    if isinstance(first, _Wrong):
        details = {"longest": first.longest} if first.longest else {"value": first.value}
    raise InvalidInput(message, faults, details=details)


def text_faults(path: str, text: str, *, longest: int = 0, empty: bool = True) -> Iterable[Fault]:
    """What keeps `text` from being stored."""
    if not empty and not text:
        yield _wrong(path, "Missing value for required parameter", text)
    if _UNSAFE_TEXT.search(text):
        yield _wrong(path, "holds a NUL or half a surrogate pair")
    if longest and len(text) > longest:
        said = f"is {len(text)} characters long, at most {longest} are allowed"
        yield _wrong(path, said, longest=longest)


def key_faults(path: str, key: str, longest: int = MAX_KEY) -> Iterable[Fault]:
    """What keeps `key` from naming a metric, a parameter or a tag."""
    if not key:
        yield _wrong(path, "Missing value for required parameter", key)
    elif len(key) > longest:
        yield from text_faults(path, key, longest=longest)
    elif not _KEY.fullmatch(key):
        yield _wrong(path, f"{key!r} may hold only letters, digits, _ - . / : and spaces", key)
    elif posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        yield _wrong(path, f"{key!r} must be a plain path, without .., // or a leading /", key)


@lru_cache(maxsize=10_000)
def _is_sound_key(key: str) -> bool:
    return not any(key_faults("", key))


def metric_faults(path: str, metric: Metric) -> Iterable[Fault]:
    """What keeps a point from being stored."""
    yield from key_faults(f"{path}.key", metric.key)
    if not _is_number(metric.value):
        said = f"wanted a number, got {type(metric.value).__name__}"
        yield _wrong(f"{path}.value", said, str(metric.value)[:80])
    if not -_INT64 <= metric.step < _INT64:
        yield _wrong(f"{path}.step", f"{metric.step} is no 64-bit integer", str(metric.step))
    if not 0 <= metric.at_ms < _INT64:
        said = f"{metric.at_ms} is no time in milliseconds since 1970"
        yield _wrong(f"{path}.timestamp", said, metric.at_ms)
    if bool(metric.dataset) != bool(metric.digest):
        given = "dataset_name" if metric.dataset else "dataset_digest"
        said = "dataset_name and dataset_digest must be given together"
        yield _wrong(f"{path}.{given}", said, metric.dataset or metric.digest)


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
    wrong: list[Fault] = []
    if of_client:
        counts = (len(metrics), len(params), len(tags))
        limits = (MAX_METRICS, MAX_PARAMS, MAX_TAGS)
        for name, count, limit in zip(("metrics", "params", "tags"), counts, limits, strict=True):
            if count > limit:
                said = (
                    f"A batch logging request can contain at most {limit} {name}. "
                    f"Got {count} {name}"
                )
                wrong.append(_wrong(name, said, count))
        if sum(counts) > MAX_TOTAL:
            said = (
                f"A batch logging request can contain at most {MAX_TOTAL} metrics, params, and "
                f"tags. Got {sum(counts)}"
            )
            wrong.append(_wrong("", said, sum(counts)))
    for index, metric in enumerate(metrics):
        is_sound = (
            len(metric.key) <= MAX_KEY  # what is remembered is bounded
            and _is_sound_key(metric.key)
            and type(metric.value) is float
            and 0 <= metric.at_ms < _INT64
            and -_INT64 <= metric.step < _INT64
            and not (metric.dataset or metric.digest)
        )
        if not is_sound:
            wrong += metric_faults(f"metrics[{index}]", metric)
    for name, values in (("params", params), ("tags", tags)):
        for index, (key, value) in enumerate(values.items()):
            wrong += key_faults(f"{name}[{index}].key", key)
            wrong += text_faults(f"{name}[{index}].value", value)
    refuse("Invalid value supplied", wrong)


def check_tags(tags: Mapping[str, str | None], *, longest: int, longest_key: int = MAX_KEY) -> None:
    """Check tags of what is no run: their values are refused when too long, and never cut.

    Raises:
        InvalidInput: With the index of everything that is wrong.
    """
    wrong: list[Fault] = []
    for index, (key, value) in enumerate(tags.items()):
        wrong += key_faults(f"tags[{index}].key", key, longest_key)
        wrong += text_faults(f"tags[{index}].value", value or "", longest=longest)
    refuse("Invalid value supplied", wrong)


def check_inputs(inputs: Iterable[RunInput]) -> None:
    """Check what is said of the datasets that a run read.

    Raises:
        InvalidInput: With the index of everything that is wrong.
    """
    wrong: list[Fault] = []
    for index, item in enumerate(inputs):
        path = f"datasets[{index}].dataset"
        wrong += text_faults(f"{path}.name", item.dataset, longest=500)
        longest_digest = _MAX_OWN_DIGEST if item.version else _MAX_DIGEST
        wrong += text_faults(f"{path}.digest", item.digest, longest=longest_digest)
        for field, longest in _INPUT_FIELDS.items():
            wrong += text_faults(f"{path}.{field}", item.source.get(field, ""), longest=longest)
        tags = {**item.source.get("tags", {}), "role": item.role}
        for key, value in tags.items():
            wrong += text_faults(f"datasets[{index}].tags.key", key, longest=255)
            wrong += text_faults(f"datasets[{index}].tags.value", value, longest=500)
    refuse("Invalid value supplied", wrong)


def check_page(limit: int, most: int = MAX_PAGE) -> None:
    """Check the length of a page.

    Raises:
        InvalidInput: If it is not from 1 to `most`.
    """
    if not 1 <= limit <= most:
        raise InvalidInput(
            f"Invalid value {limit} for parameter 'max_results' supplied",
            [("max_results", f"must be from 1 to {most}")],
            details={"value": limit},
        )


def clean_path(path: str, *, empty: bool = False) -> str:
    """An artifact path without a trailing slash, safe to join.

    Raises:
        InvalidInput: If it is absolute, climbs, or hides either by percent signs.
    """
    plain, before = path, ""
    while "%" in plain and plain != before:
        from urllib.parse import unquote

        before, plain = plain, unquote(plain)
    parts = plain.rstrip("/").split("/")
    climbs = any(part in ("", ".", "..") for part in parts) and plain.rstrip("/") != ""
    drive = re.match(r"[A-Za-z]:", plain) is not None
    if climbs or drive or plain.startswith("/") or "\\" in plain or _UNSAFE_TEXT.search(plain):
        raise InvalidInput("Invalid path", [("path", repr(path))], hint="use a relative path")
    if not empty and not plain.rstrip("/"):
        raise InvalidInput("Invalid path", [("path", "is empty")])
    return path.rstrip("/")
