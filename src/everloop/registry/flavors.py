"""Flavors: how a model of some library becomes files, and files a predictor again.

Built-in ones and those of the entry-point group ``everloop.flavors``. :func:`pack` (``ev.model``)
makes the artifact that a training step returns, :func:`load_predictor` loads a version for serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any, Protocol

from blake3 import blake3

from everloop.core.artifact import ModelArtifact
from everloop.core.model import FormatTier, ModelVersion, Signature
from everloop.core.schema import Field, Schema
from everloop.core.time import utc
from everloop.errors import BackendError, InvalidInput, NotAllowed, NotFound
from everloop.registry.builtin import CallableFlavor, LightGBMFlavor, SklearnFlavor
from everloop.registry.predictor import Predictor

__all__ = [
    "CallableFlavor",
    "Flavor",
    "LightGBMFlavor",
    "Predictor",
    "SklearnFlavor",
    "TakesFeatures",
    "find_flavor",
    "flavors",
    "load_predictor",
    "pack",
    "true_tier",
]

GROUP = "everloop.flavors"


class Flavor(Protocol):
    """Turns models of one library into files and back."""

    @property
    def name(self) -> str:
        """Its name in manifests."""
        ...

    def accepts(self, model: object) -> bool:
        """Whether it can pack `model`; must not import the library to say no."""
        ...

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        """The files of `model`; `names` are the features in order, or empty if not known.

        Raises:
            InvalidInput: If the model does not give one score per row or cannot be stored.
        """
        ...

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        """Whether loading these very files may run code."""
        ...

    def load(self, files: dict[str, bytes]) -> Predictor:
        """Load the files; called only after trust was settled.

        Raises:
            InvalidInput: If the files are not of this flavor.
            MissingExtra: If its library is not installed.
        """
        ...


class TakesFeatures(Protocol):
    """A feature set, as far as a model's signature needs it."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def schema(self) -> Schema: ...


_BUILTIN: tuple[Flavor, ...] = (LightGBMFlavor(), SklearnFlavor())
_LAST: Flavor = CallableFlavor()


def flavors() -> dict[str, Flavor]:
    """All flavors by name: built-in ones first, the one that takes any callable last."""
    found: dict[str, Flavor] = {flavor.name: flavor for flavor in _BUILTIN}
    for point in entry_points(group=GROUP):
        if point.name not in found and point.name != _LAST.name:
            loaded = point.load()
            found[point.name] = loaded() if isinstance(loaded, type) else loaded
    found[_LAST.name] = _LAST
    return found


def find_flavor(name: str) -> Flavor:
    """The flavor called `name`; raises NotFound with near names."""
    for flavor in (*_BUILTIN, _LAST):
        if flavor.name == name:
            return flavor
    known = flavors()
    if name not in known:
        raise NotFound.named("model flavor", name, known)
    return known[name]


def pack(
    model: Any,
    *,
    signature: Signature | None = None,
    feature_set: str | TakesFeatures = "",
    names: Sequence[str] = (),
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    trained_until: datetime | None = None,
    rows: int = 0,
    data: Mapping[str, int] | None = None,
    reference: bytes = b"",
    flavor: str = "",
) -> ModelArtifact:
    """Make the artifact of a trained model: files, signature and where it came from.

    Args:
        model: A LightGBM or scikit-learn model, or any callable of a matrix ``(n, k)`` that gives
            ``(n,)`` scores (stored as a pickle, so it needs trust to load).
        signature: What it takes and gives. If left out it is made from `feature_set`, else from
            `names`, else from the names that the model itself knows.
        feature_set: The feature set whose values it takes, or its name.
        names: The features in the order of the columns.
        params: Parameters it was trained with; kept as text.
        metrics: What it measured in training.
        trained_until: No row later than this was trained on; without it no gate can hold out
            later data and a gate against a champion refuses. A naive time is UTC.
        rows: How many rows it was trained on.
        data: Versions of the datasets it was trained on.
        reference: Reference statistics for the monitors (``ev.make_reference``).
        flavor: Use this one instead of the first that accepts the model.

    Raises:
        InvalidInput: If no flavor accepts it, it gives more than one score per row, or the
            signature does not fit the model.
        NotFound: If there is no flavor of that name.
    """
    chosen = find_flavor(flavor) if flavor else _accepting(model)
    if signature is None and not isinstance(feature_set, str):
        signature = Signature(feature_set.schema, _scores_schema())
    given = signature.inputs.names if signature is not None else tuple(names)
    files = chosen.pack(model, given)
    return ModelArtifact(
        flavor=chosen.name,
        files=files,
        tier=chosen.tier(files),
        signature=signature or _signature_of(given or _own_names(model)),
        params={key: str(value) for key, value in (params or {}).items()},
        metrics={key: float(value) for key, value in (metrics or {}).items()},
        trained_until=None if trained_until is None else utc(trained_until),
        rows=rows,
        data=dict(data or {}),
        feature_set=(
            feature_set
            if isinstance(feature_set, str)
            else f"{feature_set.name}@{feature_set.digest[:16]}"
        ),
        reference=reference,
    )


