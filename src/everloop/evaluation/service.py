"""EvaluationService: keeps verdicts for ever, above all those that said no."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Row, select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.gate import Uses, Verdict
from everloop.core.time import utc
from everloop.errors import Conflict, NotFound

__all__ = ["EvaluationService"]


class EvaluationService(Service):
    """Verdicts by id and by model."""

    area = "evaluation"

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer

    @action("verdict:give")
    def record(self, verdict: Verdict) -> Verdict:
        """Keep a verdict; the same one again changes nothing.

        Raises:
            Conflict: If another verdict has its id, or its hold-out was used by another verdict
                since it was counted: two that judge at once must not both count as the first.
            NotFound: If there is no such version of the model.
        """
        with self._catalog.write() as tx:
            versions = tables.model_versions
            known = (versions.c.name == verdict.model, versions.c.version == verdict.candidate)
            if tx.first(select(versions.c.version).where(*known)) is None:
                raise NotFound(
                    f"no version {verdict.candidate} of model {verdict.model!r}",
                    hint="register the candidate before it is judged",
                )
            row = msgspec.structs.asdict(verdict)
            _check_count(tx, verdict)
            if tx.insert_new(tables.verdicts, row):
                body = {
                    "model": verdict.model,
                    "candidate": verdict.candidate,
                    "champion": verdict.champion,
                    "passed": verdict.passed,
                    "reasons": list(verdict.reasons),
                    "run": verdict.run_id,
                    "holdout": verdict.holdout.get("digest", ""),
                    "use": verdict.holdout.get("use", 0),
                }
                tx.append("verdict.Given", f"verdict:{verdict.id}", body)
            kept = tx.first(select(tables.verdicts).where(tables.verdicts.c.id == verdict.id))
        assert kept is not None  # it was there or was put there just now
        found = _to_verdict(kept)
        if _identity(found) != _identity(verdict):
            raise Conflict(
                f"there is another verdict {verdict.id}",
                hint="give each verdict an id of its own",
                details={"winner": verdict.id},
            )
        return found

    @action("verdict:read", on="model")
    def verdicts(self, model: str = "", candidate: int | None = None) -> list[Verdict]:
        """The verdicts on a model (on all if none is named), or on one candidate; oldest first."""
        table = tables.verdicts
        query = select(table).order_by(table.c.at, table.c.id)
        if model:
            query = query.where(table.c.model == model)
        if candidate is not None:
            query = query.where(table.c.candidate == candidate)
        with self._catalog.read() as tx:
            rows = tx.all(query)
            if model and not rows:
                names = [row.name for row in tx.all(select(tables.models.c.name))]
                if model not in names:
                    raise NotFound.named("model", model, names)
            return [_to_verdict(row) for row in rows]

    @action("verdict:read", on="model")
    def uses(self, model: str, since: datetime, until: datetime) -> Uses:
        """How often a hold-out of these days was used on a model, and what the year has seen.

        Args:
            since: First instant of the hold-out.
            until: Last instant of it; the year ends there too.
        """
        with self._catalog.read() as tx:
            found = _uses(tx, model, utc(since), utc(until), utc(until))
        return msgspec.structs.replace(found, since=utc(since), until=utc(until))

    @action("verdict:read", on="id")
    def verdict(self, id: str) -> Verdict:
        """One verdict; raises NotFound."""
        with self._catalog.read() as tx:
            row = tx.first(select(tables.verdicts).where(tables.verdicts.c.id == id))
        if row is None:
            raise NotFound(f"no verdict {id!r}", hint="everloop gate list shows them")
        return _to_verdict(row)


def _uses(
    tx: Transaction, model: str, since: datetime, until: datetime, now: datetime, but: str = ""
) -> Uses:
    """Counted from the verdicts themselves: a use that left none has told nobody anything."""
    table = tables.verdicts
    query = select(table.c.holdout, table.c.at).where(
        table.c.model == model, table.c.champion != 0, table.c.id != but, table.c.at <= now
    )
    shared = year = 0
    for row in tx.all(query):
        begin, end = (row.holdout.get(name) for name in ("from", "to"))
        if not begin or not end:  # judged on nothing: nothing was used
            continue
        year += row.at > now - timedelta(days=365)
        shared += datetime.fromisoformat(begin) <= until and datetime.fromisoformat(end) >= since
    return Uses(holdout=shared, year=year)


def _check_count(tx: Transaction, verdict: Verdict) -> None:
    counted, holdout = verdict.holdout.get("counted"), verdict.holdout
    if not counted or tx.first(
        select(tables.verdicts.c.id).where(tables.verdicts.c.id == verdict.id)
    ):
        return
    begin, end = (datetime.fromisoformat(text) for text in counted)
    found = _uses(tx, verdict.model, begin, end, max(end, verdict.at), verdict.id)
    if found.holdout + 1 != holdout.get("use"):
        raise Conflict(
            f"the hold-out of {verdict.model!r} was used by another verdict meanwhile",
            hint="judge the candidate again",
            details={"use": found.holdout + 1},
        )


def _to_verdict(row: Row[Any]) -> Verdict:
    given = {str(key): value for key, value in row._mapping.items()}
    # JSON kept NaN as null; an interval that is not defined is NaN again.
    given["results"] = [
        {**result, **{end: _number(result[end]) for end in ("estimate", "low", "high")}}
        for result in row.results
    ]
    return msgspec.convert(given, Verdict)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _identity(verdict: Verdict) -> tuple[Any, ...]:
    reasons = [(result.passed, result.reason) for result in verdict.results]
    return (verdict.model, verdict.candidate, verdict.champion, verdict.passed, reasons)
