"""Flavors: how a model of some library becomes files, and files a predictor again.

Built-in ones and those of the entry-point group ``everloop.flavors``. :func:`pack` (``ev.model``)
makes the artifact that a training step returns, :func:`load_predictor` loads a version for serving.
"""

from __future__ import annotations

import pkgutil
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from blake3 import blake3

from everloop.core.artifact import ModelArtifact
from everloop.core.model import FormatTier, ModelVersion, Signature, Verification
from everloop.core.schema import Field, Schema
from everloop.core.time import utc
from everloop.errors import BackendError, InvalidInput, NotAllowed, NotFound
from everloop.registry.builtin import CallableFlavor, LightGBMFlavor, SklearnFlavor
from everloop.registry.files import ABOUT, names_of
from everloop.registry.manifest import content_digest
from everloop.registry.predictor import Predictor

__all__ = [
    "CallableFlavor",
    "Flavor",
    "LightGBMFlavor",
    "Predictor",
    "SklearnFlavor",
    "TakesFeatures",
    "check_loads",
    "find_flavor",
    "flavors",
    "load_predictor",
    "pack",
    "true_tier",
]

GROUP = "everloop.flavors"


class Flavor(Protocol):
    """Turns models of one library into files and back.

    It may also have ``libraries``, the names of the modules whose versions are noted with a model;
    or ``environment(files)`` and ``signature(files)``, where the files themselves say what made the
    model, and what it takes and gives.
    """

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


class Vouches(Protocol):
    """The registry, as far as loading needs it."""

    def verify(self, name: str, version: int) -> Verification: ...


#: The built-in ones, in the order in which they are asked; the last takes any callable. They are
#: entry points as well, but found here first: no other distribution can take their names, and
#: loading one does not read the metadata of everything that is installed.
BUILTIN: dict[str, str] = {
    "lightgbm": "everloop.registry.builtin:LightGBMFlavor",
    "xgboost": "everloop.registry.formats.xgboost:XGBoostFlavor",
    "catboost": "everloop.registry.formats.catboost:CatBoostFlavor",
    "keras": "everloop.registry.formats.keras:KerasFlavor",
    "torch": "everloop.registry.formats.torch:TorchFlavor",
    "onnx": "everloop.registry.formats.onnx:OnnxFlavor",
    "mlflow": "everloop.registry.formats.mlflow:MlflowFlavor",
    "sklearn": "everloop.registry.builtin:SklearnFlavor",
    "callable": "everloop.registry.builtin:CallableFlavor",
}
_LAST = "callable"


@cache
def _builtin(name: str) -> Flavor:
    made: Flavor = pkgutil.resolve_name(BUILTIN[name])()
    return made


def flavors() -> dict[str, Flavor]:
    """All flavors by name: built-in ones first, the one that takes any callable last."""
    found: dict[str, Flavor] = {name: _builtin(name) for name in BUILTIN if name != _LAST}
    for point in entry_points(group=GROUP):
        if point.name not in BUILTIN:
            loaded = point.load()
            found[point.name] = loaded() if isinstance(loaded, type) else loaded
    found[_LAST] = _builtin(_LAST)
    return found


def find_flavor(name: str) -> Flavor:
    """The flavor called `name`; raises NotFound with near names."""
    if name in BUILTIN:
        return _builtin(name)
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
        model: Of a library that has a flavor (``docs/guide/registry.md`` lists them), the path of a
            model folder of MLflow's, or any callable of a matrix ``(n, k)`` that gives ``(n,)``
            scores (stored as a pickle, so it needs trust to load).
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
        signature=signature or _signature_of(chosen, files, given),
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
        environment=_environment(chosen, files),
    )


