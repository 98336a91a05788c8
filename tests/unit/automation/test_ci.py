"""`everloop ci` over every real room: what it finds out about an edit, and that nothing changes."""

from __future__ import annotations

import contextlib
import json
import linecache
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from click.testing import CliRunner

import everloop as ev
from everloop.cli.main import main
from everloop.core.ci import CiCase, CiReport
from everloop.errors import InvalidInput, NotAllowed
from everloop.settings import without_password
from tests.servers import serve
from tests.unit.automation.shop import LOOP, NAME, make_source


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, as a CI keeps one for all commits."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def judge(
    live: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CiReport]:
    """Runs `everloop ci` on a text, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(
        text: str, *options: str, against: Path | str | None = live, status: int | None = None
    ) -> CiReport:
        Path("loop.py").write_text(text)
        sys.modules.pop("loop", None)  # each run of CI is a process of its own
        linecache.checkcache()
        where = [] if against is None else ["--against", str(against)]
        words = ["ci", "loop.py", "--json", "--cache", str(cache), *where, *options]
        done = CliRunner().invoke(main, words, standalone_mode=False)
        found = done.exception.code if isinstance(done.exception, SystemExit) else 0
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        report = msgspec.json.decode(Path("ci-report/report.json").read_bytes(), type=CiReport)
        assert json.loads(done.stdout) == json.loads(Path("ci-report/report.json").read_text())
        assert {0: "passed", 1: "failed", 3: "refused"}[found] == report.outcome
        if status is not None:
            assert found == status, [c for c in report.cases if c.status != "passed"]
        return report

    return run


def told(report: CiReport, *status: str) -> dict[str, str]:
    return {f"{c.group} {c.name}": c.told for c in report.cases if c.status in status}


def events(place: Path) -> list[Any]:
    with ev.open(place) as ws:
        assert ws.catalog is not None
        return ws.catalog.events(limit=10_000)


def test_a_commit_that_changes_nothing_passes_and_touches_nothing(
    judge: Callable[..., CiReport], live: Path, cache: Path
) -> None:
    before = events(live)
    report = judge(LOOP, status=0)
    assert told(report, "refused", "failed", "not judged") == {}
    groups = [case.group for case in report.cases]
    assert {group: groups.count(group) for group in set(groups)} == {
        "loop": 1, "contract": 1, "step": 6, "check": 4, "gate": 7,
    }  # fmt: skip
    # Asked of a commit is whether it makes the model worse; it need not be better.
    [better] = [case for case in report.cases if case.name == "beats_champion:brier"]
    assert better.status == "passed"
    [model] = report.models
    assert model.champion == f"{NAME}/1"
    assert str(model.until) == "2024-01-20 00:00:00+00:00"
    again = judge(LOOP, status=0)
    steps = [case for case in again.cases if case.group == "step" and case.evidence.get("calls")]
    assert [case.told for case in steps] == ["cached"] * 4
    assert again.models[0].digest == model.digest
    assert events(live) == before

    # It is recorded where CI works, for whoever asks whether CI ran for this code.
    kept = [event for event in events(cache / "all") if event.kind == "ci.Finished"]
    assert kept[-1].subject == f"code:{model.code}"
    assert kept[-1].body["outcome"] == "passed"
    with ev.open(cache / "all") as ws:
        assert ws.tracking.run(model.runs["all"]).tags["everloop.ci"] == "passed"
        assert ws.evaluation.verdict(model.verdict).champion == 1


BROKEN: dict[str, tuple[Callable[[str], str], int, str, str]] = {
    "worse": (lambda t: t.replace('"bought"])[:, 0]', '"bought"])[:, 0] < 0.5'),
              3, "gate beats_champion:brier", "worse than the champion, by more than chance"),
    "learned nothing": (
        lambda t: t.replace("x, y = rows.to_numpy(NAMES)", "x, y = rows.to_numpy(NAMES) * 0"),
        3, "check candidate has learned something", "not shown to be better than that of the mean"),
    "contract": (lambda t: t.replace("le=1, owner", "le=0.99, owner"),
                 3, "contract visits", "rows break price.le"),
    "contract without a column": (
        lambda t: t.replace('ev.Field("weather"', 'ev.Field("wind"'),
        3, "contract visits", "wind"),
    "a gate that asks for what there is not": (
        lambda t: t.replace('ev.directional("price"', 'ev.directional("prize"'),
        1, "gate gates", "prize"),
    "loss": (lambda t: t.replace("loss=0.5", 'loss=float("nan")'),
             3, "check logged metrics are finite", "loss"),
    "not a number": (
        lambda t: t.replace("return ev.model(booster,",
                            "return ev.model(lambda m: m[:, 0] * np.nan, names=NAMES,"),
        3, "check scores are numbers of the right shape and range", "are no numbers"),
    "no probability": (
        lambda t: t.replace("return ev.model(booster,",
                            "return ev.model(lambda m: m[:, 0] * 9, names=NAMES,"),
        3, "check scores are numbers of the right shape and range", "are no probabilities"),
    "syntax": (lambda t: t.replace("def train(", "def train(("), 1, "loop import", "SyntaxError"),
    "no loop": (lambda t: t.partition("ev.loop(")[0], 1, "loop import", "declares no loop"),
    "raises on the sample": (
        lambda t: t.replace("    x, y =", '    raise ValueError("no such luck")\n    x, y ='),
        1, "step sample: loop.py:retrain", "no such luck"),
    "ends the process": (
        lambda t: t.replace("    x, y =", "    raise SystemExit(0)\n    x, y ="),
        1, "step sample: loop.py:retrain", "sys.exit(0)"),
    "returns something else": (
        lambda t: t.replace('return ev.register("sales", train', 'return ("sales", train'),
        1, "step sample: loop.py:retrain", "must return a version of 'sales'"),
    "breaks the types between steps": (
        lambda t: t.replace("return visits.filter(", "return str("),
        1, "step sample: loop.py:retrain", "Table"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_an_edit_breaks_is_named(
    judge: Callable[..., CiReport], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, status, case, said = BROKEN[name]
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "0" * 64)  # lets plain functions be models
    assert edit(LOOP) != LOOP
    report = judge(edit(LOOP), status=status)
    found = told(report, "refused", "failed")
    assert said in found.get(case, ""), found
    for gate in (c for c in report.cases if c.group == "gate" and c.status == "not judged"):
        assert gate.told


def test_rows_that_break_a_contract_are_named_with_who_must_correct_them(
    judge: Callable[..., CiReport],
) -> None:
    report = judge(LOOP.replace("le=1, owner", "le=0.99, owner"), status=3)
    [contract] = [case for case in report.cases if case.group == "contract"]
    [broken] = contract.evidence["broken"]
    assert broken["owner"] == "prices@example.org"
    assert broken["such_as"][0].startswith("id=visit-")
    assert "prices@example.org" in contract.told


def test_without_a_source_what_needs_one_is_not_judged(
    judge: Callable[..., CiReport],
) -> None:
    text = LOOP.replace('    visits = ev.read("visits")', "    visits = ev.Table.of(rows())")
    text = text.replace("@ev.pipeline", "def rows():\n    from tests.unit.automation.shop import"
                        " visits\n    return visits()\n\n\n@ev.pipeline")  # fmt: skip
    report = judge(text, against=None, status=0)
    left = told(report, "not judged")
    assert left["gate beats_champion:brier"] == "there is no source to compare with: give --against"
    assert "gate functionality:dear" not in left
    assert "contract visits" in left
    assert judge(text, "--strict", against=None).outcome == "refused"
    assert judge(LOOP, against=None).outcome == "failed"  # nobody has visits


def test_a_sample_alone_compares_nothing(judge: Callable[..., CiReport]) -> None:
    report = judge(LOOP, "--sample-only", "--sample", "1200", status=0)
    left = told(report, "not judged")
    assert set(left) == {"gate beats_champion:brier", "gate no_group_worse:brier:shop",
                         "gate threshold:auc"}  # fmt: skip
    assert list(report.models[0].runs) == ["sample"]
    [ran] = [case for case in report.cases if case.name == "sample: loop.py:retrain"]
    assert ran.evidence["rows"] == {"visits": 1200}


def edited(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def test_a_new_feature_was_served_to_nobody_and_the_rest_is_judged(
    judge: Callable[..., CiReport],
) -> None:
    text = edited(
        LOOP,
        ('NAMES = ("price", "weather")', 'NAMES = ("price", "weather", "bias")'),
        ("    x, y =", '    rows = rows.with_columns(bias="price * weather")\n    x, y ='),
    )
    report = judge(text, status=0)
    left = told(report, "not judged")
    assert "takes bias, which the served answers do not hold" in left["gate beats_champion:brier"]
    assert not {"gate max_size_mb", "gate functionality:dear"} & set(left)
    [scores] = [case for case in report.cases if case.name.startswith("scores are numbers")]
    assert (scores.status, scores.evidence["kind"]) == ("passed", "made-up")


def test_steps_in_other_processes_read_the_present_data(
    judge: Callable[..., CiReport],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = make_source(tmp_path_factory.mktemp("growing"))
    before = set((home / "objects").rglob("*"))
    read = '    visits = ev.read("visits")\n'
    text = edited(
        LOOP,
        (read, ""),
        ("@ev.step\ndef known(visits: ev.Table, ", "@ev.step(isolate=True)\ndef known("),
        ("    return visits.filter(", f"{read}    return visits.filter("),
        ("train(known(visits, until)", "train(known(until)"),
    )
    rows = []
    for _ in range(2):
        monkeypatch.setenv("EVERLOOP_OBJECTS", str(home / "objects"))
        report = judge(text, "--sample", "all", against=home, status=0)
        assert rows or set((home / "objects").rglob("*")) == before
        assert told(report, "passed")["step all: loop.known"] == "ran"
        [logged] = [case for case in report.cases if case.name == "logged metrics are finite"]
        rows.append(logged.evidence["metrics"]["rows"])
        with ev.open(home) as ws:
            more = ws.data.read("visits").slice(0, 1)
            ws.data.commit("visits", more.set_column(0, "id", pa.array(["one more"])))
    assert rows[1] == rows[0] + 1


def test_loops_of_one_file_are_judged_each(judge: Callable[..., CiReport]) -> None:
    _, _, second = LOOP.partition("@ev.pipeline")
    second = second.replace('"sales"', '"other"').replace("def retrain", "def again")
    report = judge(LOOP + "\n\n@ev.pipeline" + second.replace("retrain", "again"))
    assert [model.loop for model in report.models] == ["sales", "other"]
    assert report.models[1].champion == ""
    left = {case.name for case in report.cases if case.status == "not judged"}
    assert "beats_champion:brier" in left


def test_a_hold_out_of_one_class_cannot_tell(
    judge: Callable[..., CiReport], tmp_path_factory: pytest.TempPathFactory
) -> None:
    flat = make_source(tmp_path_factory.mktemp("flat"), one_class=True)
    report = judge(LOOP, against=flat)
    left = told(report, "not judged")
    assert "one class only" in left["gate threshold:auc"]
    assert "the same" in left["check candidate has learned something"]


def test_arguments_reach_the_pipeline_and_mistakes_are_named(
    judge: Callable[..., CiReport],
) -> None:
    report = judge(LOOP, "--set", "trees=3", status=None)
    assert report.models[0].candidate
    wrong = judge(LOOP, "--set", "tree=3", status=1)
    assert (
        "the pipeline takes: until, trees" in told(wrong, "failed")["step sample: loop.py:retrain"]
    )


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_source_out_of_reach_is_a_failure_with_a_report(
    judge: Callable[..., CiReport], closed_port: int
) -> None:
    report = judge(LOOP, against=f"http://127.0.0.1:{closed_port}", status=1)
    assert "does not answer" in told(report, "failed")["loop source"]
    assert "there is no workspace" in told(judge(LOOP, against="nowhere"), "failed")["loop source"]


def test_a_live_catalog_is_not_upgraded(judge: Callable[..., CiReport], tmp_path: Path) -> None:
    home = tmp_path / "older"
    ev.open(home).close()
    with contextlib.closing(sqlite3.connect(home / "catalog.sqlite")) as catalog:
        catalog.execute("UPDATE alembic_version SET version_num = '0003'")
        catalog.commit()
    report = judge(LOOP, against=home, status=1)
    assert "is at revision 0003" in told(report, "failed")["loop source"]
    with contextlib.closing(sqlite3.connect(home / "catalog.sqlite")) as catalog:
        assert catalog.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003",)


def test_a_server_is_read_by_a_viewer_and_recorded_in_by_a_contributor(
    judge: Callable[..., CiReport], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    home = make_source(tmp_path_factory.mktemp("served"))
    with ev.open(home) as ws:
        ws.access.create_user("ann", role="admin", password="a long password")
        secrets = {}
        for role in ("viewer", "contributor"):
            ws.access.create_user(f"a {role}", role=role)
            secrets[role] = ws.access.create_token(f"a {role}").secret
    with serve(ev.open(home)) as url:
        monkeypatch.setenv("EVERLOOP_TOKEN", "none of yours")
        assert "loop source" in told(judge(LOOP, against=url, status=1), "failed")
        monkeypatch.setenv("EVERLOOP_TOKEN", secrets["viewer"])
        assert judge(LOOP, against=url, status=0).against == url
        with pytest.raises(NotAllowed, match="may not ci:record"):
            judge(LOOP, "--record", against=url)
        monkeypatch.setenv("EVERLOOP_TOKEN", secrets["contributor"])
        report = judge(LOOP, "--record", against=url, status=0)
    [kept] = [event for event in events(home) if event.kind == "ci.Finished"]
    assert kept.subject == f"code:{report.models[0].code}"
    assert kept.actor == "a contributor"


def test_the_repository_and_a_dirty_tree_are_told(judge: Callable[..., CiReport]) -> None:
    assert judge(LOOP, status=0).git == {}
    assert "no git repository" in Path("ci-report/report.md").read_text()
    for words in (
        ["init", "-q", "-b", "topic"],
        ["add", "loop.py"],
        ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "m"],
    ):
        subprocess.run(["git", *words], check=True)  # fmt: skip
    clean = judge(LOOP, status=0).git
    assert clean["dirty"] == "no"
    dirty = judge(LOOP + "\n# edited\n", status=0).git
    assert dirty == {**clean, "dirty": "yes"}
    assert "changes that are not committed" in Path("ci-report/report.md").read_text()


def test_the_summary_of_a_ci_gets_the_report(
    judge: Callable[..., CiReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    judge(LOOP, status=0)
    report = Path("ci-report/report.md").read_text()
    assert (tmp_path / "summary").read_text() == "before\n" + report
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary"))
    judge(LOOP, status=0)


def test_where_no_report_can_be_written_nothing_runs(judge: Callable[..., CiReport]) -> None:
    Path("taken").write_text("a file")
    with pytest.raises(InvalidInput, match="cannot be written"):
        judge(LOOP, "--out", "taken/within")
    assert not Path("taken/within").exists()


def test_runs_in_one_cache_wait_for_each_other(judge: Callable[..., CiReport], cache: Path) -> None:
    from everloop.cli.locks import held

    done: list[CiCase] = []
    with held(cache / "lock") as mine:
        assert mine is not None
        thread = threading.Thread(target=lambda: done.extend(judge(LOOP, status=0).cases))
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        assert not done
    thread.join(120)
    assert done


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("live/.everloop", "live/.everloop"),
        ("postgresql://ann:s3cret@db:5432/live", "postgresql://ann@db:5432/live"),
        ("postgresql://db/live?user=ann&password=s3cret", "postgresql://db/live"),
        ("http://everloop.example.org/at", "http://everloop.example.org/at"),
        ("http://[s3cret", "http://..."),
    ],
)
def test_no_password_is_shown(location: str, shown: str) -> None:
    assert without_password(location) == shown
