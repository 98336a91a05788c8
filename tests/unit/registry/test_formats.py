"""XGBoost, CatBoost and ONNX: the same scores after the round trip, and nothing hostile loads."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression, LogisticRegression

from everloop.errors import InvalidInput, MissingExtra
from everloop.registry import flavors
from everloop.registry.flavors import pack
from everloop.registry.formats import trial
from everloop.registry.formats.catboost import CatBoostFlavor
from tests.unit.registry.packing import LATE, ROWS, reload, with_file

FRAME = pd.DataFrame(ROWS, columns=["a", "b", "c"])
SINGLE = ROWS.astype(np.float32)


def _xgb(**more: Any) -> xgboost.XGBClassifier:
    return xgboost.XGBClassifier(n_estimators=6, max_depth=3, n_jobs=1, **more)


def _cat(kind: type = catboost.CatBoostClassifier, **more: Any) -> Any:
    params = {"iterations": 6, "depth": 3, "verbose": 0, "allow_writing_files": False, **more}
    return kind(params) if kind is catboost.CatBoost else kind(**params)


def _linear_xgb() -> xgboost.XGBRegressor:
    return xgboost.XGBRegressor(booster="gblinear", n_estimators=3, n_jobs=1)


# --- the same scores ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        _xgb(),
        _xgb(booster="dart", rate_drop=0.5, seed=1),
        _xgb(missing=-999.0),
        _xgb(gamma=5, tree_method="exact"),
        xgboost.XGBRegressor(n_estimators=4, n_jobs=1),
        xgboost.XGBRFRegressor(n_estimators=4, n_jobs=1),
        _linear_xgb(),
    ],
    ids=["classifier", "dart", "missing", "pruned", "regressor", "forest", "linear"],
)
def test_xgboost_scores_are_the_same_after_the_round_trip(model: Any) -> None:
    rows = ROWS.copy()
    rows[::7, 1] = model.missing
    model.fit(rows, LATE)
    artifact = pack(model)
    predictor = reload(artifact)
    proba = hasattr(model, "predict_proba")
    expected = model.predict_proba(rows)[:, 1] if proba else model.predict(rows)
    np.testing.assert_array_equal(predictor.predict(rows), expected.astype(np.float64))
    assert (artifact.flavor, artifact.tier) == ("xgboost", "safe")
    assert predictor.names == ("f0", "f1", "f2")
    assert artifact.environment["xgboost"] == xgboost.__version__
    assert pack(model).digest == artifact.digest


def test_a_booster_keeps_the_names_it_was_trained_with() -> None:
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(FRAME, LATE), 4
    )
    artifact = pack(booster)
    assert artifact.signature is not None
    assert artifact.signature.inputs.names == ("a", "b", "c")
    expected = booster.predict(xgboost.DMatrix(FRAME)).astype(np.float64)
    np.testing.assert_array_equal(reload(artifact).predict(ROWS), expected)


def test_xgboost_that_stopped_early_answers_by_its_best_iteration() -> None:
    noise = np.random.default_rng(1).integers(0, 2, 200)
    model = _xgb(early_stopping_rounds=2, learning_rate=1.0)
    model.fit(ROWS, LATE, eval_set=[(ROWS, noise)], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    expected = model.predict_proba(ROWS)[:, 1].astype(np.float64)
    np.testing.assert_array_equal(reload(pack(model)).predict(ROWS), expected)


@pytest.mark.parametrize(
    "model",
    [
        _cat(),
        _cat(catboost.CatBoostRegressor),
        _cat(catboost.CatBoostRegressor, loss_function="Poisson"),
        _cat(catboost.CatBoost),
    ],
    ids=["classifier", "regressor", "poisson", "plain"],
)
def test_catboost_scores_are_the_same_after_the_round_trip(model: Any) -> None:
    model.fit(FRAME, LATE)
    artifact = pack(model)
    predictor = reload(artifact)
    proba = hasattr(model, "predict_proba")
    expected = model.predict_proba(FRAME)[:, 1] if proba else model.predict(FRAME)
    np.testing.assert_array_equal(predictor.predict(ROWS), expected)
    assert (artifact.flavor, artifact.tier) == ("catboost", "safe")
    assert predictor.names == ("a", "b", "c")
    assert artifact.environment["catboost"] == catboost.__version__


def _logistic_onnx(**options: Any) -> Any:
    return to_onnx(LogisticRegression().fit(SINGLE, LATE), SINGLE[:1], options=options or None)


def _probability(session: onnxruntime.InferenceSession) -> Any:
    found = session.run(None, {"X": SINGLE})[1]
    return [row[1] for row in found] if isinstance(found, list) else found[:, 1]


@pytest.mark.parametrize("options", [{}, {"zipmap": False}], ids=["maps", "columns"])
@pytest.mark.parametrize("form", ["proto", "bytes", "session"])
def test_onnx_scores_are_the_same_after_the_round_trip(form: str, options: Any) -> None:
    proto = _logistic_onnx(**options)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    model = {"proto": proto, "bytes": proto.SerializeToString(), "session": session}[form]
    artifact = pack(model)
    predictor = reload(artifact)
    expected = np.array(_probability(session), dtype=np.float64)
    np.testing.assert_array_equal(predictor.predict(ROWS), expected)
    assert (artifact.flavor, artifact.tier) == ("onnx", "safe")
    assert predictor.names == ("x0", "x1", "x2")
    assert artifact.environment["onnxruntime"] == onnxruntime.__version__
    assert reload(pack(model, names=["a", "b", "c"])).names == ("a", "b", "c")


def test_onnx_of_a_regression_in_double_and_with_a_column_for_each_input() -> None:
    from skl2onnx.common.data_types import DoubleTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline

    model = LinearRegression().fit(ROWS, LATE)
    artifact = pack(to_onnx(model, ROWS[:1]))
    np.testing.assert_allclose(reload(artifact).predict(ROWS), model.predict(ROWS), rtol=1e-12)

    columns = ColumnTransformer([("all", "passthrough", ["a", "b", "c"])])
    piped = make_pipeline(columns, LinearRegression()).fit(FRAME, LATE)
    inputs = [(name, DoubleTensorType([None, 1])) for name in "abc"]
    predictor = reload(pack(to_onnx(piped, initial_types=inputs)))
    assert predictor.names == ("a", "b", "c")
    np.testing.assert_allclose(predictor.predict(ROWS), piped.predict(FRAME), rtol=1e-12)


# --- what cannot be packed ------------------------------------------------------------------------


def test_models_that_do_not_give_one_score_are_refused() -> None:
    three = np.arange(200) % 3
    with pytest.raises(InvalidInput, match="3 scores per row"):
        pack(_xgb().fit(ROWS, three))
    with pytest.raises(InvalidInput, match="3 scores per row"):
        pack(_cat().fit(ROWS, three))
    with pytest.raises(InvalidInput, match="takes 3 features, the signature names 2"):
        pack(_xgb().fit(ROWS, LATE), names=["a", "b"])
    for targets in (2, 3):
        several = LinearRegression().fit(ROWS, ROWS[:, :targets])
        with pytest.raises(InvalidInput, match="one number for each row"):
            pack(to_onnx(several, ROWS[:1]))


@pytest.mark.parametrize("model", [_xgb(), _cat()], ids=["xgboost", "catboost"])
def test_models_that_are_not_fitted_are_refused(model: Any) -> None:
    with pytest.raises(InvalidInput, match="is not fitted"):
        pack(model)


def test_categories_are_refused() -> None:
    frame = FRAME.assign(c=pd.Categorical(["x", "y"] * 100))
    with pytest.raises(InvalidInput, match="takes cat features"):
        pack(_cat().fit(frame.assign(c=frame["c"].astype(str)), LATE, cat_features=["c"]))
    with pytest.raises(InvalidInput, match="takes categories"):
        pack(_xgb(enable_categorical=True).fit(frame, LATE))


# --- hostile files --------------------------------------------------------------------------------


class _Payload:
    """A pickle of it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


