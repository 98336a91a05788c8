"""MLflow's model folders as they are: kept, served and exported byte for byte.

A folder is ``safe`` where its ``MLmodel`` names one of MLflow's own loaders of a library whose
format is data only; Everloop then reads that one file itself and answers what MLflow's
``pyfunc`` would, except that an ONNX classifier gives the probability of its second class. All
else (a pickle, code beside it) needs trust and is loaded by MLflow.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from everloop.core.interchange import from_mlflow
from everloop.core.model import FormatTier, Signature
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.builtin import LightGBMFlavor, from_skops, is_plain_skops, one_thread
from everloop.registry.files import ABOUT, about, file_of
from everloop.registry.formats.catboost import CATBOOST_CLASSES, load_catboost, values_of
from everloop.registry.formats.onnx import OnnxModel
from everloop.registry.formats.xgboost import load_xgboost, scores_of
from everloop.registry.predictor import Floats, Predictor

__all__ = ["MLMODEL", "MlflowFlavor"]

MLMODEL = "MLmodel"
_LARGEST = 4 << 20
_Function = Callable[[Floats], Floats]


class MlflowFlavor:
    """A folder with a file ``MLmodel``, given by its path."""

    name = "mlflow"

    def accepts(self, model: object) -> bool:
        return isinstance(model, os.PathLike) and Path(model, MLMODEL).is_file()

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        folder = Path(model)
        found = sorted(folder.rglob("*"))
        links = [str(file.relative_to(folder)) for file in found if file.is_symlink()]
        if links:
            raise InvalidInput(f"the folder has links that lead out of it: {', '.join(links[:5])}")
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in found
            if file.is_file()
        }
        own = self.signature(files).inputs.names
        if names and own and len(names) != len(own):
            raise InvalidInput(
                f"the model takes {len(own)} features, the signature names {len(names)}"
            )
        return files

    def tier(self, files: Mapping[str, bytes]) -> FormatTier:
        try:
            return "safe" if _native(_mlmodel(files), files) else "needs-trust"
        except InvalidInput:
            return "needs-trust"

    def signature(self, files: Mapping[str, bytes]) -> Signature:
        """What ``MLmodel`` says that the model takes and gives.

        Raises:
            InvalidInput: If no schema can say it.
        """
        return _signature(_mlmodel(files))

    def environment(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Versions that ``MLmodel`` says the model was made with."""
        document = _mlmodel(files)
        python = _part(_part(document, "flavors"), "python_function").get("python_version")
        found = {"mlflow": document.get("mlflow_version"), "python": python}
        return {name: str(version) for name, version in found.items() if version}

    def load(self, files: Mapping[str, bytes]) -> Predictor:
        document = _mlmodel(files)
        inputs = _signature(document).inputs
        native = _native(document, files)
        return Predictor(inputs.names, native() if native else _pyfunc(document, files, inputs))


# --- MLmodel --------------------------------------------------------------------------------------


def _mlmodel(files: Mapping[str, bytes]) -> dict[str, Any]:
    import yaml

    data = file_of(files, MLMODEL)
    if len(data) > _LARGEST:
        raise InvalidInput(f"{MLMODEL} has {len(data)} bytes, {_LARGEST} are read")
    try:
        # Of plain values only: no tag of YAML makes an object here.
        found = yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{MLMODEL} is damaged: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("flavors"), dict):
        raise InvalidInput(f"{MLMODEL} is damaged: it names no flavors")
    return found


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _signature(document: Mapping[str, Any]) -> Signature:
    score = Schema((Field("score", "float64", nullable=False, semantic="target"),))
    told = _part(document, "signature")
    inputs = from_mlflow({"inputs": _columns(told.get("inputs"))}).inputs
    given = _columns(told.get("outputs"))
    try:
        outputs = from_mlflow({"outputs": given}).outputs if given else score
    except InvalidInput:
        outputs = score  # several numbers per row: said by the model itself when it is loaded
    unnamed = outputs.names == ("0",)
    return Signature(inputs, score if unnamed else outputs)


