"""The benchmark harness: rows, discovery, timing, and peers that cannot be installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.evaluation_rows import RESAMPLES, raw_auc, raw_brier, sample
from benchmarks.harness import Context, Missing, Row
from benchmarks.report import json_lines, table
from benchmarks.tracking_log import batch_rows
from benchmarks.tracking_places import places
from everloop.evaluation.bootstrap import difference
from everloop.evaluation.metrics import parse_metric

KEYS = {
    "area",
    "work",
    "unit",
    "everloop",
    "limit",
    "limit_name",
    "peers",
    "ratio_to_limit",
    "ratio_to_best_peer",
    "answers_equal",
    "repeats",
}
ROW = Row(
    area="pipelines",
    work="step, cached",
    unit="us",
    everloop=200.0,
    limit=100.0,
    limit_name="one commit",
    peers={"slow 1.0": 800.0, "quick 2.0": 400.0, "gone 3.0": Missing("not installed: no wheel")},
    answers_equal=True,
    repeats=50,
)
AREA = """
from benchmarks.harness import Context, Row, bench

def row(work, context, equal=True):
    return Row("{name}", work, "s", 2.0, 1.0, "raw", equal, context.repeats(100))

@bench
def one(context: Context) -> Row:
    return row("one", context)

@bench
def several(context: Context):
    yield row("two", context)
    yield row("three", context, equal={equal})

def helper(context):
    raise AssertionError("not a benchmark")
"""
BROKEN = """
from benchmarks.harness import bench

@bench
def broken(context):
    raise RuntimeError("the machine is on fire")
"""


@pytest.fixture
def areas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of areas in place of ours."""
    package = tmp_path / "areas_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "area_names", lambda: harness.area_names(package))
    monkeypatch.setattr(command, "load_area", lambda n: harness.load_area(n, package.name))
    monkeypatch.setattr(harness, "_registered", [])
    yield package
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


