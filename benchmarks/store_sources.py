"""A million rows from PostgreSQL: our pull beside the least that reading and keeping them takes."""

from __future__ import annotations

import io
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

import everloop as ev
from benchmarks.harness import Context, Row, in_turns, timed
from everloop.core.context import using

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.int64(), "place": pa.int32(), "x": pa.float64(), "amount": pa.float64(),
    "name": pa.string(), "note": pa.string(), "updated_at": pa.timestamp("us", "UTC"),
    "ok": pa.bool_(),
}  # fmt: skip
MAKE = """CREATE TABLE {table} AS SELECT i::bigint AS id, (i % 97)::int AS place,
 (i::bigint * 7919 % 1000003) / 1000.0::float8 AS x, (i * 1.37)::numeric(12,2) AS amount,
 'customer ' || (i % 5000) AS name, CASE WHEN i % 10 > 0 THEN md5(i::text) END AS note,
 '2024-01-01'::timestamptz + i * interval '1 second' AS updated_at, i % 2 = 0 AS ok
 FROM generate_series(1, {count}) i"""
LIMIT = "COPY (FORMAT csv) as it comes, parsed by Arrow in one go, and one zstd Parquet file"


def pull_rows(context: Context) -> Iterator[Row]:
    """A whole table, then what is new of it; only with ``--postgres``."""
    if not context.postgres:
        return
    import psycopg

    count, repeats = context.size(1_000_000, 50_000), context.repeats(3)
    table = f"everloop_pull_{secrets.token_hex(4)}"
    with psycopg.connect(context.postgres, autocommit=True) as admin:
        admin.execute(MAKE.format(table=table, count=count))
        try:
            yield from _rows(context.postgres, table, count, repeats)
        finally:
            admin.execute(f"DROP TABLE {table}")


def _rows(url: str, table: str, count: int, repeats: int) -> Iterator[Row]:
    import psycopg

    query = f"SELECT * FROM {table}"
    with tempfile.TemporaryDirectory() as name, ev.open(Path(name) / "ws") as ws, using(ws):
        plain = Path(name) / "plain.parquet"
        made = iter(range(10**6))

        def pull() -> None:
            ev.pull(ev.data_source(f"orders{next(made)}", url, query=query))

        def raw() -> None:
            text = io.BytesIO()
            copying = f"COPY ({query}) TO STDOUT (FORMAT csv)"
            with (
                psycopg.connect(url, options="-c TimeZone=UTC") as connection,
                connection.cursor().copy(copying) as copy,
            ):
                for part in copy:
                    text.write(part)
            text.seek(0)
            rows = pcsv.read_csv(
                text,
                pcsv.ReadOptions(column_names=list(COLUMNS)),
                pcsv.ParseOptions(newlines_in_values=True),
                pcsv.ConvertOptions(
                    column_types=COLUMNS, true_values=["t"], false_values=["f"],
                    null_values=[""], strings_can_be_null=True,
                ),
            )  # fmt: skip
            pq.write_table(rows, plain, compression="zstd")

        seconds = in_turns({"everloop": timed(pull), "limit": timed(raw)}, repeats=repeats)
        yield Row(
            area="store", work=f"{count:,} rows x 8 pulled from PostgreSQL", unit="s",
            everloop=seconds["everloop"], limit=seconds["limit"], limit_name=LIMIT,
            answers_equal=ev.read("orders0").to_arrow().equals(pq.read_table(plain)),
            repeats=repeats,
        )  # fmt: skip
