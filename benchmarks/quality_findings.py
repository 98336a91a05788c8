"""Findings: label issues beside cleanlab, value of rows beside a pass of distances, slices."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import everloop as ev
from benchmarks.harness import Context, Missing, Row, in_turns, timed
from everloop.evaluation.findings.shapley import knn_shapley
from everloop.evaluation.findings.value import EPSILON

__all__ = ["label_rows", "slice_rows", "value_rows"]

_Numbers = np.ndarray[Any, Any]


# Label issues


def label_rows(context: Context) -> Iterator[Row]:
    """Digits with flipped labels, and a million rows of ten classes."""
    yield _labels(context, "digits, 8 % flipped", *_digits(), repeats=20)
    size = context.size(1_000_000, 100_000)
    yield _labels(context, f"{size:,} x 10 classes, 5 % flipped", *_synthetic(size), repeats=5)


def _digits() -> tuple[_Numbers, _Numbers, _Numbers]:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    features, truth = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    flipped = random.random(len(truth)) < 0.08
    other = (truth + random.integers(1, 10, len(truth))) % 10
    labels = np.where(flipped, other, truth)
    names = [f"p{n}" for n in range(features.shape[1])]
    rows = dict(zip(names, features.T / 16, strict=True)) | {"y": labels}

    def fit(train: ev.Table) -> Any:
        model = LogisticRegression(max_iter=500)
        model.fit(train.to_numpy(names), train.column("y").to_numpy())
        return lambda held: model.predict_proba(held.to_numpy(names))

    return labels, np.asarray(ev.out_of_fold(rows, fit, label="y")), flipped


def _synthetic(size: int) -> tuple[_Numbers, _Numbers, _Numbers]:
    random = np.random.default_rng(1)
    truth = random.integers(0, 10, size)
    logits = random.normal(size=(size, 10))
    logits[np.arange(size), truth] += 4
    odds = np.exp(logits)
    flipped = random.random(size) < 0.05
    labels = np.where(flipped, (truth + random.integers(1, 10, size)) % 10, truth)
    return labels, odds / odds.sum(axis=1, keepdims=True), flipped


def _labels(
    context: Context, what: str, labels: _Numbers, odds: _Numbers, flipped: _Numbers, repeats: int
) -> Row:
    repeats = context.repeats(repeats)
    table = ev.Table.of({"y": labels})
    found = ev.label_issues(table, odds, label="y")
    seconds = in_turns(
        {
            "everloop": timed(lambda: ev.label_issues(table, odds, label="y")),
            "limit": timed(lambda: _joint_by_hand(labels, odds)),
        },
        repeats=repeats,
    )
    env = context.peer_env("cleanlab", ("cleanlab==2.9.0",))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "odds.npz"
        np.savez(file, labels=labels, odds=odds, flipped=flipped)
        said = env.run("peer_cleanlab.py", str(file), str(repeats))
    is_right, told = True, ""
    if not isinstance(said, Missing):
        # At cleanlab's own recall: how many of our ranking it takes to have as many right.
        right = np.cumsum(flipped[found.numbers])
        needed = int(np.searchsorted(right, said["right"])) + 1
        is_right = needed <= min(said["found"], len(found))
        theirs, ours = said["right"] / said["found"], said["right"] / needed
        recall = said["right"] / flipped.sum()
        told = f", precision at recall {recall:.3f}: {ours:.3f} and {theirs:.3f}"
    return Row(
        area="quality", work=f"label issues, {what}", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="the confident joint in six lines of NumPy: no rows, no checks",
        peers={f"cleanlab 2.9.0 (default, n_jobs=1{told})": _seconds(said)},
        answers_equal=is_right, repeats=repeats,
    )  # fmt: skip


def _seconds(said: Any) -> float | Missing:
    return said if isinstance(said, Missing) else float(said["value"])


def _joint_by_hand(labels: _Numbers, odds: _Numbers) -> _Numbers:
    own = odds[np.arange(len(labels)), labels]
    means = np.bincount(labels, own) / np.bincount(labels)
    sure = np.where(odds >= means, odds, 0)
    guess = sure.argmax(axis=1)
    known = sure.max(axis=1) > 0
    return np.bincount(labels[known] * 10 + guess[known], minlength=100).reshape(10, 10)


# Data value


def value_rows(context: Context) -> Row:
    """What each of the training rows is worth on a hold-out, by 10 nearest of 50 features."""
    rows, held = context.size(100_000, 20_000), context.size(5_000, 500)
    random = np.random.default_rng(2)
    x = random.normal(size=(rows + held, 50)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * random.normal(size=rows + held) > 0).astype(np.int64)
    table = ev.Table.of({f"x{n}": x[:, n] for n in range(50)} | {"y": y})
    train, holdout = table.take(np.arange(rows)), table.take(np.arange(rows, rows + held))
    repeats = context.repeats(3)
    seconds = in_turns(
        {
            "everloop": timed(lambda: ev.data_value(train, holdout, label="y")),
            "limit": timed(lambda: _distances_by_hand(x[:rows], x[rows:])),
        },
        repeats=repeats,
    )
    # The exact values, of as many rows of the hold-out as there is patience for.
    some = slice(rows, rows + min(held, 200))
    exact = knn_shapley(x[:rows], y[:rows], x[some], y[some], 10)
    near = knn_shapley(x[:rows], y[:rows], x[some], y[some], 10, EPSILON)
    worst = float(np.abs(near - exact).max())
    alike = float(np.corrcoef(near, exact)[0, 1])
    what = f"data value, {rows:,} x 50 against {held:,}, epsilon {EPSILON}"
    return Row(
        area="quality", work=what, unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name=f"squared distances in blocks of 128 rows by one product, float32, no rank "
        f"(ours against exact: at most {worst:.1e} off, correlation {alike:.5f})",
        answers_equal=worst <= EPSILON, repeats=repeats,
    )  # fmt: skip


def _distances_by_hand(train: _Numbers, holdout: _Numbers) -> None:
    norms = (train**2).sum(axis=1)
    turned = np.ascontiguousarray(train.T)
    space = np.empty((128, len(train)), np.float32)
    for start in range(0, len(holdout), 128):
        part = holdout[start : start + 128]
        out = space[: len(part)]
        np.matmul(-2 * part, turned, out=out)
        out += norms
        out += (part**2).sum(axis=1)[:, None]


# Slices


def slice_rows(context: Context) -> Row:
    """The worst slices over 30 columns and all their pairs."""
    rows, repeats = context.size(1_000_000, 100_000), context.repeats(3)
    random = np.random.default_rng(3)
    airports = np.array(["EWR", "JFK", "LGA", "BOS", "SFO"])
    columns: dict[str, Any] = {f"x{n}": random.normal(size=rows) * 10 for n in range(20)}
    columns |= {f"n{n}": random.integers(0, 1000, rows) for n in range(3)}
    columns |= {f"c{n}": pa.array(airports[random.integers(0, 5, rows)]) for n in range(5)}
    columns |= {"hour": random.integers(5, 24, rows)}
    origin = airports[random.integers(0, 5, rows)]
    columns |= {"origin": pa.array(origin)}
    planted = (origin == "EWR") & (columns["hour"] >= 18) & (columns["hour"] < 21)
    loss = random.exponential(0.2, rows) + 0.3 * planted
    table = ev.Table.of(pa.table(columns | {"loss": loss}))
    codes = [random.integers(0, 8, rows) for _ in range(30)]
    found = ev.slices(table, error="loss")
    seconds = in_turns(
        {
            "everloop": timed(lambda: ev.slices(table, error="loss")),
            "limit": timed(lambda: _counts_by_hand(codes, loss)),
        },
        repeats=repeats,
    )
    named = [sorted(one.name.split(" and ")) for one in found]
    same = np.array_equal(np.sort(found[0].numbers), np.flatnonzero(planted)) if found else False
    return Row(
        area="quality", work=f"worst slices, 30 columns and their pairs, {rows:,} rows", unit="s",
        everloop=seconds["everloop"], limit=seconds["limit"],
        limit_name="rows and error of each pair by bincount, columns cut already",
        answers_equal=same and named == [["18 <= hour < 21", "origin = 'EWR'"]], repeats=repeats,
    )  # fmt: skip


def _counts_by_hand(codes: list[_Numbers], loss: _Numbers) -> None:
    for one, other in combinations(codes, 2):
        cells = one * 8 + other
        np.bincount(cells, minlength=64)
        np.bincount(cells, loss, 64)
