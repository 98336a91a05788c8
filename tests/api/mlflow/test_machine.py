"""Random walks through runs and the registry, held against a model small enough to be believed."""

from __future__ import annotations

import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from everloop.workspace import Workspace
from tests.api.mlflow.door import ABSENT, Door

NAMES = st.sampled_from(["a", "b"])
ALIASES = st.sampled_from(["champion", "next"])
KEYS = st.sampled_from(["x", "y"])
VALUES = st.sampled_from(["1", "2", ""])
STAGES = st.sampled_from(["None", "Staging", "Production", "Archived"])
NUMBERS = st.integers(1, 5)


class Registry:
    """A registered model, as it should be."""

    def __init__(self, used: int) -> None:
        self.versions: dict[int, str] = {}
        self.aliases: dict[str, int] = {}
        self.used = used


class DoorMachine(RuleBasedStateMachine):
    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.workspace = Workspace(f"{self._folder.name}/.everloop", actor="tester")
        self.door = Door(self.workspace)
        self.models: dict[str, Registry] = {}
        self.used: dict[str, int] = {}
        self.params: dict[str, dict[str, str]] = {}
        self.points: dict[str, set[tuple[int, int, float]]] = {}
        self.deleted: set[str] = set()

    def teardown(self) -> None:
        self.workspace.close()
        self._folder.cleanup()

    def send(self, method: str, call: str, body: dict[str, Any], good: bool) -> Any:
        answer = self.door.send(method, call, body)
        assert (answer.status == 200) == good, answer.text
        assert answer.status < 500
        return answer.json()

    # --- the registry -----------------------------------------------------------------------

    @rule(name=NAMES)
    def create_model(self, name: str) -> None:
        fresh = name not in self.models
        self.send("POST", "registered-models/create", {"name": name}, fresh)
        if fresh:
            self.models[name] = Registry(self.used.get(name, 0))

    @rule(name=NAMES)
    def create_version(self, name: str) -> None:
        body = {"name": name, "source": "s3://bucket/model"}
        model = self.models.get(name)
        made = self.send("POST", "model-versions/create", body, model is not None)
        if model is not None:
            model.used += 1
            assert made["model_version"]["version"] == str(model.used)
            model.versions[model.used] = "None"

    @rule(name=NAMES, number=NUMBERS)
    def delete_version(self, name: str, number: int) -> None:
        model = self.models.get(name, Registry(0))
        body = {"name": name, "version": str(number)}
        self.send("DELETE", "model-versions/delete", body, number in model.versions)
        model.versions.pop(number, None)
        model.aliases = {a: n for a, n in model.aliases.items() if n != number}

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS)
    def set_alias(self, name: str, alias: str, number: int) -> None:
        model = self.models.get(name, Registry(0))
        there = number in model.versions
        body = {"name": name, "alias": alias, "version": str(number)}
        self.send("POST", "registered-models/alias", body, there)
        if there:
            model.aliases[alias] = number

    @rule(name=NAMES, alias=ALIASES)
    def delete_alias(self, name: str, alias: str) -> None:
        body = {"name": name, "alias": alias}
        self.send("DELETE", "registered-models/alias", body, name in self.models)
        if name in self.models:
            self.models[name].aliases.pop(alias, None)

    @rule(name=NAMES, number=NUMBERS, stage=STAGES, archive=st.booleans())
    def transition(self, name: str, number: int, stage: str, archive: bool) -> None:
        model = self.models.get(name, Registry(0))
        good = number in model.versions and not (archive and stage in ("None", "Archived"))
        body = {
            "name": name,
            "version": str(number),
            "stage": stage.lower(),
            "archive_existing_versions": archive,
        }
        self.send("POST", "model-versions/transition-stage", body, good)
        if good:
            for other, at in model.versions.items():
                if archive and at == stage:
                    model.versions[other] = "Archived"
            model.versions[number] = stage

    @rule(name=NAMES, new=NAMES)
    def rename(self, name: str, new: str) -> None:
        good = name in self.models and (new == name or new not in self.models)
        body = {"name": name, "new_name": new}
        self.send("POST", "registered-models/rename", body, good)
        if good and new != name:
            model = self.models.pop(name)
            self.used[name] = model.used
            model.used = max(model.used, self.used.get(new, 0))
            self.models[new] = model

    @rule(name=NAMES)
    def delete_model(self, name: str) -> None:
        self.send("DELETE", "registered-models/delete", {"name": name}, name in self.models)
        if name in self.models:
            self.used[name] = self.models.pop(name).used

    @invariant()
    def registry_is_as_it_should_be(self) -> None:
        found = self.door.get("model-versions/search").get("model_versions", [])
        shown = {(v["name"], int(v["version"])): v["current_stage"] for v in found}
        assert shown == {
            (name, number): stage
            for name, model in self.models.items()
            for number, stage in model.versions.items()
        }
        for name, model in self.models.items():
            told = self.door.get("registered-models/get", name=name)["registered_model"]
            aliases = {a["alias"]: int(a["version"]) for a in told.get("aliases", [])}
            assert aliases == model.aliases

    # --- runs -------------------------------------------------------------------------------

    @rule(target=runs)
    def start_run(self) -> str:
        run_id = self.door.run()
        self.params[run_id], self.points[run_id] = {}, set()
        return run_id

    @rule(run_id=runs, params=st.dictionaries(KEYS, VALUES), step=st.integers(0, 3))
    def log_batch(self, run_id: str, params: dict[str, str], step: int) -> None:
        point = (step, 7, float(step))
        body = {
            "run_id": run_id,
            "params": [{"key": key, "value": value} for key, value in params.items()],
            "metrics": [{"key": "m", "value": step, "timestamp": 7, "step": step}],
        }
        old = self.params[run_id]
        fits = all(old.get(key, value) == value for key, value in params.items())
        taken = fits and run_id not in self.deleted
        self.send("POST", "runs/log-batch", body, taken)
        if taken:
            old.update(params)
            self.points[run_id].add(point)

    @rule(run_id=runs, call=st.sampled_from(["delete", "restore"]))
    def delete_or_restore(self, run_id: str, call: str) -> None:
        self.door.post(f"runs/{call}", {"run_id": run_id})
        (self.deleted.add if call == "delete" else self.deleted.discard)(run_id)

    @rule(run_id=runs)
    def read_run(self, run_id: str) -> None:
        data = self.door.get("runs/get", run_id=run_id)["run"]["data"]
        shown = {param["key"]: param["value"] for param in data.get("params", [])}
        assert shown == self.params[run_id]
        found = self.door.get("metrics/get-history", run_id=run_id, metric_key="m")
        points = [(p["step"], p["timestamp"], p["value"]) for p in found.get("metrics", [])]
        assert points == sorted(self.points[run_id])

    @invariant()
    def searches_show_active_runs_alone(self) -> None:
        found = self.door.post("runs/search", {"experiment_ids": ["0"]}).get("runs", [])
        assert {run["info"]["run_id"] for run in found} == set(self.params) - self.deleted

    @rule()
    def what_is_not_there_is_404(self) -> None:
        answer = self.door.send("GET", "registered-models/get", {"name": "nobody"})
        self.door.refused(answer, ABSENT)


TestDoor = DoorMachine.TestCase
TestDoor.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
