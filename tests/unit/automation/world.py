"""Facts that other rooms would write, written straight into the catalog."""

from __future__ import annotations

from typing import Any

import everloop as ev
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.ids import new_id
from everloop.core.machines import RolloutPlan, RolloutState
from everloop.core.monitor import Alert
from everloop.core.policy import Charter, LoopSpec, Trigger
from everloop.monitoring import ledger

NAME = "delay"


def spec(**changes: Any) -> LoopSpec:
    triggers: list[Trigger] = changes.pop("triggers", [ev.alert("performance")])
    made = ev.loop(
        NAME,
        owner="ops@example.org",
        pipeline="loop.py:retrain",
        charter=Charter(problem="p", value="v", owner="o"),
        watch=changes.pop("watch", [ev.performance("auc")]),
        retrain_on=triggers,
        cooldown=changes.pop("cooldown", "7d"),
        budget=changes.pop("budget", "4 per month"),
    )
    assert not changes
    return made


def open_alert(catalog: Catalog, monitor: str = "performance") -> Alert:
    with catalog.write() as tx:
        made = Alert(
            id=new_id(), deployment=NAME, monitor=monitor, state="firing", opened_at=tx.now
        )
        ledger.fire_alert(tx, made)
    return made


def close_alert(catalog: Catalog, alert: Alert) -> None:
    with catalog.write() as tx:
        ledger.clear_alert(tx, alert, "it is better")


def refuse(catalog: Catalog, candidate: int = 2) -> None:
    with catalog.write() as tx:
        row = {"id": new_id(), "model": NAME, "candidate": candidate, "champion": 1}
        row |= {"passed": False, "results": [], "holdout": {}, "run_id": "", "at": tx.now}
        tx.execute(tables.verdicts.insert().values(row))
        tx.append("verdict.Given", f"verdict:{row['id']}", {"model": NAME, "passed": False})


def rollout(catalog: Catalog, stage: Any) -> str:
    told = {"promoted": "Promoted", "aborted": "Aborted"}.get(stage, "Started")
    with catalog.write() as tx:
        row = {"id": new_id(), "deployment": NAME, "champion": 1, "candidate": 2}
        row |= {"plan": RolloutPlan(), "state": RolloutState(stage, 0, 0.0)}
        row |= {"open": stage in ("shadow", "canary"), "verdict": "", "reason": ""}
        row |= {"started_at": tx.now, "updated_at": tx.now}
        tx.execute(tables.rollouts.insert().values(row))
        tx.append(f"rollout.{told}", f"rollout:{row['id']}", {"deployment": NAME})
    return str(row["id"])


def commit(catalog: Catalog, dataset: str = "flights", number: int = 1, **body: Any) -> str:
    with catalog.write() as tx:
        return tx.append("dataset.VersionCommitted", f"dataset:{dataset}@{number}", body).id


def deploy(catalog: Catalog, name: str = NAME) -> None:
    """The loop serves something, so that it does not ask for its first model."""
    with catalog.write() as tx:
        row = {"name": name, "model": name, "revision": 1, "route_by": "", "salt": "", "owner": ""}
        row |= {"arms": [{"name": "champion", "version": 1, "weight": 100.0}], "state": "serving"}
        row |= {"created_at": tx.now, "updated_at": tx.now}
        tx.execute(tables.deployments.insert().values(row))


def register(catalog: Catalog, version: int, name: str = NAME) -> None:
    """A version is registered and serves."""
    with catalog.write() as tx:
        times = {"created_at": tx.now, "updated_at": tx.now}
        model = {"name": name, "description": "", "owner": "", "tags": {}, "latest": version}
        tx.upsert(tables.models, model | times, ["name"])
        row = {"name": name, "version": version, "manifest": {}, "run_id": "", "state": "live"}
        row |= {"description": "", "tags": {}, "card": "", **times}
        tx.execute(tables.model_versions.insert().values(row))
        tx.append("model.Registered", f"model:{name}/{version}")
    serve(catalog, version, name)


def serve(catalog: Catalog, version: int, name: str = NAME) -> None:
    deployments = tables.deployments
    arms = [{"name": "champion", "version": version, "weight": 100.0}]
    with catalog.write() as tx:
        tx.execute(deployments.update().where(deployments.c.name == name).values(arms=arms))
        tx.append("deployment.ArmsChanged", f"deployment:{name}")


def segment(catalog: Catalog) -> str:
    """Answers were logged, up to now."""
    with catalog.write() as tx:
        row = {"id": new_id(), "deployment": NAME, "digest": "", "rows": 1, "from_at": tx.now}
        row |= {"to_at": tx.now, "first_id": "", "last_id": "", "created_at": tx.now}
        tx.execute(tables.prediction_segments.insert().values(row))
        tx.append("predictions.Logged", f"segment:{row['id']}", {"deployment": NAME})
    return str(row["id"])
