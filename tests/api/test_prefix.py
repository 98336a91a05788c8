"""Serving below a path behind a proxy: the same answers there, and links that stay there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp

import everloop as ev
from everloop.api.prefix import Prefixed, check_prefix
from everloop.errors import InvalidInput
from everloop.server import make_app
from tests.servers import ask


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ASGIApp]:
    with ev.open(tmp_path / ".everloop") as ws:
        yield Prefixed(make_app(ws), "/team/ml")


@pytest.mark.parametrize(
    "path", ["/health", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/static/everloop.css"]
)
def test_doors_answer_below_the_prefix_and_without_it(app: ASGIApp, path: str) -> None:
    below, plain = ask(app, "GET", f"/team/ml{path}"), ask(app, "GET", path)
    assert below.status == plain.status == 200
    assert below.body == plain.body


def test_links_of_pages_stay_below_the_prefix(app: ASGIApp) -> None:
    for path in ("/team/ml", "/team/ml/", "/team/ml/loops/nothing"):
        links = re.findall(r'(?:href|src)="(/[^"]*)"', ask(app, "GET", path).text)
        assert links
        assert all(link.startswith("/team/ml/") for link in links)
        for link in set(links):
            assert ask(app, "GET", link).status == 200


def test_names_that_only_begin_alike_are_not_below_it(app: ASGIApp) -> None:
    assert ask(app, "GET", "/team/mlx/health").status == 404


@pytest.mark.parametrize("prefix", ["everloop", "/a b", "/..", "/a/../b", "/a?b", "/%41"])
def test_what_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidInput):
        check_prefix(prefix)


def test_slash_at_the_end_makes_no_difference() -> None:
    assert check_prefix("/ml/") == check_prefix("/ml") == "/ml"
