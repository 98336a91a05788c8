"""Whole frames saved again with 1 % of the rows changed anywhere; reading them; comparing them."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.harness import Context, Missing, Row, in_turns, timed
from everloop.data.arrow import from_arrow_schema
from everloop.workspace import Workspace, open_workspace

#: What the others write for a frame that is saved again: all of it.
PARQUET = "writing the whole frame to one zstd Parquet file, to the disk"
DATACOMPY = "datacompy==1.1.0"
SHARE = 100
#: Saves before a read: where most is to be put together, and past the next compaction.
SAVES = (8, 10)
#: Versions that a subject is erased from.
VERSIONS = 50


def frame(count: int, seed: int = 0) -> pa.Table:
    """`count` rows x 14 columns: a key, numbers of several kinds, times, few and many texts."""
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {"id": np.arange(count) + seed * 10**9}
    columns |= {f"rounded{n}": np.round(rng.normal(size=count), 4) for n in range(4)}
    columns |= {f"real{n}": rng.normal(size=count) for n in range(2)}
    columns |= {f"count{n}": rng.integers(0, 10 ** (2 + n), count) for n in range(3)}
    times = 1_600_000_000_000_000 + np.cumsum(rng.integers(0, 10**6, count))
    columns["at"] = pa.array(times, pa.timestamp("us", "UTC"))
    cities = np.array([f"city{n:03}" for n in range(300)])
    columns["city"] = pa.array(cities[rng.integers(0, 300, count)])
    columns["name"] = pa.array([f"user-{n}" for n in rng.integers(0, 10**7, count)])
    columns["flag"] = rng.random(count) < 0.3
    return pa.table(columns)


def changed(rows: pa.Table, seed: int) -> pa.Table:
    """One row in a hundred otherwise, anywhere: half updated, a quarter gone, a quarter new."""
    rng = np.random.default_rng(seed)
    count = rows.num_rows
    quarter = count // SHARE // 4
    values = rows["real0"].to_numpy().copy()
    values[rng.choice(count, 2 * quarter, replace=False)] += 1
    updated = rows.set_column(rows.schema.get_field_index("real0"), "real0", pa.array(values))
    left = np.sort(rng.choice(count, count - quarter, replace=False))
    new = frame(quarter, seed)
    at = np.sort(rng.integers(0, len(left), quarter))
    places = np.insert(left, at, count + np.arange(quarter))
    return pa.concat_tables([updated, new]).combine_chunks().take(pa.array(places))


def save_rows(context: Context) -> Iterator[Row]:
    """Save again, read after many saves, append."""
    count, repeats = context.size(2_000_000, 200_000), context.repeats(10)
    label = f"{count:,} rows x 14"
    one = frame(count)
    two = changed(one, 1)
    schema = from_arrow_schema(one.schema, key=("id",))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "plain.parquet"
        with open_workspace(folder / "ws") as ws:
            ws.data.commit("loans", one, schema=schema, mode="replace")
            before = stored(folder / "ws")
            ws.data.commit("loans", two, mode="replace")
            added = stored(folder / "ws") - before
            write(two, plain)
            yield Row(
                area="store", work=f"{label} saved again, 1 % changed anywhere: bytes added",
                unit="bytes", everloop=added, limit=plain.stat().st_size,
                limit_name="the whole frame as one zstd Parquet file",
                answers_equal=is_read(ws, two), repeats=1,
            )  # fmt: skip
            frames = {True: one, False: two}
            state = {"two": True}

            def save() -> None:
                ws.data.commit("loans", frames[state["two"]], mode="replace")
                state["two"] = not state["two"]

            seconds = in_turns(
                {"everloop": timed(save), "limit": timed(lambda: write(two, plain))},
                repeats=repeats,
            )
            yield Row(
                area="store", work=f"{label} saved again, 1 % changed anywhere", unit="s",
                everloop=seconds["everloop"], limit=seconds["limit"], limit_name=PARQUET,
                answers_equal=is_read(ws, frames[not state["two"]]), repeats=repeats,
            )  # fmt: skip
            yield from _read_rows(ws, one, plain, label, context)
            yield _append_row(ws, plain, count, label, context)


def _read_rows(
    ws: Workspace, rows: pa.Table, plain: Path, label: str, context: Context
) -> Iterator[Row]:
    schema = from_arrow_schema(rows.schema, key=("id",))
    ws.data.commit("read", rows, schema=schema, mode="replace")
    repeats = context.repeats(20)
    for seed in range(1, max(SAVES) + 1):
        rows = changed(rows, seed)
        ws.data.commit("read", rows, mode="replace")
        if seed not in SAVES:
            continue
        write(rows, plain)
        seconds = in_turns(
            {
                "everloop": timed(lambda: ws.data.read("read")),
                "limit": timed(lambda: pq.read_table(plain)),
            },
            repeats=repeats,
        )
        yield Row(
            area="store", work=f"{label} read after {seed} saves with 1 % changed", unit="s",
            everloop=seconds["everloop"], limit=seconds["limit"],
            limit_name="reading the same rows from one zstd Parquet file",
            answers_equal=ws.data.read("read").equals(pq.read_table(plain)), repeats=repeats,
        )  # fmt: skip


def _append_row(ws: Workspace, plain: Path, count: int, label: str, context: Context) -> Row:
    repeats = context.repeats(10)
    parts = iter([frame(count // SHARE, 100 + n) for n in range(repeats + 1)])
    part = frame(count // SHARE, 99)
    seconds = in_turns(
        {
            "everloop": timed(lambda: ws.data.commit("read", next(parts))),
            "limit": timed(lambda: write(part, plain)),
        },
        repeats=repeats,
    )
    return Row(
        area="store", work=f"1 % appended to {label}", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="writing the new rows to one zstd Parquet file, to the disk",
        answers_equal=ws.data.version("read").rows == count + (repeats + 1) * part.num_rows,
        repeats=repeats,
    )  # fmt: skip


def diff_rows(context: Context) -> Iterator[Row]:
    """Compare two versions: made one from the other, and each stored by itself."""
    count, repeats = context.size(5_000_000, 200_000), context.repeats(5)
    one = frame(count)
    two = changed(one, 1)
    schema = from_arrow_schema(one.schema, key=("id",))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / "old.parquet", folder / "new.parquet"]
        for rows, file in zip((one, two), files, strict=True):
            write(rows, file)
        with open_workspace(folder / "ws") as ws:
            for dataset, rows in (("loans", one), ("loans", two), ("apart", one)):
                ws.data.commit(dataset, rows, schema=schema, mode="replace")
            # Every row is another one in between, so that no block is shared.
            none = one.set_column(1, "rounded0", pa.array(one["rounded0"].to_numpy() + 10))
            ws.data.commit("apart", none, mode="replace")
            ws.data.commit("apart", two, mode="replace")
            env = context.peer_env("datacompy", [DATACOMPY, "polars", "pyarrow"])
            peer = env.run("peer_datacompy.py", *map(str, files), str(repeats))
            figure = peer if isinstance(peer, Missing) else float(peer["value"])
            cases = (("loans", 2, "one saved over the other"), ("apart", 3, "nothing shared"))
            for dataset, new, how in cases:
                answers: dict[str, tuple[int, ...]] = {}

                def ours(
                    dataset: str = dataset,
                    new: int = new,
                    answers: dict[str, tuple[int, ...]] = answers,
                ) -> None:
                    found = ws.data.diff(dataset, 1, new)
                    answers["ours"] = (found.removed, found.added, found.changed)

                def raw(answers: dict[str, tuple[int, ...]] = answers) -> None:
                    answers["raw"] = joined(files, one.column_names[1:])

                seconds = in_turns({"everloop": timed(ours), "limit": timed(raw)}, repeats=repeats)
                yield Row(
                    area="store",
                    work=f"diff of {count:,} rows x 14, 1 % changed, {how}", unit="s",
                    everloop=seconds["everloop"], limit=seconds["limit"],
                    limit_name="DuckDB: row hash and full join on the key, from two Parquet files",
                    peers={DATACOMPY.replace("==", " "): figure},
                    answers_equal=answers["ours"] == answers["raw"]
                    and (isinstance(peer, Missing) or peer["changed"] == answers["ours"][2]),
                    repeats=repeats,
                )  # fmt: skip


def joined(files: list[Path], columns: list[str]) -> tuple[int, ...]:
    """Rows removed, added, changed, by DuckDB."""
    named = ", ".join(f'"{column}"' for column in columns)
    sides = [f"(SELECT id, hash({named}) AS h FROM '{file}')" for file in files]
    query = (
        "SELECT count(*) FILTER (b.id IS NULL), count(*) FILTER (a.id IS NULL),"
        f" count(*) FILTER (a.h <> b.h) FROM {sides[0]} a FULL JOIN {sides[1]} b ON a.id = b.id"
    )
    with duckdb.connect() as connection:
        [found] = connection.execute(query).fetchall()
    return tuple(int(number) for number in found)


def write(rows: pa.Table, file: Path) -> None:
    """One zstd Parquet file, durable, as a stored object is."""
    with open(file, "wb") as out:
        pq.write_table(rows, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())


def stored(folder: Path) -> int:
    """Bytes of all objects."""
    return sum(file.stat().st_size for file in (folder / "objects").rglob("*") if file.is_file())


def is_read(ws: Workspace, rows: pa.Table) -> bool:
    """Whether the latest version has just these rows, in this order."""
    found = ws.data.read("loans")
    return bool(found.equals(rows.cast(found.schema)))


def erase_rows(context: Context) -> Iterator[Row]:
    """One subject out of fifty versions, held against writing the blocks anew that have it."""
    count, repeats = context.size(1_000_000, 100_000), context.repeats(5)
    rows = frame(count)
    schema = from_arrow_schema(rows.schema, key=("id",))
    with tempfile.TemporaryDirectory() as name, open_workspace(Path(name) / "ws") as ws:
        for seed in range(VERSIONS):
            ws.data.commit("loans", rows, schema=schema, mode="replace")
            rows = touched(rows, seed)
        subjects = iter(range(count // 2, count))
        subject = {"id": next(subjects)}
        raw = Path(name) / "raw"

        def rewrite() -> None:
            for file in blocks:
                block = pq.read_table(file)
                write(block.filter(pc.not_equal(block["id"], subject["id"])), raw)

        seconds: dict[str, list[float]] = {"everloop": [], "limit": []}
        for _ in range(repeats + 1):
            subject = {"id": next(subjects)}
            would = ws.data.erase(subject, dry_run=True).erased
            paths = [ws.blobs.path(o.before) for o in would.objects if o.kind == "block"]  # type: ignore[attr-defined]
            blocks = [str(path) for path in paths]
            seconds["limit"].append(timed(rewrite)())
            seconds["everloop"].append(timed(partial(ws.data.erase, subject))())
        versions = ws.data.versions("loans")
        left = [ws.data.read("loans", v.number)["id"] for v in versions]
        gone = not any(pc.any(pc.equal(ids, subject["id"])).as_py() for ids in left)
        yield Row(
            area="store", work=f"{count:,} rows x 14: a subject erased from {VERSIONS} versions",
            unit="s", everloop=statistics.median(seconds["everloop"][1:]),
            limit=statistics.median(seconds["limit"][1:]),
            limit_name="reading the blocks that have it and writing them anew, to the disk",
            answers_equal=gone and len(versions) == VERSIONS, repeats=repeats,
        )  # fmt: skip


def touched(rows: pa.Table, seed: int) -> pa.Table:
    """One row in a thousand otherwise, anywhere; some of those that are erased among them."""
    rng = np.random.default_rng(seed)
    values = rows["real0"].to_numpy().copy()
    values[rng.choice(rows.num_rows, rows.num_rows // 1000, replace=False)] += 1
    half = rows.num_rows // 2
    values[half : half + 12] += seed % 5 == 0
    place = rows.schema.get_field_index("real0")
    return rows.set_column(place, "real0", pa.array(values))
