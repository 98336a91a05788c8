"""The migrations make what tables.py says, on each database; a change of one alone is caught.

An empty catalog is made from tables.py without them, so both ways lead to the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    select,
    text,
)

from everloop.catalog import migrate, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import metadata

SQLITE = """
    SELECT type, name, tbl_name, sql FROM sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
"""
POSTGRES = (
    """
    SELECT 'relation', r.relname, r.relkind, r.relpersistence, r.reloptions::text,
        pg_get_indexdef(i.indexrelid)
    FROM pg_class r LEFT JOIN pg_index i ON i.indexrelid = r.oid
    WHERE r.relnamespace = 'public'::regnamespace
    """,
    """
    SELECT 'column', r.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attcollation
    FROM pg_class r
    JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
    WHERE r.relnamespace = 'public'::regnamespace
    """,
    """
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    """,
    "SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
)

Facts = set[tuple[object, ...]]


def described(connection: Connection) -> Facts:
    """All that the database knows of its schema but the order of columns, which no query uses."""
    if connection.dialect.name == "sqlite":
        return {
            (kind, name, table, clauses(sql) if kind == "table" else sql)
            for kind, name, table, sql in connection.execute(text(SQLITE))
        }
    return {tuple(row) for query in POSTGRES for row in connection.execute(text(query))}


def clauses(sql: str) -> frozenset[str]:
    """A CREATE TABLE taken apart at its outer commas; what stands around them is one of them."""
    head, _, rest = sql.partition("(")
    body, _, tail = rest.rpartition(")")
    parts, depth = [""], 0
    for sign in body:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return frozenset(" ".join(part.split()) for part in [f"{head}(){tail}", *parts])


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = create_engine(empty_url.replace("postgresql:", "postgresql+psycopg:"))
    yield engine
    engine.dispose()


@pytest.fixture
def migrated(empty: Engine) -> Engine:
    """A database that the migrations made, one after the other."""
    with empty.begin() as connection:
        migrate.run(connection)
    return empty


def described_as_migrated(migrated: Engine) -> Facts:
    with migrated.connect() as connection:
        return of_tables(described(connection))


def described_as_declared(declared: MetaData, migrated: Engine) -> Facts:
    return of_tables(described_when_made(declared.create_all, migrated))


def described_when_made(make: Callable[[Connection], None], engine: Engine) -> Facts:
    """The schema that `make` makes in an empty database of the kind of `engine`, undone."""
    other = create_engine("sqlite://") if engine.dialect.name == "sqlite" else engine
    with other.connect() as connection:
        if other is engine:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        make(connection)
        found = described(connection)
    if other is not engine:
        other.dispose()
    return found


def of_tables(facts: Facts) -> Facts:
    """Without what Alembic made for itself."""
    return {fact for fact in facts if not str(fact[1]).startswith("alembic_version")}


def test_migrations_make_the_declared_schema(migrated: Engine) -> None:
    assert described_as_migrated(migrated) == described_as_declared(metadata, migrated)


def test_empty_catalog_is_made_as_if_it_had_been_migrated(empty_url: str, empty: Engine) -> None:
    """Alembic's own table included, for the next migration looks there."""
    Catalog(empty_url).close()
    with empty.connect() as connection:
        assert described(connection) == described_when_made(migrate.run, empty)
        assert MigrationContext.configure(connection).get_current_heads() == (migrate.HEAD,)


def test_alembic_sees_nothing_left_to_migrate(migrated: Engine) -> None:
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


Change = Callable[[MetaData], object]


def _nullable(declared: MetaData) -> None:
    declared.tables["objects"].c.size.nullable = True


def _type(declared: MetaData) -> None:
    declared.tables["objects"].c.size.type = Integer()


def _default(declared: MetaData) -> None:
    events = declared.tables["events"]
    events.append_column(Column("cause", Text, nullable=False), replace_existing=True)


def _no_index(declared: MetaData) -> None:
    alerts = declared.tables["alerts"]
    alerts.indexes -= {index for index in alerts.indexes if index.name == "alerts_deployment"}


def _trigger(declared: MetaData) -> None:
    statements = {
        "sqlite": ["CREATE TRIGGER extra AFTER DELETE ON alerts BEGIN SELECT 1; END"],
        "postgresql": [
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER extra AFTER DELETE ON alerts EXECUTE FUNCTION nothing()",
        ],
    }

    @event.listens_for(declared, "after_create")
    def make(_: MetaData, connection: Connection, **options: object) -> None:
        for statement in statements[connection.dialect.name]:
            connection.execute(text(statement))


