"""Will this loan go bad? Improve the data, not the model.

The algorithm stays as it is. The data gets better in two steps, each from what Everloop finds: whom
the sample lacks, and whose outcome was probably recorded wrong. Then a data test says what each
step was worth, beside what tuning the model on the first data brings. ``everloop demo credit``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from planted import APPLICATIONS, LEVELS, NUMBERS, Bank

import everloop as ev
from everloop.evaluation.metrics import auc

OWNER = "credit-risk@example.org"
#: A small model that nobody tuned. The same for every version of the data.
PLAIN = {"objective": "binary", "num_iterations": 80, "learning_rate": 0.05, "num_leaves": 8,
         "min_data_in_leaf": 30, "bagging_fraction": 0.8, "bagging_freq": 1, "num_threads": 1,
         "deterministic": True, "force_row_wise": True, "verbose": -1}  # fmt: skip
SETTINGS, FOLDS = 30, 3
WHO = {"35 or older, owner": "age >= 35 AND home = 'owner'", "35 or older, no owner": "age >= 35",
       "younger owner": "home = 'owner'"}  # fmt: skip


# --- the algorithm, which stays -------------------------------------------------------------------


def features(rows: ev.Table) -> np.ndarray:
    """Numbers as they are, texts as places in their lists; unknown is NaN."""
    texts = [
        pc.index_in(rows.column(name), value_set=pa.array(levels)).to_numpy()
        for name, levels in LEVELS.items()
    ]
    return np.column_stack([rows.to_numpy(NUMBERS), *texts])


def is_bad(rows: ev.Table) -> np.ndarray:
    return pc.equal(rows.column("status"), "bad").to_numpy().astype(float)


def train(rows: ev.Table, seed: int, **settings: Any) -> Callable[[ev.Table], np.ndarray]:
    """Gradient boosting; what it returns says how likely each loan goes bad."""
    given = {**PLAIN, **settings, "seed": seed}
    model = lightgbm.train(given, lightgbm.Dataset(features(rows), is_bad(rows)))
    return lambda held: np.asarray(model.predict(features(held)))


def tune(rows: ev.Table, seed: int = 0) -> dict[str, Any]:
    """The best of 30 random settings by cross-validation: the usual way to a better model."""
    drawn = np.random.default_rng(seed)
    fold = drawn.permutation(len(rows)) % FOLDS
    parts = [(rows.take(np.flatnonzero(fold != n)), rows.take(np.flatnonzero(fold == n)))
             for n in range(FOLDS)]  # fmt: skip
    tried = []
    for _ in range(SETTINGS):
        settings = {
            "num_iterations": int(drawn.integers(20, 200)),
            "learning_rate": float(np.exp(drawn.uniform(np.log(0.01), np.log(0.3)))),
            "num_leaves": int(drawn.integers(3, 32)),
            "min_data_in_leaf": int(drawn.integers(5, 120)),
            "lambda_l2": float(np.exp(drawn.uniform(-3, 4))),
        }
        scores = [auc(is_bad(b), train(a, seed, **settings)(b)) for a, b in parts]
        tried.append((float(np.mean(scores)), settings))
    return max(tried, key=lambda one: one[0])[1]


# --- the data, which gets better ------------------------------------------------------------------


class Improved(NamedTuple):
    """What was found, and what it was worth.

    Attributes:
        coverage: The sample beside the people who apply.
        issues: Rows whose outcome was probably recorded wrong.
        corrected: How many of them the clerk found to be wrong.
        test: The plain algorithm on all versions, and the tuned one on the first.
        duel: The same, held against the tuned model.
    """

    coverage: Any
    issues: Any
    corrected: int
    settings: dict[str, Any]
    test: Any
    duel: Any


def improve(bank: Bank, seeds: int = 5, *, blame: bool = True) -> Improved:
    """From the sample as it was collected to data that is worth more than a better model.

    Args:
        bank: See ``planted``.
        seeds: Of the data tests.
        blame: Whether to ask which of the new and corrected rows are worth what.
    """
    raw = ev.commit("applications", bank.sample, schema=APPLICATIONS, owner=OWNER,
                    note="as collected")  # fmt: skip
    ev.commit("applications-later", bank.holdout, schema=APPLICATIONS, owner=OWNER)

    # Whom does the sample lack? Their files are in the archive, and are typed in.
    coverage = ev.coverage(raw.ref, bank.applicants)
    filled = ev.commit("applications", bank.archive, mode="append", note="the archive, typed in")

    # Whose outcome is probably wrong? A clerk takes out these files, and no others.
    typed = ev.read(filled.ref)
    guesses = ev.out_of_fold(typed, lambda rows: chances(train(rows, 0)), label="status")
    issues = ev.label_issues(typed, guesses, label="status")
    flagged = typed.column("id").take(pa.array(issues.numbers)).to_pylist()
    told = dict(
        zip(typed.column("id").to_pylist(), typed.column("status").to_pylist(), strict=True)
    )
    wrong = [one for one in flagged if bank.paper[one] != told[one]]
    corrected = typed.set_where(
        "the paper says otherwise", "status", "CASE status WHEN 'good' THEN 'bad' ELSE 'good' END",
        f"id IN ({', '.join(map(str, wrong))})",
        reason="typed in the wrong way round", owner="back-office@example.org",
    )  # fmt: skip
    reviewed = ev.commit("applications", corrected, note="flagged outcomes held against the paper")

    versions = {"as collected": raw, "filled up": filled, "outcomes reviewed": reviewed}
    settings = tune(ev.read(raw.ref))
    tuned = {"tuned on the first data": (partial(train, **settings), raw)}
    given: dict[str, Any] = {
        "holdout": "applications-later", "label": "status",
        "positive": "bad", "seeds": seeds, "metrics": ("auc", "brier"), "rivals": tuned,
    }  # fmt: skip
    test = ev.data_test(train, versions, slices={"35 or older": "age >= 35", "younger": "age < 35"},
                        **given)  # fmt: skip
    if blame:
        test.blame("filled up", by=WHO)
        test.blame("outcomes reviewed", against="filled up", by="status")
    duel = ev.data_test(train, versions, against="tuned on the first data", **given)
    return Improved(coverage, issues, len(wrong), settings, test, duel)


def chances(bad: Callable[[ev.Table], np.ndarray]) -> Callable[[ev.Table], np.ndarray]:
    """Of both outcomes, in the order of their names: bad, good."""
    return lambda rows: np.column_stack([bad(rows), 1 - bad(rows)])