def load_predictor(
    version: ModelVersion, files: dict[str, bytes], *, trust: bool = False
) -> Predictor:
    """Load a version from the bytes of its files, checked against its manifest first.

    Args:
        version: The manifest.
        files: The bytes by path; what is checked is what is loaded.
        trust: Allow formats that run code when loaded (pickles).

    Raises:
        BackendError: If the files are not those of the manifest.
        NotAllowed: If the format runs code and `trust` was not given.
        NotFound: If the flavor is not installed.
        InvalidInput: If the flavor cannot read the files.
    """
    _verify(version, files)
    flavor = find_flavor(version.flavor)
    if not trust and "needs-trust" in (version.tier, flavor.tier(files)):
        raise NotAllowed(
            f"{version.ref} is stored in a format that runs code when it is loaded"
            f" ({version.flavor})",
            hint="store it in a safe format, or give trust=True if you trust who registered it"
            + (f" ({version.actor})" if version.actor else ""),
        )
    return flavor.load(files)


def true_tier(artifact: ModelArtifact) -> FormatTier:
    """The tier of an artifact by its files where the flavor is known here, never a laxer one."""
    known = {flavor.name: flavor for flavor in (*_BUILTIN, _LAST)}.get(artifact.flavor)
    if known is not None and known.tier(artifact.files) == "needs-trust":
        return "needs-trust"
    return artifact.tier


def _verify(version: ModelVersion, files: dict[str, bytes]) -> None:
    wanted = {file.path: file.digest for file in version.files}
    faults = [f"{path} is missing" for path in sorted(wanted.keys() - files.keys())]
    faults += [f"{path} is not of it" for path in sorted(files.keys() - wanted.keys())]
    faults += [
        f"{path} has other bytes"
        for path in sorted(wanted.keys() & files.keys())
        if blake3(files[path]).hexdigest() != wanted[path]
    ]
    if faults:
        raise BackendError(
            f"the files are not those of {version.ref}: {'; '.join(faults)}",
            hint="read them again; if it stays, restore the objects from a copy",
        )


def _accepting(model: object) -> Flavor:
    for flavor in flavors().values():
        if flavor.accepts(model):
            return flavor
    raise InvalidInput(
        f"no flavor takes a {type(model).__name__}",
        hint="give a LightGBM or scikit-learn model, or a function of a matrix",
    )


def _own_names(model: Any) -> tuple[str, ...]:
    booster = getattr(model, "booster_", model)
    if hasattr(booster, "feature_name"):
        return tuple(booster.feature_name())
    return tuple(str(name) for name in getattr(model, "feature_names_in_", ()))


def _signature_of(names: tuple[str, ...]) -> Signature:
    return Signature(Schema(tuple(Field(name, "float64") for name in names)), _scores_schema())


def _scores_schema() -> Schema:
    return Schema((Field("score", "float64", nullable=False, semantic="target"),))
