"""Real loan applications, and what was done to them on purpose.

One cannot know the true label errors of real data, nor whom a sample lacks. So both are planted, at
rates that are stated here: the sample hardly has applicants of 35 years or more and owners of their
home, and some outcomes were recorded the wrong way round. The hold-out is as it came.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyarrow import csv

import everloop as ev

#: Share of outcomes that were recorded the wrong way round, at random.
WRONG = 0.15
#: Whom the first sample hardly has, and the share of them that it has.
MISSING, PRESENT = "age >= 35 OR coalesce(home, '') = 'owner'", 0.03
HELD_OUT = 1500

DATA = Path(__file__).parent / "data" / "credit.csv.gz"
#: Income, assets and debt of some are not known.
NUMBERS = ("seniority", "time", "age", "expenses", "income", "assets", "debt", "amount", "price")
LEVELS = {
    "home": ("owner", "rent", "parents", "other", "priv", "ignore"),
    "marital": ("married", "single", "separated", "widow", "divorced"),
    "records": ("no", "yes"),
    "job": ("fixed", "freelance", "partime", "others"),
}

APPLICATIONS = ev.Schema(
    (
        ev.Field("id", "int64", nullable=False, semantic="id"),
        ev.Field("status", "string", nullable=False, among=("good", "bad"),
                 owner="back-office@example.org", description="what became of the loan"),
        *(ev.Field(name, "int64", ge=0) for name in NUMBERS),
        *(ev.Field(name, "string", among=levels) for name, levels in LEVELS.items()),
    ),
    key=("id",),
)  # fmt: skip


class Bank(NamedTuple):
    """What the bank has.

    Attributes:
        sample: The applications that were collected for training.
        archive: Those of the people whom the sample lacks: paper that nobody typed in yet. Their
            outcomes are as often wrong.
        applicants: Who applies these days: features without outcome, whoever they are.
        holdout: Later applications with outcomes that are right.
        paper: The true outcome by id: what a clerk finds who takes out the file.
    """

    sample: ev.Table
    archive: ev.Table
    applicants: ev.Table
    holdout: ev.Table
    paper: dict[int, str]


def applications() -> ev.Table:
    """All of them, as they came."""
    with gzip.open(DATA) as file:
        options = csv.ConvertOptions(strings_can_be_null=True)
        return ev.Table.of(csv.read_csv(file, convert_options=options))


def bank(seed: int) -> Bank:
    """Draw the hold-out, plant errors, and leave people out."""
    drawn = np.random.default_rng(seed)
    rows = applications().take(drawn.permutation(4454))
    holdout = rows.take(np.arange(HELD_OUT))
    pool = rows.take(np.arange(HELD_OUT, len(rows)))
    paper = dict(zip(pool.column("id").to_pylist(), pool.column("status").to_pylist(), strict=True))
    is_wrong = drawn.random(len(pool)) < WRONG
    typed = [
        {"good": "bad", "bad": "good"}[status] if wrong else status
        for status, wrong in zip(pool.column("status").to_pylist(), is_wrong, strict=True)
    ]
    pool = pool.with_columns(status=typed, is_lucky=drawn.random(len(pool)) < PRESENT)
    names = [name for name in pool.column_names if name != "is_lucky"]
    return Bank(
        sample=pool.filter(f"is_lucky OR NOT ({MISSING})").select(names),
        archive=pool.filter(f"NOT is_lucky AND ({MISSING})").select(names),
        applicants=pool.select([name for name in names if name != "status"]),
        holdout=holdout.select(names),
        paper=paper,
    )
