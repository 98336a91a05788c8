"""The built-in flavors: LightGBM as text, scikit-learn by skops, any callable by cloudpickle.

What unpickles is ``needs-trust`` and decides so by the files themselves, never by what a manifest
claims. Libraries are imported when a model of theirs is packed or loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra, NotAllowed
from everloop.registry.predictor import Floats, Predictor

__all__ = ["CallableFlavor", "LightGBMFlavor", "SklearnFlavor"]

_ABOUT = "flavor.json"
_PICKLE = "model.pkl"

# Types that skops does not trust by itself and that we looked at: plain Python objects, no code on
# load. Trees are not among them: a crafted node index reads memory that is not the tree's.
_REVIEWED = frozenset(
    {
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    }
)


class _About(msgspec.Struct, omit_defaults=True):
    """What stands in ``flavor.json``."""

    names: tuple[str, ...]
    library: str = ""


class LightGBMFlavor:
    """LightGBM in its own text format: data only, exact, readable by every binding."""

    name = "lightgbm"

    def accepts(self, model: object) -> bool:
        return _made_by(model, "lightgbm")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        booster = model if hasattr(model, "model_to_string") else getattr(model, "booster_", None)
        if booster is None:
            raise InvalidInput(f"{type(model).__name__} is no LightGBM model")
        if booster.num_model_per_iteration() != 1:
            raise _many_outputs("LightGBM", booster.num_model_per_iteration())
        own = tuple(booster.feature_name())
        about = _about(names or own, width=len(own), library="lightgbm")
        return {"model.txt": booster.model_to_string().encode(), _ABOUT: about}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        try:
            import lightgbm
        except ModuleNotFoundError as error:
            raise MissingExtra.of("lightgbm", "a LightGBM model") from error
        text = _file(files, "model.txt").decode()
        try:
            booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise InvalidInput(f"model.txt is no LightGBM model: {error}") from error

        def scores(matrix: Floats) -> Floats:
            return np.asarray(booster.predict(matrix, num_threads=1), dtype=np.float64)

        return Predictor(_names(files), scores)


class SklearnFlavor:
    """scikit-learn by skops where that needs no trust, by cloudpickle (needs trust) otherwise."""

    name = "sklearn"

    def accepts(self, model: object) -> bool:
        return _made_by(model, "sklearn") and hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        classes = getattr(model, "classes_", None)
        if hasattr(model, "predict_proba") and classes is not None and len(classes) != 2:
            raise _many_outputs("scikit-learn", len(classes))
        own = tuple(str(name) for name in getattr(model, "feature_names_in_", ()))
        width = int(getattr(model, "n_features_in_", 0))
        about = _about(names or own, width=width, library="scikit-learn")
        safe = _to_skops(model)
        if safe is not None:
            return {"model.skops": safe, _ABOUT: about}
        return {_PICKLE: _to_pickle(model), _ABOUT: about}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe" if "model.skops" in files and _PICKLE not in files else "needs-trust"

    def load(self, files: dict[str, bytes]) -> Predictor:
        if "model.skops" in files:
            model = _from_skops(files["model.skops"])
        else:
            model = _from_pickle(_file(files, _PICKLE))
        return Predictor(_names(files), _one_thread(model))


class CallableFlavor:
    """Any callable of a matrix ``(n, k)`` that gives ``(n,)`` scores, by cloudpickle."""

    name = "callable"

    def accepts(self, model: object) -> bool:
        return callable(model) or hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        return {_PICKLE: _to_pickle(model), _ABOUT: _about(names, width=0, library="")}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "needs-trust"

    def load(self, files: dict[str, bytes]) -> Predictor:
        model = _from_pickle(_file(files, _PICKLE))
        return Predictor(_names(files), model if callable(model) else _scores_of(model))


def _made_by(model: object, library: str) -> bool:
    # By name, so that asking does not import the library.
    return any(cls.__module__.partition(".")[0] == library for cls in type(model).__mro__)


def _many_outputs(library: str, outputs: int) -> InvalidInput:
    return InvalidInput(
        f"this {library} model gives {outputs} scores per row; one is expected",
        hint="wrap it in a function that returns the one score to serve",
    )


def _about(names: Sequence[str], *, width: int, library: str) -> bytes:
    if width and names and len(names) != width:
        raise InvalidInput(f"the model takes {width} features, the signature names {len(names)}")
    return msgspec.json.encode(_About(tuple(names), library))


def _names(files: dict[str, bytes]) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(_file(files, _ABOUT), type=_About).names
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{_ABOUT} is damaged: {error}") from error


def _file(files: dict[str, bytes], path: str) -> bytes:
    try:
        return files[path]
    except KeyError:
        raise InvalidInput(
            f"the model has no file {path!r}; it has {', '.join(sorted(files)) or 'none'}"
        ) from None


def _to_skops(model: object) -> bytes | None:
    """The model in skops' format, or None where that cannot be or would need trust to load."""
    if importlib.util.find_spec("skops") is None:
        return None
    import skops.io

    try:
        data: bytes = skops.io.dumps(model)
    except (TypeError, NotImplementedError, ValueError):  # holds objects that it cannot write
        return None
    return data if set(skops.io.get_untrusted_types(data=data)) <= _REVIEWED else None


def _from_skops(data: bytes) -> Any:
    if importlib.util.find_spec("skops") is None:
        raise MissingExtra.of("sklearn", "a scikit-learn model in skops' format")
    import skops.io

    unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - _REVIEWED)
    if unknown:
        raise NotAllowed(f"model.skops holds types that are not trusted: {', '.join(unknown)}")
    return skops.io.loads(data, trusted=sorted(_REVIEWED))


def _to_pickle(model: object) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(model))
    except Exception as error:
        # A model's own __reduce__ may raise anything; it is told, with its cause.
        raise InvalidInput(f"{type(model).__name__} cannot be stored: {error}") from error


def _from_pickle(data: bytes) -> Any:
    import cloudpickle

    return cloudpickle.loads(data)


def _one_thread(model: Any) -> Callable[[Floats], Floats]:
    if hasattr(model, "get_params"):
        threads = {key: 1 for key in model.get_params() if key.rpartition("__")[2] == "n_jobs"}
        model.set_params(**threads)
    return _scores_of(model)


def _scores_of(model: Any) -> Callable[[Floats], Floats]:
    if hasattr(model, "predict_proba"):
        return lambda matrix: np.asarray(model.predict_proba(matrix)[:, 1], dtype=np.float64)
    return lambda matrix: np.asarray(model.predict(matrix), dtype=np.float64)
