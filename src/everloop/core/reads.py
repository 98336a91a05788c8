"""What running code took from the workspace by a name that may mean something else tomorrow.

``ev.read("flights")`` reads the newest version, ``ev.champion("churn")`` whoever is champion. Each
such answer is noted where somebody listens, so that a stored result can be told to be old; and in
the repetition of a run the answers are fixed to those that the first run got.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from everloop.errors import StateError

__all__ = [
    "READS_TAG",
    "Read",
    "asking_run",
    "fixed",
    "fixed_answers",
    "fixing",
    "from_text",
    "note",
    "noting",
    "to_text",
]

#: Tag of a run that holds what it read, as `to_text` writes it.
READS_TAG = "everloop.reads"


class Read(NamedTuple):
    """One answer: of which kind (``dataset``, ``champion``...), asked by which name, and what."""

    kind: str
    name: str
    value: str


_listeners: ContextVar[tuple[list[Read], ...]] = ContextVar("everloop_reads", default=())
_run: ContextVar[str] = ContextVar("everloop_asking_run", default="")
_fixed: ContextVar[_Fixed | None] = ContextVar("everloop_fixed_reads", default=None)


class _Fixed:
    def __init__(self, run_id: str, answers: dict[tuple[str, str], list[str]]) -> None:
        self.run_id = run_id
        self.answers = {name: list(values) for name, values in answers.items()}

    def take(self, kind: str, name: str) -> str:
        """The next answer; the last one stays."""
        values = self.answers.get((kind, name))
        if not values:
            raise StateError(
                f"run {self.run_id} has no record of {kind} {name}, which its repetition asks for",
                hint="the run is older than this record, or its code takes another way each time",
            )
        return values.pop(0) if len(values) > 1 else values[0]


def note(kind: str, name: str, value: str) -> None:
    """Tell whoever listens what was answered."""
    for listener in _listeners.get():
        listener.append(Read(kind, name, value))


@contextmanager
def noting(run: str = "") -> Iterator[list[Read]]:
    """Within the block what is answered is put into the list; `run` is the run that asks."""
    found: list[Read] = []
    token = _listeners.set((*_listeners.get(), found))
    run_token = _run.set(run or _run.get())
    try:
        yield found
    finally:
        _listeners.reset(token)
        _run.reset(run_token)


def asking_run() -> str:
    """Id of the run that asks in this context, or empty."""
    return _run.get()


def fixed(kind: str, name: str) -> str | None:
    """The answer that the first run got; None where no run is being repeated.

    Raises:
        StateError: If it never asked.
    """
    held = _fixed.get()
    return None if held is None else held.take(kind, name)


def fixed_answers() -> tuple[str, dict[tuple[str, str], list[str]]] | None:
    """The run that is being repeated and the answers left, for another process; None if none is."""
    held = _fixed.get()
    return None if held is None else (held.run_id, held.answers)


@contextmanager
def fixing(run_id: str, answers: dict[tuple[str, str], list[str]]) -> Iterator[None]:
    """Within the block every answer is what run `run_id` got."""
    token = _fixed.set(_Fixed(run_id, answers))
    try:
        yield
    finally:
        _fixed.reset(token)


def to_text(reads: Iterable[Read]) -> str:
    """Answers by what was asked, in order; one is enough where all are the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for read in reads:
        found.setdefault((read.kind, read.name), []).append(read.value)
    rows = [[*name, v[:1] if len(set(v)) == 1 else v] for name, v in sorted(found.items())]
    return json.dumps(rows)


def from_text(text: str) -> dict[tuple[str, str], list[str]]:
    """The reverse of `to_text`; nothing for an empty text."""
    return {(kind, name): values for kind, name, values in json.loads(text or "[]")}
