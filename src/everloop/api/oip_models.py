"""What the inference door says of itself and its models: metadata, index, statistics, config."""

from __future__ import annotations

from typing import Any

from everloop.api.oip_body import parse_json
from everloop.core.interchange import OIP_DATATYPES, to_oip
from everloop.errors import InvalidInput, NotFound
from everloop.serving.loader import Router
from everloop.serving.metrics import ServingMetrics
from everloop.serving.route import RouteSnapshot

__all__ = ["check_outputs", "describe", "door_of", "pinned_version"]

_EXTENSIONS = (
    "binary_tensor_data", "model_repository", "statistics", "model_configuration", "parameters",
)  # fmt: skip

_FIXED = {
    ("v2",): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "models", "stats"): "stats",
    ("v2", "repository", "index"): "index",
    ("ping",): "ping",
    ("health",): "health",
    ("version",): "version",
    ("metrics",): "metrics",
    ("invocations",): "invocations",
}
_OF_MODEL = {"infer": "infer", "ready": "model_ready", "stats": "stats", "config": "config"}


def door_of(parts: list[str]) -> str:
    """Which call a path is; empty for none."""
    if len(parts) > 2 and parts[0] == "v2" and parts[1] == "models":
        rest = parts[3:]
        if len(rest) >= 2 and rest[0] == "versions":
            rest = rest[2:]
        if len(rest) == 1 and rest[0] in _OF_MODEL:
            return _OF_MODEL[rest[0]]
        if not rest and parts[2] != "stats":
            return "model"
    if len(parts) == 2 and parts[0] == "invocations":
        return "invocations"
    if len(parts) == 5 and parts[:3] == ["v2", "repository", "models"]:
        return parts[4] if parts[4] in ("load", "unload") else ""
    return _FIXED.get(tuple(parts), "")


def describe(
    door: str, parts: list[str], router: Router, metrics: ServingMetrics, body: bytes
) -> Any:
    """The document that answers a call about the server or a model.

    Raises:
        NotFound: If there is no such call, model or version.
        InvalidInput: If the body is wrong.
    """
    if door == "server":
        return {"name": "everloop", "version": _version(), "extensions": list(_EXTENSIONS)}
    if door == "version":
        return _version().encode()
    if door == "index":
        return _index(router, body)
    if door == "stats" and len(parts) == 3:
        routes = router.routes.values()
        return {"model_stats": [one for route in routes for one in _stats(route, None, metrics)]}
    if door not in ("model", "model_ready", "config", "stats"):
        raise NotFound("no such path", hint="GET /v2 tells what is spoken here")
    route = router.route(parts[2])
    pinned = pinned_version(parts, route)
    if door == "model":
        return _metadata(route, pinned)
    if door == "model_ready":
        return {"name": route.deployment, "ready": True}
    if door == "config":
        return _config(route)
    return {"model_stats": _stats(route, pinned, metrics)}


def check_outputs(route: RouteSnapshot, names: list[str]) -> None:
    """Refuse outputs that the model does not have, or that are named twice.

    Raises:
        InvalidInput: With every fault.
    """
    known = [name for name, _ in _outputs(route)]
    faults = [
        (f"outputs[{position}]", f"there is no such output; there are: {', '.join(known)}")
        for position, name in enumerate(names)
        if name not in known
    ]
    if len(set(names)) != len(names):
        faults.append(("outputs", "an output is named twice"))
    if faults:
        raise InvalidInput("the infer request is wrong", faults)


def pinned_version(parts: list[str], route: RouteSnapshot) -> int | None:
    """The version that a path names, or None; NotFound if no arm serves it."""
    if len(parts) < 5 or parts[3] != "versions":
        return None
    if not parts[4].isdecimal() or len(parts[4]) > 9:
        raise NotFound.named("version", parts[4][:16], [str(arm.version) for arm in route.arms])
    return route.arms[route.position(int(parts[4]))].version


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("everloop")
    except PackageNotFoundError:
        return "0"


def _outputs(route: RouteSnapshot) -> list[tuple[str, str]]:
    return [(route.output, "FP64"), ("prediction_id", "BYTES"), ("model_version", "INT32")]


def _metadata(route: RouteSnapshot, pinned: int | None) -> dict[str, Any]:
    versions = [arm.version for arm in route.arms] if pinned is None else [pinned]
    return {
        "name": route.deployment,
        "versions": [str(version) for version in versions],
        "platform": route.platform,
        "inputs": to_oip(route.validator.schema),
        "outputs": [_tensor(name, datatype) for name, datatype in _outputs(route)],
    }


def _tensor(name: str, datatype: str) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1]}


def _config(route: RouteSnapshot) -> dict[str, Any]:
    def tensor(name: str, datatype: str) -> dict[str, Any]:
        kind = "STRING" if datatype == "BYTES" else datatype
        return {"name": name, "data_type": f"TYPE_{kind}", "dims": [-1]}

    inputs = [(field.name, OIP_DATATYPES[field.type]) for field in route.validator.schema.fields]
    return {
        "name": route.deployment,
        "platform": route.platform,
        "max_batch_size": 0,
        "input": [tensor(name, datatype) for name, datatype in inputs],
        "output": [tensor(name, datatype) for name, datatype in _outputs(route)],
    }


def _index(router: Router, body: bytes) -> list[dict[str, str]]:
    wanted = parse_json(body).get("ready", False) if body.strip() else False
    if not isinstance(wanted, bool):
        raise InvalidInput("the request is wrong", [("ready", "expected true or false")])
    found = [
        {"name": name, "version": str(arm.version), "state": "READY", "reason": ""}
        for name, route in sorted(router.routes.items())
        for arm in route.arms
    ]
    if not wanted:
        # Why a model does not load may hold paths and the like; the server's log has it.
        found += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "it did not load"}
            for name in sorted(router.failures)
            if router.get(name) is None
        ]
    return found


def _stats(
    route: RouteSnapshot, pinned: int | None, metrics: ServingMetrics
) -> list[dict[str, Any]]:
    found = []
    for version in sorted({arm.version for arm in route.arms}):
        if pinned not in (None, version):
            continue
        tally = metrics.tally(route.deployment, version)
        none = {"count": 0, "ns": 0}
        success = {"count": tally.calls, "ns": tally.call_ns}
        found.append(
            {
                "name": route.deployment,
                "version": str(version),
                "last_inference": tally.last_ms,
                "inference_count": tally.rows,
                "execution_count": tally.calls,
                "inference_stats": {
                    "success": success,
                    "fail": {"count": tally.failed, "ns": tally.failed_ns},
                    "queue": none,
                    "compute_input": none,
                    "compute_infer": success,
                    "compute_output": none,
                    "cache_hit": none,
                },
                "batch_stats": [],
            }
        )
    return found
