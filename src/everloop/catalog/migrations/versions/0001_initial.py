"""The first tables.

Written out in full, with types of SQLAlchemy's own: what this revision makes must stay the same
however the tables of later releases look.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INSTANT = sa.BigInteger
_JSON = sa.Text
# SQLite gives an alias of the row id only to INTEGER PRIMARY KEY, never to BIGINT.
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _log()
    _data()
    _tracking()
    _pipelines()
    _features()
    _registry()
    _deployment()
    _automation()


def _log() -> None:
    op.create_table(
        "events",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False, server_default=""),
        sa.Column("body", _JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_subject", "events", ["subject", "seq"])
    op.create_index("events_kind", "events", ["kind", "seq"])
    op.create_table(
        "cursors",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("until", _INSTANT, nullable=False),
    )
    op.create_table(
        "objects",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )


def _data() -> None:
    op.create_table(
        "datasets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("latest", sa.Integer, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", sa.Text, sa.ForeignKey("datasets.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("schema", _JSON, nullable=False),
        sa.Column("blocks", _JSON, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("parent", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "row_changes",
        sa.Column("pk", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_index("row_changes_scope", "row_changes", ["scope"])
    op.create_index("row_changes_dataset", "row_changes", ["dataset", "rule"])


def _tracking() -> None:
    op.create_table(
        "experiments",
        sa.Column("pk", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("lifecycle", sa.Text, nullable=False),
        sa.Column("tags", _JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        sa.Column("pk", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("experiment_pk", sa.BigInteger, sa.ForeignKey("experiments.pk"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("git", _JSON, nullable=False),
        sa.Column("environment", _JSON, nullable=False),
        sa.Column("arguments", _JSON, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default=""),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("lease_until", _INSTANT),
        sa.Column("lifecycle", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT),
    )
    op.create_index("runs_experiment", "runs", ["experiment_pk", "started_at"])
    op.create_index("runs_pipeline", "runs", ["pipeline", "pk"])
    op.create_table(
        "run_params",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "run_tags",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "run_inputs",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("dataset", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("source", _JSON),
    )
    op.create_table(
        "metric_keys",
        sa.Column("pk", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "metric_points",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("key_pk", sa.BigInteger, sa.ForeignKey("metric_keys.pk"), primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True),
        # NaN cannot be a key and SQLite turns it into NULL, so it is 0 with the flag set.
        sa.Column("value", sa.Double, primary_key=True),
        sa.Column("is_nan", sa.Boolean, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metric_latest",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("key_pk", sa.BigInteger, sa.ForeignKey("metric_keys.pk"), primary_key=True),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("is_nan", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("metric_latest_value", "metric_latest", ["key_pk", "value", "run_pk"])
    op.create_table(
        "artifacts",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "logged_models",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("experiment_pk", sa.BigInteger, sa.ForeignKey("experiments.pk"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model_type", sa.Text, nullable=False),
        sa.Column("source_run_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("params", _JSON, nullable=False),
        sa.Column("tags", _JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_index("logged_models_run", "logged_models", ["source_run_id"])
    op.create_table(
        "logged_model_metrics",
        sa.Column("model_id", sa.Text, sa.ForeignKey("logged_models.id"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True),
        sa.Column("value", sa.Double, primary_key=True),
        sa.Column("is_nan", sa.Boolean, primary_key=True),
        sa.Column("dataset", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
    )
    op.create_table(
        "run_outputs",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("model_id", sa.Text, primary_key=True),
        sa.Column("step", sa.BigInteger, nullable=False),
    )


def _pipelines() -> None:
    op.create_table(
        "step_runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT, nullable=False),
        # Clustered by the key: a step's end then touches one page of each table and not two.
        sqlite_with_rowid=False,
    )
    op.create_table(
        "memos",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("parts", _JSON, nullable=False),
        sa.Column("notes", _JSON, nullable=False),
        sa.Column("value", _JSON, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("memos_step", "memos", ["step", "created_at"])


def _features() -> None:
    op.create_table(
        "feature_definitions",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("body", _JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "feature_names",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )


def _registry() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("tags", _JSON, nullable=False),
        sa.Column("latest", sa.Integer, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("name", sa.Text, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("manifest", _JSON, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("tags", _JSON, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_index("model_versions_run", "model_versions", ["run_id"])
    op.create_table(
        "aliases",
        sa.Column("name", sa.Text, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("candidate", sa.Integer, nullable=False),
        sa.Column("champion", sa.Integer, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("results", _JSON, nullable=False),
        sa.Column("holdout", _JSON, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_index("verdicts_model", "verdicts", ["model", "candidate"])


def _deployment() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("arms", _JSON, nullable=False),
        sa.Column("route_by", sa.Text, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "deployment_workers",
        sa.Column("deployment", sa.Text, primary_key=True),
        sa.Column("worker", sa.Text, primary_key=True),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("champion", sa.Integer, nullable=False),
        sa.Column("candidate", sa.Integer, nullable=False),
        sa.Column("plan", _JSON, nullable=False),
        sa.Column("state", _JSON, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_index("rollouts_open", "rollouts", ["deployment", "open"])
    op.create_table(
        "prediction_segments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("from_at", _INSTANT, nullable=False),
        sa.Column("to_at", _INSTANT, nullable=False),
        sa.Column("first_id", sa.Text, nullable=False),
        sa.Column("last_id", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_index("prediction_segments_at", "prediction_segments", ["deployment", "from_at"])
    op.create_index("prediction_segments_id", "prediction_segments", ["first_id", "last_id"])
    op.create_table(
        "label_batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("from_at", _INSTANT, nullable=False),
        sa.Column("to_at", _INSTANT, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_index("label_batches_at", "label_batches", ["deployment", "from_at"])
    op.create_table(
        "monitors",
        sa.Column("deployment", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("spec", _JSON, nullable=False),
    )
    op.create_table(
        "summaries",
        sa.Column("deployment", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("start", _INSTANT, primary_key=True),
        sa.Column("body", _JSON, nullable=False),
    )
    op.create_table(
        "monitor_windows",
        sa.Column("deployment", sa.Text, primary_key=True),
        sa.Column("monitor", sa.Text, primary_key=True),
        sa.Column("start", _INSTANT, primary_key=True),
        sa.Column("end", _INSTANT, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("labels", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("bound", sa.Double),
        sa.Column("breach", sa.Boolean, nullable=False),
        sa.Column("mature", sa.Boolean, nullable=False),
        sa.Column("detail", _JSON, nullable=False),
    )
    op.create_table(
        "alerts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("monitor", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened_at", _INSTANT, nullable=False),
        sa.Column("cleared_at", _INSTANT),
        sa.Column("evidence", _JSON, nullable=False),
    )
    op.create_index("alerts_deployment", "alerts", ["deployment", "opened_at"])


def _automation() -> None:
    op.create_table(
        "loops",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "firings",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("loop", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("scheduled_for", _INSTANT, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.UniqueConstraint("loop", "key", name="firings_once"),
    )
    op.create_index("firings_loop", "firings", ["loop", "created_at"])
    op.create_table(
        "lineage_edges",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_index("lineage_edges_target", "lineage_edges", ["target"])
    op.create_table(
        "principals",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
