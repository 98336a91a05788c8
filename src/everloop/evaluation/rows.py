"""The rows that candidates are judged on: what is given, what is checked, what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from everloop.core.schema import Schema
from everloop.core.time import from_micros, to_micros
from everloop.errors import Fault
from everloop.evaluation.metrics import Task
from everloop.evaluation.order import Floats

__all__ = ["HoldOut", "Rows", "Subject", "described", "faults_of_rows", "later_rows", "latest"]

_DAY_US = 86_400_000_000


@dataclass(frozen=True, eq=False)
class HoldOut:
    """Rows on which candidate and champion are compared, in any order.

    Attributes:
        y: The truth, shape (n,): 0 or 1, a number, or what else the task has (see ``metrics``).
        candidate_p: Scores of the candidate, shape (n,) or (n, k), finite.
        champion_p: Scores of the champion on the same rows; None where there is no champion.
        at_us: Time of each row, microseconds since 1970, UTC.
        groups: Columns that tell groups apart, shape (n,) each.
        candidate_until: No later row trained the candidate; rows up to it are left out. None is
            "not stated": then nothing shows that the rows are new to it, and it does not pass.
        champion_until: The same of the champion. Where it is not stated the champion may have seen
            the rows, which can only make it look better.
        fields: Columns in which weak slices are searched, shape (n,) each.
        schema: What the fields mean: which numbers are categories, which are not to be searched.
        weights: How much each row counts, 0 and above; all alike if None.
        query: Which rows are ranked together; None but for a ranking.
    """

    y: npt.NDArray[Any]
    candidate_p: npt.NDArray[Any]
    champion_p: npt.NDArray[Any] | None
    at_us: npt.NDArray[Any]
    groups: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    candidate_until: datetime | None = None
    champion_until: datetime | None = None
    fields: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    weights: npt.NDArray[Any] | None = None
    query: npt.NDArray[Any] | None = None
    schema: Schema | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """The candidate itself, for what metrics do not say.

    Attributes:
        names: Its features in the order of the columns.
        predict: Scores of a matrix (n, k), shape (n,).
        rows: Real rows of features, shape (n, k); may be empty.
        size_bytes: Of its files together.
    """

    names: tuple[str, ...]
    predict: Callable[[Floats], npt.NDArray[Any]]
    rows: Floats
    size_bytes: int


class Rows:
    """Checked rows, with what the gates ask of them."""

    def __init__(
        self,
        y: Floats,
        candidate: Floats,
        champion: Floats | None,
        at_us: npt.NDArray[np.int64],
        stated: bool,
        columns: Mapping[str, Mapping[str, npt.NDArray[Any]]],
        schema: Schema | None,
    ) -> None:
        self.y = y
        self.candidate = candidate
        self.champion = champion
        self.at_us = at_us
        self.stated = stated
        self.schema = schema
        self._columns = columns

    @property
    def groups(self) -> Mapping[str, npt.NDArray[Any]]:
        """The columns that tell groups apart, as text."""
        return self._columns["groups"]

    @property
    def fields(self) -> Mapping[str, npt.NDArray[Any]]:
        """The columns to search."""
        return self._columns["fields"]

    @property
    def more(self) -> dict[str, Any]:
        """Weights and queries, as arguments of the bootstrap."""
        return dict(self._columns["more"])

    @property
    def days(self) -> int:
        return len(np.unique(self.at_us // _DAY_US))

    def where(self, mask: npt.NDArray[np.bool_]) -> Rows:
        return Rows(
            self.y[mask],
            self.candidate[mask],
            None if self.champion is None else self.champion[mask],
            self.at_us[mask],
            self.stated,
            {
                kind: {name: column[mask] for name, column in columns.items()}
                for kind, columns in self._columns.items()
            },
            self.schema,
        )


def later_rows(rows: HoldOut) -> tuple[Rows, int]:
    """The rows later than what either model was trained on, and how many were not."""
    more = {"weights": rows.weights, "query": rows.query}
    checked = Rows(
        np.asarray(rows.y, dtype=np.float64),
        np.asarray(rows.candidate_p, dtype=np.float64),
        None if rows.champion_p is None else np.asarray(rows.champion_p, dtype=np.float64),
        np.asarray(rows.at_us, dtype=np.int64),
        rows.candidate_until is not None,
        {
            "groups": {name: np.asarray(one).astype(str) for name, one in rows.groups.items()},
            "fields": {name: np.asarray(one) for name, one in rows.fields.items()},
            "more": {name: np.asarray(one) for name, one in more.items() if one is not None},
        },
        rows.schema,
    )
    stated = [until for until in (rows.candidate_until, rows.champion_until) if until is not None]
    if not stated:
        return checked, 0
    later = checked.at_us > max(to_micros(until) for until in stated)
    return checked.where(later), int(np.count_nonzero(~later))


def latest(rows: Rows, days: int) -> Rows:
    """The rows of the last `days` calendar days (UTC), counted from the newest row."""
    if not len(rows.y):
        return rows
    day = rows.at_us // _DAY_US
    return rows.where(day > day.max() - days)


def described(rows: Rows, dropped: int, task: Task) -> dict[str, Any]:
    """What the rows were, for the verdict."""
    told: dict[str, Any] = {"rows": len(rows.y), "days": rows.days, "not_later": dropped}
    if task == "binary":
        told["positives"] = int(rows.y.sum())
    if len(rows.y):
        told["from"] = from_micros(int(rows.at_us.min())).isoformat()
        told["to"] = from_micros(int(rows.at_us.max())).isoformat()
        told["digest"] = _digest(rows)
    return told


def _digest(rows: Rows) -> str:
    """Names the rows (their times and truths), in whichever order they come."""
    order = np.lexsort((rows.y, rows.at_us))
    return blake3(rows.at_us[order].tobytes() + rows.y[order].tobytes()).hexdigest()


# --- what is wrong with rows --------------------------------------------------------------------


def faults_of_rows(rows: HoldOut, champion: int, task: Task, probabilities: bool) -> list[Fault]:
    """Everything about the rows that cannot be judged."""
    faults: list[Fault] = []
    columns: dict[str, Any] = {
        "y": rows.y, "candidate_p": rows.candidate_p, "at_us": rows.at_us,
    }  # fmt: skip
    if rows.champion_p is not None:
        columns["champion_p"] = rows.champion_p
    elif champion:
        faults.append(Fault("champion_p", f"missing, and version {champion} is the champion"))
    if rows.weights is not None:
        columns["weights"] = rows.weights
    others = {**rows.groups, **rows.fields}
    if rows.query is not None:
        others["query"] = rows.query
    elif task == "ranking":
        faults.append(Fault("query", "missing: which rows are ranked together"))
    faults += _faults_of_shapes({**columns, **others}, np.shape(rows.y), task)
    for name, column in columns.items():
        faults += _faults_of_numbers(name, column, task, probabilities)
    return faults


def _faults_of_shapes(
    columns: Mapping[str, Any], wanted: tuple[int, ...], task: Task
) -> list[Fault]:
    faults = []
    count = wanted[0] if len(wanted) == 1 else -1
    for name, column in columns.items():
        shape = np.shape(column)
        if name.endswith("_p") and task in ("multiclass", "interval") and shape[:1] == (count,):
            if len(shape) != 2 or (task == "interval" and shape[1] != 2):
                faults.append(Fault(name, f"has shape {shape}, {task} takes (n, k)"))
        elif shape != (count,):
            faults.append(Fault(name, f"has shape {shape}, y has {wanted}"))
    return faults


def _faults_of_numbers(
    name: str, column: npt.NDArray[Any], task: Task, probabilities: bool
) -> list[Fault]:
    values = np.asarray(column)
    if values.dtype.kind not in "biuf":
        return [Fault(name, f"must be numbers, got {values.dtype}")]
    faults = []
    flat = values.ravel()
    broken = int(np.count_nonzero(~np.isfinite(flat)))
    if broken:
        where = int(np.flatnonzero(~np.isfinite(flat))[0])
        faults.append(Fault(name, f"{broken} are NaN or infinite, the first at [{where}]"))
    known = flat[np.isfinite(flat)]
    if name == "y":
        faults += _faults_of_truth(known, task)
    if name == "weights" and (known < 0).any():
        faults.append(Fault(name, f"must be 0 or above, got {known.min()}"))
    outside = int(np.count_nonzero((known < 0) | (known > 1)))
    if name.endswith("_p") and probabilities and outside:
        faults.append(Fault(name, f"{outside} are no probabilities (outside 0 to 1)"))
    return faults


def _faults_of_truth(known: npt.NDArray[Any], task: Task) -> list[Fault]:
    if task == "binary":
        odd = known[~np.isin(known, (0, 1))]
        return [Fault("y", f"must be 0 or 1, got {odd[0]}")] if len(odd) else []
    if task == "multiclass":
        odd = known[(known < 0) | (known != np.floor(known))]
        return [Fault("y", f"must be the number of a class, got {odd[0]}")] if len(odd) else []
    if task == "ranking" and len(known) and known.min() < 0:
        return [Fault("y", f"relevance must be 0 or above, got {known.min()}")]
    return []
