"""XGBoost in its own UBJ format: data only, exact, readable by every binding.

XGBoost follows the nodes of a tree without looking where they lead, so a crafted file ends the
process. What is loaded is read and checked here first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
from everloop.registry.formats.ubjson import read_ubjson
from everloop.registry.predictor import Floats, Predictor

__all__ = ["XGBoostFlavor", "load_xgboost", "scores_of"]

_MODEL = "model.ubj"


class XGBoostFlavor:
    """Boosters, and the classes that look like scikit-learn's; of these the best iteration."""

    name = "xgboost"
    libraries = ("xgboost",)

    def accepts(self, model: object) -> bool:
        return made_by(model, "xgboost") and hasattr(model, "predict")

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        booster = _booster_of(model)
        missing = float(getattr(model, "missing", math.nan))
        width = int(booster.num_features())
        own = tuple(booster.feature_names or (f"f{place}" for place in range(width)))
        data = bytes(booster.save_raw("ubj"))
        options = {} if math.isnan(missing) else {"missing": missing}
        described = about(names or own, width=width, library="xgboost", options=options)
        files = {_MODEL: data, ABOUT: described}
        check_scores(scores_of(load_xgboost(data), missing), width, "XGBoost")
        return files

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        missing = float(options_of(files).get("missing", math.nan))
        booster = load_xgboost(file_of(files, _MODEL))
        return Predictor(names_of(files), scores_of(booster, missing))


def _booster_of(model: Any) -> Any:
    if hasattr(model, "save_raw"):
        return model
    from sklearn.exceptions import NotFittedError

    try:
        booster = model.get_booster()
    except NotFittedError as error:
        raise InvalidInput(f"{type(model).__name__} is not fitted") from error
    best = booster.attr("best_iteration")
    # As its own predict does: what was grown after the best iteration does not count.
    return booster if best is None or model.booster == "gblinear" else booster[: int(best) + 1]


def scores_of(booster: Any, missing: float = math.nan) -> Callable[[Floats], Floats]:
    """The function of a loaded booster; NaN is missing, and so is `missing`."""
    import xgboost

    linear = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] == "gblinear"

    def scores(matrix: Floats) -> Floats:
        if not linear:
            found = booster.inplace_predict(matrix, missing=missing, validate_features=False)
        else:  # it cannot predict in place
            rows = xgboost.DMatrix(matrix, missing=missing, nthread=1)
            found = booster.predict(rows, validate_features=False)
        return np.asarray(found, dtype=np.float64)

    return scores


def load_xgboost(data: bytes, kind: str = "Booster") -> Any:
    """A model of XGBoost's own format, UBJ or JSON, that was checked first; it uses one thread.

    Args:
        data: The file.
        kind: ``Booster`` or the name of a class of ``xgboost`` that looks like scikit-learn's.

    Raises:
        InvalidInput: If it is no such model or a damaged one.
        MissingExtra: If XGBoost is not installed.
    """
    try:
        import xgboost
    except ModuleNotFoundError as error:
        raise MissingExtra.of("xgboost", "an XGBoost model") from error
    _check(data)
    made = getattr(xgboost, kind)()
    try:
        made.load_model(bytearray(data))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise InvalidInput(f"the file is no XGBoost model: {first}") from error
    made.set_param({"nthread": 1}) if kind == "Booster" else made.set_params(n_jobs=1)
    return made


#: What reading an object of another form than expected raises.
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


# --- checking -------------------------------------------------------------------------------------


def _check(data: bytes) -> None:
    try:
        as_text = data[:1] == b"{" and data[1:2].strip() in (b"", b'"')
        _check_learner(_read_json(data) if as_text else read_ubjson(data))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        if isinstance(error, InvalidInput):
            raise InvalidInput(f"the file is no XGBoost model: {error.summary}") from None
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidInput(f"the file is no XGBoost model: {what}") from error


