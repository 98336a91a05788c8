"""Holds an event against the classes of OpenLineage's own Python client: its events and facets."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
import uuid
from typing import Any

import attr
from openlineage.client import event_v2, generated


def _classes() -> dict[str, type]:
    found = {}
    for module in pkgutil.iter_modules(generated.__path__):
        loaded = importlib.import_module(f"{generated.__name__}.{module.name}")
        for kind in vars(loaded).values():
            if isinstance(kind, type) and hasattr(kind, "_get_schema"):
                found[kind._get_schema()] = kind
    return found


FACETS = _classes()


def checked(event: dict[str, Any]) -> dict[str, Any]:
    """Build the client's objects from an event; returns the facets that it has, by name.

    Anything that the client's classes lack, lack a value for, or type otherwise, is an error.
    """
    told = dict(event)
    name = told.pop("schemaURL").rpartition("/")[2]
    kind = getattr(event_v2, name)
    assert kind._get_schema() == event["schemaURL"]
    facets: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    if "run" in told:
        run = told.pop("run")
        assert uuid.UUID(run["runId"])
        parts["run"] = event_v2.Run(run["runId"], facets=_facets(run, "facets", facets))
    if "job" in told:
        parts["job"] = _named(event_v2.Job, told.pop("job"), facets)
    if "dataset" in told:
        parts["dataset"] = _named(event_v2.StaticDataset, told.pop("dataset"), facets)
    for key, one in (("inputs", event_v2.InputDataset), ("outputs", event_v2.OutputDataset)):
        if key in told:
            parts[key] = [_named(one, value, facets) for value in told.pop(key)]
    if "eventType" in told:
        parts["eventType"] = event_v2.RunState(told.pop("eventType"))
    kind(**told, **parts)
    return facets


def _named(kind: type, value: dict[str, Any], seen: dict[str, Any]) -> Any:
    more = {key: _facets(value, key, seen) for key in value if key.lower().endswith("facets")}
    rest = {key: item for key, item in value.items() if key not in more}
    return kind(**rest, **more)


def _facets(value: dict[str, Any], key: str, seen: dict[str, Any]) -> dict[str, Any]:
    made = {}
    for name, facet in value.get(key, {}).items():
        told = dict(facet)
        url, producer = told.pop("_schemaURL"), told.pop("_producer")
        assert url in FACETS, f"{name}: the client knows no {url}"
        made[name] = _build(FACETS[url], told, producer=producer)
        seen[name] = facet
    return made


def _build(kind: Any, value: Any, **more: Any) -> Any:
    """An object of an attrs class, with the ones within it."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [one for one in typing.get_args(kind) if one is not type(None)]
        return None if value is None else _build(rest[0], value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        assert isinstance(value, list)
        return [_build(arguments[0], item) for item in value]
    if origin is dict:
        assert isinstance(value, dict)
        return {key: _build(arguments[1], item) for key, item in value.items()}
    if attr.has(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{k: _build(hints[k], item) for k, item in value.items()}, **more)
    if kind is not Any:
        wanted = (int, float) if kind is float else kind
        assert isinstance(value, wanted), f"{value!r} is no {kind}"
    return value