def documents(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_row_has_the_agreed_keys() -> None:
    document = json.loads(json_lines([ROW]))
    assert set(document) >= KEYS
    assert document["ratio_to_limit"] == 2.0
    assert document["ratio_to_best_peer"] == 0.5


def test_missing_peer_is_reported_not_dropped() -> None:
    document = ROW.to_json()
    assert document["peers"] == {"slow 1.0": 800.0, "quick 2.0": 400.0, "gone 3.0": None}
    assert document["peers_missing"] == {"gone 3.0": "not installed: no wheel"}
    assert "gone 3.0: not installed: no wheel" in table([ROW])


def test_best_peer_is_the_highest_where_high_is_good() -> None:
    row = Row("serving", "w", "1/s", 90.0, 100.0, "echo", True, 3, {"a": 30.0, "b": 45.0}, "high")
    assert row.ratio_to_best_peer == 2.0
    assert "b 45" in table([row])


def test_without_a_peer_there_is_no_ratio() -> None:
    row = Row("serving", "w", "s", 1.0, 1.0, "raw", True, 3)
    assert row.to_json()["ratio_to_best_peer"] is None


def test_quick_rows_of_tracking_compare_their_answers(postgres_url: str) -> None:
    context = Context(quick=True, peers=False, postgres=postgres_url)
    found = list(batch_rows(context))
    assert [row.work.rpartition(", ")[2] for row in found] == ["SQLite"] * 2 + ["PostgreSQL"] * 2
    for row in found:
        assert row.answers_equal
        assert min(row.everloop, row.limit) > 0
        (peer,) = row.peers.values()
        assert isinstance(peer, Missing)
        assert "--no-peers" in peer.reason


def test_place_on_postgres_is_fresh_and_leaves_nothing(postgres_url: str) -> None:
    def known() -> set[str]:
        with psycopg.connect(postgres_url) as server:
            return {name for (name,) in server.execute("SELECT datname FROM pg_database")}

    context = Context(postgres=postgres_url)
    names = []
    for place in (there for _ in range(2) for there in places(context)):
        with place as here, here.limit() as limit:
            limit.log(range(3))
            assert [step for step, *_ in limit.history()] == [0, 1, 2]
            names.append(here.url.rpartition("/")[2])
            assert not here.url or names[-1] in known()
    assert len(set(names)) == 3
    assert known().isdisjoint(filter(None, names))


def test_areas_are_found_and_run_in_order(areas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (areas / "area_first.py").write_text(AREA.format(name="first", equal=True))
    (areas / "area_second.py").write_text(AREA.format(name="second", equal=True))
    (areas / "helpers.py").write_text("raise AssertionError")
    assert command.main([]) == 0
    found = [(d["area"], d["work"], d["repeats"]) for d in documents(capsys.readouterr().out)]
    assert found == [
        (area, work, 100) for area in ("first", "second") for work in ("one", "two", "three")
    ]


def test_one_area_quickly(areas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (areas / "area_first.py").write_text(AREA.format(name="first", equal=True))
    (areas / "area_second.py").write_text("raise AssertionError")
    assert command.main(["--area", "first", "--quick"]) == 0
    assert {d["repeats"] for d in documents(capsys.readouterr().out)} == {10}


def test_unknown_area_names_the_nearest(areas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (areas / "area_serving.py").write_text("raise AssertionError")
    assert command.main(["--area", "servin"]) == 2
    assert "serving" in capsys.readouterr().err


def test_broken_benchmark_does_not_cost_the_others(
    areas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (areas / "area_broken.py").write_text(BROKEN)
    (areas / "area_first.py").write_text(AREA.format(name="first", equal=True))
    assert command.main([]) == 1
    printed = capsys.readouterr()
    assert len(documents(printed.out)) == 3
    assert "the machine is on fire" in printed.err
    assert "failed: broken.broken" in printed.err


def test_unequal_answers_fail_the_run(areas: Path) -> None:
    (areas / "area_first.py").write_text(AREA.format(name="first", equal=False))
    assert command.main([]) == 1


def test_calls_take_turns_and_warm_up() -> None:
    order: list[str] = []
    sides = {name: harness.timed(lambda name=name: order.append(name)) for name in ("a", "b")}  # type: ignore[misc]
    medians = harness.in_turns(sides, repeats=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert set(medians) == {"a", "b"}
    assert all(seconds >= 0 for seconds in medians.values())


@pytest.mark.parametrize(("quick", "repeats"), [(False, 50), (True, 5)])
def test_quick_repeats_less(quick: bool, repeats: int) -> None:
    assert Context(quick).repeats(50) == repeats
    assert Context(quick=True).repeats(4) == 3


def test_peer_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    env = harness.peer_env("none", [], tmp_path / "envs")
    script = tmp_path / "peer.py"
    script.write_text("import sys; print('noise'); print('{\"value\": %s}' % sys.argv[1])")
    assert env.measure(script, "1.5") == 1.5
    script.write_text("import sys, json; print(json.dumps({'prefix': sys.prefix}))")
    assert env.run(script) == {"prefix": str(env.python.parents[1])}
    made_at = (env.python.parents[1] / "complete").stat().st_mtime_ns
    assert harness.peer_env("none", [], tmp_path / "envs") == env
    assert (env.python.parents[1] / "complete").stat().st_mtime_ns == made_at


def test_peer_that_fails_to_install_says_why(tmp_path: Path) -> None:
    env = harness.peer_env("gone", [f"{tmp_path}/no-such-package"], tmp_path / "envs")
    figure = env.measure("peer.py")
    assert isinstance(figure, Missing)
    assert figure.reason.startswith("not installed: ERROR")
    assert list((tmp_path / "envs").glob("*")) == []


@pytest.mark.parametrize(
    ("script", "timeout_s", "reason"),
    [
        ("raise SystemExit('no space left')", 60, "no space left"),
        ("print('hello')", 60, "did not end with a JSON object"),
        ("print('{}')", 60, "no number named value"),
        ("import time; time.sleep(60)", 0.5, "took longer than 0.5 s"),
    ],
)
def test_peer_that_fails_to_run_says_why(
    tmp_path: Path, script: str, timeout_s: float, reason: str
) -> None:
    (tmp_path / "peer.py").write_text(script)
    env = harness.PeerEnv("this", Path(sys.executable))
    figure = env.measure(tmp_path / "peer.py", timeout_s=timeout_s)
    assert isinstance(figure, Missing)
    assert reason in figure.reason


@pytest.mark.parametrize(("name", "raw"), [("brier", raw_brier), ("auc", raw_auc)])
def test_the_raw_bootstrap_finds_what_ours_finds(
    name: str, raw: Callable[..., tuple[float, ...]]
) -> None:
    y, first, second, at_us = sample(20_000)
    found = difference(parse_metric(name), y, first, second, at_us, resamples=RESAMPLES)
    estimate, low, high = raw(y, first, second, at_us)
    near = 0.15 * (high - low)
    assert found.estimate == pytest.approx(estimate, abs=near)
    assert found.low == pytest.approx(low, abs=near)
    assert found.high == pytest.approx(high, abs=near)
