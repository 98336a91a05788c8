"""``ev.label_issues``: labels that the data itself contradicts, as a set of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.finding import FindingReport
from everloop.core.schema import Schema
from everloop.data.frame import Table
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.evaluation.findings.folds import OutOfFold
from everloop.evaluation.findings.found import Finding
from everloop.evaluation.findings.labels import METHODS, Method, doubts
from everloop.evaluation.findings.looked import classes_of, look

__all__ = ["label_issues"]

# How far the probabilities of a row may be from 1 in sum: float16 and rounded text come to this.
_OFF = 1e-2
_TOLD = 5


def label_issues(
    rows: Any,
    probabilities: Any,
    *,
    label: str,
    classes: Sequence[Any] | None = None,
    by: Method = "joint",
    schema: Schema | None = None,
) -> Finding:
    """Find rows whose label is probably wrong, by confident learning; the least believed first.

    Rows without a label are left out and counted. Each row tells the given and the suggested
    class, its self-confidence (the probability of the given class) and its belief (that, as share
    of the probability of the likeliest class), by which rows are ranked.

    Args:
        rows: The name of a dataset, or anything that ``Table.of`` takes.
        probabilities: From models that did not see the row: what :func:`out_of_fold` gives, or an
            array of shape (n, classes); (n,) is the probability of the second of two classes.
        label: The column of the labels: text, whole numbers, booleans.
        classes: In the order of the columns; the sorted labels that occur if not given.
        by: How many rows, and which: see ``everloop.evaluation.findings.labels.doubts``.
        schema: Names the key and personal columns of a frame.

    Raises:
        NotFound: If there is no such dataset, column or method.
        InvalidInput: If the probabilities do not fit the rows, the classes or are none.

    Source:
        Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 70 (2021).
    """
    if by not in METHODS:
        raise NotFound.named("method", by, METHODS)
    looked = look(rows, schema)
    if isinstance(probabilities, OutOfFold):
        classes = probabilities.classes if classes is None else classes
        probabilities = probabilities.probabilities
    found = classes_of(looked.table, label, classes)
    table = _checked(probabilities, len(looked.table), found.values)
    labelled = np.flatnonzero(found.codes >= 0)
    unlabelled = len(found.codes) - len(labelled)
    codes = found.codes
    if unlabelled:
        codes, table = codes[labelled], table[labelled]
    _refuse_no_numbers(table, labelled)
    present = len(np.unique(codes))
    if present < 2:
        reason = f"{present} class among {len(codes)} labels: nothing can be confused"
        told = FindingReport(
            kind="label_issue", name="label issues", reason=reason, columns=(label,), count=0,
            figures={"issues": 0, "unlabelled": unlabelled},
        )  # fmt: skip
        return Finding(looked, told, np.empty(0, np.int64))
    doubted = doubts(codes, table, by)
    wrong = int(doubted.joint.sum() - doubted.joint.diagonal().sum())
    figures: dict[str, Any] = {
        "issues": len(doubted.rows),
        "estimated_wrong": wrong,
        "estimated_share": wrong / len(codes),
        "unlabelled": unlabelled,
        "joint": doubted.joint.tolist(),
        "thresholds": [None if np.isnan(t) else float(t) for t in doubted.thresholds],
    }
    if label not in looked.personal:
        figures["classes"] = list(found.values)
    told = FindingReport(
        kind="label_issue", name="label issues", columns=(label,), count=len(doubted.rows),
        reason=f"models that did not see the row do not believe its {label}",
        score=wrong / len(codes), figures=figures,
    )  # fmt: skip
    return Finding(
        looked, told, labelled[doubted.rows], 1 - doubted.belief,
        _of_rows(looked.table, label, found.values, codes, doubted.rows, doubted.suggested)
        | {
            "self_confidence": pa.array(doubted.self_confidence),
            "belief": pa.array(doubted.belief),
        },
        row_reason=f"{_plain(label)} is {{given}}, and {{suggested}} is likelier",
        masked=("given", "suggested") if label in looked.personal else (),
    )  # fmt: skip


def _of_rows(
    table: Table,
    label: str,
    classes: tuple[Any, ...],
    codes: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    suggested: npt.NDArray[np.int64],
) -> dict[str, pa.Array]:
    kind = table.column(label).type
    values = pa.array(classes, kind.value_type if pa.types.is_dictionary(kind) else kind)
    return {
        "given": values.take(pa.array(codes[rows])),
        "suggested": values.take(pa.array(suggested)),
    }


def _checked(given: Any, rows: int, classes: tuple[Any, ...]) -> npt.NDArray[Any]:
    try:
        table = np.asarray(given)
        if table.dtype not in (np.float32, np.float64):
            table = table.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the probabilities are no array of numbers: {error}") from None
    if table.ndim == 1 and len(classes) == 2:
        table = np.column_stack([1 - table, table])
    faults = []
    if table.ndim != 2:
        faults.append(Fault("probabilities", f"shape {table.shape}, and (rows, classes) is wanted"))
    else:
        if len(table) != rows:
            faults.append(Fault("probabilities", f"{len(table)} rows for {rows} rows of the table"))
        if table.shape[1] != len(classes):
            told = f"{table.shape[1]} columns for {len(classes)} classes"
            faults.append(Fault("probabilities", told))
    if faults:
        raise InvalidInput(
            "the probabilities do not fit", faults,
            hint="one row for each row, one column for each class; name classes that no row has "
            "by classes=[...]",
        )  # fmt: skip
    return table


def _refuse_no_numbers(table: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> None:
    """One product gives the sums; only if something is wrong with them are values looked at."""
    if not table.size:
        return
    sums = table @ np.ones(table.shape[1], table.dtype)
    with np.errstate(invalid="ignore"):
        odd = ~(np.abs(sums - 1) <= _OFF)
    if table.min() >= 0 and not odd.any():
        return
    odd |= ~(table >= 0).all(axis=1)
    faults = []
    for row in np.flatnonzero(odd)[:_TOLD]:
        values = table[row]
        if not np.isfinite(values).all():
            what = "holds NaN or infinity"
        elif (values < 0).any():
            what = f"holds {values.min():g}, below 0"
        else:
            what = f"sums to {sums[row]:g}, not 1"
        faults.append(Fault(f"probabilities[{numbers[row]}]", what))
    raise InvalidInput(f"{np.count_nonzero(odd)} rows are no probabilities", faults)


def _plain(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")
