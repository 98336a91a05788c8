"""Traces in a merge: by id, with their spans, notes, runs and assessments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.transfer.numbers import Numbers
from everloop.transfer.report import Findings
from everloop.transfer.rows import copy_missing, counts, dicts

__all__ = ["merge_traces"]

_BATCH = 200
_PLACE = "mlflow.artifactLocation"
_PARTS = (tables.trace_notes, tables.trace_spans, tables.trace_runs, tables.trace_assessments)
#: What the end of a trace tells.
_ENDED = ("state", "duration_ms", "request_preview", "response_preview", "told")


def merge_traces(
    there: Transaction,
    catalog: Catalog,
    experiments: dict[int, int],
    numbers: Numbers,
    missing: set[str],
    findings: Findings,
    tell: Callable[[str], None],
) -> None:
    """Merge all traces, a transaction for each batch; one that goes on here gains what it has not.

    Args:
        there: The other catalog.
        catalog: The one that takes them in.
        experiments: By an experiment's key there the key here.
        numbers: How folders of artifacts are called here.
        missing: Digests of objects that could not be taken.
        findings: What happened.
        tell: Called with a line of progress.
    """
    table, last = tables.traces, 0
    while batch := dicts(
        there, select(table).where(table.c.pk > last).order_by(table.c.pk).limit(_BATCH)
    ):
        last = batch[-1]["pk"]
        keys = [row["pk"] for row in batch]
        parts = {
            part.name: dicts(there, select(part).where(part.c.trace_pk.in_(keys)))
            for part in _PARTS
        }
        lost = {
            row["trace_pk"]: row["digest"]
            for row in parts["trace_spans"]
            if row["digest"] in missing
        }
        for row in batch:
            if row["pk"] in lost:
                findings.fail("trace", row["id"], f"its object {lost[row['pk']]} is missing")
        whole = [row for row in batch if row["pk"] not in lost]
        with catalog.write() as here:
            pks, imported = _put_heads(here, whole, experiments)
            ids = {pks[row["pk"]]: row["id"] for row in whole}
            for part in _PARTS:
                rows = [
                    _placed({**row, "trace_pk": pks[row["trace_pk"]]}, numbers)
                    for row in parts[part.name]
                    if row["trace_pk"] in pks
                ]
                copy_missing(here, part, rows)
                _check(here, part.name, rows, ids, findings)
        findings.add("trace", found=len(batch), imported=imported, there=len(whole) - imported)
        tell(f"{batch[-1]['id']}: {len(batch)} traces")


def _put_heads(
    here: Transaction, batch: list[dict[str, Any]], experiments: dict[int, int]
) -> tuple[dict[int, int], int]:
    """Write the rows of traces; by the key there the key here, and how many are new."""
    table = tables.traces
    query = select(table.c.id, table.c.pk, table.c.state).where(
        table.c.id.in_([row["id"] for row in batch])
    )
    known = {row.id: row for row in here.all(query)}
    fresh = []
    for row in batch:
        found = known.get(row["id"])
        if found is None:
            values = {key: value for key, value in row.items() if key != "pk"}
            fresh.append({**values, "experiment_pk": experiments[row["experiment_pk"]]})
        elif found.state in ("unspecified", "in_progress") and row["state"] != found.state:
            ended = {name: row[name] for name in _ENDED}
            here.execute(table.update().where(table.c.pk == found.pk).values(ended))
    if fresh:
        here.execute(table.insert(), fresh)
    now = {row.id: row.pk for row in here.all(query)}
    return {row["pk"]: now[row["id"]] for row in batch}, len(fresh)


def _placed(row: dict[str, Any], numbers: Numbers) -> dict[str, Any]:
    """A note that says where the files of a trace are names where they are here."""
    if row.get("key") == _PLACE:
        return {**row, "value": numbers.uri(row["value"])}
    return row


def _check(
    here: Transaction,
    what: str,
    rows: list[dict[str, Any]],
    ids: dict[int, str],
    findings: Findings,
) -> None:
    """Count what is here of each trace against what was to come."""
    wanted: dict[int, int] = {}
    for row in rows:
        wanted[row["trace_pk"]] = wanted.get(row["trace_pk"], 0) + 1
    found = counts(here, tables.metadata.tables[what], "trace_pk", list(wanted))
    for pk, count in wanted.items():
        if found.get(pk, 0) < count:
            reason = f"{count} rows of {what} are there, {found.get(pk, 0)} came"
            findings.fail("trace", ids[pk], reason)
