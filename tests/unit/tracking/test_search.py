"""Searching runs: the SQL finds what matching in memory finds, and pages meet without gap."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop.catalog.engine import Catalog
from everloop.core.run import Metric, Run, RunInput
from everloop.core.time import ManualClock, to_micros
from everloop.errors import InvalidInput
from everloop.tracking import runs as searched_runs
from everloop.tracking.runs import RUNS
from everloop.tracking.search import All, Any_, Clause, Not, matches, parse, parse_order, wildcard
from everloop.tracking.service import TrackingService

AUC = (0.5, 0.7, 0.7, math.nan, None, -1.0, math.inf)


@pytest.fixture
def runs(tracking: TrackingService, catalog: Catalog) -> list[Run]:
    """Seven runs that differ in all that can be searched."""
    clock = catalog.clock
    assert isinstance(clock, ManualClock)
    for i, auc in enumerate(AUC):
        clock.advance(seconds=1)
        run = tracking.create_run(
            "e",
            name=f"Run_{i}",
            params={"lr": f"0.{i}"} if i % 2 else {"kind": "a%b\\c"},
            tags={"mlflow.source.name": "Train.py" if i < 3 else "train.py"},
            actor="me",
        )
        if auc is not None:
            tracking.log(run.id, [Metric(key="auc", value=auc), Metric(key="val loss", value=i)])
        if i == 2:
            tracking.log_inputs(
                run.id, [RunInput(dataset="d", version=1, digest="x1", role="train")]
            )
        if i % 3:
            tracking.update_run(run.id, state="finished")
    return list(tracking.runs().runs)


def values(run: Run) -> Any:
    """What matching in memory reads of a run."""

    def read(entity: str, key: str) -> list[Any]:
        if entity == "dataset":
            name = {"name": "dataset", "digest": "digest", "context": "role"}[key]
            return [getattr(item, name) for item in run.inputs]
        if entity != "attribute":
            held: Any = {"metric": run.metrics, "param": run.params, "tag": run.tags}[entity]
            return [held[key]] if key in held else []
        ended = None if run.ended_at is None else to_micros(run.ended_at) // 1000
        found: Any = {
            "run_id": run.id,
            "run_name": run.name,
            "status": run.state.upper(),
            "user_id": run.actor,
            "artifact_uri": f"mlflow-artifacts:/{run.experiment}/{run.id}/artifacts",
            "start_time": to_micros(run.started_at) // 1000,
            "end_time": ended,
        }[key]
        return [] if found is None else [found]

    return read


FILTERS = [
    ("", 7),
    ("metrics.auc > 0.6", 3),
    ("metrics.auc != 0.7", 4),
    ("metric.`val loss` <= 2 AND metrics.auc >= 0.7", 2),
    ("params.lr = '0.3'", 1),
    ("params.lr LIKE '0.%'", 3),
    ("parameters.kind LIKE 'a%b\\c'", 4),
    ("params.kind = 'a%b\\c'", 4),
    ('tags."mlflow.source.name" LIKE "Train%"', 3),
    ("tags.`mlflow.source.name` ILIKE 'TRAIN.%'", 7),
    ("tag.mlflow.source.name like '_rain.py'", 7),
    ("params.lr IS NULL", 4),
    ("params.lr is not null and metrics.auc > 0.6", 1),
    ("status = 'FINISHED'", 4),
    ("attributes.status != 'FINISHED'", 3),
    ("run_name IN ('Run_1', 'Run_5', 'x')", 2),
    ("`Run name` NOT IN ('Run_1')", 6),
    ("run_name LIKE 'run%'", 0),
    ("run_name ILIKE 'run%'", 7),
    ("start_time > 0 AND end_time < 99999999999999", 4),
    ("created >= 1767225603000", 5),
    ("dataset.name = 'd' AND datasets.context = 'train'", 1),
    ("dataset.digest LIKE 'y%'", 0),
    ("user_id = 'me'", 7),
    ("artifact_uri LIKE 'mlflow-artifacts:/1/%/artifacts'", 7),
    ("metrics.nothing != 3", 0),
    ("metrics.auc > 0.6 OR params.lr = '0.3'", 4),
    ("NOT metrics.auc > 0.6", 4),
    ("(metrics.auc > 0.6 OR params.lr = '0.3') AND NOT (run_name = 'Run_1')", 3),
    ("tags.x = 'it''s'", 0),
]


def test_filters_find_what_they_say(tracking: TrackingService, runs: list[Run]) -> None:
    for text, count in FILTERS:
        found = tracking.runs(filter=text).runs
        assert len(found) == count, text
        tree = parse(text, RUNS)
        assert list(found) == [run for run in runs if matches(tree, values(run))], text


clauses = st.sampled_from(
    [tree for text, _ in FILTERS if isinstance(tree := parse(text, RUNS), Clause)]
)
trees = st.recursive(
    clauses,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: All(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: Any_(tuple(parts)))
        | inner.map(Not)
    ),
    max_leaves=6,
)  # fmt: skip


def spelled(tree: Any) -> str:
    """A filter that parses to `tree`."""
    if isinstance(tree, Not):
        return f"NOT ({spelled(tree.part)})"
    if isinstance(tree, All | Any_):
        word = " AND " if isinstance(tree, All) else " OR "
        return word.join(f"({spelled(part)})" for part in tree.parts)
    name = tree.key if tree.entity == "attribute" else f"{tree.entity}.`{tree.key}`"
    if tree.value is None:
        return f"{name} {tree.op}"
    if isinstance(tree.value, tuple):
        return f"{name} {tree.op} ({', '.join(map(quoted, tree.value))})"
    return f"{name} {tree.op} {quoted(tree.value)}"


def quoted(value: Any) -> str:
    return repr(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'"


def test_sql_and_memory_agree_on_any_filter(tracking: TrackingService, runs: list[Run]) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(trees)
    def check(tree: Any) -> None:
        text = spelled(tree)
        found = [run.id for run in tracking.runs(filter=text).runs]
        parsed = parse(text, RUNS)
        assert found == [run.id for run in runs if matches(parsed, values(run))], text

    check()


ORDERS: list[list[str]] = [
    [],
    ["metrics.auc DESC"],
    ["metrics.auc"],
    ["metrics.auc ASC", "run_name DESC"],
    ["params.lr DESC"],
    ["end_time DESC", "start_time ASC"],
    ["tags.`mlflow.source.name`", "metrics.`val loss` DESC"],
    ["status", "artifact_uri DESC"],
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_pages_meet_without_gap(
    tracking: TrackingService, runs: list[Run], order: list[str]
) -> None:
    whole = [run.id for run in tracking.runs(order_by=order).runs]
    assert sorted(whole) == sorted(run.id for run in runs)
    for limit in (1, 2, 3, 7):
        paged: list[str] = []
        token = ""
        while True:
            page = tracking.runs(order_by=order, limit=limit, page_token=token)
            paged += [run.id for run in page.runs]
            token = page.next_page_token
            if not token:
                break
        assert paged == whole


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ("metrics.auc > 0.4", ["6", "2", "1", "0"]),
        ("metrics.auc != 0.7", ["6", "0", "5", "3"]),
        ("metrics.`val loss` < 3", ["2", "1", "0"]),
        ("NOT metrics.auc > 0.4", ["5", "3", "4"]),
    ],
)
@pytest.mark.parametrize("few", [0, 1000], ids=["by the index", "run by run"])
def test_order_by_a_metric_with_a_filter(
    tracking: TrackingService,
    runs: list[Run],
    monkeypatch: pytest.MonkeyPatch,
    filter_: str,
    found: list[str],
    few: int,
) -> None:
    monkeypatch.setattr(searched_runs, "_FEW", few)
    names, token = [], ""
    while True:
        page = tracking.runs(
            filter=filter_, order_by=["metrics.auc DESC"], limit=2, page_token=token
        )
        names += [run.name[-1] for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert names == found


def test_missing_values_come_last_and_nan_before_them(
    tracking: TrackingService, runs: list[Run]
) -> None:
    def names(order: str) -> list[str]:
        return [run.name[-1] for run in tracking.runs(order_by=[order]).runs]

    # equal ones: the newest first
    assert names("metrics.auc DESC") == ["6", "2", "1", "0", "5", "3", "4"]
    assert names("metrics.auc ASC") == ["5", "0", "2", "1", "6", "3", "4"]
    assert names("params.lr DESC")[:3] == ["5", "3", "1"]


def test_search_is_within_experiments_and_lifecycle(
    tracking: TrackingService, runs: list[Run]
) -> None:
    tracking.delete_run(runs[0].id)
    assert len(tracking.runs(["1"]).runs) == 6
    assert len(tracking.runs(["0", "nothing"]).runs) == 0
    assert tracking.runs([]).runs == ()
    assert [r.id for r in tracking.runs(lifecycle="deleted").runs] == [runs[0].id]
    assert len(tracking.runs(lifecycle="all").runs) == 7


@pytest.mark.parametrize(
    "text",
    [
        "metrics.auc > 'a'",
        "metrics.auc LIKE 'a'",
        "params.lr = 3",
        "params.lr > '3'",
        "nothing = 'a'",
        "nothing.a = 'b'",
        "metrics.auc >",
        "metrics.auc > 1 AND",
        "metrics.auc > 1 metrics.auc < 2",
        "metrics.auc > 1e999",
        "start_time > 99999999999999999999",
        "run_id IN ('a'",
        "run_id IN ()",
        "run_id IS NULL",
        "(metrics.auc > 1",
        "; drop table runs",
        "(" * 5000,
        "NOT " * 5000,
        "params.lr = '",
    ],
)
def test_wrong_filter_says_where(tracking: TrackingService, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"Invalid clause\(s\)") as caught:
        tracking.runs(filter=text)
    assert caught.value.faults[0].message.startswith("at ")


@pytest.mark.parametrize("text", ["a.b = 'c'", "metrics.a > 1 OR metrics.b > 1", "(run_id = 'a')"])
def test_narrow_grammar_refuses_or_and_parentheses(tracking: TrackingService, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"Invalid clause\(s\)"):
        tracking.runs(filter=text, and_only=True)


@pytest.mark.parametrize("order", [["metrics.a UP"], ["run_id", "run_id DESC"], [""], ["a b c"]])
def test_wrong_order_is_refused(tracking: TrackingService, order: list[str]) -> None:
    with pytest.raises(InvalidInput):
        tracking.runs(order_by=order)


def test_foreign_page_token_is_refused(tracking: TrackingService, runs: list[Run]) -> None:
    token = tracking.runs(limit=1).next_page_token
    for wrong in ("x", "", "bnVsbA==", "ü", token[:-4]):
        if wrong:
            with pytest.raises(InvalidInput, match="page token"):
                tracking.runs(limit=1, page_token=wrong)
    with pytest.raises(InvalidInput, match="page token"):
        tracking.runs(limit=1, filter="run_id != 'a'", page_token=token)
    for limit in (0, 50_001, -1):
        with pytest.raises(InvalidInput, match="max_results"):
            tracking.runs(limit=limit)


def test_experiments_are_searched(tracking: TrackingService, catalog: Catalog) -> None:
    clock = catalog.clock
    assert isinstance(clock, ManualClock)
    for name in ("alpha", "beta", "Alpine"):
        clock.advance(seconds=1)
        tracking.create_experiment(name, {"team": name[0]})
    names = lambda **k: [e.name for e in tracking.search_experiments(**k).experiments]  # noqa: E731
    assert names() == ["Alpine", "beta", "alpha", "Default"]
    assert names(filter="name LIKE 'Al%'") == ["Alpine"]
    assert names(filter="name ILIKE 'al%' AND tags.team = 'a'") == ["alpha"]
    assert names(order_by=["name ASC"], limit=2) == ["Alpine", "Default"]
    page = tracking.search_experiments(order_by=["name"], limit=3)
    rest = tracking.search_experiments(order_by=["name"], limit=3, page_token=page.next_page_token)
    assert [e.name for e in rest.experiments] == ["beta"]


def test_order_and_wildcards_parse() -> None:
    [order] = parse_order(["metrics.`a b` DESC"], RUNS)
    assert order[:3] == ("metric", "a b", True)
    assert wildcard("a.c%").fullmatch("a.cde")
    assert not wildcard("a.c%").fullmatch("abc")
