"""The hold-out of the gates: what was really asked and answered, with the truth known by now.

The champion's side is what it answered; the candidate scores the very feature values that were
served. Rows that another version answered are scored by both, from the same values. Rows that one
of the two was trained on are left out by the gate itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.model import ModelVersion
from everloop.core.time import to_micros
from everloop.errors import StateError
from everloop.evaluation.gates import HoldOut, Subject
from everloop.monitoring.reference import make_reference

__all__ = ["Scorer", "build_holdout", "group_of", "reference_of", "subject_of"]

_FEATURE = "f."
#: Behaviour is tried on so many of the newest rows.
_TRIED = 1_000


class Scorer(Protocol):
    """A loaded model."""

    def predict(self, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Scores of ``(n, k)`` rows."""
        ...


def build_holdout(
    log: pa.Table,
    *,
    champion: tuple[ModelVersion, Scorer],
    candidate: tuple[ModelVersion, Scorer],
    groups: Iterable[str],
    same_features: frozenset[int],
) -> tuple[HoldOut, dict[str, Any]]:
    """Pair both models on the labelled answers of the log.

    Args:
        log: Predictions with labels: columns of the prediction log and ``label``.
        champion: The version that serves, and it loaded.
        candidate: The version to judge, and it loaded.
        groups: Columns that tell groups apart: of the request, or features.
        same_features: Versions whose answers were made from the same features as these two.

    Returns:
        The rows, oldest first, and facts about them for the verdict.

    Raises:
        StateError: If the log lacks a feature of the candidate or of the champion.
    """
    rows = _usable(log, same_features).sort_by("at")
    answered = rows.column("version").to_numpy() == champion[0].version
    champion_p = rows.column("value").to_numpy().astype(np.float64)
    if not answered.all():
        others = rows.filter(pa.array(~answered))
        champion_p[~answered] = champion[1].predict(_matrix(others, champion[0]))
    holdout = HoldOut(
        y=rows.column("label").to_numpy().astype(np.float64),
        candidate_p=candidate[1].predict(_matrix(rows, candidate[0])),
        champion_p=champion_p,
        at_us=rows.column("at").cast(pa.int64()).to_numpy(),
        groups={name: group_of(rows, name) for name in sorted(set(groups))},
        candidate_until=candidate[0].trained_until,
        champion_until=champion[0].trained_until,
        fields=_fields(rows, candidate[0]),
        schema=candidate[0].signature.inputs,
    )
    facts: dict[str, Any] = {
        "source": "prediction log",
        "labelled_answers": rows.num_rows,
        "answered_by_champion": int(answered.sum()),
        "scored_again": int((~answered).sum()),
    }
    return holdout, facts


def subject_of(version: ModelVersion, scorer: Scorer, log: pa.Table | None = None) -> Subject:
    """The candidate itself, with the newest rows that it could have been asked about.

    Args:
        version: The candidate.
        scorer: It, loaded.
        log: Predictions; none where nothing was asked yet.
    """
    names = version.signature.inputs.names
    rows = np.empty((0, len(names)))
    if log is not None and all(_FEATURE + name in log.column_names for name in names):
        newest = log.sort_by("at").slice(max(log.num_rows - _TRIED, 0))
        rows = _matrix(newest, version)
    size = sum(file.size for file in version.files)
    return Subject(names=names, predict=scorer.predict, rows=rows, size_bytes=size)


def _fields(rows: pa.Table, version: ModelVersion) -> dict[str, npt.NDArray[Any]]:
    """The candidate's features, to look for weak slices in; numbers as numbers."""
    return {
        name: rows.column(_FEATURE + name).cast(pa.float64()).to_numpy()
        for name in version.signature.inputs.names
    }


def reference_of(
    log: pa.Table, candidate: ModelVersion, rows: HoldOut, same_features: frozenset[int]
) -> bytes:
    """What monitors compare the candidate's life with: the days of its own hold-out.

    They are later than its training, and it costs nothing more: it was scored on them to be judged.
    """
    used = _usable(log, same_features).sort_by("at")
    later = np.ones(len(rows.y), dtype=bool)
    if candidate.trained_until is not None:
        later = rows.at_us > to_micros(candidate.trained_until)
    kept = used.filter(pa.array(later))
    names = candidate.signature.inputs.names
    return make_reference(
        rows.candidate_p[later],
        rows.y[later],
        rows.at_us[later],
        {name: kept.column(_FEATURE + name) for name in names},
        trained_until=candidate.trained_until,
    )


def _usable(log: pa.Table, same_features: frozenset[int]) -> pa.Table:
    """Answers to clients that were no error, with their label, from features of both models."""
    answered = pc.equal(pc.fill_null(log.column("error"), ""), "")
    served = pc.not_equal(log.column("arm"), "shadow")
    known = pc.is_in(log.column("version"), pa.array(sorted(same_features), pa.int32()))
    keep = pc.and_(pc.and_(answered, served), pc.and_(known, pc.is_valid(log.column("label"))))
    return log.filter(keep)


def _matrix(rows: pa.Table, version: ModelVersion) -> npt.NDArray[np.float64]:
    names = version.signature.inputs.names
    missing = [name for name in names if _FEATURE + name not in rows.column_names]
    if missing:
        raise StateError(
            f"{version.ref} takes {', '.join(missing)}, which the served answers do not hold",
            hint="serve the new feature with the present champion first, then train with it",
        )
    columns = [rows.column(_FEATURE + name).cast(pa.float64()) for name in names]
    matrix = np.empty((rows.num_rows, len(names)))
    for index, column in enumerate(columns):
        matrix[:, index] = column.to_numpy()
    return matrix


def group_of(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    """The group of each answer as text: a column of the log, a feature, or a request's field."""
    for column in (name, _FEATURE + name):
        if column in rows.column_names:
            return np.array([str(value) for value in rows.column(column).to_pylist()])
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    return np.array(
        [_of_request(decode, text, name) for text in rows.column("request").to_pylist()]
    )


def _of_request(decode: Callable[[str], dict[str, Any]], text: str, name: str) -> str:
    try:
        return str(decode(text).get(name, ""))
    except msgspec.DecodeError:  # the log takes any text, and such a request names no group
        return ""
