"""Loads a route from the catalog, and swaps it when the deployment's revision moves.

A model is loaded, and its bytes checked, in the process that serves it. A route is warmed up before
it is published; one that cannot be loaded is not published, and the one before goes on serving.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from everloop.core.deploy import Deployment
from everloop.core.model import ModelVersion
from everloop.core.schema import Schema
from everloop.errors import EverloopError, InvalidInput, NotFound, StateError
from everloop.serving.route import LoadedArm, Predictor, RouteSnapshot, ServedFeatures
from everloop.serving.signature import RequestValidator

__all__ = ["Deployments", "FeatureSource", "Models", "RouteLoader", "Router"]

_logger = logging.getLogger(__name__)

#: Gives a feature set by its name, ready to be served.
FeatureSource = Callable[[str], ServedFeatures]


class Deployments(Protocol):
    """What serving needs of DeploymentService."""

    def deployment(self, name: str) -> Deployment: ...

    def deployments(self) -> list[Deployment]: ...

    def acknowledge(self, name: str, worker: str, pid: int, revision: int) -> Any: ...


class Models(Protocol):
    """What serving needs of RegistryService."""

    def version(self, name: str, version: int) -> ModelVersion: ...

    def files(self, name: str, version: int) -> dict[str, bytes]: ...


class RouteLoader:
    """Builds snapshots. Models stay in memory as long as a loaded route names them.

    Args:
        models: Where versions and their bytes come from.
        load: Makes a predictor of a version and its bytes, after checking them against the manifest
            (``registry.flavors.load_predictor``).
        features: Gives feature sets; None where no model takes one.
    """

    def __init__(
        self,
        models: Models,
        load: Callable[[ModelVersion, dict[str, bytes]], Predictor],
        features: FeatureSource | None = None,
    ) -> None:
        self._models = models
        self._load = load
        self._features = features
        self._kept: dict[tuple[str, int], tuple[ModelVersion, Predictor, float]] = {}

    def load(self, deployment: Deployment) -> RouteSnapshot:
        """The route of `deployment` as it stands.

        Raises:
            BackendError: If stored bytes are not what the manifest says.
            StateError: If the model cannot be served as it is: it does not load, does not answer,
                or takes columns that nobody gives.
        """
        found = {
            arm.version: self._version(deployment.model, arm.version) for arm in deployment.arms
        }
        champion = deployment.arm("champion") or deployment.arms[0]
        lead = found[champion.version][0]
        features = self._features_of(lead)
        schema = features.request_schema if features else lead.signature.inputs
        names = features.names if features else _matrix_names(schema)
        arms = []
        for arm in deployment.arms:
            version, predictor, call_us = found[arm.version]
            if version.feature_set != lead.feature_set:
                raise StateError(
                    f"{version.ref} takes feature set {version.feature_set!r}, the champion"
                    f" {lead.ref} takes {lead.feature_set!r}",
                    hint="deploy it under a name of its own",
                )
            picks = _picks(version, predictor, names)
            arms.append(LoadedArm(arm.name, arm.version, predictor, picks, call_us))
        outputs = lead.signature.outputs.names
        return RouteSnapshot(
            deployment=deployment.name,
            model=deployment.model,
            revision=deployment.revision,
            weights=deployment.arms,
            arms=tuple(arms),
            validator=RequestValidator(schema),
            names=names,
            output=outputs[0] if outputs else "prediction",
            features=features,
            route_by=_route_by(deployment, schema.names),
            salt=deployment.salt,
            platform=f"everloop_{lead.flavor}",
        )

    def keep_only(self, routes: list[RouteSnapshot]) -> None:
        """Forget the models that none of `routes` names."""
        named = {(route.model, arm.version) for route in routes for arm in route.arms}
        self._kept = {key: kept for key, kept in self._kept.items() if key in named}

    def _version(self, model: str, number: int) -> tuple[ModelVersion, Predictor, float]:
        kept = self._kept.get((model, number))
        if kept is None:
            version = self._models.version(model, number)
            files = self._models.files(model, number)
            predictor = self._load(version, files)
            kept = (version, predictor, _warm_up(version, predictor))
            self._kept[model, number] = kept
        return kept

    def _features_of(self, version: ModelVersion) -> ServedFeatures | None:
        if not version.feature_set:
            return None
        if self._features is None:
            raise StateError(
                f"{version.ref} takes feature set {version.feature_set!r}; none is served"
            )
        return self._features(version.feature_set)


def _warm_up(version: ModelVersion, predictor: Predictor) -> float:
    """Microseconds for one row; checks that the model answers one value for each row."""
    width = len(predictor.names or version.signature.inputs.names)
    arm = LoadedArm("champion", version.version, predictor)
    for rows in (1, 3):
        _, error = arm.predict(np.zeros((rows, width)))
        if error and error != "no number":
            raise StateError(
                f"{version.ref} does not answer: {error}",
                hint="its predict must give one number for each row of the matrix",
            )
    durations = []
    row = np.zeros((1, width))
    for _ in range(5):
        start = time.perf_counter_ns()
        arm.predict(row)
        durations.append((time.perf_counter_ns() - start) / 1_000)
    return statistics.median(durations)


def _picks(version: ModelVersion, predictor: Predictor, names: tuple[str, ...]) -> Any:
    if not predictor.names or predictor.names == names:
        return None
    missing = [name for name in predictor.names if name not in names]
    if missing:
        raise StateError(
            f"{version.ref} takes {', '.join(missing)}, which its request or features do not have"
            " as numbers",
            hint="register it with the signature it was trained with; serve text by a feature set",
        )
    return np.array([names.index(name) for name in predictor.names], dtype=np.intp)


def _matrix_names(schema: Schema) -> tuple[str, ...]:
    """The fields that a matrix of numbers can hold."""
    return tuple(f.name for f in schema.fields if f.is_numeric or f.type == "bool")


def _route_by(deployment: Deployment, names: tuple[str, ...]) -> str:
    if deployment.route_by and deployment.route_by not in names:
        raise InvalidInput(
            f"deployment {deployment.name!r} routes by {deployment.route_by!r}",
            [("route_by", "no such field in the request")],
        )
    return deployment.route_by


class Router:
    """Holds the routes of one worker, by name of the deployment, and keeps them up to date.

    Readers take ``router.get(name)`` once per request; a swap is one assignment of one dict entry.
    Only one thread may call :meth:`refresh`.

    Args:
        deployments: The truth about revisions.
        loader: Makes the routes.
        only: Names to serve; empty means every deployment.
        worker: What this worker calls itself when it acknowledges a revision.
        pid: Its process.
    """

    def __init__(
        self,
        deployments: Deployments,
        loader: RouteLoader,
        *,
        only: tuple[str, ...] = (),
        worker: str = "",
        pid: int = 0,
    ) -> None:
        self._deployments = deployments
        self._loader = loader
        self._only = only
        self._worker = worker
        self._pid = pid
        self._routes: dict[str, RouteSnapshot] = {}
        self._failed: dict[str, tuple[int, str]] = {}
        self._polled = False

    def get(self, name: str) -> RouteSnapshot | None:
        """The present route, or None if the deployment is not served here."""
        return self._routes.get(name)

    def route(self, name: str) -> RouteSnapshot:
        """The present route.

        Raises:
            NotFound: With near names.
        """
        found = self._routes.get(name)
        if found is None:
            raise NotFound.named("model", name[:64], sorted(self._routes))
        return found

    @property
    def routes(self) -> dict[str, RouteSnapshot]:
        """The present routes by name."""
        return dict(self._routes)

    @property
    def is_ready(self) -> bool:
        """Whether everything that should be served here is."""
        return self._polled and not any(name not in self._routes for name in self._wanting())

    @property
    def failures(self) -> dict[str, str]:
        """Deployments whose newest revision could not be loaded, and why."""
        return {name: reason for name, (_, reason) in self._failed.items()}

    def refresh(self) -> list[str]:
        """Bring the routes up to date with the catalog; returns the names that changed.

        Never raises for one deployment's fault: it is kept in ``failures``, and what was served
        before stays.

        Raises:
            EverloopError: If the catalog cannot be read at all; nothing changes then.
        """
        wanted = {d.name: d for d in self._read() if d.state == "serving"}
        changed = [name for name in list(self._routes) if name not in wanted]
        routes = {name: route for name, route in self._routes.items() if name in wanted}
        self._failed = {name: fault for name, fault in self._failed.items() if name in wanted}
        for name, deployment in wanted.items():
            present = routes.get(name)
            if present is not None and present.revision == deployment.revision:
                continue
            loaded = self._try_load(deployment)
            if loaded is not None:
                routes[name] = loaded
                changed.append(name)
        self._routes = routes
        self._loader.keep_only(list(routes.values()))
        self._polled = True
        return changed

    def acknowledge(self) -> None:
        """Tell the catalog which revisions this worker serves."""
        for name, route in self.routes.items():
            self._deployments.acknowledge(name, self._worker, self._pid, route.revision)

    def _wanting(self) -> set[str]:
        return set(self._only) | set(self._failed)

    def _read(self) -> list[Deployment]:
        found = self._deployments.deployments()
        return [d for d in found if d.name in self._only] if self._only else found

    def _try_load(self, deployment: Deployment) -> RouteSnapshot | None:
        fault: Exception | None = None
        try:
            route = self._loader.load(deployment)
        except EverloopError as error:
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
        except Exception as error:  # noqa: BLE001 - a model's own code runs as it is loaded
            reason, fault = f"{type(error).__name__}: {error}", error
        else:
            self._failed.pop(deployment.name, None)
            return route
        if self._failed.get(deployment.name) != (deployment.revision, reason):
            where = f"{deployment.name}@{deployment.revision}"
            _logger.error("cannot serve %s: %s", where, reason, exc_info=fault)
        self._failed[deployment.name] = (deployment.revision, reason)
        return None
