"""CatBoost in its own ``cbm`` format: data only.

CatBoost checks the structure of a file as it loads, so one that is cut short is told. It does not
check every number in it, and some end the process: so a process of its own loads a file first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.files import (
    ABOUT,
    about,
    check_scores,
    file_of,
    made_by,
    names_of,
    options_of,
)
from everloop.registry.formats.trial import survive
from everloop.registry.predictor import Floats, Predictor

__all__ = ["CATBOOST_CLASSES", "CatBoostFlavor", "kind_of", "load_catboost", "values_of"]

_MODEL = "model.cbm"
_MAGIC = b"CBM1"
#: Which one it is decides what ``predict`` gives.
CATBOOST_CLASSES = ("CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker", "CatBoost")


class CatBoostFlavor:
    """Models over numbers; of a classifier of two classes the probability of the second."""

    name = "catboost"
    libraries = ("catboost",)

    def accepts(self, model: object) -> bool:
        return made_by(model, "catboost") and hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        if not model.is_fitted():
            raise InvalidInput(f"{type(model).__name__} is not fitted")
        for kind in ("cat", "text", "embedding"):
            if getattr(model, f"get_{kind}_feature_indices")():
                raise InvalidInput(
                    f"this CatBoost model takes {kind} features, a matrix holds numbers only",
                    hint="encode them first, or wrap the model in a function that does",
                )
        own = tuple(str(name) for name in model.feature_names_)
        kind = kind_of(model)
        described = about(names or own, width=len(own), library="catboost", options={"class": kind})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, _MODEL)
            model.save_model(str(file), format="cbm")
            files = {_MODEL: file.read_bytes(), ABOUT: described}
        made = load_catboost(files[_MODEL], kind, is_own=True)
        check_scores(_scores(made), len(own), "CatBoost")
        return files

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        kind = str(options_of(files).get("class"))
        return Predictor(names_of(files), _scores(load_catboost(file_of(files, _MODEL), kind)))


#: Loads a file and scores rows of all kinds; one without numbers it refuses by an exception.
_TRIAL = """
import catboost, numpy
model = getattr(catboost, sys.argv[1])()
model.load_model(blob=data)
model.get_all_params()
width = len(model.feature_names_)
for value in (0.0, 1.0, -1e30, 1e30, float("nan")):
    rows = numpy.full((4, width), value)
    try:
        model.predict(rows, thread_count=1)
    except catboost.CatBoostError:
        pass
"""


def load_catboost(data: bytes, kind: str, *, is_own: bool = False) -> Any:
    """A model of the class `kind` from the bytes of a ``cbm`` file.

    Args:
        data: The file.
        kind: One of ``CATBOOST_CLASSES``.
        is_own: Whether CatBoost wrote it just now, in this process.

    Raises:
        InvalidInput: If they are none, or CatBoost has no such class.
        MissingExtra: If CatBoost is not installed.
    """
    try:
        import catboost
    except ModuleNotFoundError as error:
        raise MissingExtra.of("catboost", "a CatBoost model") from error
    if kind not in CATBOOST_CLASSES:
        raise InvalidInput(f"{kind[:40]!r} is no class of CatBoost's that predicts")
    # CatBoost maps a file before it looks at it and an empty one ends the process, so: bytes.
    if data[:4] != _MAGIC or int.from_bytes(data[4:8], "little") > len(data) - 8:
        raise InvalidInput("the file is no CatBoost model, or cut short")
    survive(_TRIAL, data, kind, known=is_own)
    model = getattr(catboost, kind)()
    try:
        model.load_model(blob=data)
        model.get_all_params()
    except (catboost.CatBoostError, ValueError) as error:  # its parameters are JSON
        raise InvalidInput(f"the file is no CatBoost model: {error}") from error
    return model


def values_of(model: Any) -> Callable[[Floats], Floats]:
    """What ``predict`` of a loaded model gives, by the loss that it was trained for."""
    # What was loaded from bytes forgets that these losses work on logarithms.
    loss = str(model.get_all_params().get("loss_function", ""))
    logarithms = loss.startswith(("Poisson", "Tweedie")) and kind_of(model) == "CatBoostRegressor"
    more = {"prediction_type": "Exponent"} if logarithms else {}
    return lambda matrix: np.asarray(
        model.predict(matrix, thread_count=1, **more), dtype=np.float64
    )


def kind_of(model: Any) -> str:
    """The class of CatBoost's that the model is of."""
    bases = [cls.__name__ for cls in type(model).__mro__]
    return next(name for name in CATBOOST_CLASSES if name in bases)


def _scores(model: Any) -> Callable[[Floats], Floats]:
    if not hasattr(model, "predict_proba"):
        return values_of(model)

    def probabilities(matrix: Floats) -> Floats:
        found = np.asarray(model.predict_proba(matrix, thread_count=1), dtype=np.float64)
        return found[:, 1] if found.shape[1:] == (2,) else found

    return probabilities
