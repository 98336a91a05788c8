from __future__ import annotations

import math

import numpy as np
import pytest

from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.behaviour import (
    Case,
    directional,
    functionality,
    invariance,
    latency_ms,
)

NAMES = ("delay", "wind", "tail")
ROWS = np.random.default_rng(0).normal(size=(50, 3))


def model(rows: np.ndarray) -> np.ndarray:
    """Rises with the delay, falls with the wind, and looks at the tail number for row 7 alone."""
    odds = 2 * rows[:, 0] - rows[:, 1] + np.where(rows[:, 0] == ROWS[7, 0], rows[:, 2], 0)
    return 1 / (1 + np.exp(-odds))


def test_a_field_that_must_not_matter_and_does_names_the_row() -> None:
    found = invariance(model, NAMES, ROWS, "tail", by=1e-9)
    assert (found.checked, found.broken) == (50, 1)
    assert found.share == 0.02
    worst = found.worst[0]
    assert worst["features"] == dict(zip(NAMES, ROWS[7].tolist(), strict=True))
    again = ROWS[7:8].copy()
    again[0, 2] = worst["changed"]["tail"]
    assert model(again)[0] == pytest.approx(worst["after"])
    assert model(ROWS[7:8])[0] == pytest.approx(worst["before"])
    assert invariance(model, NAMES, ROWS, "wind", by=1e-9).broken == 50
    assert invariance(model, NAMES, ROWS, "wind", by=1e-9, values=[0.0]).broken == 50
    assert invariance(model, NAMES, ROWS, "wind", by=1.0).broken == 0


def test_a_score_must_move_the_way_that_was_expected() -> None:
    assert directional(model, NAMES, ROWS, "delay", change=0.5, effect="up").broken == 0
    wrong = directional(model, NAMES, ROWS, "wind", change=0.5, effect="up")
    assert wrong.broken == 50
    assert wrong.worst[0]["after"] < wrong.worst[0]["before"]
    moved = [one["before"] - one["after"] for one in wrong.worst]
    assert moved == sorted(moved, reverse=True)
    assert directional(model, NAMES, ROWS, "wind", change=0.5, effect="up", by=1).broken == 0
    holes = ROWS.copy()
    holes[:20, 0] = math.nan
    assert directional(model, NAMES, holes, "delay", change=1, effect="up").checked == 30


def test_known_cases_must_be_answered() -> None:
    cases = [
        Case("an hour late", {"delay": 4, "wind": 0, "tail": 0}, 0.9, 1),
        Case("all calm", {"delay": -4, "wind": 0, "tail": 0}, 0, 0.1),
        Case("nonsense", {"delay": 4, "wind": 0, "tail": 0}, 0, 0.1),
    ]
    assert functionality(model, NAMES, cases[:2]).broken == 0
    found = functionality(model, NAMES, cases)
    assert (found.checked, found.broken) == (3, 1)
    assert found.worst[0]["case"] == "nonsense"
    assert found.worst[0]["score"] > 0.9


def test_a_score_that_is_no_number_breaks_every_test() -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(rows[:, 0]) & (rows[:, 0] < 5), 0.5, math.nan)

    left_out = functionality(broken, NAMES, [Case("no delay known", {"wind": 0}, 0, 1)])
    assert left_out.broken == 1
    assert directional(broken, NAMES, ROWS, "delay", change=9, effect="up").broken == 50
    assert invariance(broken, NAMES, ROWS, "delay", by=1, values=[9]).broken == 50


def test_latency_is_that_of_single_rows() -> None:
    shapes = set()

    def seen(rows: np.ndarray) -> np.ndarray:
        shapes.add(rows.shape)
        return rows[:, 0]

    median, worst = latency_ms(seen, ROWS, calls=30, warm_up=3)
    assert shapes == {(1, 3)}
    assert 0 < median <= worst


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(NotFound, match="delay"):
        invariance(model, NAMES, ROWS, "delai", by=0.1)
    with pytest.raises(NotFound):
        functionality(model, NAMES, [Case("x", {"wnd": 1}, 0, 1)])
    with pytest.raises(InvalidInput, match="no case"):
        functionality(model, NAMES, [])
    with pytest.raises(InvalidInput, match="no row"):
        latency_ms(model, ROWS[:0])
    with pytest.raises(InvalidInput, match="shape"):
        invariance(lambda rows: rows, NAMES, ROWS, "wind", by=0.1)
    assert math.isnan(invariance(model, NAMES, ROWS[:0], "wind", by=0.1).share)
