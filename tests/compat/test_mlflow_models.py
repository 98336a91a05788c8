"""Models that MLflow's real client registered are served here, and given back unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from everloop.cli.main import main
from everloop.errors import NotAllowed
from everloop.registry.flavors import load_predictor
from everloop.workspace import Workspace

pytestmark = pytest.mark.timeout(300)

SAFE = ["xgboost", "lightgbm", "catboost", "sklearn", "onnx"]
ALL = [*SAFE, "pyfunc"]
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def workspace(workspace: Workspace) -> Iterator[Workspace]:
    """The one of the other tests, with a key: what is registered is signed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EVERLOOP_SIGNING_KEY", KEY)
    yield workspace
    patch.undo()


@pytest.fixture(scope="module")
def seen(run_client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_client("mlflow_models_client.py")


@pytest.fixture(scope="module")
def served(seen: dict[str, Any], workspace: Workspace, url: str) -> str:
    for name in ALL:
        workspace.deployment.create(name, model=name, version=1)
    return url


@pytest.mark.parametrize("name", ALL)
def test_the_manifest_has_the_files_and_what_mlmodel_says(
    name: str, seen: dict[str, Any], workspace: Workspace
) -> None:
    version = workspace.registry.version(name, 1)
    assert version.source.startswith("models:/m-")
    assert (version.flavor, version.tier) == ("mlflow", "safe" if name in SAFE else "needs-trust")
    names = ("0", "1", "2") if name == "onnx" else ("a", "b", "c")
    assert version.signature.inputs.names == names
    assert version.environment["mlflow"][0].isdigit()
    stored = workspace.registry.files(name, 1)
    assert {path: data.hex() for path, data in stored.items()} == seen[name]["files"]


@pytest.mark.parametrize("name", ALL)
def test_it_answers_over_both_doors_what_mlflow_answers(
    name: str, seen: dict[str, Any], served: str, workspace: Workspace
) -> None:
    expected = seen[name]["predictions"]
    rows = seen["rows"]
    names = workspace.registry.version(name, 1).signature.inputs.names
    datatype = "FP32" if name == "onnx" else "FP64"
    tensors = [
        {"name": column, "shape": [len(rows)], "datatype": datatype, "data": list(values)}
        for column, values in zip(names, zip(*rows, strict=True), strict=True)
    ]
    frame = {"dataframe_split": {"columns": list(names), "data": rows}}
    with httpx.Client(base_url=served, timeout=60) as client:
        infer = client.post(f"/v2/models/{name}/infer", json={"inputs": tensors})
        invoked = client.post(f"/invocations/{name}", json=frame)
    assert infer.status_code == invoked.status_code == 200, infer.text + invoked.text
    np.testing.assert_allclose(infer.json()["outputs"][0]["data"], expected, rtol=1e-12)
    np.testing.assert_allclose(invoked.json()["predictions"], expected, rtol=1e-12)


def test_export_gives_the_folder_back_unchanged(
    seen: dict[str, Any], workspace: Workspace, tmp_path: Path
) -> None:
    place = str(workspace.folder)
    command = ["model", "export", "pyfunc/1", str(tmp_path / "out"), "--dir", place]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0, told.output
    assert CliRunner().invoke(main, command).exit_code != 0  # never over what is there
    found = {
        file.relative_to(tmp_path / "out").as_posix(): file.read_bytes().hex()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert found == seen["pyfunc"]["files"]


def test_a_pickle_is_loaded_only_with_trust_or_the_signature_of_the_key(
    seen: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = workspace.registry
    version, files = registry.version("pyfunc", 1), registry.files("pyfunc", 1)
    rows = np.array(seen["rows"])
    for loaded in (
        load_predictor(version, files, trust=True),
        load_predictor(version, files, registry=registry),
    ):
        np.testing.assert_array_equal(loaded.predict(rows), seen["pyfunc"]["predictions"])
    with pytest.raises(NotAllowed, match="its signature is unsigned"):
        load_predictor(version, files)
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "another")
    with pytest.raises(NotAllowed, match="its signature is unknown key") as caught:
        load_predictor(version, files, registry=registry)
    assert "EVERLOOP_SIGNING_KEY" in caught.value.hint
    assert "trust=True" in caught.value.hint
