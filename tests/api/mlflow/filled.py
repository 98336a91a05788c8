"""An experiment whose runs differ in everything that can be searched for."""

from __future__ import annotations

from typing import Any

from tests.api.mlflow.door import Door

#: name -> metric acc, param lr, tag tg; the runs start one after the other.
RUNS: dict[str, tuple[Any, str, str]] = {
    "q0": (0.5, "0.1", "x"),
    "q1": (0.9, "0.01", "y"),
    "q2": ("NaN", "1", "X"),
    "q3": (None, "", ""),
    "q4": ("Infinity", "abc", "it's"),
}


class Filled:
    def __init__(self, door: Door) -> None:
        self.door = door
        self.experiment = door.experiment()
        self.ids: dict[str, str] = {}
        for index, (name, (acc, lr, tag)) in enumerate(RUNS.items()):
            run_id = door.run(
                self.experiment, run_name=name, start_time=1000 + index, user_id=f"u{index}"
            )
            self.ids[name] = run_id
            if acc is None:
                continue
            batch = {
                "run_id": run_id,
                "metrics": [
                    {"key": "acc", "value": acc, "timestamp": 1},
                    {"key": "a b/c", "value": index, "timestamp": 1},
                ],
                "params": [{"key": "lr", "value": lr}, {"key": "a.b-c d", "value": str(index)}],
                "tags": [{"key": "tg", "value": tag}, {"key": "x.y", "value": tag}],
            }
            door.post("runs/log-batch", batch)
        for name, status, end in (("q1", "FINISHED", 5000), ("q2", "FAILED", 6000)):
            body = {"run_id": self.ids[name], "status": status, "end_time": end}
            door.post("runs/update", body)
        for name, dataset, role in (("q0", "ds", "train"), ("q1", "ds2", "test"), ("q1", "ds", "")):
            item = {
                "dataset": {"name": dataset, "digest": f"{dataset}-g"},
                "tags": [{"key": "mlflow.data.context", "value": role}] if role else [],
            }
            door.post("runs/log-inputs", {"run_id": self.ids[name], "datasets": [item]})

    def asked(self, **asked: Any) -> dict[str, Any]:
        text = asked.get("filter", "")
        for name, id_ in self.ids.items():
            text = text.replace(f"<{name}>", id_)
        return {"experiment_ids": [self.experiment], **asked, "filter": text}

    def names(self, **asked: Any) -> str:
        found = self.door.post("runs/search", self.asked(**asked)).get("runs", [])
        return " ".join(run["info"]["run_name"] for run in found)
