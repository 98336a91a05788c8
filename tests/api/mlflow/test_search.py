"""The grammar of filters and orders over runs, on both databases."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from everloop.workspace import Workspace
from tests.api.mlflow.door import Door
from tests.api.mlflow.filled import Filled


@contextlib.contextmanager
def database(url: str) -> Iterator[str]:
    """A database for the whole module, dropped at its end."""
    name = f"everloop_test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("mlflow") / ".everloop"
    with contextlib.ExitStack() as stack:
        location = str(folder)
        if request.param == "postgres":
            location = stack.enter_context(database(request.getfixturevalue("postgres_url")))
        opened = Workspace(location, objects=str(folder / "objects"), actor="tester")
        yield Door(stack.enter_context(opened))


@pytest.fixture(scope="module")
def filled(door: Door) -> Filled:
    return Filled(door)


@pytest.mark.parametrize(
    ("filter_", "names"),
    [
        ("", "q4 q3 q2 q1 q0"),
        ("metrics.acc > 0.6", "q4 q1"),
        ("metric.acc >= 0.5", "q4 q1 q0"),
        ("metrics.acc != 0.5", "q4 q2 q1"),
        ("metrics.acc = 0.5", "q0"),
        ("metrics.acc < 1", "q1 q0"),
        ("metrics.acc <= 5e-1", "q0"),
        ("metrics.acc>.6", "q4 q1"),
        ("metrics.`a b/c` > 1", "q4 q2"),
        ('metrics."a b/c" > 1', "q4 q2"),
        ("metrics.none > 0", ""),
        ("params.lr = '0.1'", "q0"),
        ("params.lr != '0.1'", "q4 q2 q1"),
        ("param.lr LIKE '0.%'", "q1 q0"),
        ("params.lr LIKE '0._'", "q0"),
        ("parameter.lr ILIKE 'ABC'", "q4"),
        ("parameters.lr LIKE 'ABC'", ""),
        ("params.lr IS NULL", "q3"),
        ("params.lr is not null", "q4 q2 q1 q0"),
        ("params.`a.b-c d` = '1'", "q1"),
        ('params."a.b-c d" = "1"', "q1"),
        ("params.LR = '0.1'", ""),
        ("tags.tg = 'x'", "q0"),
        ("tags.tg != 'x'", "q4 q2 q1"),
        ("tags.tg LIKE 'X'", "q2"),
        ("tag.tg ILIKE 'X'", "q2 q0"),
        ("tags.x.y = 'x'", "q0"),
        ("tags.`x.y` = 'x'", "q0"),
        ('tags.tg = "it\'s"', "q4"),
        ("tags.tg IS NULL", "q3"),
        ("tags.mlflow.runName = 'q0'", "q0"),
        ("attributes.status = 'FINISHED'", "q1"),
        ("attribute.status = 'RUNNING'", "q4 q3 q0"),
        ("attr.status != 'RUNNING'", "q2 q1"),
        ("run.status = 'FAILED'", "q2"),
        ("status = 'finished'", ""),
        ("status ILIKE 'f%'", "q2 q1"),
        ("status IN ('FINISHED', 'FAILED')", "q2 q1"),
        ("run_name LIKE 'q%'", "q4 q3 q2 q1 q0"),
        ("run_name LIKE 'Q%'", ""),
        ("run_name ILIKE 'Q_'", "q4 q3 q2 q1 q0"),
        ("run_name NOT IN ('q0', 'q4')", "q3 q2 q1"),
        ("run_name LIKE '%[0]'", ""),
        ("run_name LIKE '*0'", ""),
        ("`run name` = 'q0'", "q0"),
        ("run_id = '<q0>'", "q0"),
        ("run_id IN ('<q0>', '<q1>')", "q1 q0"),
        ("run_id NOT IN ('<q0>')", "q4 q3 q2 q1"),
        ("user_id = 'u1'", "q1"),
        ("artifact_uri LIKE '%/<q2>/artifacts'", "q2"),
        ("start_time > 1002", "q4 q3"),
        ("created >= 1002 AND start_time <= 1003", "q3 q2"),
        ("start_time != 1002", "q4 q3 q1 q0"),
        ("start_time > 1002.5", "q4 q3"),
        ("end_time >= 5000", "q2 q1"),
        ("dataset.name = 'ds'", "q1 q0"),
        ("datasets.name LIKE 'ds_'", "q1"),
        ("dataset.digest = 'ds2-g'", "q1"),
        ("dataset.context = 'train'", "q0"),
        ("datasets.context IN ('train', 'test')", "q1 q0"),
        ("dataset.name = 'ds' AND dataset.context = 'test'", "q1"),
        ("metrics.acc > 0.4 and params.lr = '0.1' And tags.tg = 'x'", "q0"),
        ("metrics.acc > 0.4 AND metrics.acc < 0.6", "q0"),
    ],
)
def test_filters_of_runs(filled: Filled, filter_: str, names: str) -> None:
    assert filled.names(filter=filter_) == names


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (["metrics.acc"], "q0 q1 q4 q2 q3"),
        (["metrics.acc DESC"], "q4 q1 q0 q2 q3"),
        (["metric.acc desc"], "q4 q1 q0 q2 q3"),
        (["metrics.`a b/c` DESC"], "q4 q2 q1 q0 q3"),
        (["params.lr"], "q1 q0 q2 q4 q3"),
        (["params.lr DESC"], "q4 q2 q0 q1 q3"),
        (["params.`a.b-c d`"], "q0 q1 q2 q4 q3"),
        (["start_time"], "q0 q1 q2 q3 q4"),
        (["attributes.start_time DESC"], "q4 q3 q2 q1 q0"),
        (["Created"], "q0 q1 q2 q3 q4"),
        (["end_time"], "q1 q2 q4 q3 q0"),
        (["attribute.end_time DESC"], "q2 q1 q4 q3 q0"),
        (["status"], "q2 q1 q4 q3 q0"),
        (["status DESC"], "q4 q3 q0 q1 q2"),
        (["run_name DESC"], "q4 q3 q2 q1 q0"),
        (["user_id"], "q0 q1 q2 q3 q4"),
        (["metrics.none"], "q4 q3 q2 q1 q0"),
        ([], "q4 q3 q2 q1 q0"),
        (None, "q4 q3 q2 q1 q0"),
    ],
)
def test_orders_of_runs(filled: Filled, order: Any, names: str) -> None:
    assert filled.names(order_by=order) == names


@pytest.mark.parametrize("order", [[], ["metrics.acc DESC"], ["tags.none"], ["end_time", "status"]])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 50_000])
def test_pages_of_runs_miss_and_repeat_nothing(filled: Filled, order: list[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        asked = filled.asked(order_by=order, max_results=size, page_token=token)
        page = filled.door.post("runs/search", asked)
        seen += [run["info"]["run_name"] for run in page["runs"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert " ".join(seen) == filled.names(order_by=order)
