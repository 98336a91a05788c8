"""MLflow's side of the tracking benchmarks; runs in MLflow's environment, see `sides.Peer`.

Reads one JSON object a line, `{"work": name, ...}`, and answers `{"seconds": ..., ...}`.
"""

import json
import multiprocessing
import os
import sys
import time

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever is printed must not meet the answers

import mlflow  # noqa: E402
import sqlalchemy  # noqa: E402
from mlflow.entities import Metric  # noqa: E402


class Side:
    """What is open between two pieces of work."""

    def open(self, store):
        """A store in process, by its URI, with one run."""
        self.store = store
        self.client = mlflow.MlflowClient(tracking_uri=store)
        self.run = self.client.create_run("0").info.run_id
        self.step = 0
        return {}

    def _points(self, count):
        first, self.step = self.step, self.step + count
        return [Metric("loss", s / 7, s, s) for s in range(first, first + count)]

    def log(self, size):
        """One batch, or one point by the call for one."""
        points = self._points(size)
        start = time.perf_counter()
        if size == 1:
            point = points[0]
            self.client.log_metric(
                self.run, point.key, point.value, point.timestamp, point.step, synchronous=True
            )
        else:
            self.client.log_batch(self.run, metrics=points, synchronous=True)
        return {"seconds": time.perf_counter() - start}

    def history(self, tail):
        """All points of the run's metric; the last `tail` values as an answer."""
        start = time.perf_counter()
        points = self.client.get_metric_history(self.run, "loss")
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "count": len(points),
            "values": [p.value for p in points[-tail:]],
        }

    def fill(self, runs):
        """Runs straight into the tables: (id, start, {metric: value})."""
        names = ("auc", "loss", "f1")
        made = {
            "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, "
            "lifecycle_stage, artifact_uri, experiment_id) VALUES "
            "(:id, :name, 'LOCAL', 'bench', 'FINISHED', :start, 'active', '', 0)": [
                {"id": id_, "name": id_[:8], "start": start} for id_, start, _ in runs
            ],
            "INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan) "
            "VALUES (:id, :key, :value, 1, 0, false)": [
                {"id": id_, "key": key, "value": metrics[key]}
                for id_, _, metrics in runs
                for key in names
            ],
            "INSERT INTO params (run_uuid, key, value) VALUES (:id, :key, '1')": [
                {"id": id_, "key": key} for id_, *_ in runs for key in ("lr", "depth", "algorithm")
            ],
            "INSERT INTO tags (run_uuid, key, value) VALUES (:id, :key, 'x')": [
                {"id": id_, "key": key} for id_, *_ in runs for key in ("team", "stage")
            ],
        }
        engine = sqlalchemy.create_engine(self.store)
        with engine.begin() as connection:
            for statement, rows in made.items():
                connection.execute(sqlalchemy.text(statement), rows)
        if engine.dialect.name == "postgresql":
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("ANALYZE"))
        engine.dispose()
        return {}

    def search(self, limit):
        """The best runs by a metric, above a bound."""
        start = time.perf_counter()
        found = self.client.search_runs(
            ["0"], "metrics.auc > 0.5", max_results=limit, order_by=["metrics.auc DESC"]
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "values": [run.data.metrics["auc"] for run in found]}

    def clients(self, url, processes, calls):
        """`calls` of log_metric from each of as many processes at once; how many failed."""
        client = mlflow.MlflowClient(tracking_uri=url)
        runs = [client.create_run("0").info.run_id for _ in range(processes)]
        context = multiprocessing.get_context("fork")
        ready, errors = context.Barrier(processes + 1), context.Value("i", 0)
        workers = [
            context.Process(target=_log_calls, args=(url, run, calls, ready, errors))
            for run in runs
        ]
        for worker in workers:
            worker.start()
        ready.wait(120)
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        logged = [client.get_run(run).data.metrics.get("loss") for run in runs]
        return {"seconds": seconds, "errors": errors.value, "values": logged}

    def log_artifacts(self, url, folder):
        """Upload a folder of files to a run; the paths that are there then."""
        client = mlflow.MlflowClient(tracking_uri=url)
        run = client.create_run("0").info.run_id
        start = time.perf_counter()
        client.log_artifacts(run, folder)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "count": len(client.list_artifacts(run))}


def _log_calls(url, run, calls, ready, errors):
    client = mlflow.MlflowClient(tracking_uri=url)
    client.log_metric(run, "loss", 0.0, 1, 0, synchronous=True)  # opens the connection
    ready.wait(120)
    for step in range(1, calls + 1):
        try:
            client.log_metric(run, "loss", float(step), step, step, synchronous=True)
        except Exception:  # noqa: BLE001 - counted
            with errors.get_lock():
                errors.value += 1


def main():
    """Answer until the asker goes away."""
    side = Side()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(side, asked.pop("work"))(**asked)
        except Exception as error:  # noqa: BLE001 - told to the asker
            answer = {"fault": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