def _read_json(data: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    return json.loads(data, object_pairs_hook=once)


def _check_learner(document: Mapping[str, Any]) -> None:
    learner = document["learner"]
    shape = learner["learner_model_param"]
    width, classes = int(shape["num_feature"]), int(shape["num_class"])
    groups = max(1, classes, int(shape.get("num_target", 1)))
    if not 0 < width < 1 << 24:
        raise ValueError(f"{width} features")
    kinds = learner.get("feature_types") or ()
    if "c" in kinds:
        raise ValueError("it takes categories, which a matrix of numbers cannot hold")
    for said in (kinds, learner.get("feature_names") or ()):
        if len(said) not in (0, width):
            raise ValueError(f"{len(said)} names or types of {width} features")
    _check_gradient(learner["gradient_booster"], width, groups)


def _check_gradient(gradient: Mapping[str, Any], width: int, groups: int) -> None:
    name = gradient["name"]
    if name == "gblinear":
        if len(gradient["model"]["weights"]) != (width + 1) * groups:
            raise ValueError("a linear model of another number of weights")
        return
    if name not in ("gbtree", "dart"):
        raise ValueError(f"a booster {str(name)[:40]!r}")
    model = gradient["gbtree"]["model"] if name == "dart" else gradient["model"]
    trees = model["trees"]
    if name == "dart" and len(gradient["weight_drop"]) != len(trees):
        raise ValueError("another number of weights than of trees")
    if int(model["gbtree_model_param"]["num_trees"]) != len(trees):
        raise ValueError("another number of trees than it says")
    _check_range(_whole(model["tree_info"], len(trees)), 0, groups, "a tree of a class")
    ends = model.get("iteration_indptr")
    if ends is not None:
        ends = _whole(ends, len(ends))
        if len(ends) < 1 or ends[0] != 0 or ends[-1] != len(trees) or (np.diff(ends) < 0).any():
            raise ValueError("iterations of other trees")
    for tree in trees:
        _check_tree(tree, width)


_NO_PARENT = (-1, (1 << 31) - 1)
#: One value of each for a node, where a tree has them.
_OF_NODES = (
    "base_weights", "default_left", "loss_changes", "parents", "split_conditions", "split_type",
    "sum_hessian",
)  # fmt: skip


def _check_tree(tree: Mapping[str, Any], width: int) -> None:
    said = tree["tree_param"]
    nodes = int(said["num_nodes"])
    if nodes < 1 or int(said.get("size_leaf_vector") or 0) > 1 or int(said["num_feature"]) > width:
        raise ValueError("a tree of another form")
    if any(len(tree.get(name, ())) for name in ("categories", "categories_nodes")):
        raise ValueError("it takes categories, which a matrix of numbers cannot hold")
    for name in _OF_NODES:
        if len(tree[name]) != nodes:
            raise ValueError(f"{len(tree[name])} {name} of {nodes} nodes")
    left = _whole(tree["left_children"], nodes)
    right = _whole(tree["right_children"], nodes)
    if ((left == -1) != (right == -1)).any() or np.any(np.asarray(tree["split_type"])):
        raise ValueError("a tree of another form")
    children = np.concatenate([left[left != -1], right[right != -1]])
    _check_range(children, 1, nodes, "a child")
    # From the root no walk can come back where every node is the child of one at most.
    if len(np.unique(children)) != len(children):
        raise ValueError("a node that is the child of two")
    parents = _whole(tree["parents"], nodes)
    inner = np.flatnonzero(left != -1)
    if (parents[left[inner]] != inner).any() or (parents[right[inner]] != inner).any():
        raise ValueError("a child of another parent")
    rest = np.delete(parents, children)  # the root, and what was pruned
    _check_range(rest[~np.isin(rest, _NO_PARENT)], 0, nodes, "a parent")
    _check_range(_whole(tree["split_indices"], nodes)[left != -1], 0, width, "a split by feature")


def _whole(values: Any, length: int) -> npt.NDArray[np.int64]:
    found = np.asarray(values)
    if found.shape != (length,) or (length and found.dtype.kind not in "iu"):
        raise ValueError(f"{found.shape} values of kind {found.dtype} in place of {length} numbers")
    return found.astype(np.int64)


def _check_range(values: npt.NDArray[np.int64], low: int, end: int, what: str) -> None:
    wrong = values[(values < low) | (values >= end)]
    if len(wrong):
        raise ValueError(f"{what} {wrong[0]}, of {low} to {end - 1}")
