"""``ev.runs``: stored runs, filtered, sorted, as objects or as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from everloop.core.context import current_workspace
from everloop.core.reads import note
from everloop.errors import InvalidInput
from everloop.experiments.record import LoggedRun

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

__all__ = ["Runs", "runs"]

_PAGE = 1000


def runs(experiment: str = "", *, workspace: Any = None) -> Runs:
    """The runs of an experiment, or of all; newest first, read when they are first looked at.

    Args:
        experiment: Its name; empty for all.
        workspace: The current one if not given.
    """
    note("runs", experiment, "")
    return Runs(workspace if workspace is not None else current_workspace(), experiment)


class Runs(Sequence[LoggedRun]):
    """A search for runs, and what it found once it is looked at."""

    def __init__(
        self,
        workspace: Any,
        experiment: str,
        conditions: tuple[str, ...] = (),
        order: tuple[str, ...] = (),
        limit: int = 0,
    ) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._conditions = conditions
        self._order = order
        self._limit = limit
        self._found: list[LoggedRun] | None = None

    def where(self, condition: str) -> Runs:
        """Only runs that also meet `condition`.

        Args:
            condition: Such as ``metrics.auc > 0.8 and params.lr = '0.05'``, with ``or``, ``not``,
                parentheses, ``in``, ``like`` and ``is null``; over ``metrics``, ``params``,
                ``tags``, ``attributes`` (``status``, ``start_time``...) and ``datasets``.
        """
        return self._with(conditions=(*self._conditions, condition))

    def sort(self, *keys: str) -> Runs:
        """By these, the first deciding; ``-`` before a key means falling."""
        order = tuple(f"{key[1:]} DESC" if key[:1] == "-" else f"{key} ASC" for key in keys)
        return self._with(order=order)

    def top(self, count: int) -> Runs:
        """Only the first `count`.

        Raises:
            InvalidInput: If `count` is below 1.
        """
        if count < 1:
            raise InvalidInput("top takes a number from 1", [("count", str(count))])
        return self._with(limit=count)

    def _with(
        self,
        *,
        conditions: tuple[str, ...] | None = None,
        order: tuple[str, ...] | None = None,
        limit: int = 0,
    ) -> Runs:
        return Runs(
            self._workspace,
            self._experiment,
            self._conditions if conditions is None else conditions,
            self._order if order is None else order,
            limit or self._limit,
        )

    def _load(self) -> list[LoggedRun]:
        if self._found is None:
            self._found = list(self._search())
        return self._found

    def _search(self) -> Iterator[LoggedRun]:
        tracking = self._workspace.tracking
        self._workspace.reap()
        chosen = [tracking.experiment_by_name(self._experiment).id] if self._experiment else None
        many = len(self._conditions) > 1
        texts = [f"({text})" if many else text for text in self._conditions]
        left, token = self._limit, ""
        while True:
            page = tracking.runs(
                chosen,
                filter=" AND ".join(texts),
                order_by=list(self._order),
                limit=min(left, _PAGE) if self._limit else _PAGE,
                page_token=token,
            )
            yield from (LoggedRun(self._workspace, record) for record in page.runs)
            left, token = left - len(page.runs), page.next_page_token
            if not token or (self._limit and left <= 0):
                return

    def __len__(self) -> int:
        return len(self._load())

    @overload
    def __getitem__(self, index: int) -> LoggedRun: ...
    @overload
    def __getitem__(self, index: slice) -> list[LoggedRun]: ...
    def __getitem__(self, index: int | slice) -> LoggedRun | list[LoggedRun]:
        return self._load()[index]

    def __iter__(self) -> Iterator[LoggedRun]:
        return iter(self._load())

    def to_arrow(self) -> pa.Table:
        """A row for each run: ``id``, ``name``, ``state``, times, ``params.*``, ``metrics.*``...

        Parameters and tags are text, metrics floats; what a run does not have is null.
        """
        import pyarrow as pa

        records = [found.record for found in self._load()]
        time = pa.timestamp("us", tz="UTC")
        columns: dict[str, pa.Array] = {
            "id": pa.array([r.id for r in records], pa.string()),
            "name": pa.array([r.name for r in records], pa.string()),
            "state": pa.array([r.state for r in records], pa.string()),
            "started_at": pa.array([r.started_at for r in records], time),
            "ended_at": pa.array([r.ended_at for r in records], time),
        }
        for group, kind in (("params", pa.string()), ("metrics", pa.float64()), ("tags", None)):
            names = sorted({name for r in records for name in getattr(r, group)})
            for name in names:
                values = [getattr(r, group).get(name) for r in records]
                columns[f"{group}.{name}"] = pa.array(values, kind or pa.string())
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """As :meth:`to_arrow`, for pandas."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """As :meth:`to_arrow`, for Polars."""
        import polars as pl

        made = pl.from_arrow(self.to_arrow())
        assert isinstance(made, pl.DataFrame)
        return made

    def __repr__(self) -> str:
        return f"<runs of {self._experiment or 'all experiments'}>"
