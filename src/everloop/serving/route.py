"""RouteSnapshot: everything that an answer needs, loaded and immutable.

A request takes the snapshot once and keeps it to the end; a swap publishes another one. So a swap
can neither drop a request nor mix two revisions in one. One row over HTTP and a hundred thousand
in a replay go through the same :meth:`RouteSnapshot.answer`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from everloop.core.deploy import Arm
from everloop.core.ids import new_ids
from everloop.core.schema import Schema
from everloop.deployment.assign import Splitter
from everloop.errors import InvalidInput, NotFound
from everloop.serving.fields import Column
from everloop.serving.signature import Columns, RequestValidator

__all__ = [
    "Answers",
    "FeatureLookup",
    "FeatureRows",
    "Floats",
    "Instants",
    "LoadedArm",
    "Predictor",
    "RouteSnapshot",
    "ServedFeatures",
]

_logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Instants = npt.NDArray[np.int64]


class Predictor(Protocol):
    """A loaded model.

    Attributes:
        names: The columns of the matrix, in order; empty if it takes whatever comes.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def predict(self, matrix: Floats) -> Floats:
        """One value for each row. `matrix` has shape (n, len(names))."""
        ...


class FeatureRows(Protocol):
    """Feature values: shape (n, k), their names, and when each view's values had become known."""

    @property
    def values(self) -> Floats: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def times(self) -> Mapping[str, Instants]: ...


class FeatureLookup(Protocol):
    """Finds feature values of requests, for one row and for many by the same code."""

    def lookup(self, columns: Columns, at_us: Instants) -> FeatureRows:
        """The values as they were known at `at_us` (microseconds since 1970)."""
        ...


@dataclass(frozen=True, slots=True)
class ServedFeatures:
    """A feature set, ready to be served.

    Attributes:
        request_schema: What a request must bring.
        names: The features, in order.
        time_field: Field of the request that holds the time it is for; empty means now.
        lookup: Finds the values.
    """

    request_schema: Schema
    names: tuple[str, ...]
    time_field: str
    lookup: FeatureLookup


@dataclass(frozen=True, slots=True)
class LoadedArm:
    """An arm with its model in memory.

    Attributes:
        picks: Columns of the feature matrix that the model takes; None means all, in order.
        call_us: Microseconds that the model took for one row when it was warmed up.
        told: Kinds of errors whose traceback the log has; each is told in full once only.
    """

    name: str
    version: int
    predictor: Predictor
    picks: npt.NDArray[np.intp] | None = None
    call_us: float = 0.0
    told: set[str] = field(default_factory=set, compare=False)

    def predict(self, features: Floats) -> tuple[Floats, str]:
        """Values of shape (n,) and an empty text, or NaN and what went wrong."""
        matrix = features if self.picks is None else features[:, self.picks]
        try:
            values = np.asarray(self.predictor.predict(matrix), dtype=np.float64)
        except Exception as error:  # noqa: BLE001 - the model is not ours; its fault is an answer
            return np.full(len(features), np.nan), self._kind_of(error)
        if values.shape != (len(features),):
            return np.full(len(features), np.nan), "wrong number of values"
        if np.isnan(values).any():
            return values, "no number"
        return values, ""

    def _kind_of(self, error: Exception) -> str:
        kind = type(error).__name__
        if kind not in self.told:
            self.told.add(kind)
            _logger.error("the model of version %d failed: %s", self.version, error, exc_info=error)
        return kind


@dataclass(slots=True)
class Answers:
    """What one call answered, and all that the log keeps of it. Arrays have one entry per row.

    Attributes:
        snapshot: The route that answered.
        columns: The request, canonical.
        ids: Prediction ids, increasing.
        request_ids: What the client called the rows; a row without a name goes by its own id.
        at_us: The time that each prediction is for, microseconds since 1970.
        arm: Index into ``snapshot.arms``.
        values: The predictions; NaN where the model failed.
        features: What the models got, shape (n, k), columns as ``snapshot.names``.
        times: Per view, when its values had become known, microseconds; -1 where there are none.
        errors: Index of an arm that failed -> how.
        call_us: Microseconds that the whole call took.
    """

    snapshot: RouteSnapshot
    columns: Columns
    ids: list[str]
    request_ids: list[str]
    at_us: Instants
    arm: npt.NDArray[np.intp]
    values: Floats
    features: Floats
    times: Mapping[str, Instants]
    errors: dict[int, str]
    call_us: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def versions(self) -> npt.NDArray[np.int32]:
        """The version that answered each row."""
        return self.snapshot.versions[self.arm]

    def shadow(self) -> tuple[list[str], Floats, int, str] | None:
        """Let the shadow answer the same rows: ids, values, microseconds, error.

        None if there is no shadow, or the client asked for it by version. This takes as long as
        the model does: the log's writer calls it, not the request.
        """
        position = self.snapshot.shadow
        if position is None or (len(self) and (self.arm == position).all()):
            return None
        start = time.perf_counter_ns()
        values, error = self.snapshot.arms[position].predict(self.features)
        micros = (time.perf_counter_ns() - start) // 1_000
        return new_ids(len(self)), values, micros, error


