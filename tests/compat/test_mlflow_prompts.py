"""Prompts of the real MLflow client: registered, loaded, searched, deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from everloop.workspace import Workspace

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def seen(run_client: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_client("mlflow_prompts.py")


def test_prompts_are_registered_and_loaded(seen: dict[str, Any], workspace: Workspace) -> None:
    assert seen["numbers"] == [1, 2]
    assert (seen["latest"], seen["by_number"]) == ("Hi {{name}}!", "Hello {{name}}")
    assert seen["by_alias"] == "Hello Ann"
    assert seen["chat"] == [{"role": "user", "content": "{{question}}"}]
    assert seen["message"] == "first"
    assert seen["tags"].items() >= {"team": "growth", "k": "v"}.items()
    assert seen["version_tags"]["reviewed"] == "yes"
    assert json.loads(seen["linked"]) == [{"name": "greet", "version": "1"}]
    version = workspace.registry.version("greet", 2)
    assert version.tags["mlflow.prompt.text"] == "Hi {{name}}!"


def test_prompts_and_models_are_searched_apart(seen: dict[str, Any]) -> None:
    assert (seen["prompts"], seen["named"]) == (["chat", "greet"], ["greet"])
    assert seen["versions"] == [2, 1]
    assert seen["models"] == ["plain"]
    assert seen["after"] == ["greet"]


def test_what_is_not_there_or_not_meant_is_refused(seen: dict[str, Any]) -> None:
    assert "Prompt with name=nothing not found" in seen["missing"]
    assert seen["allowed"] is None
    assert "cannot be the source" in seen["as_source"]
