from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import EntryPoint, EntryPoints

import lightgbm
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from everloop.core.artifact import ModelArtifact
from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.errors import BackendError, InvalidInput, NotAllowed, NotFound
from everloop.registry import builtin, flavors
from everloop.registry.flavors import load_predictor, pack
from everloop.registry.service import RegistryService
from tests.unit.registry.packing import LATE, ROWS, reload, version_of


def _booster(**more: object) -> lightgbm.Booster:
    params = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 4, **more}
    return lightgbm.train(params, lightgbm.Dataset(ROWS, LATE, feature_name=["a", "b", "c"]), 4)


def test_lightgbm_scores_are_the_same_after_the_round_trip() -> None:
    booster = _booster()
    artifact = pack(booster)
    predictor = reload(artifact)
    assert (artifact.flavor, artifact.tier, predictor.names) == (
        "lightgbm",
        "safe",
        ("a", "b", "c"),
    )
    np.testing.assert_array_equal(predictor.predict(ROWS), booster.predict(ROWS))
    assert artifact.signature is not None
    assert artifact.signature.inputs.names == ("a", "b", "c")
    assert pack(booster).digest == artifact.digest


def test_lightgbm_classifier_gives_probabilities() -> None:
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(ROWS, LATE)
    artifact = pack(model, names=["a", "b", "c"])
    scores = reload(artifact).predict(ROWS)
    np.testing.assert_allclose(scores, model.booster_.predict(ROWS))
    assert artifact.flavor == "lightgbm"


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        (LogisticRegression(), "safe"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "safe"),
        (RandomForestClassifier(3, n_jobs=2, random_state=0), "needs-trust"),
        (MLPClassifier((2,), max_iter=2, random_state=0), "safe"),
        (LinearRegression(), "safe"),
        (make_pipeline(FunctionTransformer(lambda x: x), LogisticRegression()), "needs-trust"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_sklearn_is_safe_where_skops_needs_no_trust(model: object, tier: str) -> None:
    fitted = model.fit(ROWS, LATE)  # type: ignore[attr-defined]
    artifact = pack(fitted, names=["a", "b", "c"])
    assert (artifact.flavor, artifact.tier) == ("sklearn", tier)
    scores = reload(artifact, trust=tier == "needs-trust").predict(ROWS)
    proba = getattr(fitted, "predict_proba", None)
    expected = proba(ROWS)[:, 1] if proba else fitted.predict(ROWS)
    np.testing.assert_allclose(scores, expected)


def test_without_skops_sklearn_needs_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    artifact = pack(LogisticRegression().fit(ROWS, LATE))
    assert (artifact.tier, set(artifact.files)) == ("needs-trust", {"model.pkl", "flavor.json"})


def test_a_function_needs_trust_to_load() -> None:
    artifact = pack(lambda matrix: matrix[:, 0] * 2, names=["a", "b", "c"])
    with pytest.raises(NotAllowed, match="trust=True"):
        reload(artifact)
    np.testing.assert_array_equal(reload(artifact, trust=True).predict(ROWS), ROWS[:, 0] * 2)


def test_a_pickle_that_calls_itself_safe_is_not_loaded(registry: RegistryService) -> None:
    honest = pack(make_pipeline(FunctionTransformer(lambda x: x)).fit(ROWS), flavor="sklearn")
    lying = ModelArtifact(flavor="sklearn", files=honest.files, signature=honest.signature)
    assert lying.tier == "safe"
    with pytest.raises(NotAllowed):
        reload(lying)
    assert registry.register("m", lying).tier == "needs-trust"


@pytest.mark.parametrize("path", ["model.skops", "model.pkl"])
def test_files_cut_short_are_told(path: str) -> None:
    fitted = LogisticRegression().fit(ROWS, LATE)
    artifact = pack(fitted, flavor="sklearn" if path == "model.skops" else "callable")
    whole = artifact.files[path]
    for data in (b"", b"garbage", whole[:40], whole[: len(whole) // 2]):
        damaged = ModelArtifact(
            flavor=artifact.flavor,
            files={**artifact.files, path: data},
            signature=artifact.signature,
        )
        with pytest.raises(InvalidInput, match=r"no skops model|model\.pkl cannot be loaded"):
            reload(damaged, trust=True)


def test_skops_with_unknown_types_is_refused_even_if_called_safe() -> None:
    import skops.io

    data = skops.io.dumps(FunctionTransformer(np.ndarray.dumps))
    about = pack(LogisticRegression().fit(ROWS, LATE)).files["flavor.json"]
    crafted = ModelArtifact(
        flavor="sklearn",
        files={"model.skops": data, "flavor.json": about},
        signature=Signature(Schema(()), Schema(())),
    )
    with pytest.raises(NotAllowed, match="not trusted"):
        reload(crafted)


@pytest.mark.parametrize(
    "files",
    [
        {"model.txt": b"x"},
        {"model.txt": b"x", "flavor.json": b"{}", "more": b""},
        {},
    ],
)
def test_bytes_that_the_manifest_does_not_name_are_not_loaded(files: dict[str, bytes]) -> None:
    artifact = pack(_booster())
    with pytest.raises(BackendError, match="not those of m/1"):
        load_predictor(version_of(artifact), files)


def test_a_text_that_is_no_model_is_said_so() -> None:
    about = pack(_booster()).files["flavor.json"]
    broken = ModelArtifact(
        flavor="lightgbm",
        files={"model.txt": b"tree of nothing", "flavor.json": about},
        signature=Signature(Schema(()), Schema(())),
    )
    with pytest.raises(InvalidInput, match="no LightGBM model"):
        reload(broken)


def test_models_of_many_classes_are_refused() -> None:
    three = np.arange(200) % 3
    with pytest.raises(InvalidInput, match="3 scores per row"):
        pack(LogisticRegression().fit(ROWS, three))
    data = lightgbm.Dataset(ROWS, three)
    params = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    with pytest.raises(InvalidInput, match="3 scores per row"):
        pack(lightgbm.train(params, data, 2))


def test_a_signature_must_fit_the_model() -> None:
    inputs = Schema((Field("a", "float64"), Field("b", "float64")))
    with pytest.raises(InvalidInput, match="takes 3 features, the signature names 2"):
        pack(_booster(), signature=Signature(inputs, Schema(())))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no flavor takes a int"):
        pack(3)
    with pytest.raises(NotFound, match="lightgbm"):
        pack(_booster(), flavor="lightgmb")


def test_a_feature_set_gives_the_signature() -> None:
    class Features:
        name = "delay"
        digest = "0123456789abcdef" * 4
        schema = Schema((Field("a", "float64"), Field("b", "float64"), Field("c", "float64")))

    artifact = pack(_booster(), feature_set=Features(), trained_until=datetime(2013, 4, 1))  # noqa: DTZ001
    assert artifact.feature_set == "delay@0123456789abcdef"
    assert artifact.signature is not None
    assert artifact.signature.inputs is Features.schema
    assert artifact.trained_until == datetime(2013, 4, 1, tzinfo=UTC)


def test_shapes_are_checked_and_no_rows_are_no_scores() -> None:
    predictor = reload(pack(_booster()))
    assert predictor.predict(np.empty((0, 3))).shape == (0,)
    for wrong in (np.zeros((2, 2)), np.zeros(3)):
        with pytest.raises(InvalidInput, match=r"takes a matrix \(n, 3\)"):
            predictor.predict(wrong)
    two = flavors.Predictor((), lambda matrix: np.zeros(7))
    with pytest.raises(InvalidInput, match="gave scores of shape"):
        two.predict(np.zeros((2, 2)))


def test_a_plug_in_flavor_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        name = "constant"

        def accepts(self, model: object) -> bool:
            return isinstance(model, float)

        def pack(self, model: float, names: object) -> dict[str, bytes]:
            return {"value": str(model).encode()}

        def tier(self, files: dict[str, bytes]) -> str:
            return "safe"

        def load(self, files: dict[str, bytes]) -> flavors.Predictor:
            value = float(files["value"])
            return flavors.Predictor((), lambda matrix: np.full(len(matrix), value))

    point = EntryPoint("constant", "somewhere:Constant", flavors.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Constant)
    monkeypatch.setattr(flavors, "entry_points", lambda group: EntryPoints([point]))
    artifact = pack(0.25)
    assert artifact.flavor == "constant"
    np.testing.assert_array_equal(reload(artifact).predict(ROWS[:2]), [0.25, 0.25])
