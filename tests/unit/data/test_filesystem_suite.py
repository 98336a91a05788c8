"""fsspec's own abstract test suite over a workspace, each test within a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

import everloop as ev
from everloop.core.context import using
from everloop.data.filesystem import EverloopFileSystem
from everloop.workspace import Workspace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with ev.open(tmp_path_factory.mktemp("suite") / ".everloop") as ws:
        yield ws


class Fixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self, home: Workspace) -> Iterator[EverloopFileSystem]:
        with using(home):
            fs = EverloopFileSystem()
        # One version a test: a hundred thousand of them would say no more.
        with fs.transaction:
            yield fs

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self) -> str:
        return "store"


class TestCopy(Fixtures, AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, AbstractGetTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, AbstractPutTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, AbstractPipeTests):  # type: ignore[misc]
    pass
