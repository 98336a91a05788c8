"""Random walks through runs and the registry, with deletes, undos and collections between them.

Each step is done on a workspace and on a model small enough to be believed; then both are compared.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.machines import next_version_state
from everloop.core.run import Metric
from everloop.core.time import ManualClock
from everloop.errors import EverloopError, NotFound, StateError
from tests.workspaces import START

NAMES = st.sampled_from(["m", "n"])
ALIASES = st.sampled_from(["champion", "next"])
NUMBERS = st.integers(1, 4)
TEXTS = st.sampled_from(["a", "b", "c", "d"])
STAGES = st.sampled_from(["None", "Staging", "Production", "Archived"])
STATES = st.sampled_from(["draft", "candidate", "live", "archived"])


class Kept:
    """A registered model, as it should be."""

    def __init__(self, birth: int) -> None:
        self.birth = birth
        #: By number: content, state, stage.
        self.versions: dict[int, list[str]] = {}
        self.aliases: dict[str, int] = {}
        self.latest = 0


class WorkspaceMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock(START)
        self.ws = ev.open(f"{self.folder.name}/.everloop", clock=self.clock, actor="tester")
        self.models: dict[str, Kept] = {}
        self.used: dict[str, int] = {}
        self.gone_models: dict[str, list[Kept]] = {}
        #: By name and number: the birth of its model, what it was, the aliases that it took along.
        self.gone: dict[tuple[str, int], list[tuple[int, list[str], list[str]]]] = {}
        self.births = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.step = 0

    def teardown(self) -> None:
        self.ws.close()
        self.folder.cleanup()

    def expect(self, good: bool, act: Any, *given: Any, **named: Any) -> Any:
        """Do it; it must work exactly when the model says so."""
        self.clock.advance(seconds=1)
        if good:
            return act(*given, **named)
        with pytest.raises(EverloopError):
            act(*given, **named)
        return None

    # --- the registry -------------------------------------------------------------------------

    @rule(name=NAMES, text=TEXTS)
    def register(self, name: str, text: str) -> None:
        model = self.models.get(name)
        if model is None:
            self.births += 1
            model = self.models[name] = Kept(self.births)
            model.latest = self.used.get(name, 0)
        made = self.expect(
            True,
            self.ws.registry.register,
            name,
            ModelArtifact(flavor="x", files={"f": text.encode()}),
        )
        same = [n for n, (content, *_) in model.versions.items() if content == text]
        if same:
            assert made.version in same
        else:
            model.latest += 1
            assert made.version == model.latest
            model.versions[model.latest] = [text, "draft", "None"]

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS)
    def set_alias(self, name: str, alias: str, number: int) -> None:
        model = self.models.get(name)
        good = model is not None and number in model.versions
        self.expect(good, self.ws.registry.set_alias, name, alias, number)
        if good and model is not None:
            model.aliases[alias] = number

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS, expected=NUMBERS)
    def compare_and_set_alias(self, name: str, alias: str, number: int, expected: int) -> None:
        model = self.models.get(name, Kept(0))
        good = number in model.versions and model.aliases.get(alias) == expected
        self.expect(good, self.ws.registry.set_alias, name, alias, number, expected=expected)
        if good:
            model.aliases[alias] = number

    @rule(name=NAMES, number=NUMBERS, stage=STAGES)
    def set_stage(self, name: str, number: int, stage: str) -> None:
        versions = self.models.get(name, Kept(0)).versions
        self.expect(number in versions, self.ws.registry.set_stage, name, number, stage)
        if number in versions:
            versions[number][2] = stage

    @rule(name=NAMES, number=NUMBERS, state=STATES)
    def set_state(self, name: str, number: int, state: Any) -> None:
        versions = self.models.get(name, Kept(0)).versions
        good = number in versions
        if good and versions[number][1] != state:
            try:
                next_version_state(versions[number][1], state)  # type: ignore[arg-type]
            except StateError:
                good = False
        self.expect(good, self.ws.registry.set_state, name, number, state)
        if good:
            versions[number][1] = state

    @rule(name=NAMES, number=NUMBERS)
    def delete_version(self, name: str, number: int) -> None:
        model = self.models.get(name, Kept(0))
        found = model.versions.get(number)
        good = found is not None and found[1] not in ("live", "candidate")
        self.expect(good, self.ws.registry.delete_version, name, number)
        if good and found is not None:
            taken = [alias for alias, at in model.aliases.items() if at == number]
            model.aliases = {a: at for a, at in model.aliases.items() if at != number}
            del model.versions[number]
            self.gone.setdefault((name, number), []).append((model.birth, found, taken))

    @rule(name=NAMES, number=NUMBERS)
    def restore_version(self, name: str, number: int) -> None:
        model = self.models.get(name)
        past = self.gone.get((name, number), [])
        good = model is not None and bool(past) and past[-1][0] == model.birth
        self.expect(good, self.ws.registry.restore_version, name, number)
        if good and model is not None:
            _, model.versions[number], aliases = past.pop()
            for alias in aliases:
                model.aliases.setdefault(alias, number)

    @rule(name=NAMES)
    def delete_model(self, name: str) -> None:
        model = self.models.get(name)
        states = {state for _, state, _ in model.versions.values()} if model else set()
        good = model is not None and not states & {"live", "candidate"}
        self.expect(good, self.ws.registry.delete_model, name)
        if good and model is not None:
            self.used[name] = model.latest
            self.gone_models.setdefault(name, []).append(self.models.pop(name))

    @rule(name=NAMES)
    def restore_model(self, name: str) -> None:
        past = self.gone_models.get(name, [])
        good = bool(past) and name not in self.models
        self.expect(good, self.ws.registry.restore_model, name)
        if good:
            self.models[name] = past.pop()

    # --- runs ---------------------------------------------------------------------------------

    @rule()
    def create_run(self) -> None:
        run = self.ws.tracking.create_run("e")
        self.runs[run.id] = {"state": "running", "deleted": False, "points": []}

    def pick(self, data: Any) -> tuple[str, dict[str, Any]]:
        id_ = data.draw(st.sampled_from(sorted(self.runs)))
        return id_, self.runs[id_]

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def log(self, data: Any) -> None:
        id_, run = self.pick(data)
        self.step += 1
        point = Metric(key="m", value=float(self.step), step=self.step, at_ms=self.step)
        self.expect(not run["deleted"], self.ws.tracking.log, id_, [point])
        if not run["deleted"]:
            run["points"].append(self.step)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), state=st.sampled_from(["finished", "failed", "killed", "running"]))
    def end(self, data: Any, state: Any) -> None:
        id_, run = self.pick(data)
        self.expect(not run["deleted"], self.ws.tracking.update_run, id_, state=state)
        if not run["deleted"]:
            run["state"] = state

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), deleted=st.booleans())
    def delete_or_restore_run(self, data: Any, deleted: bool) -> None:
        id_, run = self.pick(data)
        act = self.ws.tracking.delete_run if deleted else self.ws.tracking.restore_run
        self.expect(True, act, id_)
        run["deleted"] = deleted

    # --- collections --------------------------------------------------------------------------

    @rule()
    def collect(self) -> None:
        self.expect(True, self.ws.objects.collect, older_than="0d", grace="0")
        self.gone.clear()
        self.gone_models.clear()
        for id_ in [id_ for id_, run in self.runs.items() if run["deleted"]]:
            del self.runs[id_]
            with pytest.raises(NotFound):
                self.ws.tracking.run(id_)
        for name, model in self.models.items():
            for number, (text, *_) in model.versions.items():
                assert self.ws.registry.files(name, number) == {"f": text.encode()}

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def registry_is_as_the_model_says(self) -> None:
        found = {model.name: model for model in self.ws.registry.models()}
        assert found.keys() == self.models.keys()
        for name, model in self.models.items():
            assert found[name].aliases == model.aliases
            versions = self.ws.registry.versions(name)
            assert {v.version: [v.state, v.stage] for v in versions} == {
                number: [state, stage] for number, (_, state, stage) in model.versions.items()
            }
            moves = self.ws.registry.alias_history(name)
            last = {move.alias: move.after for move in moves}
            assert {alias: at for alias, at in last.items() if at} == model.aliases

    @invariant()
    def runs_are_as_the_model_says(self) -> None:
        for id_, run in self.runs.items():
            found = self.ws.tracking.run(id_)
            assert (found.state, found.lifecycle == "deleted") == (run["state"], run["deleted"])
            points = self.ws.tracking.history(id_, "m", order="step")
            assert [point.step for point in points] == run["points"]


TestWorkspace = WorkspaceMachine.TestCase
TestWorkspace.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
