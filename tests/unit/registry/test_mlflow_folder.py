"""MLflow's model folders: what is safe, what the signature becomes, what hostile ones do."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import yaml

from everloop.backends.blobs.local import LocalBlobs
from everloop.core.artifact import ModelArtifact
from everloop.core.model import Signature
from everloop.core.run import Artifact
from everloop.core.schema import Schema
from everloop.errors import InvalidInput, NotAllowed, NotFound
from everloop.registry.flavors import load_predictor, pack
from everloop.registry.formats.mlflow import MlflowFlavor
from everloop.registry.service import RegistryService
from tests.unit.registry.packing import LATE, ROWS, reload

COLUMNS = '[{"type": "double", "name": "a"}, {"type": "double", "name": "b"}, {"type": "long", "name": "c"}]'  # fmt: skip  # noqa: E501


def _booster() -> lightgbm.Booster:
    params = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 4}
    return lightgbm.train(params, lightgbm.Dataset(ROWS, LATE, feature_name=["a", "b", "c"]), 4)


def _said(**more: Any) -> dict[str, Any]:
    """An ``MLmodel`` as MLflow writes it for a booster of LightGBM."""
    native = {"data": "model.lgb", "model_class": "lightgbm.basic.Booster", "code": None}
    generic = {"loader_module": "mlflow.lightgbm", "data": "model.lgb", "python_version": "3.11.7"}
    flavors = {"lightgbm": native, "python_function": generic}
    signature = {"inputs": COLUMNS, "outputs": '[{"type": "double"}]', "params": None}
    return {"flavors": flavors, "signature": signature, "mlflow_version": "3.12.0"} | more


def _files(said: dict[str, Any] | bytes) -> dict[str, bytes]:
    text = said if isinstance(said, bytes) else yaml.safe_dump(said).encode()
    return {"MLmodel": text, "model.lgb": _booster().model_to_string().encode()}


def _artifact(files: dict[str, bytes]) -> ModelArtifact:
    return ModelArtifact(flavor="mlflow", files=files, signature=Signature(Schema(()), Schema(())))


def _folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir()
    for path, data in files.items():
        (place / path).write_bytes(data)
    return place


def test_a_folder_of_data_is_safe_and_is_kept_as_it_is(tmp_path: Path) -> None:
    files = _files(_said())
    artifact = pack(_folder(tmp_path / "model", files))
    assert (artifact.flavor, artifact.tier, artifact.files) == ("mlflow", "safe", files)
    assert artifact.environment == {"mlflow": "3.12.0", "python": "3.11.7"}
    assert artifact.signature is not None
    types = [(field.name, field.type) for field in artifact.signature.inputs.fields]
    assert types == [("a", "float64"), ("b", "float64"), ("c", "int64")]
    predictor = reload(artifact)
    np.testing.assert_array_equal(predictor.predict(ROWS), _booster().predict(ROWS))
    assert predictor.names == ("a", "b", "c")


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["flavors"]["lightgbm"].update(code="code"),
        lambda said: said["flavors"]["python_function"].update(code="code"),
        lambda said: said["flavors"]["python_function"].update(loader_module="mine"),
        lambda said: said["flavors"]["python_function"].update(loader_module="mlflow.mine"),
        lambda said: said["flavors"]["lightgbm"].update(model_class="lightgbm.sklearn.X"),
        lambda said: said["flavors"]["lightgbm"].update(data="../../etc/passwd"),
        lambda said: said["flavors"]["lightgbm"].update(data=["model.lgb"]),
        lambda said: said["flavors"].pop("lightgbm"),
        lambda said: said["flavors"].update(lightgbm=None),
    ],
)
def test_what_is_not_data_alone_needs_trust(change: Callable[[Any], Any]) -> None:
    said = _said()
    change(said)
    artifact = _artifact(_files(said))
    assert MlflowFlavor().tier(artifact.files) == "needs-trust"
    with pytest.raises(NotAllowed, match="runs code"):
        reload(artifact)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_hostile_folder_is_told_and_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    pickled = pickle.dumps(_Payload(made))
    tagged = f"!!python/object/apply:os.mkdir ['{made}']".encode()
    bombs = [b"a: &a [x]\n" + b"\n".join(b"b%d: &b%d [*a, *a]" % (i, i) for i in range(99))]
    for text in (tagged, b"flavors: " + tagged, pickled, b"", b"[" * 10_000, b"x", *bombs):
        artifact = _artifact(_files(text))
        assert MlflowFlavor().tier(artifact.files) == "needs-trust"
        with pytest.raises(InvalidInput, match="MLmodel"):
            reload(artifact, trust=True)
    with pytest.raises(InvalidInput, match="no LightGBM model"):
        reload(_artifact(_files(_said()) | {"model.lgb": pickled}))
    assert not made.exists()


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ('[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]', "012"),
        ('[{"type": "double"}, {"type": "double"}, {"type": "double"}]', "012"),
        (None, ""),
    ],
)
def test_columns_without_names_go_by_their_position(columns: str | None, names: str) -> None:
    files = _files(_said(signature={"inputs": columns, "outputs": None}))
    signature = MlflowFlavor().signature(files)
    assert signature.inputs.names == tuple(names)
    assert signature.outputs.names == ("score",)
    assert reload(_artifact(files)).names == tuple(names)


@pytest.mark.parametrize(
    "columns",
    [
        '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 28, 28]}}]',
        '[{"type": "object", "properties": {}, "name": "a"}]',
        "{",
    ],
)
def test_a_signature_that_no_schema_says_is_refused(columns: str, tmp_path: Path) -> None:
    files = _files(_said(signature={"inputs": columns}))
    with pytest.raises(InvalidInput):
        pack(_folder(tmp_path / "model", files))


# --- registered by clients that put the folder into this store first ------------------------------


def _stored(blobs: LocalBlobs, files: dict[str, bytes]) -> list[Artifact]:
    return [
        Artifact(path=path, digest=blobs.put(data)[0], size=len(data))
        for path, data in files.items()
    ]


def test_a_source_in_this_store_becomes_a_version_with_files(
    registry: RegistryService, blobs: LocalBlobs
) -> None:
    registry.create_model("m")
    files = _files(_said())
    found = registry.register_source("m", "models:/m-1", files=_stored(blobs, files))
    assert (found.flavor, found.tier, found.source) == ("mlflow", "safe", "models:/m-1")
    assert registry.files("m", 1) == files
    assert found.environment == {"mlflow": "3.12.0", "python": "3.11.7"}
    loaded = load_predictor(found, registry.files("m", 1))
    np.testing.assert_array_equal(loaded.predict(ROWS), _booster().predict(ROWS))


def test_a_source_that_is_no_folder_of_mlflow_is_registered_as_before(
    registry: RegistryService, blobs: LocalBlobs
) -> None:
    registry.create_model("m")
    for files in ({}, {"weights": b"x"}, {"MLmodel": b"\x00"}):
        found = registry.register_source("m", "s3://b/m", files=_stored(blobs, files))
        assert (found.flavor, found.files, found.tier) == ("", (), "needs-trust")
        with pytest.raises(InvalidInput, match="only says where its files are"):
            load_predictor(found, {}, trust=True)
    odd = _files(_said(signature={"inputs": '[{"type": "object", "name": "a"}]'}))
    kept = registry.register_source("m", "models:/m-1", files=_stored(blobs, odd))
    assert (kept.flavor, kept.signature.inputs.fields) == ("mlflow", ())


def test_files_that_are_not_in_the_store_or_climb_are_refused(
    registry: RegistryService, blobs: LocalBlobs
) -> None:
    registry.create_model("m")
    [known] = _stored(blobs, {"MLmodel": b"x"})
    missing = Artifact(path="model.lgb", digest="0" * 64, size=1)
    with pytest.raises(NotFound):
        registry.register_source("m", "models:/m-1", files=[known, missing])
    climbing = Artifact(path="../x", digest=known.digest, size=1)
    with pytest.raises(InvalidInput, match="plain relative path"):
        registry.register_source("m", "models:/m-1", files=[known, climbing])
    assert registry.versions("m") == []


# --- the signature of the registry ----------------------------------------------------------------


def test_a_valid_signature_lets_a_pickle_load_and_nothing_else_does(
    registry: RegistryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = pack(lambda matrix: matrix[:, 0], names=["a", "b", "c"])
    unsigned = registry.register("m", artifact)
    files = registry.files("m", 1)
    with pytest.raises(NotAllowed, match="signature is unsigned"):
        load_predictor(unsigned, files, registry=registry)
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "secret")
    signed = registry.register("other", artifact)
    loaded = load_predictor(signed, files, registry=registry)
    np.testing.assert_array_equal(loaded.predict(ROWS), ROWS[:, 0])
    with pytest.raises(NotAllowed, match="signature is unsigned"):
        load_predictor(unsigned, files, registry=registry)

    # A manifest other than the stored one is not what was signed.
    evil = pack(lambda matrix: matrix[:, 1], names=["a", "b", "c"])
    theirs = registry.register("evil", evil)
    forged = type(signed)(**{
        **{name: getattr(theirs, name) for name in theirs.__struct_fields__}, "name": "other"
    })  # fmt: skip
    with pytest.raises(NotAllowed, match="signature is invalid"):
        load_predictor(forged, registry.files("evil", 1), registry=registry)
