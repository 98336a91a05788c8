"""What a data test is given: versions, hold-out, labels and slices, checked before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from everloop.core.dataset import DatasetVersion
from everloop.data.api import read
from everloop.data.arrow import conform, from_arrow_schema
from everloop.data.frame import Source, Table
from everloop.data.rowhash import Hashes, row_hashes
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.evaluation.bootstrap import MIN_DAYS, day_blocks
from everloop.evaluation.data_tests.training import code_of, name_of
from everloop.evaluation.metrics import MetricSpec, Task
from everloop.pipelines.values import text_of

__all__ = [
    "Contender",
    "HoldOutRows",
    "contenders",
    "hashes_of",
    "holdout_rows",
    "source_fields",
    "task_for",
    "without_holdout",
]

#: Rows are drawn in so many groups at most: more would say the same and cost more.
_MOST_BLOCKS = 256
#: So many values of a column of `slices` are slices of their own, the most frequent ones.
_MOST_VALUES = 20
_SHOWN = 5
_TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


class Contender(NamedTuple):
    """A version of the data, as it is trained on.

    Attributes:
        source: The dataset version that it is; None for rows that are in no dataset.
        identity: Equal for equal content.
        left_out: Rows that stand in the hold-out too.
        error: Why it cannot be trained.
        rival: Another training that it is for; None for the test's own.
    """

    name: str
    rows: Table
    source: Source | None
    identity: str
    left_out: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    rival: Any = None

    @property
    def key(self) -> tuple[str, ...]:
        return self.rows.key


class HoldOutRows(NamedTuple):
    """The rows that all are judged on.

    Attributes:
        rows: With the label.
        features: The same without it: what predictors see.
        y: The truth, shape (n,).
        blocks: The group of each row, which are drawn together, from 0.
        by_day: Whether these are days.
        masks: Which rows each slice has.
    """

    name: str
    rows: Table
    features: Table
    source: Source | None
    digest: str
    y: npt.NDArray[np.float64]
    task: Task
    blocks: npt.NDArray[np.intp]
    by_day: bool
    unlabelled: int
    masks: Mapping[str, npt.NDArray[np.bool_]]


def contenders(
    versions: Any, dataset: str, label: str, rivals: Mapping[str, Any] | None = None
) -> list[Contender]:
    """Read the versions, in order, and then those of other trainings.

    Args:
        rivals: By name ``(training, version)``.

    Raises:
        InvalidInput: If there is none, a number comes without `dataset`, or names are given twice.
        NotFound: If there is no such dataset, version or tag.
    """
    if isinstance(versions, str) or not isinstance(versions, Mapping | Sequence):
        raise InvalidInput("versions is a list, or a dict by name", [("versions", repr(versions))])
    named: list[tuple[str, Any]]
    named = (
        [(str(name), one) for name, one in versions.items()]
        if isinstance(versions, Mapping)
        else [("", one) for one in versions]
    )
    if not named:
        raise InvalidInput("a data test needs a version", [("versions", "is empty")])
    found = [
        _contender(name, given, place, dataset, label)
        for place, (name, given) in enumerate(named, start=1)
    ]
    found += [_rival(str(name), given, dataset, label) for name, given in (rivals or {}).items()]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        faults = [("versions", f"{name} stands there {names.count(name)} times") for name in twice]
        raise InvalidInput("each version stands once in a data test", faults)
    return found


def _rival(name: str, given: Any, dataset: str, label: str) -> Contender:
    if not isinstance(given, tuple) or len(given) != 2:
        raise InvalidInput(
            "a rival is a training and a version",
            [(f"rivals[{name!r}]", f"is a {type(given).__name__}")],
            hint='rivals={"tuned": (train_tuned, "loans@1")}',
        )
    train, version = given
    found = _contender(name, version, 1, dataset, label)
    told = f"trained by {name_of(train)}"
    identity = f"{found.identity}:{code_of(train)}"
    return found._replace(identity=identity, rival=train, notes=(told, *found.notes))


def _contender(name: str, given: Any, place: int, dataset: str, label: str) -> Contender:
    rows, source = _rows(given, f"versions[{place - 1}]", dataset)
    shown = name or (f"{source.dataset}@{source.version}" if source else f"table {place}")
    error, notes = "", []
    if label not in rows.column_names:
        error = str(NotFound.named(f"column of {shown}", label, rows.column_names))
    elif not len(rows):
        error = f"{shown} has no rows"
    else:
        missing = _missing(rows.column(label))
        if missing == len(rows):
            error = f"no row of {shown} has a {label}"
        elif missing:
            notes.append(f"{missing} rows have no {label}; the training gets them as they are")
    identity = source.digest if source else _digest(rows)
    return Contender(shown, rows, source, identity, 0, error, tuple(notes))


def _rows(given: Any, path: str, dataset: str) -> tuple[Table, Source | None]:
    """The rows, and the dataset version that they are as a whole."""
    if isinstance(given, bool):
        raise InvalidInput("a truth value is no version", [(path, repr(given))])
    if isinstance(given, int):
        if not dataset:
            raise InvalidInput(
                "a number alone is no version", [(path, f"of which dataset is {given}?")],
                hint='say dataset="loans", or write "loans@3"',
            )  # fmt: skip
        given = f"{dataset}@{given}"
    if isinstance(given, DatasetVersion):
        given = given.ref
    if isinstance(given, str):
        ref = given if "@" in given or not dataset or given == dataset else f"{dataset}@{given}"
        found = read(ref)
        if not isinstance(found, Table):
            raise InvalidInput(f"{ref} is no table", [(path, "a data test needs rows")])
        [source] = found.sources
        return found, source
    return Table.of(given), None


def _missing(column: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)


def _digest(rows: Table) -> str:
    return blake3(text_of(rows.to_arrow())).hexdigest()


def hashes_of(rows: Table, columns: Sequence[str]) -> Hashes:
    """The hash of each row over these columns."""
    table = rows.to_arrow().select(list(columns))
    return row_hashes(conform(table, from_arrow_schema(table.schema)))


# --- the hold-out ---------------------------------------------------------------------------------


def holdout_rows(
    given: Any,
    *,
    label: str,
    positive: Any,
    specs: Sequence[MetricSpec],
    at: str,
    slices: Any,
) -> HoldOutRows:
    """Read the hold-out.

    Raises:
        InvalidInput: If it has no label, or nothing that the metrics could be measured on.
    """
    rows, source = _rows(given, "holdout", "")
    name = f"{source.dataset}@{source.version}" if source else "the hold-out"
    if label not in rows.column_names:
        raise NotFound.named(f"column of {name}", label, rows.column_names)
    known = ~np.asarray(pc.is_null(rows.column(label), nan_is_null=True))
    unlabelled = int(np.count_nonzero(~known))
    if not known.any():
        raise InvalidInput(f"no row of {name} has a {label}", [("holdout", f"{len(rows)} rows")])
    kept = rows if known.all() else rows.take(np.flatnonzero(known))
    y, task = _labels(kept.column(label), label, positive, specs)
    features = kept.select([column for column in kept.column_names if column != label])
    blocks, by_day = _blocks(kept, at)
    return HoldOutRows(
        name, kept, features, source, source.digest if source else _digest(rows), y, task,
        blocks, by_day, unlabelled, _masks(kept, slices),
    )  # fmt: skip


def task_for(specs: Sequence[MetricSpec], y: npt.NDArray[np.float64]) -> Task:
    """Which task these metrics measure on these labels.

    Raises:
        InvalidInput: If there is none.
    """
    common = [task for task in _TASKS if all(task in spec.tasks for spec in specs)]
    is_whole = bool((y == np.round(y)).all()) and bool((y >= 0).all())
    fits = {
        "binary": is_whole and bool((y <= 1).all()),
        "multiclass": is_whole,
        "regression": True,
    }
    found = next((task for task in common if fits[task]), None)
    if found is None:
        told = [Fault(spec.name, f"measures {', '.join(spec.tasks)}") for spec in specs]
        told.append(
            Fault("label", f"has {len(np.unique(y))} values from {y.min():g} to {y.max():g}")
        )
        raise InvalidInput("these metrics do not fit these labels", told)
    return found


def _labels(
    column: pa.ChunkedArray, label: str, positive: Any, specs: Sequence[MetricSpec]
) -> tuple[npt.NDArray[np.float64], Task]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    plain = column.cast(kind)
    if positive is not None:
        values = plain.unique().to_pylist()
        if positive not in values:
            shown = ", ".join(repr(value) for value in values[:10])
            raise InvalidInput(
                f"no row of the hold-out has the positive value {positive!r}",
                [(label, f"has {shown}")],
            )
        y = np.array([value == positive for value in plain.to_pylist()], dtype=np.float64)
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        y = np.asarray(plain.cast(pa.float64()), dtype=np.float64)
    else:
        levels = sorted(plain.unique().to_pylist(), key=str)
        if len(levels) <= 2:
            raise InvalidInput(
                f"{label} holds texts", [(label, ", ".join(repr(one) for one in levels))],
                hint=f"say which one counts as 1: positive={levels[-1]!r}",
            )  # fmt: skip
        place = {value: number for number, value in enumerate(levels)}
        y = np.array([place[value] for value in plain.to_pylist()], dtype=np.float64)
    if not np.isfinite(y).all():
        raise InvalidInput("labels must be finite", [(label, "has infinite values")])
    task = task_for(specs, y)
    if task != "regression" and len(np.unique(y)) == 1:
        raise InvalidInput(
            "the hold-out has one class only",
            [(label, f"is {plain[0].as_py()!r} in all {len(y)} rows")],
            hint="nothing can be told apart on it: take one that has both",
        )
    return y, task


def _blocks(rows: Table, at: str) -> tuple[npt.NDArray[np.intp], bool]:
    if at:
        column = rows.column(at)
        if not pa.types.is_timestamp(column.type) and not pa.types.is_date(column.type):
            raise InvalidInput("at is a column of times", [(at, f"is {column.type}")])
        if column.null_count:
            raise InvalidInput("at must be known of each row", [(at, f"{column.null_count} nulls")])
        utc = column.cast(pa.timestamp("us", tz="UTC") if _has_zone(column) else pa.timestamp("us"))
        found = day_blocks(np.asarray(utc.cast(pa.int64())))
        if int(found.max()) + 1 < MIN_DAYS:
            raise InvalidInput(
                f"the hold-out spans {int(found.max()) + 1} days, {MIN_DAYS} are needed to tell",
                [(at, "its days are what is drawn")],
                hint="leave `at` away to draw rows, which says too much if rows of a day are alike",
            )
        return found, True
    count = len(rows)
    # Which rows share a group is drawn once: groups of neighbours would be alike in a sorted table.
    order = np.random.default_rng(count).permutation(count)
    return (order % min(count, _MOST_BLOCKS)).astype(np.intp), False


def _has_zone(column: pa.ChunkedArray) -> bool:
    return pa.types.is_timestamp(column.type) and column.type.tz is not None


def _masks(rows: Table, slices: Any) -> dict[str, npt.NDArray[np.bool_]]:
    from everloop.data.sql import matching_rows

    masks: dict[str, npt.NDArray[np.bool_]] = {}
    if isinstance(slices, Mapping):
        for name, condition in slices.items():
            mask = np.zeros(len(rows), dtype=bool)
            mask[matching_rows(rows.to_arrow(), str(name), str(condition))] = True
            masks[str(name)] = mask
        return masks
    columns = (slices,) if isinstance(slices, str) else slices
    if not isinstance(columns, list | tuple) or not all(isinstance(one, str) for one in columns):
        raise InvalidInput(
            "slices are columns, or SQL conditions by name", [("slices", repr(slices)[:80])]
        )
    for column in columns:
        masks |= _by_value(column, rows.column(column))
    return masks


def _by_value(name: str, column: pa.ChunkedArray) -> dict[str, npt.NDArray[np.bool_]]:
    """Each frequent value a slice; numbers of which many differ by their quartiles."""
    from everloop.evaluation.slices import cut_field

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = np.asarray(column.cast(pa.float64()).fill_null(np.nan), dtype=np.float64)
    else:
        values = np.array(column.cast(kind).to_pylist(), dtype=object)
    cut = cut_field(values)
    return {f"{name} {part}": cut.codes == number for number, part in enumerate(cut.names)}


# --- leakage --------------------------------------------------------------------------------------


def without_holdout(
    found: Iterable[Contender], holdout: HoldOutRows, key: Sequence[str], overlap: str
) -> list[Contender]:
    """The versions without rows of the hold-out, by key.

    Without a key rows that are equal in every column are told of, and stay: two customers may be
    alike.

    Raises:
        InvalidInput: If rows are in both, and `overlap` is not ``drop``; names the first.
    """
    every = list(found)
    if overlap not in ("error", "drop"):
        raise InvalidInput("overlap is 'error' or 'drop'", [("overlap", repr(overlap))])
    names = tuple(key) or next((one.key for one in every if one.key), ()) or holdout.rows.key
    for name in key:
        holdout.rows.column(name)
    if not names or not set(names) <= set(holdout.rows.column_names):
        return [_alike(one, holdout) for one in every]
    faults, kept = [], []
    for one in every:
        if one.error or not set(names) <= set(one.rows.column_names):
            kept.append(one)
            continue
        shared = _shared(one.rows, holdout.rows, names)
        if not len(shared):
            kept.append(one)
            continue
        shown = one.rows.to_arrow().select(list(names)).take(pa.array(shared[:_SHOWN])).to_pylist()
        such = "; ".join(", ".join(f"{n}={v!r}" for n, v in row.items()) for row in shown)
        faults.append(Fault(one.name, f"{len(shared)} rows are in {holdout.name} too, as {such}"))
        stays = np.ones(len(one.rows), dtype=bool)
        stays[shared] = False
        rows = one.rows.take(np.flatnonzero(stays))
        kept.append(
            one._replace(
                rows=rows,
                identity=f"{one.identity}-{holdout.digest}",
                left_out=len(shared),
                error="" if len(rows) else f"all rows of {one.name} are in the hold-out",
                notes=(*one.notes, f"{len(shared)} rows are in the hold-out and were left out"),
            )
        )
    if faults and overlap == "error":
        raise InvalidInput(
            "the hold-out was seen in training: rows stand in both", faults,
            hint='take another hold-out, or leave these rows out of the training: overlap="drop"',
        )  # fmt: skip
    return kept


def _shared(rows: Table, holdout: Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    mine, others = hashes_of(rows, names), hashes_of(holdout, names)
    there = set(zip(others.low.tolist(), others.high.tolist(), strict=True))
    pairs = zip(mine.low.tolist(), mine.high.tolist(), strict=True)
    return np.array([n for n, pair in enumerate(pairs) if pair in there], dtype=np.int64)


def _alike(one: Contender, holdout: HoldOutRows) -> Contender:
    names = [name for name in one.rows.column_names if name in holdout.rows.column_names]
    if one.error or set(names) != set(one.rows.column_names):
        return one
    try:
        count = len(_shared(one.rows, holdout.rows, names))
    except InvalidInput:  # a type that rows of a dataset cannot have: nothing can be said
        return one
    if not count:
        return one
    told = f"{count} rows equal one of the hold-out in every column; say key= to have that decided"
    return one._replace(notes=(*one.notes, told))


def source_fields(source: Source | None) -> dict[str, Any]:
    """Dataset and number, for a report."""
    return {} if source is None else {"dataset": source.dataset, "number": source.version}
