"""A leaky variant scores better offline and worse in replay; ours scores the same in both.

Leaky means what most feature code does: windows over the schedule instead of over what had landed.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import polars as pl
import pytest

from everloop.automation.triggers import collecting
from everloop.evaluation.metrics import auc

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
TRAIN_UNTIL = datetime(2013, 2, 1, tzinfo=UTC)
END = datetime(2013, 2, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def example() -> Any:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import world

        with collecting():
            import loop
    finally:
        sys.path.remove(str(EXAMPLE))
    return world, loop


def leaky(features: Any) -> Any:
    """The same features, but every row counts from its schedule on, landed or not."""
    views = []
    for view in features.views:
        source = view.source
        if source.known:
            source = msgspec.structs.replace(source, known="")
        views.append(msgspec.structs.replace(view, source=source))
    return msgspec.structs.replace(features, name="leaky", views=tuple(views))


def test_a_leaky_variant_scores_better_offline_and_worse_in_replay(example: Any) -> None:
    world, loop = example
    flights = world.flights().filter(pl.col("sched_dep") < END)
    sources = {"flights": flights, "weather": world.weather(), "planes": world.planes()}
    rows = flights.filter(pl.col("arr_delay").is_not_null())
    y = (rows["arr_delay"] > 15).to_numpy().astype(float)
    earlier = (rows["sched_dep"] < TRAIN_UNTIL).to_numpy()
    known = loop.delay_features
    names = list(known.names)
    honest_x = known.history(rows, sources=sources).to_numpy(names)
    leaky_x = leaky(known).history(rows, sources=sources).to_numpy(names)

    def score(trained_on: np.ndarray, served: np.ndarray) -> float:
        data = lightgbm.Dataset(trained_on[earlier], y[earlier], feature_name=names)
        model = lightgbm.train(loop.PARAMETERS, data, 15)
        return float(auc(y[~earlier], model.predict(served[~earlier])))

    honest = score(honest_x, honest_x)
    leaky_offline, leaky_in_replay = score(leaky_x, leaky_x), score(leaky_x, honest_x)
    assert leaky_offline > honest + 0.02
    assert leaky_in_replay < honest - 0.005


def test_the_leakage_report_tells_the_leaky_variant(example: Any) -> None:
    world, loop = example
    flights = world.flights().filter(pl.col("sched_dep") < datetime(2013, 1, 8, tzinfo=UTC))
    sources = {"flights": flights, "weather": world.weather(), "planes": world.planes()}
    report = loop.delay_features.check_leakage(flights, sources=sources)
    assert report.rows == flights.height
    differing = {feature.name for feature in report.features}
    assert "previous_delay" in differing
    assert "distance" not in differing
