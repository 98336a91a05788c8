"""One training: the user's function as a step, its predictor asked, its scores checked."""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.core.artifact import ModelArtifact
from everloop.data.frame import Table
from everloop.errors import InvalidInput
from everloop.evaluation.metrics import Task
from everloop.pipelines.api import Step, step
from everloop.pipelines.code import fingerprint
from everloop.pipelines.definition import full_name

__all__ = ["as_of", "as_probabilities", "checked", "code_of", "name_of", "training_step"]

Floats = npt.NDArray[np.float64]
_PREDICTS = ("predict_proba", "predict")


def name_of(train: Any) -> str:
    """What the training is called; with what a ``functools.partial`` gives it."""
    function, given = _function_of(train), dict[str, Any]()
    while isinstance(function, functools.partial):
        given = dict(function.keywords) | given
        function = function.func
    shown = ", ".join(f"{name}={_short(value)}" for name, value in given.items())
    return full_name(function).removeprefix("__main__.") + (f"({shown})" if given else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)[:40]


def training_step(train: Any, task: Task) -> Step[..., Any]:
    """A step that trains and scores: rows, hold-out, seed to scores, shape (n,) or (n, k).

    Its key is the code of `train` and all that it reaches, the content of both tables and the
    seed, so a test that is run again, or gets one more version, trains what is new.

    Raises:
        InvalidInput: If `train` is no function of rows, or of rows and a seed.
    """
    function = _function_of(train)
    takes_seed = _takes_seed(function)

    def scores(rows: Table, holdout: Table, seed: int, repetition: int, code: str) -> Any:
        with _seeded(seed):
            predictor = function(rows, seed) if takes_seed else function(rows)
            found = _asked(predictor, holdout, task)
        return checked(found, len(holdout), task)

    options: dict[str, Any] = {"cache": fingerprint(function).cacheable}
    if isinstance(train, Step):
        backoff = timedelta(seconds=train.backoff_s) if train.backoff_s else None
        timeout = None if train.timeout_s is None else timedelta(seconds=train.timeout_s)
        options |= {"backoff": backoff, "timeout": timeout}
        options["cache"] = options["cache"] and train.cache
        for name in ("version", "environment", "retries", "memory"):
            options[name] = getattr(train, name)
    made: Step[..., Any] = step(**options)(as_of(function, scores))
    return made


def code_of(train: Any) -> str:
    """Names what a training does: its code and all that it reaches."""
    return fingerprint(_function_of(train)).digest