PACKED: dict[str, Callable[[], Any]] = {
    "model.ubj": lambda: pack(_xgb().fit(ROWS, LATE)),
    "model.cbm": lambda: pack(_cat().fit(ROWS, LATE)),
    "model.onnx": lambda: pack(_logistic_onnx()),
}


@pytest.mark.parametrize("path", PACKED)
def test_a_hostile_file_is_told_and_runs_nothing(path: str, tmp_path: Path) -> None:
    artifact = PACKED[path]()
    whole = artifact.files[path]
    made = tmp_path / "made"
    cut = [whole[: len(whole) * part // 10] for part in range(10)]
    huge = [b"{L" + b"\x7f" * 8, b"CBM1" + b"\xff" * 64, b"\x3a" + b"\xff" * 8 + b"\x7f"]
    for data in (*cut, *huge, b"garbage", b"{}", pickle.dumps(_Payload(made))):
        with pytest.raises(InvalidInput, match=r"is no (XGBoost|CatBoost|ONNX) model"):
            reload(with_file(artifact, path, data))
    assert not made.exists()


def _document() -> Any:
    booster = _xgb().fit(ROWS, LATE).get_booster()
    return json.loads(booster.save_raw("json"))


def _tree(document: Any) -> Any:
    return document["learner"]["gradient_booster"]["model"]["trees"][0]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: _tree(d)["left_children"].__setitem__(0, 10**7), "a child 10000000"),
        (lambda d: _tree(d)["split_indices"].__setitem__(0, 10**7), "a split by feature"),
        (lambda d: _tree(d)["left_children"].__setitem__(1, 1), "a"),
        (lambda d: _tree(d)["left_children"].__setitem__(0, 0), "a child 0"),
        (lambda d: _tree(d)["split_conditions"].pop(), "split_conditions of"),
        (lambda d: _tree(d)["split_type"].__setitem__(0, 1), "another form"),
        (lambda d: d["learner"]["gradient_booster"]["model"]["tree_info"].pop(), "in place of"),
        (lambda d: d["learner"]["learner_model_param"].update(num_feature="9" * 12), "features"),
        (lambda d: d["learner"].pop("gradient_booster"), "'gradient_booster' is missing"),
    ],
)  # fmt: skip
def test_a_tree_that_leads_elsewhere_does_not_end_the_process(
    damage: Callable[[Any], Any], told: str
) -> None:
    document = _document()
    damage(document)
    artifact = with_file(pack(_xgb().fit(ROWS, LATE)), "model.ubj", json.dumps(document).encode())
    with pytest.raises(InvalidInput, match=f"no XGBoost model: .*{told}"):
        reload(artifact)


