"""Values by a JSON schema, right and wrong ones, as a hostile or careless client sends them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["Names", "values"]

#: Names of what is there, so that calls get past the first look-up.
Names = tuple[str, ...]

_EDGES = (0, 1, -1, 2**31, -(2**31) - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30)
_FLOATS = (0.0, -0.0, 0.5, 1e308, -1e308, 5e-324)
_TEXTS = (
    "", " ", "\0", "\ud800", "å", "\U0001f600", "a" * 300, "a/../b", "..", "/", "%00", "'", '"',
    "' OR 1=1 --", "{", "metrics.x > 1", "attributes.run_id = 'x'", "name ILIKE '%a%'", "-1",
    "99999999999999999999", "NaN", "2024-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "mlflow-artifacts:/0/x", "s3://x/y", "http://127.0.0.1:9/",
)  # fmt: skip
_JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(_EDGES + _FLOATS) | st.sampled_from(_TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_DEPTH = 5


def values(
    schema: dict[str, Any], components: dict[str, Any], names: Names, depth: int = 0
) -> st.SearchStrategy[Any]:
    """Values that mostly fit `schema`; at any place, now and then, one that does not."""
    right = _right(schema, components, names, depth)
    # One in eight or so, so that most of a large value stays right.
    return st.integers(0, 7).flatmap(lambda chance: _JUNK if chance == 7 else right)


def _right(
    schema: dict[str, Any], components: dict[str, Any], names: Names, depth: int
) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        if depth > _DEPTH:
            return st.just({})
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: _right(components[name], components, names, depth + 1))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return st.one_of([_right(item, components, names, depth) for item in schema[key]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of([_right({**schema, "type": k}, components, names, depth) for k in kind])
    return _typed(kind, schema, components, names, depth)


def _typed(
    kind: str | None, schema: dict[str, Any], components: dict[str, Any], names: Names, depth: int
) -> st.SearchStrategy[Any]:
    match kind:
        case "string":
            return st.sampled_from(names) | st.sampled_from(_TEXTS)
        case "integer":
            return st.integers(0, 5) | st.sampled_from(_EDGES)
        case "number":
            return st.sampled_from(_FLOATS) | st.floats(allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            inner = values(schema.get("items") or {}, components, names, depth + 1)
            return st.lists(inner, max_size=3)
        case "object":
            return _object(schema, components, names, depth)
        case _:
            return _JUNK


def _object(
    schema: dict[str, Any], components: dict[str, Any], names: Names, depth: int
) -> st.SearchStrategy[Any]:
    properties = schema.get("properties")
    if properties is None:
        extra = schema.get("additionalProperties")
        inner = extra if isinstance(extra, dict) else {}
        keys = st.sampled_from(names) | st.sampled_from(_TEXTS)
        return st.dictionaries(keys, values(inner, components, names, depth + 1), max_size=3)
    made = {key: values(item, components, names, depth + 1) for key, item in properties.items()}
    required = {key: made.pop(key) for key in schema.get("required", ()) if key in made}
    right = st.fixed_dictionaries(required, optional=made)
    # A required field that is missing is as wrong as one of another type.
    partly = st.fixed_dictionaries({}, optional={**made, **required})
    return st.integers(0, 15).flatmap(lambda chance: partly if chance == 15 else right)
