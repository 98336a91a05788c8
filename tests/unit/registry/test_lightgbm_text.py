"""Models of LightGBM in text: what it writes passes, what it would not survive is told."""

from __future__ import annotations

import re
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.errors import InvalidInput
from everloop.registry.flavors import pack
from everloop.registry.lightgbm_text import check_lightgbm
from tests.unit.registry.packing import LATE, ROWS, reload, with_file


def _train(rows: Any = ROWS, **more: Any) -> lightgbm.Booster:
    params = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 5, **more}
    return lightgbm.train(params, lightgbm.Dataset(rows, LATE), 4)


BOOSTER = _train()
TEXT = BOOSTER.model_to_string()
ARTIFACT = pack(BOOSTER)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_leaves": 31, "min_data_in_leaf": 1},
        {"boosting": "dart"},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"linear_tree": True, "objective": "regression"},
        {"min_data_in_leaf": 150},  # trees of one leaf
        {"categorical_feature": [2], "min_data_per_group": 1, "cat_smooth": 0},
        {"monotone_constraints": [1, 0, 0]},
    ],
)
def test_what_lightgbm_writes_is_taken(more: dict[str, Any]) -> None:
    rows = ROWS.copy()
    if "categorical_feature" in more:
        rows[:, 2] = np.arange(200) % 9
        rows[:, :2] = 0
    params = {"pre_partition": False, **more}
    categories = params.pop("categorical_feature", "auto")
    base = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 5}
    data = lightgbm.Dataset(rows, LATE, categorical_feature=categories)
    booster = lightgbm.train(base | params, data, 4)
    np.testing.assert_array_equal(reload(pack(booster)).predict(rows), booster.predict(rows))


@pytest.mark.parametrize("part", range(100))
def test_a_file_cut_short_is_told(part: int) -> None:
    cut = TEXT[: len(TEXT) * part // 100]
    after_trees = len(cut) > TEXT.index("end of trees") + len("end of trees")
    if after_trees:  # what follows says nothing that is needed, or is no JSON
        check_lightgbm(cut)
    else:
        with pytest.raises(InvalidInput, match="no LightGBM model"):
            reload(with_file(ARTIFACT, "model.txt", cut.encode()))


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"split_feature=\d", "split_feature=9"),
        (r"left_child=-?\d", "left_child=0"),
        (r"left_child=-?\d", "left_child=7"),
        (r"right_child=-?\d", "right_child=-9"),
        (r"decision_type=\d", "decision_type=1"),
        (r"num_leaves=\d", "num_leaves=4"),
        (r"leaf_value=-?\d", "leaf_value=x"),
        (r"max_feature_idx=2", "max_feature_idx=1"),
        (r"num_class=1", "num_class=2"),
        (r"tree_sizes=\d", "tree_sizes=9"),
        (r"num_cat=0", "num_cat=3"),
        (r"shrinkage=", "num_leaves="),
    ],
)
def test_a_tree_that_leads_elsewhere_does_not_end_the_process(pattern: str, instead: str) -> None:
    damaged = re.sub(pattern, instead, TEXT, count=1)
    assert damaged != TEXT
    with pytest.raises(InvalidInput, match="no LightGBM model"):
        reload(with_file(ARTIFACT, "model.txt", damaged.encode()))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, TEXT.index("end of trees")), st.sampled_from("0123456789 -=.\ne"))
def test_one_other_letter_never_ends_the_process(place: int, letter: str) -> None:
    damaged = TEXT[:place] + letter + TEXT[place + 1 :]
    try:
        predictor = reload(with_file(ARTIFACT, "model.txt", damaged.encode()))
        predictor.predict(ROWS[:5])
    except InvalidInput:
        pass
