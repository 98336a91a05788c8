"""Data tests that were done: their reports are files of their runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from everloop.core.data_test import ARTIFACT, TEST_TAG, DataTestReport
from everloop.core.run import Run
from everloop.errors import NotFound

__all__ = ["DataTestRow", "data_tests_done", "keep_report", "report_of"]

_MOST = 200


class DataTestRow(msgspec.Struct, frozen=True, kw_only=True):
    """A data test in a list; `headline` is empty of one that did not come to an end."""

    id: str
    at: datetime
    state: str
    train: str
    headline: str = ""
    best: str = ""
    versions: tuple[str, ...] = ()


def _path(run: Run) -> str:
    return f"{run.experiment}/{run.id}/artifacts/{ARTIFACT}"


def keep_report(workspace: Any, report: DataTestReport) -> None:
    """Store a report with its run, over what it was."""
    digest, size = workspace.blobs.put(msgspec.json.encode(report))
    workspace.tracking.link_artifact(_path(workspace.tracking.run(report.id)), digest, size)


def report_of(tracking: Any, run_id: str) -> DataTestReport:
    """The report of a data test, by the id of its run.

    Raises:
        NotFound: If there is no such run, or it is no data test that came to an end.
    """
    run = tracking.run(run_id)
    if run.tags.get(TEST_TAG) != "test":
        raise NotFound(f"run {run_id} is no data test", hint="everloop data tests lists them")
    try:
        found = tracking.artifact(_path(run))
    except NotFound as error:
        told = run.error.splitlines()[-1] if run.error else f"it is {run.state}"
        raise NotFound(f"data test {run_id} has no report", hint=told) from error
    return msgspec.json.decode(found, type=DataTestReport)


def data_tests_done(tracking: Any) -> list[DataTestRow]:
    """The newest data tests, the newest first."""
    from everloop.evaluation.data_tests.text import headline

    rows = []
    for run in tracking.runs(filter=f"tags.`{TEST_TAG}` = 'test'", limit=_MOST).runs:
        shared = {"id": run.id, "at": run.started_at, "state": run.state}
        try:
            report = report_of(tracking, run.id)
        except NotFound:  # it failed, or has not ended
            rows.append(DataTestRow(train=run.pipeline.removeprefix("data test of "), **shared))
            continue
        rows.append(
            DataTestRow(
                train=report.train,
                headline=headline(report),
                best=report.best,
                versions=tuple(one.name for one in report.versions),
                **shared,
            )
        )
    return rows
