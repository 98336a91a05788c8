"""The tables of data sources; ``tables.py`` has them too, as all others."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, Text

from everloop.catalog.define import Serial, table
from everloop.catalog.types import Instant, Json

data_sources = table(
    "data_sources",
    Column("dataset", Text, primary_key=True),
    Column("spec", Json, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("watermark", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
source_files = table(
    "source_files",
    Column("dataset", Text, ForeignKey("data_sources.dataset"), primary_key=True),
    Column("path", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("etag", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("read", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)
data_pulls = table(
    "data_pulls",
    Column("pk", Serial, primary_key=True, autoincrement=True),
    Column("dataset", Text, ForeignKey("datasets.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("is_new", Boolean, nullable=False),
    Column("pull", Json, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Index("data_pulls_dataset", "dataset", "number"),
)