def load_predictor(
    version: ModelVersion,
    files: dict[str, bytes],
    *,
    trust: bool = False,
    registry: Vouches | None = None,
) -> Predictor:
    """Load a version from the bytes of its files, checked against its manifest first.

    Args:
        version: The manifest.
        files: The bytes by path; what is checked is what is loaded.
        trust: Allow formats that run code when loaded (pickles).
        registry: Asked whether the manifest bears a valid signature, which allows them too.

    Raises:
        BackendError: If the files are not those of the manifest.
        NotAllowed: If the format runs code and nothing vouches for it.
        NotFound: If the flavor is not installed.
        InvalidInput: If the flavor cannot read the files.
    """
    _verify(version, files)
    flavor = _flavor_of(version)
    if "needs-trust" in (version.tier, flavor.tier(files)) and not trust:
        state = "unsigned" if registry is None else _signature_state(registry, version)
        if state != "valid":
            raise _untrusted(version, state)
    return flavor.load(files)


def check_loads(version: ModelVersion, registry: Vouches) -> None:
    """Refuse a version of which its manifest alone says that no server will load it.

    Raises:
        NotAllowed: If its format runs code and nothing vouches for it.
        NotFound: If its flavor is not installed.
        InvalidInput: If it has no files.
    """
    _flavor_of(version)
    if version.tier == "needs-trust":
        state = _signature_state(registry, version)
        if state != "valid":
            raise _untrusted(version, state)


def _flavor_of(version: ModelVersion) -> Flavor:
    if not version.flavor:
        raise InvalidInput(
            f"{version.ref} only says where its files are ({version.source or 'nowhere'})",
            hint="register the model's folder: ev.register(name, ev.model(Path(folder)))",
        )
    return find_flavor(version.flavor)


def _signature_state(registry: Vouches, version: ModelVersion) -> str:
    """What the signature of the stored manifest says of this very version."""
    checked = registry.verify(version.name, version.version)
    # The signature holds for the row that `verify` read; that must be the one we were given.
    same = content_digest(version.flavor, version.files) == checked.digest
    return checked.signature if same else "invalid"


def _untrusted(version: ModelVersion, state: str) -> NotAllowed:
    by = f" ({version.actor})" if version.actor else ""
    return NotAllowed(
        f"{version.ref} is stored in a format that runs code when it is loaded"
        f" ({version.flavor}), and its signature is {state}",
        hint="store it in a safe format; or set EVERLOOP_SIGNING_KEY where models are registered"
        f" and served; or give trust=True if you trust who registered it{by}",
    )


def true_tier(artifact: ModelArtifact) -> FormatTier:
    """The tier of an artifact by its files where the flavor is known here, never a laxer one."""
    if artifact.flavor in BUILTIN:
        flavor = _builtin(artifact.flavor)
        if artifact.files and flavor.tier(artifact.files) == "needs-trust":
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
    libraries = [name for name in BUILTIN if name not in ("mlflow", _LAST)]
    raise InvalidInput(
        f"no flavor takes a {type(model).__name__}",
        hint=f"give a model of {', '.join(libraries)}, the Path of a model folder of MLflow's, or a"
        " function of a matrix",
    )


def _signature_of(flavor: Flavor, files: dict[str, bytes], given: tuple[str, ...]) -> Signature:
    """What the files say of themselves, else numbers under the names, else nothing."""
    tell = getattr(flavor, "signature", None)
    if tell is not None and not given:
        told: Signature = tell(files)
        return told
    names = given or (names_of(files) if ABOUT in files else ())
    return Signature(Schema(tuple(Field(name, "float64") for name in names)), _scores_schema())


def _environment(flavor: Flavor, files: dict[str, bytes]) -> dict[str, str]:
    """Versions of Python and of the libraries that a flavor names; they are loaded by now."""
    tell = getattr(flavor, "environment", None)
    if tell is not None:
        return dict(tell(files))
    found = {"python": platform.python_version()}
    for name in ("numpy", *getattr(flavor, "libraries", ())):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version:
            found[name] = str(version)
    return found


def _scores_schema() -> Schema:
    return Schema((Field("score", "float64", nullable=False, semantic="target"),))
