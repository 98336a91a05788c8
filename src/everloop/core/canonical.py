"""One JSON form of plain data: what digests of schemas, expressions and definitions are over."""

from __future__ import annotations

import json

import msgspec

__all__ = ["canonical_json"]


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes. NaN is refused."""
    return json.dumps(
        _builtins(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _builtins(value: object) -> object:
    # msgspec leaves a default out only if it is the very object that the class holds, which text
    # is no more once it was pickled or put together: such equal structs would differ in digest.
    if isinstance(value, msgspec.Struct):
        config, defaults = value.__struct_config__, value.__struct_defaults__
        names = value.__struct_fields__
        found: dict[str, object] = {}
        if config.tag is not None and config.tag_field is not None:
            found[config.tag_field] = config.tag
        unset = (msgspec.NODEFAULT,) * (len(names) - len(defaults))
        labels = value.__struct_encode_fields__
        for name, label, default in zip(names, labels, (*unset, *defaults), strict=True):
            item = getattr(value, name)
            if not (config.omit_defaults and _is_default(item, default)):
                found[label] = _builtins(item)
        return found
    if isinstance(value, dict):
        return {str(key): _builtins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_builtins(item) for item in value]
    return msgspec.to_builtins(value)


def _is_default(item: object, default: object) -> bool:
    if isinstance(item, list | dict) and not item:
        return default is not msgspec.NODEFAULT
    return type(item) is type(default) and item == default
