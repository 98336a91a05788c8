"""Everloop: the whole production loop of machine learning in one package.

``import everloop as ev`` loads next to nothing; each name loads what it needs when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from everloop.core.context import set_opener

__version__ = "0.1.0"

if TYPE_CHECKING:
    from everloop.automation.declare import (
        canary,
        charter,
        drift,
        loop,
        performance,
        prediction_drift,
        quality,
        sla,
        slo,
    )
    from everloop.automation.gates import (
        answers,
        beats_champion,
        calibrated,
        directional,
        fair,
        invariant,
        max_latency_ms,
        max_size_mb,
        no_group_worse,
        no_weak_slice,
        not_worse,
        threshold,
    )
    from everloop.automation.triggers import (
        alert,
        alias_moved,
        files,
        gate_failed,
        new_data,
        on,
        registered,
        rolled_back,
        run_failed,
        schedule,
        webhook,
    )
    from everloop.core.artifact import ModelArtifact
    from everloop.core.schema import Check, Field, Schema
    from everloop.core.secret import Secret
    from everloop.core.stop import stop_if
    from everloop.core.time import ManualClock
    from everloop.data.api import check, commit, export, import_table, paths, profile, read, scan
    from everloop.data.files import Files
    from everloop.data.frame import Table
    from everloop.data.functions import check_function, repair
    from everloop.data.personal_api import find_pii, k_anonymity
    from everloop.data.schema_from import schema_from
    from everloop.data.sources import data_source, pull
    from everloop.errors import RunStopped
    from everloop.evaluation.data_tests.api import data_test
    from everloop.evaluation.findings.balances import balance
    from everloop.evaluation.findings.cover import coverage
    from everloop.evaluation.findings.folds import out_of_fold
    from everloop.evaluation.findings.issues import label_issues
    from everloop.evaluation.findings.leaks import leakage
    from everloop.evaluation.findings.value import data_value
    from everloop.evaluation.findings.worst import slices
    from everloop.experiments.query import runs
    from everloop.experiments.run import run
    from everloop.features.define import agg, col, feature_set, feature_view, source
    from everloop.lineage.api import lineage
    from everloop.monitoring.reference import make_reference
    from everloop.pipelines.api import log, pipeline, step
    from everloop.pipelines.asking import approve
    from everloop.pipelines.space import choice, integers, loguniform, uniform
    from everloop.registry.api import champion, register
    from everloop.registry.flavors import pack as model
    from everloop.workspace import Workspace
    from everloop.workspace import open_workspace as open

#: Public names by the module that they are loaded from.
_NAMES = {
    "everloop.automation.declare": (
        "canary", "charter", "drift", "loop", "performance", "prediction_drift", "quality", "sla",
        "slo",
    ),
    "everloop.automation.gates": (
        "answers", "beats_champion", "calibrated", "directional", "fair", "invariant",
        "max_latency_ms", "max_size_mb", "no_group_worse", "no_weak_slice", "not_worse",
        "threshold",
    ),
    "everloop.automation.triggers": (
        "alert", "alias_moved", "files", "gate_failed", "new_data", "on", "registered",
        "rolled_back", "run_failed", "schedule", "webhook",
    ),
    "everloop.core.artifact": ("ModelArtifact",),
    "everloop.core.schema": ("Check", "Field", "Schema"),
    "everloop.core.secret": ("Secret",),
    "everloop.core.time": ("ManualClock",),
    "everloop.data.api": (
        "check", "commit", "export", "import_table", "paths", "profile", "read", "scan",
    ),
    "everloop.data.functions": ("check_function", "repair"),
    "everloop.data.files": ("Files",),
    "everloop.data.frame": ("Table",),
    "everloop.data.personal_api": ("find_pii", "k_anonymity"),
    "everloop.data.schema_from": ("schema_from",),
    "everloop.data.sources": ("data_source", "pull"),
    "everloop.errors": ("RunStopped",),
    "everloop.evaluation.data_tests.api": ("data_test",),
    "everloop.evaluation.findings.balances": ("balance",),
    "everloop.evaluation.findings.cover": ("coverage",),
    "everloop.evaluation.findings.folds": ("out_of_fold",),
    "everloop.evaluation.findings.issues": ("label_issues",),
    "everloop.evaluation.findings.leaks": ("leakage",),
    "everloop.evaluation.findings.value": ("data_value",),
    "everloop.evaluation.findings.worst": ("slices",),
    "everloop.experiments.query": ("runs",),
    "everloop.experiments.run": ("run",),
    "everloop.core.stop": ("stop_if",),
    "everloop.features.define": ("agg", "col", "feature_set", "feature_view", "source"),
    "everloop.lineage.api": ("lineage",),
    "everloop.monitoring.reference": ("make_reference",),
    "everloop.pipelines.asking": ("approve",),
    "everloop.pipelines.api": ("log", "pipeline", "step"),
    "everloop.pipelines.space": ("choice", "integers", "loguniform", "uniform"),
    "everloop.registry.api": ("champion", "register"),
    "everloop.workspace": ("Workspace",),
}  # fmt: skip
#: Public name -> (module, name there).
_HOMES = {name: (module, name) for module, names in _NAMES.items() for name in names} | {
    "model": ("everloop.registry.flavors", "pack"),
    "open": ("everloop.workspace", "open_workspace"),
}

__all__ = [
    "Check",
    "Field",
    "Files",
    "ManualClock",
    "ModelArtifact",
    "RunStopped",
    "Schema",
    "Secret",
    "Table",
    "Workspace",
    "__version__",
    "agg",
    "alert",
    "alias_moved",
    "answers",
    "approve",
    "balance",
    "beats_champion",
    "calibrated",
    "canary",
    "champion",
    "charter",
    "check",
    "check_function",
    "choice",
    "col",
    "commit",
    "coverage",
    "data_source",
    "data_test",
    "data_value",
    "directional",
    "drift",
    "export",
    "fair",
    "feature_set",
    "feature_view",
    "files",
    "find_pii",
    "gate_failed",
    "import_table",
    "integers",
    "invariant",
    "k_anonymity",
    "label_issues",
    "leakage",
    "lineage",
    "log",
    "loguniform",
    "loop",
    "make_reference",
    "max_latency_ms",
    "max_size_mb",
    "model",
    "new_data",
    "no_group_worse",
    "no_weak_slice",
    "not_worse",
    "on",
    "open",
    "out_of_fold",
    "paths",
    "performance",
    "pipeline",
    "prediction_drift",
    "profile",
    "pull",
    "quality",
    "read",
    "register",
    "registered",
    "repair",
    "rolled_back",
    "run",
    "run_failed",
    "runs",
    "scan",
    "schedule",
    "schema_from",
    "sla",
    "slices",
    "slo",
    "source",
    "step",
    "stop_if",
    "threshold",
    "uniform",
    "webhook",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'everloop' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


# Plain functions (`ev.read`, `ev.run`, a pipeline) open the default workspace where none is set.
set_opener(lambda *args, **kwargs: __getattr__("open")(*args, **kwargs))


def __dir__() -> list[str]:
    return __all__
