"""The tables of what is erased and what is kept; ``tables.py`` has them too, as all others."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Text

from everloop.catalog.define import table
from everloop.catalog.types import Instant, Json

# `subject` is a keyed hash. `work` is what is still to be done once the catalog has been changed,
# and `receipt` what was asked, found and done; it is signed when `state` becomes done.
erasures = table(
    "erasures",
    Column("id", Text, primary_key=True),
    Column("dataset", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("work", Json, nullable=False),
    Column("receipt", Json, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("done_at", Instant),
    Index("erasures_state", "state", "asked_at"),
)
# Objects that were erased. A writer that is about to name one looks whether it is there (again).
erased_objects = table(
    "erased_objects",
    Column("digest", Text, primary_key=True),
    Column("erasure", Text, ForeignKey("erasures.id"), nullable=False),
    Index("erased_objects_erasure", "erasure"),
)
# Data that must stay: no erasure and no rule of retention touches it. No dataset is all of them.
holds = table(
    "holds",
    Column("name", Text, primary_key=True),
    Column("dataset", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
)
# How long versions stay; `keep_last` of them stay at least.
retention_rules = table(
    "retention_rules",
    Column("dataset", Text, ForeignKey("datasets.name"), primary_key=True),
    Column("keep_us", BigInteger, nullable=False),
    Column("keep_last", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