def _columns(text: Any) -> str | None:
    """The columns as JSON text; a tensor of rows and columns is as many columns, by position."""
    if not text:
        return None
    try:
        listed = msgspec.json.decode(str(text), type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{MLMODEL} is damaged: its signature is no list: {error}") from error
    if len(listed) == 1 and listed[0].get("type") == "tensor":
        spec = _part(listed[0], "tensor-spec")
        shape = spec.get("shape")
        if isinstance(shape, list) and len(shape) == 2 and _is_width(shape[1]):
            column = {"type": "tensor", "tensor-spec": {**spec, "shape": [-1]}}
            listed = [{**column, "name": str(place)} for place in range(shape[1])]
    return msgspec.json.encode(listed).decode()


def _is_width(size: object) -> bool:
    return type(size) is int and 1 < size <= 100_000


# --- loaded by us ---------------------------------------------------------------------------------

_XGBOOST = {
    "xgboost.core.Booster": "Booster",
    "xgboost.sklearn.XGBClassifier": "XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier": "XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor": "XGBRFRegressor",
    "xgboost.sklearn.XGBRanker": "XGBRanker",
    "xgboost.sklearn.XGBRegressor": "XGBRegressor",
}


def _native(
    document: Mapping[str, Any], files: Mapping[str, bytes]
) -> Callable[[], _Function] | None:
    """How to load the one file of data that the folder is about; None if it is not so."""
    flavors = _part(document, "flavors")
    generic = _part(flavors, "python_function")
    library = str(generic.get("loader_module")).removeprefix("mlflow.")
    said = _part(flavors, library)
    if library not in _NATIVE or not said or said.get("code") or generic.get("code"):
        return None
    path = said.get("pickled_model" if library == "sklearn" else "data")
    if not isinstance(path, str) or path not in files:
        return None
    return _NATIVE[library](said, generic, files[path])


def _xgboost(
    said: Mapping[str, Any], generic: Mapping[str, Any], data: bytes
) -> Callable[[], _Function] | None:
    kind = _XGBOOST.get(str(said.get("model_class")))
    if kind is None:
        return None

    def load() -> _Function:
        model = load_xgboost(data, kind)
        if kind == "Booster":
            return scores_of(model)
        return lambda matrix: np.asarray(
            model.predict(matrix, validate_features=False), dtype=np.float64
        )

    return load


def _lightgbm(
    said: Mapping[str, Any], generic: Mapping[str, Any], data: bytes
) -> Callable[[], _Function] | None:
    if said.get("model_class") != "lightgbm.basic.Booster":
        return None  # the other classes are pickles, or skops with LightGBM's own code
    described = about((), width=0, library="lightgbm")
    return lambda: LightGBMFlavor().load({"model.txt": data, ABOUT: described}).predict


def _catboost(
    said: Mapping[str, Any], generic: Mapping[str, Any], data: bytes
) -> Callable[[], _Function] | None:
    kind = str(said.get("model_type"))
    if said.get("save_format") != "cbm" or kind not in CATBOOST_CLASSES:
        return None
    return lambda: values_of(load_catboost(data, kind))


def _onnx(
    said: Mapping[str, Any], generic: Mapping[str, Any], data: bytes
) -> Callable[[], _Function] | None:
    return lambda: OnnxModel(data)


def _sklearn(
    said: Mapping[str, Any], generic: Mapping[str, Any], data: bytes
) -> Callable[[], _Function] | None:
    if said.get("serialization_format") != "skops" or generic.get("predict_fn") != "predict":
        return None
    if not is_plain_skops(data):
        return None

    def load() -> _Function:
        model = one_thread(from_skops(data))
        names = getattr(model, "feature_names_in_", None)
        if names is None:
            return lambda matrix: np.asarray(model.predict(matrix), dtype=np.float64)
        import pandas  # it was fitted to a frame, and may pick columns by their names

        return lambda matrix: np.asarray(
            model.predict(pandas.DataFrame(matrix, columns=names)), dtype=np.float64
        )

    return load


_NATIVE: dict[str, Callable[..., Callable[[], _Function] | None]] = {
    "catboost": _catboost,
    "lightgbm": _lightgbm,
    "onnx": _onnx,
    "sklearn": _sklearn,
    "xgboost": _xgboost,
}


# --- loaded by MLflow -----------------------------------------------------------------------------


def _pyfunc(
    document: Mapping[str, Any], files: Mapping[str, bytes], inputs: Schema
) -> Callable[[Floats], Floats]:
    """MLflow's own function, over a frame of the columns of the signature.

    The folder stays on disk as long as the function: what it loads may read from it later.
    """
    try:
        import mlflow.pyfunc
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtra.of("mlflow", "a model that only MLflow can load") from error
    folder = Path(tempfile.mkdtemp(prefix="everloop-mlflow-"))
    for path, data in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    try:
        model = mlflow.pyfunc.load_model(str(folder))
    except Exception as error:  # the model's own code may raise anything
        shutil.rmtree(folder)
        raise InvalidInput(f"MLflow cannot load the model: {error}") from error
    told = _part(document, "signature").get("inputs")
    tensor = bool(told) and '"tensor"' in str(told)
    dtypes = [_DTYPES.get(field.type, np.float64) for field in inputs.fields]

    def scores(matrix: Floats) -> Floats:
        if tensor or not inputs.fields:
            rows: Any = matrix.astype(dtypes[0] if dtypes else np.float64)
        else:
            rows = pandas.DataFrame(
                {
                    name: _column(matrix[:, place], dtypes[place])
                    for place, name in enumerate(inputs.names)
                }
            )
        found = np.asarray(model.predict(rows), dtype=np.float64)
        return found.reshape(-1) if found.shape[1:] == (1,) else found

    weakref.finalize(scores, shutil.rmtree, folder, ignore_errors=True)
    return scores


def _column(values: Floats, dtype: Any) -> Any:
    # A whole number has no word for missing; MLflow's own check then says so.
    whole = np.dtype(dtype).kind in "iub"
    return values if whole and np.isnan(values).any() else values.astype(dtype)


_DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "float32": np.float32,
    "int32": np.int32,
    "int64": np.int64,
}
