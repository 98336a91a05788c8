"""`door`: one server for the tests of a module, on SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everloop.workspace import Workspace
from tests.api.mlflow.door import Door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("mlflow") / ".everloop"
    with Workspace(str(folder), actor="tester") as workspace:
        yield Door(workspace)
