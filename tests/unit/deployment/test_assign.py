from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from everloop.core.deploy import Arm, ArmName
from everloop.core.ids import new_ids
from everloop.deployment.assign import Splitter
from everloop.errors import InvalidInput


def _arms(canary: float) -> tuple[Arm, ...]:
    names: tuple[tuple[ArmName, float], ...] = (("champion", 100 - canary), ("challenger", canary))
    arms = (Arm(name=name, version=1, weight=weight) for name, weight in names)
    return (*arms, Arm(name="shadow", version=2, weight=0))


KEY_KINDS = {
    "numbers": [str(number) for number in range(40_000)],
    "tails": [f"N{number:05d}AA" for number in range(40_000)],
    "ids made together": new_ids(40_000),
    "long": [f"https://example.org/users/{number}/orders" for number in range(40_000)],
}


@given(st.text(max_size=5), st.lists(st.text(max_size=8), max_size=20), st.floats(0, 100))
def test_one_row_and_many_rows_agree(salt: str, keys: list[str], canary: float) -> None:
    splitter = Splitter(salt, _arms(canary))
    assert splitter.many(keys).tolist() == [splitter.one(key) for key in keys]


@given(st.text(max_size=8), st.floats(0, 100), st.floats(0, 100))
def test_a_canary_that_grows_keeps_its_keys(salt: str, first: float, second: float) -> None:
    small, large = sorted((first, second))
    keys = KEY_KINDS["tails"][:300]
    before, after = Splitter(salt, _arms(small)).many(keys), Splitter(salt, _arms(large)).many(keys)
    assert not np.any((before == 1) & (after == 0))


def test_the_ends_take_all_or_nothing() -> None:
    keys = KEY_KINDS["numbers"][:1000]
    assert set(Splitter("s", _arms(0)).many(keys)) == {0}
    assert set(Splitter("s", _arms(100)).many(keys)) == {1}
    assert Splitter("s", _arms(50)).many([]).shape == (0,)


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_places_are_uniform(kind: str) -> None:
    places = Splitter("flights-delay/2", _arms(50)).places(KEY_KINDS[kind])
    assert places.min() >= 0
    assert places.max() < 1
    counts = np.histogram(places, bins=100, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 1e-4
    share = np.mean(Splitter("flights-delay/2", _arms(5)).many(KEY_KINDS[kind]) == 1)
    assert share == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / 40_000))


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_salts_split_independently(kind: str) -> None:
    one = Splitter("delay/1", _arms(50)).places(KEY_KINDS[kind])
    for salt in ("delay/2", "delay/10", "fares/1", ""):
        other = Splitter(salt, _arms(50)).places(KEY_KINDS[kind])
        table = np.histogram2d(one, other, bins=8, range=((0, 1), (0, 1)))[0]
        assert chi2_contingency(table).pvalue > 1e-4


def test_places_stay_what_they_were() -> None:
    # They can be recomputed from an old log only while the hash is this one.
    places = Splitter("salt", _arms(50)).places(["", "N14228", "é"])
    np.testing.assert_allclose(places, PLACES, rtol=0, atol=1e-15)


PLACES = [0.669638924114795, 0.7552938320198759, 0.5292072203290596]


@pytest.mark.parametrize("weights", [(0, 0), (-1, 101), (math.nan, 50), (math.inf, 1), ()])
def test_weights_that_cannot_split_are_refused(weights: tuple[float, ...]) -> None:
    arms = [Arm(name="champion", version=1, weight=weight) for weight in weights]
    with pytest.raises(InvalidInput, match="cannot split"):
        Splitter("s", arms)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must be text"):
        Splitter("s", _arms(50)).many([1])  # type: ignore[list-item]