CHANGES: dict[str, Change] = {
    "new table": lambda m: Table("extra", m, Column("name", Text, primary_key=True)),
    "lost table": lambda m: m.remove(m.tables["cursors"]),
    "new column": lambda m: m.tables["alerts"].append_column(Column("extra", Text)),
    "primary key": lambda m: m.tables["alerts"].append_column(
        Column("extra", Text, primary_key=True)
    ),
    "nullable": _nullable,
    "type": _type,
    "default": _default,
    "index": lambda m: Index("extra", m.tables["alerts"].c.state),
    "partial index": lambda m: Index(
        "alerts_extra",
        m.tables["alerts"].c.state,
        sqlite_where=text("cleared_at IS NULL"),
        postgresql_where=text("cleared_at IS NULL"),
    ),
    "lost index": _no_index,
    "unique constraint": lambda m: m.tables["alerts"].append_constraint(
        UniqueConstraint("monitor", "opened_at")
    ),
    "foreign key": lambda m: m.tables["alerts"].append_column(
        Column("deployment", Text, ForeignKey("deployments.name"), nullable=False),
        replace_existing=True,
    ),
    "check": lambda m: m.tables["alerts"].append_constraint(CheckConstraint("state <> ''")),
    "trigger": _trigger,
}


def copied() -> MetaData:
    declared = MetaData()
    for table in metadata.tables.values():
        table.to_metadata(declared)
    return declared


def test_change_of_tables_without_a_migration_is_seen(migrated: Engine) -> None:
    before = described_as_migrated(migrated)
    assert described_as_declared(copied(), migrated) == before
    unseen = []
    for name, change in CHANGES.items():
        declared = copied()
        change(declared)
        if described_as_declared(declared, migrated) == before:
            unseen.append(name)
    assert unseen == []


@pytest.mark.parametrize("name", ["new column", "index", "unique constraint"])
def test_addition_without_a_migration_is_seen_by_alembic(migrated: Engine, name: str) -> None:
    declared = copied()
    CHANGES[name](declared)
    with migrated.connect() as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), declared)) == 1


def test_migrations_name_the_columns_that_they_copy() -> None:
    """A catalog that was not made by migrations has its columns in another order."""
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    later = [file for file in folder.glob("[0-9]*.py") if file.name[:4] > "0007"]
    assert [file.name for file in later if "select *" in file.read_text().lower()] == []


def test_migrations_know_nothing_of_the_present_tables() -> None:
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for file in folder.glob("[0-9]*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"alembic", "sqlalchemy"}


def test_points_are_kept_when_their_table_is_made_anew(empty_url: str, empty: Engine) -> None:
    with empty.begin() as connection:
        migrate.run(connection, to="0005")
    run = (
        "INSERT INTO runs (pk, id, experiment_pk, name, pipeline, state, code, git, environment, "
        "arguments, actor, trigger, error, owner, fence, lifecycle, started_at) VALUES (7, 'r', 0, "
        "'', '', 'running', '', '{}', '{}', '{}', '', '', '', '', 0, 'active', 0)"
    )
    points = [(7, 3, step, step, step / 7, False) for step in range(-5, 5)]
    with empty.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO experiments (pk, name, lifecycle, tags, created_at, updated_at) "
                "VALUES (0, 'Default', 'active', '{}', 0, 0)"
            )
        )
        connection.execute(text(run))
        connection.execute(text("INSERT INTO metric_keys (pk, name) VALUES (3, 'loss')"))
        for values in points:
            names = {f"v{number}": value for number, value in enumerate(values)}
            marks = ", ".join(f":{name}" for name in names)
            connection.execute(text(f"INSERT INTO metric_points VALUES ({marks})"), names)
    Catalog(empty_url).close()
    with empty.connect() as connection:
        found = connection.execute(text("SELECT * FROM metric_points ORDER BY step")).all()
    assert [tuple(row) for row in found] == points


def test_folder_of_artifacts_is_a_range_of_the_index(catalog: Catalog) -> None:
    rows = [
        {"path": f"{run}/a b/{n}", "digest": "x", "size": 1, "created_at": catalog.clock.now()}
        for run in ("0", "0-", "00", "É")
        for n in range(500)
    ]
    with catalog.write() as tx:
        tx.insert_new(tables.objects, {"digest": "x", "size": 1, "created_at": tx.now})
        tx.insert_missing(tables.artifacts, rows)
    column = tables.artifacts.c.path
    with catalog.write() as tx:
        query = select(column).where(tx.within(column, "0/a b"))
        assert len(tx.all(query)) == 500
        if tx.dialect == "postgresql":
            tx.execute(text("ANALYZE artifacts"))
        sql = query.compile(tx.connection, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN" if tx.dialect == "sqlite" else "EXPLAIN"
        plan = " ".join(str(row) for row in tx.all(text(f"{explain} {sql}")))
    assert re.search(r"SEARCH .* USING .*INDEX|Index (Only )?Scan|Bitmap Index Scan", plan), plan
