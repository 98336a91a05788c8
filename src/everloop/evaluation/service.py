"""EvaluationService: keeps verdicts for ever, above all those that said no."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from sqlalchemy import Row, select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.gate import Verdict
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
            Conflict: If another verdict has its id.
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
            if tx.insert_new(tables.verdicts, row):
                body = {
                    "model": verdict.model,
                    "candidate": verdict.candidate,
                    "champion": verdict.champion,
                    "passed": verdict.passed,
                    "reasons": [result.reason for result in verdict.results],
                    "run": verdict.run_id,
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

    @action("verdict:read", on="id")
    def verdict(self, id: str) -> Verdict:
        """One verdict; raises NotFound."""
        with self._catalog.read() as tx:
            row = tx.first(select(tables.verdicts).where(tables.verdicts.c.id == id))
        if row is None:
            raise NotFound(f"no verdict {id!r}", hint="everloop model show lists them")
        return _to_verdict(row)


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
