"""Traces and webhooks with MLflow's client, in one process, as importing it takes seconds.

Run by test_mlflow_traces.py with MLFLOW_TRACKING_URI and RECEIVER set. Prints one JSON object: by
section what the client saw, or the traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException

SECTIONS: list[Callable[[], dict[str, Any]]] = []
IDS: dict[str, str] = {}
SECRET = "a secret of the receiver"


def section(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    SECTIONS.append(function)
    return function


def refused(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except MlflowException as error:
        return [error.error_code, error.message]
    return ["", ""]


@section
def logged() -> dict[str, Any]:
    mlflow.set_experiment("traced")
    with mlflow.start_span("root", span_type="CHAIN") as root:
        root.set_inputs({"q": "hi"})
        with mlflow.start_span("child", span_type="LLM") as child:
            child.set_inputs({"a": 1})
            child.set_outputs([1, 2.5, None])
            child.set_attribute("temperature", 0.5)
        root.set_outputs({"a": "yo å"})

    @mlflow.trace
    def fails(x: int) -> int:
        raise ValueError("no")

    @mlflow.trace(name="tagged")
    def tagged(x: int) -> int:
        mlflow.update_current_trace(
            tags={"fruit": "apple"},
            metadata={"mlflow.trace.session": "s1"},
            client_request_id="req-1",
        )
        return x + 1

    try:
        fails(3)
    except ValueError:
        IDS["failed"] = str(mlflow.get_last_active_trace_id())
    tagged(1)
    IDS["tagged"] = str(mlflow.get_last_active_trace_id())
    with mlflow.start_run() as run, mlflow.start_span("in run"):
        IDS["run"] = run.info.run_id
    mlflow.flush_trace_async_logging()
    IDS["root"] = root.trace_id
    found = mlflow.get_trace(root.trace_id)
    failed = mlflow.get_trace(IDS["failed"])
    return {
        "id": root.trace_id,
        "state": [found.info.state.value, failed.info.state.value],
        "spans": [[s.name, s.span_type, s.inputs, s.outputs] for s in found.data.spans],
        "attribute": found.data.spans[1].get_attribute("temperature"),
        "parent": found.data.spans[1].parent_id == found.data.spans[0].span_id,
        "previews": [found.info.request_preview, found.info.response_preview],
        "event": failed.data.spans[0].events[0].attributes["exception.message"],
        "location": found.info.tags["mlflow.trace.spansLocation"],
    }


@section
def searched() -> dict[str, Any]:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("traced").experiment_id

    def names(filter_string: str = "", **options: Any) -> list[str]:
        found = mlflow.search_traces(
            locations=[experiment],
            filter_string=filter_string,
            return_type="list",
            **{"order_by": ["timestamp_ms ASC"], **options},
        )
        return [trace.info.tags["mlflow.traceName"] for trace in found]

    first = client.search_traces(locations=[experiment], max_results=3)
    second = client.search_traces(locations=[experiment], max_results=3, page_token=first.token)
    return {
        "all": names(),
        "frame": len(mlflow.search_traces(locations=[experiment])),
        "newest": names(order_by=None, max_results=1),
        "by name": names(order_by=["name DESC"]),
        "error": names("trace.status = 'ERROR'"),
        "tag": names("tags.fruit = 'apple' AND metadata.`mlflow.trace.session` = 's1'"),
        "request": names("client_request_id = 'req-1'"),
        "like": names("name LIKE 'r%'"),
        "span": names("span.name = 'child'"),
        "type": names("span.type = 'LLM'"),
        "text": names("trace.text LIKE '%temperature%'"),
        "run": names("", run_id=IDS["run"]),
        "late": names("timestamp_ms > 9999999999999"),
        "quick": names("execution_time_ms < 1000000 AND end_time > 0"),
        "pages": [len(first), len(second), second.token or ""],
        "sessions": len(mlflow.search_sessions(locations=[experiment])),
        "wrong": refused(lambda: names("trace.nothing = 'x'")),
        "absent": refused(lambda: client.get_trace("tr-" + "0" * 32)),
    }


@section
def assessed() -> dict[str, Any]:
    id_ = IDS["root"]
    source = AssessmentSource(source_type="HUMAN", source_id="me")
    made = mlflow.log_feedback(
        trace_id=id_, name="ok", value=True, rationale="good", source=source, metadata={"m": "1"}
    )
    mlflow.log_feedback(trace_id=id_, name="bad", error=ValueError("broken"))
    expected = mlflow.log_expectation(trace_id=id_, name="answer", value={"x": [1]})
    changed = mlflow.update_assessment(
        id_, made.assessment_id, Feedback(name="ok", value=False, rationale="hm")
    )
    mlflow.override_feedback(trace_id=id_, assessment_id=made.assessment_id, value="new")
    found = mlflow.search_traces(
        locations=[mlflow.get_experiment_by_name("traced").experiment_id],
        filter_string="feedback.ok = 'new'",
        return_type="list",
    )
    mlflow.delete_assessment(id_, expected.assessment_id)
    left = mlflow.get_trace(id_).info.assessments
    return {
        "made": [made.value, made.rationale, made.source.source_id, made.metadata],
        "expected": expected.value,
        "changed": [changed.value, changed.rationale, changed.metadata],
        "found": [trace.info.trace_id == id_ for trace in found],
        "left": [[a.name, a.feedback.value, a.valid] for a in left],
        "error": left[1].error.error_message,
        "gone": refused(lambda: mlflow.get_assessment(id_, expected.assessment_id))[0],
    }


@section
def changed() -> dict[str, Any]:
    client, id_ = MlflowClient(), IDS["root"]
    experiment = client.get_experiment_by_name("traced").experiment_id
    mlflow.set_trace_tag(id_, "a/b c", "1")
    tags = dict(client.get_trace(id_).info.tags)
    mlflow.delete_trace_tag(id_, "a/b c")
    client.link_traces_to_run([id_], IDS["run"])
    linked = client.search_traces(
        locations=[experiment], filter_string=f"attributes.run_id = '{IDS['run']}'"
    )
    return {
        "tag": tags.get("a/b c"),
        "without": "a/b c" in client.get_trace(id_).info.tags,
        "linked": len(linked),
        "deleted": client.delete_traces(experiment, trace_ids=[IDS["failed"]]),
        "rest": len(client.search_traces(locations=[experiment])),
        "oldest": client.delete_traces(experiment, max_timestamp_millis=2**42, max_traces=1),
    }


@section
def webhooks() -> dict[str, Any]:
    client, url = MlflowClient(), os.environ["RECEIVER"]
    made = client.create_webhook(
        name="all",
        url=f"{url}/all",
        events=[
            "registered_model.created",
            "model_version.created",
            "model_version_tag.set",
            "model_version_tag.deleted",
            "model_version_alias.created",
            "model_version_alias.deleted",
            "prompt.created",
        ],
        description="everything",
        secret=SECRET,
    )
    other = client.create_webhook(
        name="other", url=f"{url}/other", events=["model_version.created"], status="DISABLED"
    )
    listed = client.list_webhooks(max_results=1)
    rest = client.list_webhooks(max_results=1, page_token=listed.token)
    tried = client.test_webhook(made.webhook_id)
    tried_other = client.test_webhook(made.webhook_id, event="model_version_alias.deleted")
    client.create_registered_model("hooked", tags={"team": "ops"}, description="a model")
    client.create_model_version("hooked", "s3://bucket/model", tags={"v": "1"})
    client.set_model_version_tag("hooked", "1", "checked", "yes")
    client.delete_model_version_tag("hooked", "1", "checked")
    client.set_registered_model_alias("hooked", "champion", "1")
    client.delete_registered_model_alias("hooked", "champion")
    moved = client.update_webhook(other.webhook_id, name="moved", status="ACTIVE")
    return {
        "made": [made.name, made.description, str(made.status), len(made.events)],
        "secret": SECRET in repr(vars(made)),
        "listed": [[hook.name for hook in page] for page in (listed, rest)],
        "tried": [tried.success, tried.response_status, tried.response_body],
        "tried other": tried_other.success,
        "moved": [moved.name, str(moved.status), client.get_webhook(moved.webhook_id).url],
        "deleted": [
            client.delete_webhook(other.webhook_id),
            refused(lambda: client.get_webhook(other.webhook_id))[0],
        ],
        "refused": {
            name: refused(
                lambda url=url: client.create_webhook(name="x", url=url, events=["prompt.created"])
            )
            for name, url in {
                "http": "http://192.0.2.1/x",
                "loopback": "https://127.0.0.2/x",
                "metadata": "https://169.254.169.254/latest",
            }.items()
        },
    }


def main() -> None:
    told: dict[str, Any] = {}
    for function in SECTIONS:
        try:
            told[function.__name__] = function()
        except Exception:  # noqa: BLE001 (the test shows it)
            told[function.__name__] = {"traceback": traceback.format_exc()}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
