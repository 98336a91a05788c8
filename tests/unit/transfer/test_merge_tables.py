"""A merge carries every table of the catalog, or says why not: none is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import select

import everloop as ev
from everloop.catalog import tables
from everloop.core.artifact import ModelArtifact
from everloop.core.context import acting
from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.lineage import Mention, Report
from everloop.core.package import Manifest, to_bytes
from everloop.core.run import Metric, RunInput, RunOutput
from everloop.core.schema import canonical_json
from everloop.core.source import PullDraft, SourceFile
from everloop.core.time import ManualClock
from everloop.core.trace import Assessment, Span, Trace
from everloop.data.sources import data_source
from everloop.features.define import col, feature_set, feature_view, source
from everloop.lineage import outside
from everloop.transfer.merge import STAYS, TOLD
from everloop.transfer.report import TransferReport
from everloop.workspace import Workspace
from tests.workspaces import START

#: Columns that count or order rows within one catalog.
_OWN = {"pk", "seq", "run_pk", "trace_pk", "experiment_pk", "key_pk"}
#: What is otherwise on purpose: versions are not live elsewhere, and the merge tells of aliases.
_CHANGED = {"model_versions": {"state"}, "aliases": {"updated_at"}}
RUN = "a" * 32


def model(text: bytes, **more: Any) -> ModelArtifact:
    return ModelArtifact(flavor="x", files={"f": text}, **more)


def fill(ws: Workspace) -> None:
    """At least one row in every table that a merge is to carry, by the services where they can."""
    tracking = ws.tracking
    placed = tracking.create_experiment(
        "placed", {"team": "growth"}, location="mlflow-artifacts:/elsewhere/placed"
    )
    run = tracking.create_run("placed", params={"lr": "1"}, tags={"on": "cluster"})
    tracking.log(run.id, [Metric(key="loss", value=1.5)])
    tracking.put_artifact(f"elsewhere/placed/{run.id}/artifacts/notes.txt", b"notes")
    near = feature_view(
        "near", entity=("flight",), source=source("rows"), features={"far": col.distance}
    )
    ws.data.commit("rows", pa.table({"flight": [1, 2], "distance": [1.0, 2.0]}), run_id=run.id)
    ws.data.tag("rows", "2013q1", 1, reason="audited")
    ws.data.branch("rows", "fix", note="a wrong distance")
    ws.data.declare_source(data_source("rows", "rows.parquet"))
    read = (SourceFile(path="rows.parquet", size=9, digest="d", read=9, rows=2),)
    ws.data.commit_pull("rows", None, PullDraft(generation=0, files=read, read=2))
    ws.features.apply(feature_set("set", near, time="t", request={"flight": int, "t": "timestamp"}))
    logged = tracking.create_logged_model(placed.id, name="lm", source_run_id=run.id)
    tracking.log_inputs(run.id, [RunInput(dataset="rows", version=1, digest="d")])
    tracking.log_model_inputs(run.id, [logged.id])
    tracking.log_outputs(run.id, [RunOutput(model_id=logged.id, step=1)])
    tracking.log(run.id, [Metric(key="auc", value=0.5, model_id=logged.id)])
    tracking.finish_logged_model(logged.id)
    registry(ws, run.id)
    package(ws)
    trace(ws, placed.id, run.id)
    assert ws.catalog is not None
    with ws.catalog.write() as tx:
        job = Mention(kind="job", namespace="spark", name="nightly", facets={"sql": {"query": "x"}})
        lake = Mention(kind="dataset", namespace="s3://lake", name="flights")
        outside.take(tx, Report(at=START, state="COMPLETE", job=job, inputs=(lake,)))
        change = {"scope": f"run:{run.id}", "dataset": "rows", "rule": "no_gap", "action": "drop"}
        rest = {"reason": "r", "owner": "o", "rows": 1, "detail": "", "at": START}
        tx.execute(tables.row_changes.insert().values(change | rest))
        step = {"run_id": run.id, "seq": 1, "step": "s", "key": "k", "outcome": "ran"}
        ended = {"output": "", "error": "", "started_at": START, "ended_at": START}
        tx.execute(tables.step_runs.insert().values(step | ended))
    tracking.update_run(run.id, state="finished")


def package(ws: Workspace) -> None:
    code = ws.objects.put(canonical_json({"loop.py": ws.objects.put(b"import everloop")}))
    made = Manifest(name="p", code=code, entry="loop.py", python="3.11", distributions={})
    ws.packages.add(ws.objects.put(to_bytes(made)))


def registry(ws: Workspace, run_id: str) -> None:
    """Stages, aliases that moved, a protected one, a deleted version and a deleted model."""
    clf = ws.registry
    with acting(actor="ann"):
        for text in (b"1", b"2", b"3"):
            clf.register("clf", model(text, data={"rows": 1}), run_id=run_id)
        clf.set_stage("clf", 1, "Production")
        clf.set_alias("clf", "champion", 1, reason="the first")
        clf.set_alias("clf", "champion", 2, reason="a better one")
        clf.protect("clf", "champion", ["threshold:auc"], 1, rollback=True)
        clf.delete_version("clf", 3, reason="a mistake")
        clf.register("gone", model(b"gone"))
        clf.delete_model("gone")
    with acting(actor="bob"):
        clf.approve("clf", 1, "champion", note="fine")
    gate = Gate(kind="threshold", metric="auc")
    result = GateResult(gate=gate, passed=True, estimate=0, low=0, high=0, rows=9, reason="r")
    ws.evaluation.record(
        Verdict(
            id="v1", model="clf", candidate=2, champion=1, passed=True, results=(result,), at=START
        )
    )


def trace(ws: Workspace, experiment: str, run_id: str) -> None:
    body = {"trace_id": "", "span_id": "AAAAAAAAAAE=", "name": "root"}
    span = Span(
        trace_id="tr-1", id="0000000000000001", name="root", started_ns=1, ended_ns=2, body=body
    )
    ws.traces.log_spans(experiment, [span], run_id=run_id)
    ws.traces.log(Trace(id="tr-1", experiment=experiment, state="ok", started_at=START))
    ws.traces.assess(
        Assessment(trace_id="tr-1", name="good", kind="feedback", body={"value": True})
    )


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / ".everloop"
    with ev.open(folder, clock=ManualClock(START), actor="cluster") as ws:
        fill(ws)
    return folder


def rows(ws: Workspace, name: str) -> list[str]:
    """The rows of a table without what is a matter of its own catalog, in no order."""
    table = tables.metadata.tables[name]
    dropped = _OWN | _CHANGED.get(name, set())
    columns = [column for column in table.columns if column.name not in dropped]
    assert ws.catalog is not None
    with ws.catalog.read() as tx:
        return sorted(repr(tuple(row)) for row in tx.all(select(*columns)))


@pytest.mark.parametrize("ws", ["sqlite", "postgres"], indirect=True)
def test_every_table_is_carried_or_its_absence_has_a_reason(there: Path, ws: Workspace) -> None:
    names = set(tables.metadata.tables)
    assert set(STAYS) <= names, "a reason for a table that is no more"
    assert all(len(reason) > 10 for reason in STAYS.values())
    report = ws.merge(there)
    assert report.refusals == ()
    with ev.open(there) as source:
        for name in sorted(names - set(STAYS)):
            wanted = rows(source, name)
            assert wanted, f"{name}: fill() makes no row of it, so a merge may lose it unseen"
            if name == "events":
                wanted = [row for row in wanted if any(f"'{kind}'" in row for kind in TOLD)]
                assert set(wanted) <= set(rows(ws, name))
            else:
                assert rows(ws, name) == wanted, name
        for name in STAYS:
            assert rows(ws, name) == [] or name in ("cursors", "leases", "principals"), name
    assert all(count.imported == 0 for count in ws.merge(there).counts)


def test_history_of_aliases_comes_and_lets_nothing_return(there: Path, tmp_path: Path) -> None:
    with ev.open(there) as source, ev.open(tmp_path / "here") as here:
        wanted = source.registry.alias_history("clf")
        here.merge(there)
        moves = here.registry.alias_history("clf")
        shown = [(m.alias, m.before, m.after, m.at, m.actor, m.reason, m.event) for m in wanted]
        found = [(m.alias, m.before, m.after, m.at, m.actor, m.reason, m.event) for m in moves]
        assert found[: len(shown)] == shown
        assert all(move.origin for move in moves[: len(shown)])
        assert (moves[-1].after, moves[-1].origin) == (2, "")
        # It pointed at 1 there; here it never did, so the rule asks for what it asks for.
        assert here.registry.missing_for("clf", "champion", 1) == [
            "gate threshold:auc was never judged for this version"
        ]


def test_what_was_deleted_there_can_be_restored_here(there: Path, tmp_path: Path) -> None:
    with ev.open(tmp_path / "here") as here:
        here.registry.register("clf", model(b"another"))
        here.merge(there)
        [version] = here.registry.deleted("clf")
        # 1 is another version here: those of there are 2 and 3, and the deleted one follows.
        assert (version.version, version.actor) == (4, "ann")
        restored = here.registry.restore_version("clf", 4)
        assert here.registry.files("clf", 4) == {"f": b"3"}
        assert restored.tags["everloop.merged_from"].endswith("clf/3")
        assert here.registry.restore_model("gone").latest == 1
        again = here.merge(there)
        assert again.refusals == ()
        assert all(count.imported == 0 for count in again.counts)
        assert here.registry.deleted() == []
        assert here.registry.register("clf", model(b"next")).version == 5


def test_rule_of_here_stays_and_counts_no_approval_of_there(there: Path, tmp_path: Path) -> None:
    with ev.open(tmp_path / "here") as here:
        here.registry.register("clf", model(b"another"))
        here.registry.protect("clf", "champion", None, 1)
        report = here.merge(there)
        assert [(refusal.kind, refusal.name) for refusal in report.refusals] == [
            ("alias", "clf@champion")
        ]
        [rule] = here.registry.alias_rules("clf")
        assert (rule.gates, rule.approvals) == ((), 1)
        assert "0 of" not in str(report.notes)
        assert "approvals of clf for 'champion' do not count for the rule that is here" in (
            report.notes
        )
        assert here.registry.missing_for("clf", "champion", 2)[0].startswith("1 of 1 approvals")


def test_artifacts_follow_the_location_of_their_experiment(there: Path, tmp_path: Path) -> None:
    with ev.open(there) as source:
        [run] = source.tracking.runs().runs
    with ev.open(tmp_path / "renumbered") as here:
        here.tracking.create_experiment("takes the id")
        here.merge(there)
        placed = here.tracking.experiment_by_name("placed")
        assert placed.location == "mlflow-artifacts:/elsewhere/placed"
        assert here.tracking.artifact(f"elsewhere/placed/{run.id}/artifacts/notes.txt") == b"notes"
    with ev.open(tmp_path / "elsewhere") as here:
        placed = here.tracking.create_experiment("placed")
        here.merge(there)
        assert here.tracking.artifact(f"{placed.id}/{run.id}/artifacts/notes.txt") == b"notes"
        assert here.tracking.experiment_by_name("placed").tags == {"team": "growth"}
    with ev.open(tmp_path / "bucket") as here:
        here.tracking.create_experiment("placed", location="s3://bucket/x")
        report = here.merge(there)
        assert any("at mlflow-artifacts:/elsewhere/placed there" in note for note in report.notes)


def test_source_and_trace_name_the_experiment_as_it_is_here(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    with ev.open(folder) as source:
        experiment = source.tracking.create_experiment("e")
        run = source.tracking.create_run("e")
        root = f"{experiment.id}/{run.id}/artifacts/m"
        source.tracking.put_artifact(f"{root}/MLmodel", b"flavors: {}\n")
        source.registry.create_model("reg")
        source.registry.register_source("reg", f"mlflow-artifacts:/{root}", run_id=run.id)
        trace(source, experiment.id, run.id)
    with ev.open(tmp_path / "here") as here:
        here.tracking.create_experiment("takes the id")
        here.merge(folder)
        now = here.tracking.experiment_by_name("e").id
        assert now != experiment.id
        version = here.registry.version("reg", 1)
        assert version.source == f"mlflow-artifacts:/{now}/{run.id}/artifacts/m"
        place = here.traces.trace("tr-1").tags["mlflow.artifactLocation"]
        assert place == f"mlflow-artifacts:/{now}/traces/tr-1/artifacts"
        assert here.traces.search([now]).traces[0].id == "tr-1"
        before = here.registry.versions()
        assert all(count.imported == 0 for count in here.merge(folder).counts)
        assert here.registry.versions() == before


def test_signature_of_a_version_that_gets_another_number_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "k" * 32)
    with ev.open(tmp_path / "there") as source:
        source.registry.register("clf", model(b"theirs"))
    with ev.open(tmp_path / "here") as here:
        here.registry.register("clf", model(b"ours"))
        here.merge(tmp_path / "there")
        assert here.registry.verify("clf", 2).signature == "valid"


def test_newer_facets_of_what_lies_outside_win(tmp_path: Path) -> None:
    def tell(ws: Workspace, hour: int, **facets: Any) -> None:
        job = Mention(kind="job", namespace="n", name="j", facets=facets)
        assert ws.catalog is not None
        with ws.catalog.write() as tx:
            outside.take(tx, Report(at=START.replace(hour=hour), job=job))

    def facets(ws: Workspace) -> dict[str, Any]:
        assert ws.catalog is not None
        with ws.catalog.read() as tx:
            found = outside.find(tx, "job:n/j")
        assert found is not None
        return found.facets

    with ev.open(tmp_path / "there") as there, ev.open(tmp_path / "here") as here:
        tell(there, 1, a={"v": "old"}, b={"v": "only there"}, c={"v": "newer there"})
        tell(there, 5, c={"v": "newest"}, d={"_deleted": True})
        tell(here, 3, a={"v": "new"}, c={"v": "older here"}, d={"v": "since taken back"})
        here.merge(tmp_path / "there")
        assert facets(here) == {
            "a": {"v": "new"}, "b": {"v": "only there"}, "c": {"v": "newest"},
        }  # fmt: skip


def test_webhooks_stay_and_the_notes_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_WEBHOOK_HOSTS", "localhost")
    secret = "never to be seen elsewhere"
    with ev.open(tmp_path / "there") as source:
        source.webhooks.create(
            "to chat", "http://localhost:9/T0/XYZ", ["model_version.created"], secret=secret
        )
    with ev.open(tmp_path / "here") as here:
        report: TransferReport = here.merge(tmp_path / "there")
        assert here.webhooks.webhooks().webhooks == ()
        assert "webhook 'to chat' is to be made here anew, with its secret" in report.notes
    data = (tmp_path / "here" / "catalog.sqlite").read_bytes()
    assert b"localhost" not in data
