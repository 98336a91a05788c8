"""The one place that knows which columns name objects of the store.

A collection of garbage keeps every object that is found here. Each text column of the catalog
stands in exactly one of the two lists (a test compares them with the tables), and every column of
JSON is searched for digests as text unless it is excepted: what merely looks like a digest keeps
an object too long, which does no harm.

Three kinds of objects name others: the tree of a code snapshot, the text of a stored value that
was too long for the catalog, and the directory of a dataset version. The first two are opened and
searched as well; a directory is walked down by whoever knows its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Column, Text, select, type_coerce

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.catalog.types import Json

__all__ = ["OBJECT_COLUMNS", "OTHER_TEXT", "UNSEARCHED_JSON", "References", "digests_in", "find"]

#: Text columns whose value is the digest of an object, or empty.
OBJECT_COLUMNS = {
    "artifacts.digest",
    "dataset_versions.layout",
    "dataset_versions.root",
    "label_batches.digest",
    "model_versions.card",
    "packages.code",
    "packages.digest",
    "prediction_segments.digest",
    "row_changes.detail",
    "runs.code",
    "trace_spans.digest",
}

#: Of those, the columns whose objects name further objects.
_OPENED_COLUMNS = {"packages.code", "runs.code"}
#: Of those, the columns that name directories: trees of objects, to any depth.
_TREE_COLUMNS = {"dataset_versions.root"}

#: JSON that names no object that something still needs: the log tells of what is long gone, and
#: digests of pulls are those of files outside.
UNSEARCHED_JSON = {
    "data_pulls.pull",
    "data_sources.spec",
    "erasures.receipt",
    "erasures.work",
    "events.body",
}

#: Text columns that name no object. A digest among them is an identity of something else: of a
#: manifest, a definition, a step's key or a client's data; ``objects`` lists what is stored.
OTHER_TEXT = {
    "alerts": "id deployment monitor state",
    "alias_rules": "name alias actor",
    "aliases": "name alias",
    "approvals": "name alias actor note",
    "artifacts": "path",
    "automations": "name",
    "cursors": "name",
    "dataset_branches": "dataset branch actor note",
    "data_pulls": "dataset run_id actor",
    "data_sources": "dataset watermark actor",
    "dataset_tags": "dataset tag actor reason",
    "dataset_versions": "dataset kind digest content run_id author note branch",
    "datasets": "name owner description",
    "deployment_workers": "deployment worker",
    "deployments": "name model route_by salt state owner",
    "erased_objects": "digest erasure",
    "erasures": "id dataset subject state actor reason",
    "events": "id kind subject actor cause",
    "experiments": "name lifecycle location",
    "externals": "ref kind namespace name state",
    "feature_definitions": "digest kind name",
    "feature_names": "kind name digest owner",
    "firings": "id loop key cause outcome run_id reason action holder",
    "holds": "name dataset reason actor",
    "hook_deliveries": "hook delivery",
    "label_batches": "id deployment",
    "leases": "name holder",
    "lineage_edges": "source target kind",
    "logged_model_metrics": "model_id key dataset digest run_id",
    "logged_models": "id name model_type source_run_id status",
    "loops": "name",
    "memos": "key step run_id",
    "metric_keys": "name",
    "model_versions": "name run_id state description stage run_link",
    "models": "name description owner",
    "monitor_windows": "deployment monitor",
    "monitors": "deployment name",
    "object_store": "name url owner",
    "objects": "digest",
    "package_environments": "name environment digest",
    "packages": "name builder",
    "prediction_segments": "id deployment first_id last_id",
    "principals": "name role password",
    "retention_rules": "dataset reason actor",
    "rollouts": "id deployment verdict reason",
    "row_changes": "scope dataset rule action reason owner",
    "run_approvals": "run_id name question target state actor note",
    "run_inputs": "dataset role digest",
    "run_model_inputs": "model_id",
    "run_outputs": "model_id",
    "run_params": "key value",
    "run_tags": "key value",
    "runs": "id name pipeline state actor trigger error owner lifecycle",
    "source_files": "dataset path etag digest",
    "step_runs": "run_id step key outcome output error",
    "summaries": "deployment kind",
    "tokens": "id principal note role digest",
    "trace_assessments": "id span_id name kind text source_type source_id rationale overrides",
    "trace_notes": "kind key value",
    "trace_runs": "run_id",
    "trace_spans": "span_id name type status content",
    "traces": "id state client_request_id request_preview response_preview",
    "trash": "id kind name actor",
    "verdicts": "id model run_id",
    "watched_files": "pattern",
    "webhook_deliveries": "id webhook_id event_id topic payload state error",
    "webhooks": "id name description url secret",
}

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
# Within JSON: where a manifest names its code snapshot, and a stored value its long text.
_OPENED = re.compile(rb'"(?:code|text_object)":\s*"([0-9a-f]{64})"')


class References(NamedTuple):
    """Digests that the catalog names, and those of them whose objects name others.

    Attributes:
        opened: Objects to be searched.
        trees: Roots of directories.
    """

    digests: set[str]
    opened: set[str]
    trees: set[str]


def digests_in(data: bytes) -> Iterator[str]:
    """Everything in `data` that looks like a digest."""
    return (match.decode() for match in _DIGEST.findall(data))


def find(tx: Transaction) -> References:
    """Everything that the catalog refers to in the state that `tx` sees."""
    found = References(set(), set(), set())
    for table in tables.metadata.sorted_tables:
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            if name in OBJECT_COLUMNS:
                values = set(_values(tx, column))
                found.digests.update(values)
                if name in _OPENED_COLUMNS:
                    found.opened.update(values)
                if name in _TREE_COLUMNS:
                    found.trees.update(values)
            elif isinstance(column.type, Json) and name not in UNSEARCHED_JSON:
                for text in _values(tx, column):
                    data = text.encode()
                    found.digests.update(digests_in(data))
                    found.opened.update(match.decode() for match in _OPENED.findall(data))
    return found


def _values(tx: Transaction, column: Column[str]) -> Iterator[str]:
    # As text, for a JSON column too; in pieces, as there may be many rows.
    plain = type_coerce(column, Text)
    query = select(plain).where(column.is_not(None), plain != "")
    rows = tx.execute(query.execution_options(yield_per=1000))
    return (str(row[0]) for row in rows)
