"""``ev.out_of_fold``: what a model says of each row that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.schema import Schema
from everloop.data.frame import Table
from everloop.errors import EverloopError, Fault, InvalidInput, UserCodeError
from everloop.evaluation.findings.looked import Classes, classes_of, look
from everloop.evaluation.order import Floats

__all__ = ["Fit", "OutOfFold", "fold_numbers", "instants", "out_of_fold", "predicted"]

#: Trains on a table; what it returns predicts another: a function, or what has ``predict_proba``.
Fit = Callable[[Table], Any]


class OutOfFold(NamedTuple):
    """Predictions for every row by a model that did not see it.

    Attributes:
        probabilities: Shape (rows, classes); each row sums to 1.
        classes: What the columns are, sorted.
        fold: In which fold each row was held out.
    """

    probabilities: Floats
    classes: tuple[Any, ...]
    fold: npt.NDArray[np.int64]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.probabilities, dtype=dtype)


def out_of_fold(
    rows: Any,
    fit: Fit,
    *,
    label: str,
    folds: int = 5,
    seed: int = 0,
    groups: str = "",
    time: str = "",
    schema: Schema | None = None,
) -> OutOfFold:
    """Train `folds` times and predict each row with the model that did not see it.

    ::

        def fit(rows):
            model = LogisticRegression().fit(rows.to_numpy(FEATURES), rows.column("late"))
            return lambda rows: model.predict_proba(rows.to_numpy(FEATURES))

    Args:
        rows: The name of a dataset, or anything that ``Table.of`` takes.
        fit: Called with the labelled rows of all other folds; returns a function of a Table (or an
            object with ``predict_proba``) that gives an array of shape (n, classes), one column for
            each class that it was trained on, sorted; (n,) is the second of two.
        label: The column of the labels. Rows without one are predicted and not trained on.
        folds: How many, 2 at least.
        seed: Of the assignment of rows to folds.
        groups: Column whose equal values stay in one fold: the rows of a person.
        time: Column by which folds are blocks one after another, so that a row is not predicted
            from its neighbours of the same hour; without both, folds have equal shares of a class.
        schema: Names the key and personal columns of a frame.

    Raises:
        NotFound: If there is no such dataset or column.
        InvalidInput: If there are fewer rows, groups or classes than it takes, or the predictions
            do not fit.
        UserCodeError: If `fit` or what it returned raises.
    """
    looked = look(rows, schema)
    found = classes_of(looked.table, label)
    if len(found.values) < 2:
        raise InvalidInput(f"{len(found.values)} class in {label}: there is nothing to tell apart")
    fold = fold_numbers(looked.table, found, folds, seed, groups, time)
    probabilities = np.full((len(fold), len(found.values)), np.nan)
    for number in range(folds):
        held, others = fold == number, (fold != number) & (found.codes >= 0)
        seen = np.unique(found.codes[others])
        if len(seen) < 2:
            raise InvalidInput(
                f"without fold {number} one class is left to train on", hint="take fewer folds"
            )
        probabilities[np.ix_(np.flatnonzero(held), seen)] = predicted(
            fit,
            looked.table.take(np.flatnonzero(others)),
            looked.table.take(np.flatnonzero(held)),
            len(seen),
        )
    return OutOfFold(np.nan_to_num(probabilities, nan=0.0), found.values, fold)


def predicted(fit: Fit, train: Table, held: Table, classes: int) -> Floats:
    """Probabilities of shape (held, classes) from a model of `train`.

    Raises:
        UserCodeError: If the user's functions raise.
        InvalidInput: If what they give has another shape, or is not finite.
    """
    try:
        model = fit(train)
        predict = getattr(model, "predict_proba", model)
        if not callable(predict):
            raise InvalidInput(
                f"fit returned a {type(model).__name__}",
                hint="return a function of a Table, or an object with predict_proba",
            )
        given = np.asarray(predict(held), dtype=np.float64)
    except EverloopError:
        raise
    except Exception as error:
        raise UserCodeError.caught("fit", error) from error
    if given.ndim == 1 and classes == 2:
        given = np.column_stack([1 - given, given])
    if given.shape != (len(held), classes):
        raise InvalidInput(
            f"fit predicts an array of shape {given.shape}; it must be {(len(held), classes)}",
            hint="a row for each row, a column for each class it was trained on, sorted",
        )
    if not np.isfinite(given).all():
        raise InvalidInput("fit predicts NaN or infinity")
    return given


def fold_numbers(
    table: Table, found: Classes, folds: int, seed: int, groups: str = "", time: str = ""
) -> npt.NDArray[np.int64]:
    """The fold of each row, 0 to folds - 1.

    Raises:
        NotFound: If there is no such column.
        InvalidInput: If there are fewer rows or groups than folds, or both columns are named.
    """
    count = len(table)
    if groups and time:
        raise InvalidInput("folds go by groups or by time, not by both")
    units = classes_of(table, groups).codes if groups else np.arange(count)
    if groups and (units < 0).any():
        raise InvalidInput("every row needs a group", [Fault(groups, "holds missing values")])
    many = int(units.max()) + 1 if count else 0
    if not 2 <= folds <= max(many, 1):
        what = "groups" if groups else "rows"
        raise InvalidInput(f"{folds} folds of {many} {what}", hint="2 folds at least, and no more")
    fold = np.empty(count, np.int64)
    if time:
        order = np.argsort(instants(table.column(time), time), kind="stable")
        fold[order] = np.arange(count) * folds // count
        return fold
    random = np.random.default_rng(seed)
    if groups:
        order = random.permutation(many)
        of_group = np.empty(many, np.int64)
        of_group[order] = np.arange(many) % folds
        return of_group[units]
    order = random.permutation(count)
    order = order[np.argsort(found.codes[order], kind="stable")]
    fold[order] = np.arange(count) % folds
    return fold


def instants(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.int64]:
    """Times as microseconds since 1970; whole numbers are taken as they are.

    Raises:
        InvalidInput: If they are no times, or one is missing.
    """
    kind = column.type
    if column.null_count:
        raise InvalidInput("every row needs a time", [Fault(name, "holds missing values")])
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
    elif pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif not pa.types.is_integer(kind):
        raise InvalidInput("a time is wanted", [Fault(name, f"{kind} is no time")])
    found: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return found
