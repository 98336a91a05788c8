"""Keras models: known layers score the same; what could run code is not loaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.flavors import pack
from tests.unit.registry.packing import ROWS, reload, with_file

FILE = "model.keras"


def _model() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((3,)),
            layers.Dense(4, activation="relu", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def _functional() -> Any:
    inputs = keras.Input((3,))
    left = keras.layers.Dense(4)(inputs)
    right = keras.layers.Dense(4, activation="tanh")(inputs)
    joined = keras.layers.Concatenate()([left, keras.layers.LeakyReLU()(right)])
    return keras.Model(inputs, keras.layers.Dense(1)(joined))


@pytest.mark.parametrize("make", [_model, _functional])
def test_keras_scores_are_the_same_after_the_round_trip(make: Callable[[], Any]) -> None:
    model = make()
    artifact = pack(model, names=["a", "b", "c"])
    predictor = reload(artifact)
    assert (artifact.flavor, artifact.tier) == ("keras", "safe")
    assert predictor.names == ("a", "b", "c")
    called = keras.ops.convert_to_numpy(model(ROWS.astype(np.float32))).reshape(-1)
    np.testing.assert_array_equal(predictor.predict(ROWS), called.astype(np.float64))
    assert pack(model, names=["a", "b", "c"]).digest == artifact.digest
    assert artifact.environment["keras"] == keras.__version__


def test_the_scores_are_those_of_the_weights() -> None:
    # By hand: where it compiles, the back end of the tests counts with fewer digits than Keras.
    model = _model()
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    first, bias, gamma, beta, mean, variance, last, offset = weights
    hidden = np.maximum(ROWS @ first + bias, 0)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    expected = 1 / (1 + np.exp(-(hidden @ last + offset)))
    np.testing.assert_allclose(reload(pack(model)).predict(ROWS), expected[:, 0], rtol=1e-4)


def test_what_a_matrix_cannot_feed_is_refused() -> None:
    layers = keras.layers
    with pytest.raises(InvalidInput, match="2 scores per row"):
        pack(keras.Sequential([layers.Input((3,)), layers.Dense(2)]))
    with pytest.raises(InvalidInput, match="not rows of numbers"):
        pack(keras.Sequential([layers.Input((3, 2)), layers.Flatten(), layers.Dense(1)]))


def test_a_lambda_and_a_class_of_ones_own_are_refused() -> None:
    class Own(keras.layers.Layer):  # type: ignore[misc]
        def call(self, rows: Any) -> Any:
            return rows

    layers = keras.layers
    for layer in (layers.Lambda(lambda rows: rows * 2), Own()):
        model = keras.Sequential([layers.Input((3,)), layer, layers.Dense(1)])
        with pytest.raises(InvalidInput, match="names what could run code") as caught:
            pack(model)
        assert "needs trust" in caught.value.hint


# --- hostile files --------------------------------------------------------------------------------


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


def _layer(**said: Any) -> dict[str, Any]:
    plain = {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": None}
    return plain | said


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "layer",
    [
        _layer(class_name="Lambda"),
        _layer(class_name="StringLookup", config={"vocabulary": "secret.txt"}),
        _layer(class_name="TFSMLayer", config={"filepath": "x"}),
        _layer(module="keras.utils", class_name="get_file"),
        _layer(module="os", class_name="system"),
        _layer(module="builtins", class_name="function", config="exec"),
        _layer(registered_name="mine>Dense"),
        _layer(config={"activation": {"class_name": "function", "config": "print"}}),
        _layer(config={"activation": {"class_name": "__lambda__", "config": {"code": "4wEA"}}}),
    ],
)
def test_a_configuration_that_names_code_is_refused(layer: dict[str, Any]) -> None:
    artifact = pack(_model())
    members = _members(artifact.files[FILE])
    config = json.loads(members["config.json"])
    config["config"]["layers"].append(layer)
    data = _archive(members | {"config.json": json.dumps(config).encode()})
    with pytest.raises(InvalidInput, match="names what could run code"):
        reload(with_file(artifact, FILE, data))


def test_a_hostile_file_is_told_and_runs_nothing(tmp_path: Path) -> None:
    artifact = pack(_model())
    whole = artifact.files[FILE]
    members = _members(whole)
    made = tmp_path / "made"
    pickled = pickle.dumps(_Payload(made))
    deep = b'{"class_name":' * 100_000
    hostile = [
        *(whole[: len(whole) * part // 10] for part in range(10)),
        pickled,
        b"garbage",
        _archive(members | {"assets/vocabulary.txt": b"x"}),
        _archive(members | {"../climbs": b"x"}),
        _archive(members | {"model.weights.h5": pickled}),
        _archive(members | {"model.weights.h5": bytes(100 << 20)}, zipfile.ZIP_DEFLATED),
        _archive(members | {"config.json": b"[]"}),
        _archive(members | {"config.json": deep}),
    ]
    for data in hostile:
        with pytest.raises(InvalidInput, match="the file is no Keras model"):
            reload(with_file(artifact, FILE, data))
    assert not made.exists()


def _weights(fill: Callable[[Any], None]) -> bytes:
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        fill(file)
    return made.getvalue()


def test_weights_in_other_files_or_of_huge_size_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    secret.write_bytes(_weights(lambda file: file.create_dataset("x", data=[1.0])))

    def linked(file: Any) -> None:
        file["layers"] = h5py.ExternalLink(str(secret), "x")

    def outside(file: Any) -> None:
        file.create_dataset("x", (4,), "f4", external=[(str(secret), 0, 16)])

    def huge(file: Any) -> None:
        file.create_dataset("x", (10**6, 10**6), "f4", chunks=(10, 10))

    artifact = pack(_model())
    members = _members(artifact.files[FILE])
    for fill in (linked, outside, huge):
        data = _archive(members | {"model.weights.h5": _weights(fill)})
        with pytest.raises(InvalidInput, match="the file is no Keras model"):
            reload(with_file(artifact, FILE, data))


def test_without_keras_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = pack(_model())
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingExtra) as caught:
        reload(artifact)
    assert "everloop[keras]" in caught.value.hint
