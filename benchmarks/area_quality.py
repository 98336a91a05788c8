"""Quality: checks with every failing row, in memory and from a version; profiles; findings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

import everloop as ev
from benchmarks.harness import Context, Missing, Row, bench, in_turns, timed
from benchmarks.quality_findings import label_rows, slice_rows, value_rows
from benchmarks.quality_rows import SCHEMA, frame_of, raw_checks
from everloop.core.quality import QualityReport
from everloop.data.arrow import from_arrow_schema
from everloop.data.judge import judge_frame
from everloop.data.profile import profile_of

_ROWS = 1_000_000


@bench
def checks_in_memory(context: Context) -> Iterator[Row]:
    sizes = (_ROWS,) if context.quick else (_ROWS, 10 * _ROWS)
    for rows in sizes:
        yield _in_memory(context, rows)


def _in_memory(context: Context, rows: int) -> Row:
    frame, repeats = frame_of(rows), context.repeats(10)
    wanted = _raw(frame)
    report = judge_frame(frame, SCHEMA)
    seconds = in_turns(
        {
            "everloop": timed(lambda: judge_frame(frame, SCHEMA)),
            "limit": timed(lambda: frame.lazy().select(raw_checks()).collect()),
        },
        repeats=repeats,
    )
    peers, equal = _peers(context, frame, sum(wanted.values()))
    return Row(
        area="quality", work=f"30 checks, {rows:,} x 21 in memory, failing rows", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="one Polars select of the counts, by hand", peers=peers,
        answers_equal=equal and _counts(report) == wanted, repeats=repeats,
    )  # fmt: skip


def _peers(
    context: Context, frame: pl.DataFrame, wanted: int
) -> tuple[dict[str, float | Missing], bool]:
    pandera = context.peer_env("pandera", ("pandera[polars]==0.35.0", f"polars=={pl.__version__}"))
    gx = context.peer_env("gx", ("great_expectations==1.24.1", "pandas==3.1.1", "pyarrow"))
    turns = str(context.repeats(10))
    peers: dict[str, float | Missing] = {}
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        frame.write_parquet(file)
        for name, said in (
            ("pandera 0.35.0 (Polars, lazy)", pandera.run("peer_pandera.py", str(file), turns)),
            (
                "Great Expectations 1.24.1 (pandas, COMPLETE)",
                gx.run("peer_gx.py", str(file), turns, "COMPLETE", timeout_s=900),
            ),
            (
                "Great Expectations 1.24.1 (pandas, BASIC: 20 values a rule)",
                gx.run("peer_gx.py", str(file), turns, "BASIC", timeout_s=900),
            ),
        ):
            peers[name] = said if isinstance(said, Missing) else float(said["value"])
            if not isinstance(said, Missing):
                # Of values that repeat they name all, where ours lets the first stay: one row more.
                equal = equal and said["broken"] in (wanted, wanted + 1)
    return peers, equal


@bench
def checks_of_a_version(context: Context) -> Row:
    """From blocks on disk; the limit streams the same rows from one Parquet file."""
    frame, repeats = frame_of(_ROWS), context.repeats(10)
    wanted = _raw(frame)
    with tempfile.TemporaryDirectory() as folder, ev.open(str(Path(folder) / ".everloop")) as ws:
        file = Path(folder) / "rows.parquet"
        frame.write_parquet(file, compression="zstd")
        ws.data.commit("rows", ev.Table.of(frame).to_arrow(), schema=_loose())
        report = ws.data.check("rows", SCHEMA)
        raw = pl.scan_parquet(file).select(raw_checks())
        seconds = in_turns(
            {
                "everloop": timed(lambda: ws.data.check("rows", SCHEMA)),
                "limit": timed(lambda: raw.collect(engine="streaming")),
            },
            repeats=repeats,
        )
    return Row(
        area="quality", work=f"30 checks, a version of {_ROWS:,} x 21, failing rows", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="Polars streaming the counts from one Parquet file",
        answers_equal=_counts(report) == wanted, repeats=repeats,
    )  # fmt: skip


@bench
def profile(context: Context) -> Row:
    frame, repeats = frame_of(_ROWS), context.repeats(10)
    schema = from_arrow_schema(ev.Table.of(frame.head(1)).to_arrow().schema)
    made = profile_of(frame, schema)
    seconds = in_turns(
        {
            "everloop": timed(lambda: profile_of(frame, schema)),
            "limit": timed(lambda: frame.describe(percentiles=(0.05, 0.25, 0.5, 0.75, 0.95))),
        },
        repeats=repeats,
    )
    env = context.peer_env("skrub", ("skrub==0.11.0", "polars", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        frame.write_parquet(file)
        skrub = env.measure("peer_skrub.py", str(file), str(context.repeats(10)))
    told = {column.name: column.nulls for column in made.columns}
    return Row(
        area="quality", work=f"profile of {_ROWS:,} x 21", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="Polars describe with the same five quantiles (no top values, no histogram)",
        peers={"skrub 0.11.0": skrub},
        answers_equal=told == frame.null_count().row(0, named=True), repeats=repeats,
    )  # fmt: skip


@bench
def label_issues(context: Context) -> Iterator[Row]:
    return label_rows(context)


@bench
def data_value(context: Context) -> Row:
    return value_rows(context)


@bench
def slices(context: Context) -> Row:
    return slice_rows(context)


def _loose() -> ev.Schema:
    return ev.Schema(tuple(ev.Field(field.name, field.type) for field in SCHEMA.fields))


def _raw(frame: pl.DataFrame) -> dict[str, int]:
    found = frame.lazy().select(raw_checks()).collect().row(0, named=True)
    return {name: count for name, count in found.items() if count}


def _counts(report: QualityReport) -> dict[str, int]:
    return {rule.rule: rule.failed for rule in report.broken}