@pytest.fixture(scope="module")
def small() -> Any:
    return pack(_xgb().fit(ROWS, LATE))


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_one_other_byte_never_ends_the_process(small: Any, place: float, byte: int) -> None:
    damaged = bytearray(small.files["model.ubj"])
    damaged[int(place * len(damaged))] = byte
    with contextlib.suppress(InvalidInput):
        reload(with_file(small, "model.ubj", bytes(damaged))).predict(ROWS[:5])


def test_damaged_catboost_file_never_ends_the_process_that_loads_it() -> None:
    model = _cat(catboost.CatBoostRegressor).fit(ROWS, LATE)
    packed = CatBoostFlavor().pack(model, ["a", "b", "c"])
    data = packed["model.cbm"]

    def changed(place: int, mask: int) -> bytes:
        return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]

    # The first ends CatBoost 1.2.10: it looks for its trees elsewhere in the file then.
    for damaged in (changed(18, 4), data[: len(data) // 2]):
        files = {**packed, "model.cbm": damaged}
        with pytest.raises(InvalidInput, match=r"ends the process|no CatBoost model"):
            CatBoostFlavor().load(files)
    assert CatBoostFlavor().load(packed)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends the process.*signal 11"),
        ("while True: pass", "still being loaded"),
        ("x = bytearray(1 << 40)", "of memory"),
        ("raise ValueError", ""),
        ("assert (data, sys.argv[1:]) == (b'abc', ['kind']); sys.exit(0)", ""),
    ],
)
def test_file_is_tried_by_a_process_of_its_own(
    code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_survived", OrderedDict())
    monkeypatch.setattr(trial, "_TIMEOUT_S", 1)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=told) if told else contextlib.nullcontext():
            trial.survive(code, b"abc", "kind")
    assert len(trial._survived) == (not told)


def test_catboost_with_damaged_parameters_is_told() -> None:
    artifact = PACKED["model.cbm"]()
    data = artifact.files["model.cbm"]
    damaged = data.replace(b'{"', b'}"')
    assert damaged != data
    with pytest.raises(InvalidInput, match="no CatBoost model"):
        reload(with_file(artifact, "model.cbm", damaged))


def test_a_damaged_onnx_model_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    artifact = PACKED["model.onnx"]()
    damaged = artifact.files["model.onnx"].replace(b"LinearClassifier", b"LinearXlassifier")
    with pytest.raises(InvalidInput, match="no ONNX model"):
        reload(with_file(artifact, "model.onnx", damaged))
    assert capfd.readouterr() == ("", "")


def test_onnx_that_names_other_files_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(400))
    proto = to_onnx(LinearRegression().fit(SINGLE, LATE), SINGLE[:1])
    tensor = proto.graph.initializer.add(name="w", dims=[100], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret))
    with pytest.raises(InvalidInput, match="tensor 'w' from another file"):
        pack(proto)


# --- how they are found ---------------------------------------------------------------------------


def test_asking_which_flavor_takes_a_model_imports_no_library() -> None:
    code = (
        "import sys; from everloop.registry.flavors import pack; pack(lambda m: m[:, 0]);"
        "print({'xgboost', 'catboost', 'onnx', 'onnxruntime', 'keras', 'torch', 'mlflow', 'sklearn'"
        ", 'lightgbm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_is_built_in_is_what_the_package_declares() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][flavors.GROUP] == flavors.BUILTIN
    for name in flavors.BUILTIN:
        assert flavors.find_flavor(name).name == name


@pytest.mark.parametrize(
    ("path", "library", "extra"),
    [
        ("model.ubj", "xgboost", "xgboost"),
        ("model.cbm", "catboost", "catboost"),
        ("model.onnx", "onnxruntime", "onnx"),
    ],
)
def test_without_the_library_the_error_names_the_extra(
    path: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = PACKED[path]()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra) as caught:
        reload(artifact)
    assert f"everloop[{extra}]" in caught.value.hint