@dataclass(frozen=True, eq=False)
class RouteSnapshot:
    """One revision of a deployment, ready to answer.

    Attributes:
        deployment: Its name.
        revision: The revision that these arms are.
        weights: All arms as the deployment has them, the shadow too.
        arms: The same with their models.
        validator: Checks requests.
        output: Name of the predicted field.
        features: Where feature values come from; None means that the request brings them.
        route_by: Request field that decides the arm; empty means the request's name.
        salt: Goes into the hash that decides the arm.
    """

    deployment: str
    model: str
    revision: int
    weights: tuple[Arm, ...]
    arms: tuple[LoadedArm, ...]
    validator: RequestValidator
    names: tuple[str, ...]
    output: str = "prediction"
    features: ServedFeatures | None = None
    route_by: str = ""
    salt: str = ""
    platform: str = ""
    versions: npt.NDArray[np.int32] = field(init=False)
    shadow: int | None = field(init=False)
    _split: Splitter = field(init=False)

    def __post_init__(self) -> None:
        versions = np.array([arm.version for arm in self.arms], dtype=np.int32)
        object.__setattr__(self, "versions", versions)
        named = [position for position, arm in enumerate(self.arms) if arm.name == "shadow"]
        object.__setattr__(self, "shadow", named[0] if named else None)
        object.__setattr__(self, "_split", Splitter(self.salt, self.weights))

    def answer(
        self,
        columns: Columns,
        request_ids: Sequence[str] | None = None,
        *,
        rows: int | None = None,
        at_us: Instants | None = None,
        version: int | None = None,
    ) -> Answers:
        """Answer every row.

        A model that fails does not raise: its rows are NaN and ``errors`` says so, because the
        log and the rollout must see them.

        Args:
            columns: The request as the validator gave it.
            request_ids: What the client calls the rows; an empty text is no name.
            rows: Number of rows; needed only where there is no column.
            at_us: The time each row is for; else the request's own, else now.
            version: Use the arm that serves this version for all rows.

        Raises:
            NotFound: If no arm serves `version`.
            InvalidInput: If a row has no time.
            BackendError: If the feature values could not be read.
        """
        start = time.perf_counter_ns()
        if rows is None:
            rows = len(next(iter(columns.values()))) if columns else 0
        ids = new_ids(rows)
        names = [given or own for given, own in zip(request_ids or ids, ids, strict=True)]
        arm = self._route(columns, names, version)
        at = self._times(columns, rows) if at_us is None else at_us
        features, times = self._features(columns, at)
        values, errors = self._predict(features, arm)
        return Answers(
            snapshot=self,
            columns=columns,
            ids=ids,
            request_ids=names,
            at_us=at,
            arm=arm,
            values=values,
            features=features,
            times=times,
            errors=errors,
            call_us=(time.perf_counter_ns() - start) // 1_000,
        )

    def cost_us(self, rows: int) -> float:
        """About how long a call of so many rows takes, in microseconds; from the warm-up."""
        slowest = max((arm.call_us for arm in self.arms), default=0.0)
        return slowest + 10.0 * rows

    def position(self, version: int) -> int:
        """The arm that serves `version`; NotFound if none does."""
        for position, arm in enumerate(self.arms):
            if arm.version == version:
                return position
        raise NotFound.named("version", str(version), [str(arm.version) for arm in self.arms])

    def _route(
        self, columns: Columns, names: list[str], version: int | None
    ) -> npt.NDArray[np.intp]:
        if version is not None:
            return np.full(len(names), self.position(version), dtype=np.intp)
        keys = names
        if self.route_by:
            keys = [str(value) for value in _plain(columns[self.route_by])]
        if len(keys) == 1:
            return np.array([self._split.one(keys[0])], dtype=np.intp)
        return self._split.many(keys)

    def _times(self, columns: Columns, rows: int) -> Instants:
        name = self.features.time_field if self.features else ""
        if name not in columns:
            return np.full(rows, time.time_ns() // 1_000, dtype=np.int64)
        given = columns[name]
        if isinstance(given, list) and None in given:
            faults = [
                (f"{name}[{i}]", "must not be null") for i, at in enumerate(given) if at is None
            ]
            raise InvalidInput("a request needs the time it is for", faults)
        return np.asarray(given, dtype=np.int64)

    def _features(self, columns: Columns, at: Instants) -> tuple[Floats, Mapping[str, Instants]]:
        if self.features is not None:
            found = self.features.lookup.lookup(columns, at)
            return found.values, found.times
        taken = [columns[name] for name in self.names]
        if len(at) == 1:
            matrix = np.array([[column[0] for column in taken]], dtype=np.float64)
        else:
            matrix = np.empty((len(at), len(taken)), dtype=np.float64)
            for position, column in enumerate(taken):
                matrix[:, position] = column
        return matrix, {}

    def _predict(
        self, features: Floats, arm: npt.NDArray[np.intp]
    ) -> tuple[Floats, dict[int, str]]:
        errors: dict[int, str] = {}
        if not len(arm):
            return np.empty(0), errors
        first = int(arm[0])
        if len(arm) == 1 or (arm == first).all():
            values, error = self.arms[first].predict(features)
            return values, {first: error} if error else errors
        values = np.empty(len(arm))
        for position in np.unique(arm).tolist():
            chosen = arm == position
            values[chosen], error = self.arms[position].predict(features[chosen])
            if error:
                errors[position] = error
        return values, errors


def _plain(column: Column) -> list[Any]:
    return list(column.tolist()) if isinstance(column, np.ndarray) else column