def as_of(function: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    """`ours`, named as a part of the module of `function`.

    What is followed for a run's code, and to be loaded in a worker process, begins there; of a
    function of this package it would be the version alone.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    ours.__module__ = getattr(inner, "__module__", None) or type(inner).__module__
    name = getattr(inner, "__name__", type(inner).__name__)
    ours.__qualname__ = ours.__name__ = f"<{ours.__name__}>.{name}"
    return ours


def _function_of(train: Any) -> Any:
    function = train.function if isinstance(train, Step) else train
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InvalidInput(
            "train is a function of rows", [("train", f"is a {type(train).__name__}")],
            hint="def train(rows: ev.Table, seed: int): ... and gives what predicts",
        )  # fmt: skip
    return function


def _takes_seed(function: Any) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in says nothing of what it takes
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in parameters if p.default is p.empty and p in places]
    only_named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    wrong = [*needed[2:], *only_named]
    if wrong or not places:
        raise InvalidInput(
            f"a data test calls train(rows) or train(rows, seed), not {name_of(function)}"
            f"{inspect.signature(function)}",
            [("train", f"{name} would be missing") for name in wrong]
            or [("train", "takes no rows")],
            hint="give the others a default, or wrap it",
        )
    # A second parameter with a default is a seed only if it says so: it may be anything else.
    return len(needed) == 2 or any(p.name == "seed" for p in places[1:2])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Also who draws from the shared generators gets the same numbers, and disturbs nobody."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


# --- what predicts --------------------------------------------------------------------------------


def _asked(predictor: Any, rows: Table, task: Task) -> Any:
    if isinstance(predictor, ModelArtifact):
        return _of_artifact(predictor, rows)
    method = next((name for name in _PREDICTS if callable(getattr(predictor, name, None))), "")
    if task == "regression" and callable(getattr(predictor, "predict", None)):
        method = "predict"
    if method:
        return getattr(predictor, method)(_inputs(predictor, rows))
    if callable(predictor):
        return predictor(rows)
    raise InvalidInput(
        "the training gave nothing that predicts",
        [("train", f"returned a {type(predictor).__name__}")],
        hint="return a function of rows, what has predict_proba or predict, or ev.model(...)",
    )


def _inputs(predictor: Any, rows: Table) -> Any:
    """The columns that a fitted object knows by name, else all of them as a matrix."""
    names = _names(predictor)
    if names and set(names) <= set(rows.column_names):
        chosen = rows.select(names)
        if not hasattr(predictor, "feature_names_in_"):
            return chosen.to_numpy()
        try:
            return chosen.to_pandas()
        except ImportError:
            return chosen.to_polars()
    wanted = getattr(predictor, "n_features_in_", None)
    if wanted is not None and wanted != len(rows.column_names):
        raise InvalidInput(
            f"the model takes {wanted} columns, the hold-out has {len(rows.column_names)} beside"
            " its label",
            [("train", "which of them is not known: it was fitted on a matrix without names")],
            hint="return a function: lambda rows: model.predict_proba(features(rows))[:, 1]",
        )
    return rows.to_numpy()


def _names(predictor: Any) -> list[str]:
    found = getattr(predictor, "feature_names_in_", None)
    if found is None:
        found = getattr(predictor, "feature_name_", None) or getattr(
            predictor, "feature_name", None
        )
        found = found() if callable(found) else found
    return [str(name) for name in found] if found is not None else []


def _of_artifact(artifact: ModelArtifact, rows: Table) -> Any:
    # By entry point: the room that packs models is none that this one may know.
    found = {point.name: point for point in entry_points(group="everloop.flavors")}
    if artifact.flavor not in found:
        raise InvalidInput(
            f"nothing loads the flavor {artifact.flavor!r}", [("train", "returned it")]
        )
    predictor = found[artifact.flavor].load()().load(artifact.files)
    names = list(predictor.names)
    if artifact.signature is not None and not names:
        names = list(artifact.signature.inputs.names)
    return predictor.predict(rows.to_numpy(names or None))


def checked(found: Any, count: int, task: Task) -> Floats:
    """Scores as float64, shape (n,), or (n, k) of several classes.

    Raises:
        InvalidInput: If they are not one finite number for each row (and class).
    """
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _wrong(f"gave a {type(found).__name__} that holds no numbers: {error}") from error
    if task != "multiclass" and scores.ndim == 2 and scores.shape[1] in (1, 2):
        if scores.shape[1] == 2 and task != "binary":
            raise _wrong(f"gave scores of shape {scores.shape} for {count} rows")
        scores = scores[:, -1]  # of two classes the second is the positive one
    if scores.shape[:1] != (count,) or scores.ndim != (2 if task == "multiclass" else 1):
        wanted = "(n, classes)" if task == "multiclass" else "(n,)"
        raise _wrong(f"gave scores of shape {scores.shape} for {count} rows; wanted {wanted}")
    bad = np.flatnonzero(~np.isfinite(scores).reshape(count, -1).all(axis=1))
    if len(bad):
        raise _wrong(f"gave NaN or infinite scores for {len(bad)} of {count} rows, first {bad[0]}")
    return np.ascontiguousarray(scores)


def as_probabilities(scores: Floats, metric: str) -> None:
    """Refuse scores that are no probabilities, which `metric` takes.

    Raises:
        InvalidInput: If one lies outside 0 and 1.
    """
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise _wrong(
            f"gave scores from {scores.min():g} to {scores.max():g}, and {metric} takes"
            " probabilities"
        )


def _wrong(told: str) -> InvalidInput:
    return InvalidInput(
        "the scores cannot be judged", [("predictor", told)],
        hint="one finite number for each row of the hold-out, in its order",
    )  # fmt: skip
