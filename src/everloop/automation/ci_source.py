"""Opponent: the champion of a source and its hold-out, brought into the workspaces of CI.

The source is only read. What is brought are objects by their digests: what is here is not brought
again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from everloop.automation.holdout import Scorer
from everloop.core.artifact import ModelArtifact
from everloop.core.model import ModelVersion
from everloop.core.policy import LoopSpec
from everloop.core.time import Clock
from everloop.errors import MissingExtra, NotAllowed, NotFound, StateError
from everloop.registry.flavors import load_predictor
from everloop.settings import without_password

if TYPE_CHECKING:
    from everloop.automation.service import AutomationService
    from everloop.data.mirror import MirrorData
    from everloop.data.service import DataService
    from everloop.deployment.predictions import PredictionService
    from everloop.deployment.service import DeploymentService
    from everloop.evaluation.service import EvaluationService
    from everloop.pipelines.service import PipelineService
    from everloop.ports.blobs import BlobStore
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService

__all__ = ["Champion", "Days", "Mirror", "Opponent", "Source", "days_of", "forget_champion"]

_CHAMPION: Literal["champion"] = "champion"
#: Tag of a champion's copy: which version it is of, and the digest of its files.
_COPY_TAG = "everloop.ci.copy_of"
_DAY = timedelta(days=1)
#: A log of years has many segments; most of the time the last ones tell when it ends.
_LATELY = timedelta(days=30)


class Source(Protocol):
    """What is read of the workspace that data and champion come from."""

    @property
    def location(self) -> str: ...
    @property
    def blobs(self) -> BlobStore: ...
    @property
    def data(self) -> DataService: ...
    @property
    def registry(self) -> RegistryService: ...
    @property
    def deployment(self) -> DeploymentService: ...
    @property
    def predictions(self) -> PredictionService: ...
    @property
    def automation(self) -> AutomationService: ...


class Mirror(Protocol):
    """What is needed of a workspace of CI."""

    @property
    def clock(self) -> Clock: ...
    @property
    def blobs(self) -> BlobStore: ...
    @property
    def data(self) -> MirrorData: ...
    @property
    def tracking(self) -> TrackingService: ...
    @property
    def pipelines(self) -> PipelineService: ...
    @property
    def registry(self) -> RegistryService: ...
    @property
    def predictions(self) -> PredictionService: ...
    @property
    def evaluation(self) -> EvaluationService: ...
    @property
    def automation(self) -> AutomationService: ...


class Champion(NamedTuple):
    """The version that serves: as the source has it, and the artifact to copy it from."""

    version: ModelVersion
    artifact: ModelArtifact


class Days(NamedTuple):
    """The days of a hold-out, [since, until), and whether anything was ever answered."""

    since: datetime
    until: datetime
    is_served: bool


class Opponent:
    """What a candidate is compared with.

    Args:
        source: The workspace that is live.
        place: The workspace of CI whose objects all others share.
    """

    def __init__(self, source: Source, place: Mirror) -> None:
        self._source = source
        self._place = place

    def champion(self, spec: LoopSpec) -> Champion | None:
        """What the deployment answers with, or else what the alias points at; None if neither."""
        registry, number = self._source.registry, 0
        try:
            arm = self._source.deployment.deployment(spec.name).arm(_CHAMPION)
            number = arm.version if arm is not None else 0
        except NotFound:
            pass
        try:
            found = (
                registry.version(spec.name, number)
                if number
                else registry.by_alias(spec.name, _CHAMPION)
            )
        except NotFound:
            return None
        return Champion(found, self._artifact_of(found))

    def load(self, champion: Champion) -> Scorer:
        """The champion, loaded.

        Raises:
            StateError: If it cannot be loaded here, such as a pickle whose signature has no key.
        """
        copy, registry = self.copy(self._place, champion), self._place.registry
        try:
            return load_predictor(copy, champion.artifact.files, registry=registry)
        except (NotAllowed, MissingExtra) as error:
            raise StateError(f"the champion cannot be loaded here: {error}") from error

    def version(self, name: str, number: int) -> ModelVersion:
        """A version by its number in the source."""
        return self._source.registry.version(name, number)

    def _artifact_of(self, version: ModelVersion) -> ModelArtifact:
        """The version as an artifact; what the mirror's objects hold already is not asked for."""
        wanted = {file.path: file.digest for file in version.files}
        files = {path: self._object(digest) for path, digest in wanted.items()}
        return ModelArtifact(
            flavor=version.flavor,
            files=files,
            tier=version.tier,
            signature=version.signature,
            params=version.params,
            metrics=version.metrics,
            trained_until=version.trained_until,
            rows=version.rows,
            feature_set="",
            reference=self._object(version.reference) if version.reference else b"",
            environment=version.environment,
        )

    def _object(self, digest: str) -> bytes:
        here = self._place.blobs
        if not here.keep(digest):
            here.put(self._source.blobs.get(digest))
        return here.get(digest)

    def copy(self, place: Mirror, champion: Champion) -> ModelVersion:
        """The champion as a version of a mirror, under the alias that pipelines ask for."""
        version, tag = champion.version, f"{champion.version.ref} {champion.version.digest}"
        try:
            known = place.registry.by_alias(version.name, _CHAMPION)
            if known.tags.get(_COPY_TAG) == tag:
                return known
        except NotFound:
            pass
        made = place.registry.register(version.name, champion.artifact, tags={_COPY_TAG: tag})
        place.registry.set_alias(version.name, _CHAMPION, made.version, reason="mirrored")
        return place.registry.version(version.name, made.version)

    def days(self, spec: LoopSpec) -> Days:
        """The hold-out of the loop: the last days that were answered."""
        now, log = self._place.clock.now(), self._source.predictions
        segments = _known(lambda: log.segments(spec.name, since=now - _LATELY))
        if not segments:
            segments = _known(lambda: log.segments(spec.name))
        return days_of(spec, now, [one.to_at for one in segments])

    def holdout(self, spec: LoopSpec, times: Days) -> pa.Table:
        """What was answered in the days of the hold-out, with labels; brought here once."""
        theirs, here = self._source.predictions, self._place.predictions
        # Another source may have a deployment of the same name.
        name = f"{spec.name} of {without_password(self._source.location)}"
        segments = theirs.segments(spec.name, since=times.since, until=times.until)
        known = {one.digest for one in _known(lambda: here.segments(name))}
        for segment in segments:
            if segment.digest not in known:
                here.log(name, _parquet(self._object(segment.digest)))
        # No label is known more than a day before the time of what it is the truth of.
        batches = theirs.label_batches(spec.name, since=times.since - _DAY)
        known = {one.digest for one in _known(lambda: here.label_batches(name))}
        for batch in batches:
            if batch.digest not in known:
                here.labels(name, _parquet(self._object(batch.digest)))
        return here.read(name, since=times.since, until=times.until, labelled=True)


def forget_champion(place: Mirror, name: str) -> None:
    """Have pipelines find no champion, where there is none now."""
    with contextlib.suppress(NotFound):
        place.registry.delete_alias(name, _CHAMPION)


def days_of(spec: LoopSpec, now: datetime, answered: Sequence[datetime] = ()) -> Days:
    """The days that the gates look at, up to a midnight: the same for all runs of a day.

    Args:
        answered: Times of what was answered; those that are yet to come count as now.
    """
    newest = min(now, max(answered, default=now)).astimezone(UTC)
    until = newest.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
    longest = max((gate.days for gate in spec.gates), default=0)
    return Days(until - timedelta(days=longest), until, bool(answered))


def _known(ask: Callable[[], list[Any]]) -> list[Any]:
    try:
        return ask()
    except NotFound:
        return []


def _parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))
