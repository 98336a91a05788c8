"""All tables. Times are UTC microseconds; ids outside are text, keys inside are integers."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
)

from everloop.catalog.define import Serial as _Serial
from everloop.catalog.define import metadata as metadata
from everloop.catalog.define import table as _table
from everloop.catalog.tables_keeping import erased_objects as erased_objects
from everloop.catalog.tables_keeping import erasures as erasures
from everloop.catalog.tables_keeping import holds as holds
from everloop.catalog.tables_keeping import retention_rules as retention_rules
from everloop.catalog.tables_sources import data_pulls as data_pulls
from everloop.catalog.tables_sources import data_sources as data_sources
from everloop.catalog.tables_sources import source_files as source_files
from everloop.catalog.tables_traces import trace_assessments as trace_assessments
from everloop.catalog.tables_traces import trace_notes as trace_notes
from everloop.catalog.tables_traces import trace_runs as trace_runs
from everloop.catalog.tables_traces import trace_spans as trace_spans
from everloop.catalog.tables_traces import traces as traces
from everloop.catalog.types import Instant, Json

# --- the event log, readers' places in it, leases ---------------------------------------------
events = _table(
    "events",
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("at", Instant, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("cause", Text, nullable=False, server_default=""),
    Column("body", Json, nullable=False),
    Index("events_subject", "subject", "seq"),
    Index("events_kind", "kind", "seq"),
    sqlite_autoincrement=True,
)
cursors = _table(
    "cursors",
    Column("name", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
leases = _table(
    "leases",
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("until", Instant, nullable=False),
)
objects = _table(
    "objects",
    Column("digest", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
)
# Where the objects are, if not in a folder: one row, or none.
object_store = _table(
    "object_store",
    Column("name", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

# --- data ---------------------------------------------------------------------------------------
datasets = _table(
    "datasets",
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("latest", Integer, nullable=False),
)
dataset_versions = _table(
    "dataset_versions",
    Column("dataset", Text, ForeignKey("datasets.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("schema", Json, nullable=False),
    Column("blocks", Json, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("parent", Integer, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("kind", Text, nullable=False, server_default="table"),
    Column("root", Text, nullable=False, server_default=""),
    Column("files", BigInteger, nullable=False, server_default="0"),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("layout", Text, nullable=False, server_default=""),
    Column("content", Text, nullable=False, server_default=""),
    Column("branch", Text, nullable=False, server_default="main"),
    Column("merged", Integer, nullable=False, server_default="0"),
)
dataset_branches = _table(
    "dataset_branches",
    Column("dataset", Text, ForeignKey("datasets.name"), primary_key=True),
    Column("branch", Text, primary_key=True),
    Column("base", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
dataset_tags = _table(
    "dataset_tags",
    Column("dataset", Text, ForeignKey("datasets.name"), primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
row_changes = _table(
    "row_changes",
    Column("pk", _Serial, primary_key=True, autoincrement=True),
    Column("scope", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Index("row_changes_scope", "scope"),
    Index("row_changes_dataset", "dataset", "rule"),
)

# --- tracking -----------------------------------------------------------------------------------
experiments = _table(
    "experiments",
    Column("pk", _Serial, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("lifecycle", Text, nullable=False),
    Column("tags", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("location", Text, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
runs = _table(
    "runs",
    Column("pk", _Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("experiment_pk", BigInteger, ForeignKey("experiments.pk"), nullable=False),
    Column("name", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("git", Json, nullable=False),
    Column("environment", Json, nullable=False),
    Column("arguments", Json, nullable=False),
    Column("actor", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("owner", Text, nullable=False, server_default=""),
    Column("fence", BigInteger, nullable=False),
    Column("lease_until", Instant),
    Column("lifecycle", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("deleted_at", Instant),
    Index("runs_experiment", "experiment_pk", "started_at"),
    Index("runs_pipeline", "pipeline", "pk"),
)
run_params = _table(
    "run_params",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
run_tags = _table(
    "run_tags",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
run_inputs = _table(
    "run_inputs",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("source", Json),
)
run_model_inputs = _table(
    "run_model_inputs",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("model_id", Text, primary_key=True),
)
metric_keys = _table(
    "metric_keys",
    Column("pk", _Serial, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
)
metric_points = _table(
    "metric_points",
    # Without foreign keys: metric_latest, written with each point, has them.
    Column("run_pk", BigInteger, primary_key=True),
    Column("key_pk", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True),
    # NaN cannot be a key and SQLite turns it into NULL, so it is 0 with the flag set.
    Column("value", Double, primary_key=True),
    Column("is_nan", Boolean, primary_key=True),
    sqlite_with_rowid=False,
)
metric_latest = _table(
    "metric_latest",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("key_pk", BigInteger, ForeignKey("metric_keys.pk"), primary_key=True),
    Column("step", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    Column("is_nan", Boolean, nullable=False),
    Index("metric_latest_value", "key_pk", "value", "run_pk"),
    sqlite_with_rowid=False,
)
artifacts = _table(
    "artifacts",
    # Sorted by characters, so that a folder is a range of the index.
    Column("path", Text().with_variant(Text(collation="C"), "postgresql"), primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
)
logged_models = _table(
    "logged_models",
    Column("id", Text, primary_key=True),
    Column("experiment_pk", BigInteger, ForeignKey("experiments.pk"), nullable=False),
    Column("name", Text, nullable=False),
    Column("model_type", Text, nullable=False),
    Column("source_run_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("params", Json, nullable=False),
    Column("tags", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("logged_models_run", "source_run_id"),
)
logged_model_metrics = _table(
    "logged_model_metrics",
    Column("model_id", Text, ForeignKey("logged_models.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True),
    Column("value", Double, primary_key=True),
    Column("is_nan", Boolean, primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("run_id", Text, nullable=False),
)
run_outputs = _table(
    "run_outputs",
    Column("run_pk", BigInteger, ForeignKey("runs.pk"), primary_key=True),
    Column("model_id", Text, primary_key=True),
    Column("step", BigInteger, nullable=False),
)

# --- pipelines ----------------------------------------------------------------------------------
step_runs = _table(
    "step_runs",
    Column("run_id", Text, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("step", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("ended_at", Instant, nullable=False),
    # Clustered by the key: a step's end then touches one page of each table and not two.
    sqlite_with_rowid=False,
)
memos = _table(
    "memos",
    Column("key", Text, primary_key=True),
    Column("step", Text, nullable=False),
    Column("parts", Json, nullable=False),
    Column("notes", Json, nullable=False),
    Column("value", Json, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("memos_step", "step", "created_at"),
    sqlite_with_rowid=False,
)

# --- features -----------------------------------------------------------------------------------
feature_definitions = _table(
    "feature_definitions",
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("body", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
)
feature_names = _table(
    "feature_names",
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

# --- registry and gates -------------------------------------------------------------------------
models = _table(
    "models",
    Column("name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("tags", Json, nullable=False),
    Column("latest", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
model_versions = _table(
    "model_versions",
    Column("name", Text, ForeignKey("models.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("manifest", Json, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", Json, nullable=False),
    Column("card", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("stage", Text, nullable=False, server_default="None"),
    Column("run_link", Text, nullable=False, server_default=""),
    Index("model_versions_run", "run_id"),
)
aliases = _table(
    "aliases",
    Column("name", Text, ForeignKey("models.name"), primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
alias_rules = _table(
    "alias_rules",
    Column("name", Text, ForeignKey("models.name"), primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("gates", Json, nullable=False),
    Column("approvals", Integer, nullable=False),
    Column("four_eyes", Boolean, nullable=False),
    Column("rollback", Boolean, nullable=False),
    Column("actor", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
approvals = _table(
    "approvals",
    Column("name", Text, ForeignKey("models.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("actor", Text, primary_key=True),
    Column("note", Text, nullable=False),
    Column("at", Instant, nullable=False),
)
# What was deleted from the registry: the rows as JSON, until they are restored or purged.
trash = _table(
    "trash",
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", Json, nullable=False),
    Column("actor", Text, nullable=False),
    Column("deleted_at", Instant, nullable=False),
    Index("trash_name", "name", "deleted_at"),
)
verdicts = _table(
    "verdicts",
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("candidate", Integer, nullable=False),
    Column("champion", Integer, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("results", Json, nullable=False),
    Column("holdout", Json, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Index("verdicts_model", "model", "candidate"),
)

# --- deployment, serving, monitoring ------------------------------------------------------------
deployments = _table(
    "deployments",
    Column("name", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("arms", Json, nullable=False),
    Column("route_by", Text, nullable=False),
    Column("salt", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
deployment_workers = _table(
    "deployment_workers",
    Column("deployment", Text, primary_key=True),
    Column("worker", Text, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("at", Instant, nullable=False),
)
rollouts = _table(
    "rollouts",
    Column("id", Text, primary_key=True),
    Column("deployment", Text, nullable=False),
    Column("champion", Integer, nullable=False),
    Column("candidate", Integer, nullable=False),
    Column("plan", Json, nullable=False),
    Column("state", Json, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("rollouts_open", "deployment", "open"),
)
prediction_segments = _table(
    "prediction_segments",
    Column("id", Text, primary_key=True),
    Column("deployment", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("from_at", Instant, nullable=False),
    Column("to_at", Instant, nullable=False),
    Column("first_id", Text, nullable=False),
    Column("last_id", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("prediction_segments_at", "deployment", "from_at"),
    Index("prediction_segments_id", "first_id", "last_id"),
)
label_batches = _table(
    "label_batches",
    Column("id", Text, primary_key=True),
    Column("deployment", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("from_at", Instant, nullable=False),
    Column("to_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("label_batches_at", "deployment", "from_at"),
)
monitors = _table(
    "monitors",
    Column("deployment", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("spec", Json, nullable=False),
)
summaries = _table(
    "summaries",
    Column("deployment", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("body", Json, nullable=False),
)
monitor_windows = _table(
    "monitor_windows",
    Column("deployment", Text, primary_key=True),
    Column("monitor", Text, primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("end", Instant, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("labels", BigInteger, nullable=False),
    Column("value", Double),
    Column("bound", Double),
    Column("breach", Boolean, nullable=False),
    Column("mature", Boolean, nullable=False),
    Column("detail", Json, nullable=False),
)
alerts = _table(
    "alerts",
    Column("id", Text, primary_key=True),
    Column("deployment", Text, nullable=False),
    Column("monitor", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("cleared_at", Instant),
    Column("evidence", Json, nullable=False),
    Index("alerts_deployment", "deployment", "opened_at"),
)

# --- automation, lineage, access ----------------------------------------------------------------
loops = _table(
    "loops",
    Column("name", Text, primary_key=True),
    Column("spec", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
firings = _table(
    "firings",
    Column("id", Text, primary_key=True),
    Column("loop", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("scheduled_for", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("action", Text, nullable=False, server_default="train"),
    Column("due_at", Instant, nullable=False, server_default="0"),
    Column("slots", Integer, nullable=False, server_default="1"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("holder", Text, nullable=False, server_default=""),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", Instant),
    Column("body", Json, nullable=False, server_default="{}"),
    UniqueConstraint("loop", "key", name="firings_once"),
    Index("firings_loop", "loop", "created_at"),
    Index("firings_queue", "outcome", "due_at", "id"),
)
# What happens by itself and is no loop. `since` is the place in the event log of each trigger's
# declaration.
automations = _table(
    "automations",
    Column("name", Text, primary_key=True),
    Column("spec", Json, nullable=False),
    Column("since", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
# Immutable: `digest` is that of the manifest's object, `code` that of its code snapshot. `reached`
# are the environments that it had come to where it was imported from.
packages = _table(
    "packages",
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("manifest", Json, nullable=False),
    Column("git", Json, nullable=False),
    Column("builder", Text, nullable=False),
    Column("built_at", Instant, nullable=False),
    Column("reached", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("packages_name", "name", "created_at"),
)
# Which package is where; where it was before is in the event log. `ci` and `approvals` protect it.
package_environments = _table(
    "package_environments",
    Column("name", Text, primary_key=True),
    Column("environment", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("ci", Boolean, nullable=False),
    Column("approvals", Integer, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
# The files that match a pattern, as they were when they were last looked at.
watched_files = _table(
    "watched_files",
    Column("pattern", Text, primary_key=True),
    Column("state", Json, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
# A question within a run, and what came of it: `actor` answered, `target` is where the run goes on.
run_approvals = _table(
    "run_approvals",
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("question", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("four_eyes", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("at", Instant),
    Index("run_approvals_state", "state", "expires_at"),
)
# What webhooks of others brought, so that the same delivery counts once.
hook_deliveries = _table(
    "hook_deliveries",
    Column("hook", Text, primary_key=True),
    Column("delivery", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    Index("hook_deliveries_at", "at"),
)
webhooks = _table(
    "webhooks",
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("topics", Json, nullable=False),
    Column("secret", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
webhook_deliveries = _table(
    "webhook_deliveries",
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    Column("event_id", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("webhook_deliveries_due", "state", "due_at"),
    Index("webhook_deliveries_webhook", "webhook_id"),
)
lineage_edges = _table(
    "lineage_edges",
    Column("source", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    Index("lineage_edges_target", "target"),
)
# Datasets, jobs and their runs that systems outside spoke of. `facet_times` says of each facet, and
# of each that was taken back, how new what is known of it is.
externals = _table(
    "externals",
    Column("ref", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("facets", Json, nullable=False),
    Column("facet_times", Json, nullable=False),
    Column("at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("externals_kind", "kind", "ref"),
)
# Users are disabled, never deleted: a name that acted is never another's. `password` is a hash, and
# empty for a program, which has tokens alone. Of a token only the digest is kept.
principals = _table(
    "principals",
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("password", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
tokens = _table(
    "tokens",
    Column("id", Text, primary_key=True),
    Column("principal", Text, ForeignKey("principals.name"), nullable=False),
    Column("note", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Index("tokens_principal", "principal"),
)
