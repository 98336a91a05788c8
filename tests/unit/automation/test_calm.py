"""Loops and automations stay calm and lose nothing, whatever they live through."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from everloop.catalog.engine import Catalog
from everloop.core.time import ManualClock
from tests.unit.automation.life import Life, storm
from tests.unit.automation.world import deploy

#: Some days before the clocks of Paris go forward.
BEGIN = datetime(2013, 3, 27, 12, tzinfo=UTC)
FATES = ("failed", "refused", "promoted", "aborted", "nothing")

_STEP = st.one_of(
    st.tuples(st.just("pass"), st.sampled_from((0, 1, 30, 90, 1_440, 3_000, 11_000, 60_000))),
    st.tuples(st.just("pass"), st.sampled_from((-1, -90, -1_500, -20_000))),
    st.tuples(st.just("raise_alert"), st.sampled_from(("performance", "quality"))),
    st.tuples(st.sampled_from(("clear_alert", "flicker", "pause")), st.none()),
    st.tuples(st.just("burst"), st.integers(1, 5)),
    st.tuples(st.just("drizzle"), st.integers(1, 6)),
    st.tuples(st.sampled_from(("work", "chase")), st.sampled_from(FATES)),
    st.tuples(st.just("settle_rollout"), st.sampled_from(("promoted", "aborted"))),
    st.tuples(st.just("look"), st.integers(0, 1)),
    st.tuples(
        st.sampled_from(("look_at_once", "look_and_die", "stall", "wake", "crash", "restart")),
        st.none(),
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog to begin with, to be copied."""
    file = tmp_path_factory.mktemp("calm") / "catalog.sqlite"
    with closing(Catalog(f"sqlite:///{file}", clock=ManualClock(BEGIN))) as catalog:
        deploy(catalog)
    return file


# A counterexample is short enough as it is found: shrinking one lives through thousands of lives.
@settings(max_examples=8, phases=set(Phase) - {Phase.shrink, Phase.explain})
@given(steps=st.lists(_STEP, min_size=15, max_size=40))
def test_storms_are_answered_calmly_and_nothing_is_lost(
    made: Path, steps: list[tuple[str, Any]]
) -> None:
    with TemporaryDirectory(dir=made.parent) as folder:
        file = Path(folder) / "catalog.sqlite"
        shutil.copy(made, file)
        clock = ManualClock(BEGIN)
        with closing(Catalog(f"sqlite:///{file}", clock=clock)) as catalog:
            life = Life(catalog, clock)
            storm(life, steps)
            life.look()
            life.end()


def test_a_promotion_by_a_clock_that_was_ahead_hides_no_setback(
    catalog: Catalog, clock: ManualClock
) -> None:
    life = Life(catalog, clock)
    ahead = [("raise_alert", None), ("look", 0), ("work", "promoted"), ("pass", 11_000)]
    storm(life, [*ahead, ("settle_rollout", "promoted"), ("pass", -11_000), ("pass", 3_000)])
    storm(life, [("raise_alert", None), ("look", 0), ("work", "refused"), ("pass", 3_000)])
    life.look()  # the oracle knows of the refusal
    life.end()


def test_a_year_of_noisy_alerts_is_calm_and_loses_none(
    catalog: Catalog, clock: ManualClock
) -> None:
    """Two supervisors look day by day; a client and its server take longer, so two months there."""
    days = {"sqlite": 365, "postgresql": 60}[catalog.dialect]
    chance = random.Random(days)
    life = Life(catalog, clock)
    for _ in range(days):
        if chance.random() < 0.3:
            life.raise_alert(chance.choice(("performance", "quality")))
        if chance.random() < 0.05:
            life.clear_alert()
        if chance.random() < 0.1:
            life.burst(2)
        life.look(chance.randrange(2))
        life.work(chance.choice(FATES))
        if chance.random() < 0.5:
            life.settle_rollout(chance.choice(("promoted", "aborted")))
        life.pass_time(timedelta(days=1))
    assert len(life.works) >= days / 30
    life.end()
