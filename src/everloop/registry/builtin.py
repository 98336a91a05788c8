"""The built-in flavors: LightGBM as text, scikit-learn by skops, any callable by cloudpickle.

What unpickles is ``needs-trust`` and decides so by the files themselves, never by what a manifest
claims. Libraries are imported when a model of theirs is packed or loaded.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Sequence
from json import JSONDecodeError
from typing import Any

import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra, NotAllowed
from everloop.registry.archives import check_zip
from everloop.registry.files import ABOUT, about, file_of, made_by, many_outputs, names_of
from everloop.registry.lightgbm_text import check_lightgbm
from everloop.registry.predictor import Floats, Predictor

__all__ = [
    "CallableFlavor",
    "LightGBMFlavor",
    "SklearnFlavor",
    "from_skops",
    "is_plain_skops",
    "one_thread",
]

_PICKLE = "model.pkl"

# Types that skops does not trust by itself and that we looked at: plain Python objects, no code on
# load. Trees are not among them: a crafted node index reads memory that is not the tree's.
REVIEWED = frozenset(
    {
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    }
)


class LightGBMFlavor:
    """LightGBM in its own text format: data only, exact, readable by every binding."""

    name = "lightgbm"
    libraries = ("lightgbm",)

    def accepts(self, model: object) -> bool:
        return made_by(model, "lightgbm")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        booster = model if hasattr(model, "model_to_string") else getattr(model, "booster_", None)
        if booster is None:
            raise InvalidInput(f"{type(model).__name__} is no LightGBM model")
        if booster.num_model_per_iteration() != 1:
            raise many_outputs("LightGBM", booster.num_model_per_iteration())
        own = tuple(booster.feature_name())
        described = about(names or own, width=len(own), library="lightgbm")
        return {"model.txt": booster.model_to_string().encode(), ABOUT: described}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        try:
            import lightgbm
        except ModuleNotFoundError as error:
            raise MissingExtra.of("lightgbm", "a LightGBM model") from error
        try:
            text = file_of(files, "model.txt").decode()
            check_lightgbm(text)
            booster = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError, JSONDecodeError) as error:
            raise InvalidInput(f"the file is no LightGBM model: {error}") from error

        def scores(matrix: Floats) -> Floats:
            return np.asarray(booster.predict(matrix, num_threads=1), dtype=np.float64)

        return Predictor(names_of(files), scores)


class SklearnFlavor:
    """scikit-learn by skops where that needs no trust, by cloudpickle (needs trust) otherwise."""

    name = "sklearn"
    libraries = ("sklearn", "skops")

    def accepts(self, model: object) -> bool:
        return made_by(model, "sklearn") and hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        classes = getattr(model, "classes_", None)
        if hasattr(model, "predict_proba") and classes is not None and len(classes) != 2:
            raise many_outputs("scikit-learn", len(classes))
        own = tuple(str(name) for name in getattr(model, "feature_names_in_", ()))
        width = int(getattr(model, "n_features_in_", 0))
        described = about(names or own, width=width, library="scikit-learn")
        safe = _to_skops(model)
        if safe is not None:
            return {"model.skops": safe, ABOUT: described}
        return {_PICKLE: _to_pickle(model), ABOUT: described}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe" if "model.skops" in files and _PICKLE not in files else "needs-trust"

    def load(self, files: dict[str, bytes]) -> Predictor:
        if "model.skops" in files:
            model = from_skops(files["model.skops"])
        else:
            model = _from_pickle(file_of(files, _PICKLE))
        return Predictor(names_of(files), _scores_of(one_thread(model)))


class CallableFlavor:
    """Any callable of a matrix ``(n, k)`` that gives ``(n,)`` scores, by cloudpickle."""

    name = "callable"
    libraries = ("cloudpickle",)

    def accepts(self, model: object) -> bool:
        return callable(model) or hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        return {_PICKLE: _to_pickle(model), ABOUT: about(names, width=0, library="")}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "needs-trust"

    def load(self, files: dict[str, bytes]) -> Predictor:
        model = _from_pickle(file_of(files, _PICKLE))
        return Predictor(names_of(files), model if callable(model) else _scores_of(model))


def _to_skops(model: object) -> bytes | None:
    """The model in skops' format, or None where that cannot be or would need trust to load."""
    if importlib.util.find_spec("skops") is None:
        return None
    import skops.io

    try:
        data: bytes = skops.io.dumps(model)
    except (TypeError, NotImplementedError, ValueError):  # holds objects that it cannot write
        return None
    return data if not _unknown_types(data) else None


def is_plain_skops(data: bytes) -> bool:
    """Whether a file of skops' format can be loaded without trust."""
    try:
        return not _unknown_types(data)
    except (InvalidInput, MissingExtra):
        return False


def from_skops(data: bytes) -> Any:
    """A scikit-learn model of skops' format; raises NotAllowed if it holds what is not trusted."""
    unknown = _unknown_types(data)
    if unknown:
        raise NotAllowed(f"model.skops holds types that are not trusted: {', '.join(unknown)}")
    import skops.io

    return skops.io.loads(data, trusted=sorted(REVIEWED))


def _unknown_types(data: bytes) -> list[str]:
    if importlib.util.find_spec("skops") is None:
        raise MissingExtra.of("sklearn", "a scikit-learn model in skops' format")
    import skops.io

    check_zip(data, "skops model")
    try:
        return sorted(set(skops.io.get_untrusted_types(data=data)) - REVIEWED)
    except Exception as error:  # it walks a tree that the file gives: a damaged one may raise any
        raise InvalidInput(f"the file is no skops model: {error}") from error


def _to_pickle(model: object) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(model))
    except Exception as error:  # a model's own __reduce__ may raise anything
        raise InvalidInput(f"{type(model).__name__} cannot be stored: {error}") from error


def _from_pickle(data: bytes) -> Any:
    import cloudpickle

    try:
        return cloudpickle.loads(data)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise InvalidInput(
            f"{_PICKLE} cannot be loaded here: {type(error).__name__}: {error}",
            hint="install what it was made with: the version's environment lists it",
        ) from error


def one_thread(model: Any) -> Any:
    """The same scikit-learn model, told to use one thread wherever it can be told."""
    if hasattr(model, "get_params"):
        threads = {key: 1 for key in model.get_params() if key.rpartition("__")[2] == "n_jobs"}
        model.set_params(**threads)
    return model


def _scores_of(model: Any) -> Callable[[Floats], Floats]:
    if hasattr(model, "predict_proba"):
        return lambda matrix: np.asarray(model.predict_proba(matrix)[:, 1], dtype=np.float64)
    return lambda matrix: np.asarray(model.predict(matrix), dtype=np.float64)
