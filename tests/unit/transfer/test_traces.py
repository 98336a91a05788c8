"""Traces of old stores and broken ones: what can be read comes, the rest is told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.errors import InvalidInput
from everloop.transfer.meta import read_tree
from everloop.transfer.report import TransferReport
from everloop.transfer.trace_wire import spans_of

OLD_SPAN = {
    "name": "predict",
    "context": {"span_id": "0x0b1c2d3e4f506172", "trace_id": "0x11111111222222223333333344444444"},
    "parent_id": None,
    "start_time": 1_700_000_000_000_000_000,
    "end_time": 1_700_000_000_250_000_000,
    "status_code": "OK",
    "status_message": "",
    "attributes": {
        "mlflow.traceRequestId": '"abc"',
        "mlflow.spanType": '"LLM"',
        "mlflow.spanInputs": '{"q": "å"}',
        "raw": "no JSON",
    },
    "events": [{"name": "e", "timestamp": 1_700_000_000_100_000_000, "attributes": {"n": 1}}],
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    found = tmp_path / "mlruns"
    (found / "7" / "traces").mkdir(parents=True)
    (found / "7" / "meta.yaml").write_text(
        "artifact_location: x\nexperiment_id: '7'\nlifecycle_stage: active\nname: old one\n"
    )
    return found


def add_trace(store: Path, id_: str, info: str, file: str = "") -> Path:
    folder = store / "7" / "traces" / id_
    for name in ("tags", "request_metadata", "artifacts", "assessments"):
        (folder / name).mkdir(parents=True)
    (folder / "trace_info.yaml").write_text(info)
    (folder / "tags" / "mlflow.traceName").write_text("predict")
    if file:
        (folder / "artifacts" / "traces.json").write_text(file)
    return folder


def old_info(id_: str) -> str:
    return (
        f"request_id: {id_}\nexperiment_id: '7'\ntimestamp_ms: 1700000000000\n"
        "execution_time_ms: 250\nstatus: OK\n"
    )


def imported(store: Path, tmp_path: Path) -> tuple[ev.Workspace, TransferReport]:
    workspace = ev.open(tmp_path / ".everloop", actor="tester")
    return workspace, workspace.import_mlflow(str(store))


def tally(report: TransferReport, kind: str) -> tuple[int, int, int, int]:
    [found] = [count for count in report.counts if count.kind == kind]
    return found.found, found.imported, found.there, found.failed


def test_trace_of_mlflow_2_comes_with_its_spans(store: Path, tmp_path: Path) -> None:
    id_ = "0123456789abcdef0123456789abcdef"
    add_trace(store, id_, old_info(id_), json.dumps({"spans": [OLD_SPAN]}))
    workspace, report = imported(store, tmp_path)
    with workspace:
        assert report.refusals == ()
        assert (tally(report, "trace"), tally(report, "spans")) == ((1, 1, 0, 0), (1, 1, 0, 0))
        trace = workspace.traces.trace(id_)
        assert (trace.state, trace.duration_ms, trace.tags["mlflow.traceName"]) == (
            "ok",
            250,
            "predict",
        )
        [span] = workspace.traces.spans([id_])[id_]
        values = {item["key"]: item["value"] for item in span["attributes"]}
        assert values["raw"] == {"string_value": "no JSON"}
        assert values["mlflow.spanInputs"]["kvlist_value"]["values"][0]["key"] == "q"
        assert span["events"][0]["attributes"] == [{"key": "n", "value": {"int_value": 1}}]
        found = workspace.traces.search(["7"], filter="span.type = 'LLM' AND status = 'OK'")
        assert [item.id for item in found.traces] == [id_]
        again = workspace.import_mlflow(str(store))
        assert tally(again, "trace") == (1, 0, 1, 0)


def test_what_is_broken_is_told_and_the_rest_comes(store: Path, tmp_path: Path) -> None:
    sound = json.dumps({"spans": [OLD_SPAN]})
    add_trace(store, "tr-a", old_info("tr-a"), sound)
    add_trace(store, "tr-b", old_info("tr-b"), "{half")
    add_trace(store, "tr-c", old_info("tr-other"), sound)
    add_trace(store, "tr-d", "request_id: [", sound)
    add_trace(store, "tr-e", old_info("tr-e"))
    told = add_trace(store, "tr-f", old_info("tr-f"), sound) / "assessments"
    (told / "a-1.yaml").write_text(
        "assessment_id: a-1\nassessment_name: ok\nfeedback:\n  value: 1\n"
    )
    (told / "a-2.yaml").write_text("assessment_id: a-2\nassessment_name: empty\n")
    (told / "a-3.yaml").write_text("assessment_id: a-1\nassessment_name: x\nfeedback: {\n")
    workspace, report = imported(store, tmp_path)
    with workspace:
        faults = {refusal.name for refusal in report.refusals if refusal.kind == "trace"}
        assert faults == {"tr-b", "tr-c", "tr-d", "tr-f"}
        assert tally(report, "trace")[3] == 4
        here = {trace.id for trace in workspace.traces.search(["7"]).traces}
        assert here == {"tr-a", "tr-b", "tr-e", "tr-f"}
        # A broken file of spans comes as the file that it is.
        kept = workspace.tracking.artifact("7/traces/tr-b/artifacts/traces.json")
        assert kept == b"{half"
        assert [given.id for given in workspace.traces.trace("tr-f").assessments] == ["a-1"]
        # Mended there, it comes with the next import.
        (store / "7" / "traces" / "tr-b" / "artifacts" / "traces.json").write_text(sound)
        (told / "a-2.yaml").unlink()
        (told / "a-3.yaml").unlink()
        again = workspace.import_mlflow(str(store))
        assert {refusal.name for refusal in again.refusals} == {"tr-c", "tr-d"}
        assert len(workspace.traces.spans(["tr-b"])["tr-b"]) == 1


@pytest.mark.parametrize(
    "said",
    [
        None,
        [None],
        [{}],
        [{**OLD_SPAN, "context": {"span_id": "x", "trace_id": "y"}}],
        [{**OLD_SPAN, "start_time": -1}],
        [{**OLD_SPAN, "start_time": 1 << 64}],
        [{**OLD_SPAN, "attributes": [1]}],
        [{**OLD_SPAN, "name": "half \ud800"}],
    ],
)
def test_span_that_is_none_is_refused_with_its_place(said: Any) -> None:
    with pytest.raises(InvalidInput, match=r"span 0 is not understood"):
        spans_of(said, "tr-1")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a:\n- 1\n- 2.5\n- x\n", {"a": [1, 2.5, "x"]}),
        (
            "a:\n  - - 1\n    - 2\n  - b: c\n    d: .inf\n",
            {"a": [[1, 2], {"b": "c", "d": float("inf")}]},
        ),
        (
            "a:\n  b:\n    c: 'x: y'\n    d: []\n  e: {}\n",
            {"a": {"b": {"c": "x: y", "d": []}, "e": {}}},
        ),
        (
            "a: null\nb: true\nc: '1.5'\nd: 1.5e+10\n",
            {"a": None, "b": True, "c": "1.5", "d": 1.5e10},
        ),
    ],
)
def test_deeper_files_are_read(text: str, wanted: dict[str, Any]) -> None:
    assert read_tree(text) == wanted


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n", "a:\n- 1\nb\n", "a: &x 1\n"])
def test_deeper_files_outside_the_corner_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_tree(text)
