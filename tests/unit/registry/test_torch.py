"""PyTorch models: plain layers need no trust, any other module does.

Without torch these tests are deselected, as tests/conftest.py says.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from everloop.errors import InvalidInput, NotAllowed
from everloop.registry.flavors import pack
from tests.unit.registry.packing import ROWS, reload, with_file

WEIGHTS, PROGRAM, ABOUT = "model.safetensors", "model.pt2", "flavor.json"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.inner(rows)).squeeze(1)


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), inner, nn.Linear(4, 1), nn.Sigmoid())


def _expected(model: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    model.eval()
    with torch.inference_mode():
        return model(torch.tensor(ROWS, dtype=dtype)).reshape(-1).numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_layers_are_safe_and_score_the_same(dtype: torch.dtype) -> None:
    model = _plain().to(dtype)
    artifact = pack(model, names=["a", "b", "c"])
    assert (artifact.flavor, artifact.tier) == ("torch", "safe")
    assert set(artifact.files) == {WEIGHTS, ABOUT}
    predictor = reload(artifact)
    assert predictor.names == ("a", "b", "c")
    np.testing.assert_array_equal(predictor.predict(ROWS), _expected(model, dtype))
    assert pack(model, names=["a", "b", "c"]).digest == artifact.digest
    assert artifact.environment["torch"] == torch.__version__


def test_any_other_module_needs_trust_and_scores_the_same() -> None:
    torch.manual_seed(0)
    model = Own()
    artifact = pack(model)
    assert model.training  # as it was
    assert (artifact.tier, set(artifact.files)) == ("needs-trust", {PROGRAM, ABOUT})
    with pytest.raises(NotAllowed, match="runs code"):
        reload(artifact)
    predictor = reload(artifact, trust=True)
    assert predictor.names == ("x0", "x1", "x2")
    np.testing.assert_allclose(predictor.predict(ROWS), _expected(model), rtol=1e-6)


def test_a_program_that_was_exported_is_taken() -> None:
    model = Own().eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=shapes)
    artifact = pack(program, names=["a", "b", "c"])
    predictor = reload(artifact, trust=True)
    np.testing.assert_allclose(predictor.predict(ROWS), _expected(model), rtol=1e-6)


def test_a_hook_or_a_class_of_ones_own_is_not_plain() -> None:
    hooked = _plain()
    hooked[0].register_forward_hook(lambda *given: None)
    assert pack(hooked).tier == "needs-trust"


def test_models_of_several_outputs_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 scores per row"):
        pack(nn.Sequential(nn.Linear(3, 2)))


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_told_and_runs_nothing(tmp_path: Path) -> None:
    artifact = pack(_plain())
    whole = artifact.files[WEIGHTS]
    made = tmp_path / "made"
    pickled = pickle.dumps(_Payload(made))
    huge = b"\xff" * 7 + b"\x7f" + b"{}"
    cut = [whole[: len(whole) * part // 10] for part in range(10)]
    for data in (*cut, huge, b"garbage", pickled):
        with pytest.raises(InvalidInput, match="no PyTorch model"):
            reload(with_file(artifact, WEIGHTS, data))
    # A pickle under another name is not looked at, and a program is none that is safe.
    with pytest.raises(NotAllowed):
        reload(with_file(artifact, PROGRAM, pickled))
    assert not made.exists()


@pytest.mark.parametrize(
    "layers",
    [
        [{"layer": "Linear", "in_features": 10**12, "out_features": 10**6, "bias": True}],
        [{"layer": "Module"}],
        [{"layer": "os.system"}],
        [{"layer": "Linear", "in_features": 3, "out_features": 1, "device": "cuda"}],
        {"layer": "Linear", "in_features": "3"},
        None,
        "Linear",
    ],
)
def test_layers_that_no_model_of_ours_has_are_refused(layers: Any) -> None:
    artifact = pack(_plain())
    about = msgspec.json.decode(artifact.files[ABOUT]) | {"options": {"layers": layers}}
    with pytest.raises(InvalidInput, match="no PyTorch model"):
        reload(with_file(artifact, ABOUT, msgspec.json.encode(about)))
