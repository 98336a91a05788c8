"""Keras 3 in its own ``.keras`` format: a configuration of layers, and weights.

Keras' ``safe_mode`` refuses lambdas, but a configuration may also name functions and classes that
read files or fetch them, and weights may lie in other files. So a model is first read here: known
layers only, nothing beside configuration and weights, and no link out of the file of weights.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.archives import check_zip, most_bytes
from everloop.registry.files import ABOUT, about, check_scores, file_of, made_by, names_of
from everloop.registry.predictor import Floats, Predictor

__all__ = ["KerasFlavor"]

_MODEL = "model.keras"
_CONFIG, _META, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LONGEST_CONFIG = 16 << 20

#: What a configuration may name, by module: these hold numbers and shapes, no code, no paths.
_LAYERS = {
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average",
    "BatchNormalization", "CategoryEncoding", "Concatenate", "Conv1D", "Cropping1D", "Dense",
    "Discretization", "Dot", "Dropout", "ELU", "Embedding", "Flatten", "GaussianDropout",
    "GaussianNoise", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "GroupNormalization",
    "Identity", "InputLayer", "LayerNormalization", "LeakyReLU", "Maximum", "Minimum",
    "Multiply", "Normalization", "PReLU", "Permute", "RMSNormalization", "ReLU",
    "RepeatVector", "Rescaling", "Reshape", "Softmax", "SpectralNormalization", "Subtract",
    "UnitNormalization",
}  # fmt: skip
_KNOWN: dict[str, set[str] | None] = {
    "keras": {"Sequential", "Functional", "Model", "DTypePolicy", "FloatDTypePolicy"},
    "keras.models": {"Sequential", "Functional", "Model"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.models.sequential": {"Sequential"},
    "keras.layers": _LAYERS,
    "keras.initializers": None,  # every class there
    "keras.regularizers": None,
    "keras.constraints": None,
}


class KerasFlavor:
    """Models of known layers over one matrix."""

    name = "keras"
    libraries = ("keras",)

    def accepts(self, model: object) -> bool:
        return made_by(model, "keras") and hasattr(model, "predict_on_batch")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        shape = model.input_shape
        if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
            raise InvalidInput(
                f"this Keras model takes {shape}, not rows of numbers",
                hint="wrap it in a function of a matrix",
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, _MODEL)
            model.save(file)
            data = _plain(file.read_bytes())
        own = tuple(f"x{place}" for place in range(shape[1]))
        described = about(names or own, width=shape[1], library="keras")
        check_scores(_scores(_load(data)), shape[1], "Keras")
        return {_MODEL: data, ABOUT: described}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        return Predictor(names_of(files), _scores(_load(file_of(files, _MODEL))))


def _scores(model: Any) -> Callable[[Floats], Floats]:
    import keras

    def scores(matrix: Floats) -> Floats:
        found = keras.ops.convert_to_numpy(model(matrix.astype(np.float32), training=False))
        values = np.asarray(found, dtype=np.float64)
        return values.reshape(-1) if values.shape[1:] == (1,) else values

    return scores


def _load(data: bytes) -> Any:
    _check(data)
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise MissingExtra.of("keras", "a Keras model") from error
        raise MissingExtra(
            f"Keras has no backend here: {error}",
            hint="install one of jax, torch, tensorflow and openvino, and set KERAS_BACKEND to it",
        ) from error
    _check_weights(data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, _MODEL)
        file.write_bytes(data)
        try:
            return keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:  # what layers can raise is listed nowhere
            raise InvalidInput(f"the file is no Keras model that loads: {error}") from error


def _plain(data: bytes) -> bytes:
    """The archive without what training needs or what differs each time that it is saved."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        config = _renumbered(json.loads(old.read(_CONFIG)), {})
        meta = {**json.loads(old.read(_META)), "date_saved": ""}
        content = {_META: json.dumps(meta), _CONFIG: json.dumps(config)}
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), content.get(name, old.read(name)))
    return made.getvalue()


def _renumbered(value: Any, numbers: dict[Any, int]) -> Any:
    if isinstance(value, list):
        return [_renumbered(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    found = {
        name: _renumbered(item, numbers) for name, item in value.items() if name != "compile_config"
    }
    if "shared_object_id" in found:  # an address in memory
        shared = found["shared_object_id"]
        found["shared_object_id"] = numbers.setdefault(shared, len(numbers))
    return found


# --- checking -------------------------------------------------------------------------------------


def _check(data: bytes) -> None:
    """Look at the archive and its configuration; imports nothing of Keras."""
    names = check_zip(data, "Keras model")
    if sorted(names) != sorted((_CONFIG, _META, _WEIGHTS)):
        raise InvalidInput(
            f"the file is no Keras model of configuration and weights alone: {', '.join(names)}",
            hint="layers that bring files of their own, such as vocabularies, are not served",
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        try:
            if archive.getinfo(_CONFIG).file_size > _LONGEST_CONFIG:
                raise ValueError("the configuration is too long")
            config = json.loads(archive.read(_CONFIG))
            unknown = sorted(set(_unknown(config)))
        except (ValueError, RecursionError, zipfile.BadZipFile) as error:
            raise InvalidInput(f"the file is no Keras model: {error}") from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise InvalidInput("the file is no Keras model: its configuration names no class")
    if unknown:
        raise InvalidInput(
            f"the Keras model names what could run code or is not known: {', '.join(unknown)}",
            hint="use Keras' own layers, or give a function that calls the model (needs trust)",
        )


def _unknown(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _unknown(item)
    elif isinstance(value, dict):
        if ("class_name" in value or "module" in value) and not _is_known(value):
            yield f"{value.get('module')}.{value.get('class_name')}"[:120]
        for item in value.values():
            yield from _unknown(item)


def _is_known(named: dict[str, Any]) -> bool:
    kind, module = named.get("class_name"), named.get("module")
    if kind == "__keras_tensor__" and module is None:
        return True
    if not isinstance(kind, str) or not isinstance(module, str) or module not in _KNOWN:
        return False
    classes = _KNOWN[module]
    in_module = kind in classes if classes is not None else kind.isidentifier()
    return in_module and named.get("registered_name") in (None, kind)


def _check_weights(data: bytes) -> None:
    import h5py

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        weights = archive.read(_WEIGHTS)
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            size = sum(_sizes(file, h5py))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InvalidInput(f"the file is no Keras model: its weights: {error}") from error
    if size > most_bytes(len(data)):
        raise InvalidInput(f"the file is no Keras model: {len(data)} bytes hold {size} of weights")


def _sizes(group: Any, h5py: Any, depth: int = 0) -> Iterator[int]:
    if depth > 64:
        raise ValueError("groups within groups without end")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name[:80]!r} is a link to somewhere else")
        found = group[name]
        if isinstance(found, h5py.Group):
            yield from _sizes(found, h5py, depth + 1)
        elif not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise ValueError(f"{name[:80]!r} lies in another file")
        else:
            yield found.size * found.dtype.itemsize
