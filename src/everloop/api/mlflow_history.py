"""Histories of MLflow's metrics: page by page, of many runs at once, or sampled for charts."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_log import OfRun, metric_fields
from everloop.api.mlflow_wire import Int64, Text, bare, invalid
from everloop.core.run import Metric
from everloop.errors import InvalidInput
from everloop.tracking.pages import decode_token, encode_token, search_digest
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

#: Points of a page of a history, and of a sampled one where nothing is asked.
_PAGE, _SAMPLED = 25_000, 320
_MOST_RUNS = 100
_INT64 = 1 << 63


class _History(OfRun, kw_only=True):
    metric_key: Text
    page_token: str | None = ""
    max_results: Int64 | None = None


class _Intervals(msgspec.Struct):
    run_ids: list[str]
    metric_key: Text
    start_step: Int64 | None = None
    end_step: Int64 | None = None
    max_results: Int64 | None = None


class _Bulk(msgspec.Struct):
    run_id: list[str] = []
    metric_key: str = ""
    max_results: Int64 | None = None


@calls.on("GET", "mlflow/metrics/get-history")
def _get_history(workspace: Workspace, asked: _History) -> dict[str, Any]:
    limit = _PAGE if asked.max_results is None else asked.max_results
    if limit < 1:
        raise invalid("max_results", limit, "it must be a positive integer")
    limit = min(limit, _PAGE)
    of = f"{asked.id}/{asked.metric_key}"
    after = _after(asked.page_token, of) if asked.page_token else None
    found = workspace.tracking.history(asked.id, asked.metric_key, limit=limit + 1, after=after)
    token = _token(found[limit - 1], of) if len(found) > limit else ""
    points = [metric_fields(point) for point in found[:limit]]
    return bare(metrics=points, next_page_token=token)


def _token(last: Metric, of: str) -> str:
    return encode_token(search_digest(of), [last.at_ms, last.step, last.value])


def _after(token: str, of: str) -> Metric:
    at_ms, step, value = decode_token(token, search_digest(of), [int, int, float])
    if not (-_INT64 <= at_ms < _INT64 and -_INT64 <= step < _INT64):
        raise InvalidInput("Invalid page token: it is none of this server's")
    return Metric(key="", value=value, step=step, at_ms=at_ms)


@calls.on("GET", "mlflow/metrics/get-history-bulk-interval")
def _get_history_bulk_interval(workspace: Workspace, asked: _Intervals) -> dict[str, Any]:
    if (asked.start_step is None) != (asked.end_step is None):
        raise InvalidInput(
            "If either start step or end step are specified, both must be specified."
        )
    if len(asked.run_ids) > _MOST_RUNS:
        raise InvalidInput(
            f"GetMetricHistoryBulkInterval request must specify at most {_MOST_RUNS} run_ids. "
            f"Received {len(asked.run_ids)} run_ids"
        )
    found = workspace.tracking.sampled_history(
        asked.run_ids,
        asked.metric_key,
        points=_SAMPLED if asked.max_results is None else asked.max_results,
        start_step=asked.start_step,
        end_step=asked.end_step,
    )
    return bare(
        metrics=[metric_fields(p, run_id) for run_id, points in found.items() for p in points]
    )


@calls.on("GET", "mlflow/metrics/get-history-bulk")
def _get_history_bulk(workspace: Workspace, asked: _Bulk) -> dict[str, Any]:
    if not asked.run_id:
        raise InvalidInput("GetMetricHistoryBulk request must specify at least one run_id")
    if len(asked.run_id) > _MOST_RUNS:
        raise InvalidInput(
            f"GetMetricHistoryBulk request cannot specify more than {_MOST_RUNS} run_ids. "
            f"Received {len(asked.run_id)} run_ids"
        )
    if not asked.metric_key:
        raise InvalidInput("GetMetricHistoryBulk request must specify a metric_key")
    limit = _PAGE if asked.max_results is None else asked.max_results
    if limit < 0:
        raise invalid("max_results", limit, "it must be a positive integer")
    left, points = min(limit, _PAGE), []
    for run_id in sorted(set(asked.run_id)):
        if left > 0:
            found = workspace.tracking.history(run_id, asked.metric_key, limit=left)
            points += [metric_fields(point, run_id) for point in found]
            left -= len(found)
    return {"metrics": points}
