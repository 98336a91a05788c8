"""The OpenLineage door in: ``POST /api/v1/lineage`` takes what Spark, Airflow, dbt and others send.

Events are translated here and nowhere else. Whatever names its job and datasets is taken: facets
are kept as they are, an event may lack its type, its producer, inputs or outputs, and a time
without a zone is UTC. What cannot be understood is refused with the path of every fault.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everloop.core.context import acting
from everloop.core.lineage import Mention, Report
from everloop.core.time import parse_instant
from everloop.errors import Fault, InvalidInput, TooLarge
from everloop.workspace import Workspace

__all__ = ["report_of", "routes"]

#: Bytes of an event, unpacked. Spark sends whole query plans.
MAX_BODY = 16 << 20
#: Datasets of an event, and characters of a name.
MAX_DATASETS, MAX_NAME = 10_000, 1_000
_STATES = ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
_HINT = "the event's form: https://openlineage.io/spec/2-0-2/OpenLineage.json"


def routes(workspace: Workspace) -> list[Route]:
    """The routes of the door."""

    async def receive(request: Request) -> Response:
        body = await _read(request)
        actor = f"openlineage:{workspace.actor}"

        def work() -> None:
            report = report_of(body)
            with acting(actor=actor):
                workspace.lineage.report(report)

        await run_in_threadpool(work)
        return Response(status_code=201)

    return [Route("/api/v1/lineage", receive, methods=["POST"])]


def report_of(body: bytes) -> Report:
    """Read a RunEvent, JobEvent or DatasetEvent.

    Raises:
        InvalidInput: With the path of everything that is wrong.
    """
    try:
        event = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the event is no JSON: {error}", hint=_HINT) from None
    reader = _Reader()
    report = reader.report(event)
    if reader.faults or report is None:
        raise InvalidInput("the event is not understood", reader.faults, hint=_HINT)
    return report


class _Reader:
    """Reads one event; goes on after a fault, so that all are told together."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def report(self, event: Any) -> Report | None:
        if not isinstance(event, dict):
            self._fault("", "must be an object")
            return None
        at = self._time(event.get("eventTime"))
        state = self._state(event.get("eventType"))
        producer = event.get("producer")
        job = dataset = run = None
        parents: tuple[Mention, ...] = ()
        if event.get("job") is not None:
            job = self._named(event["job"], "job", "job")
            if event.get("run") is not None:
                run, parents = self._run(event["run"], job)
        elif event.get("dataset") is not None:
            dataset = self._named(event["dataset"], "dataset", "dataset")
        else:
            self._fault("", "needs job (a run or job event) or dataset (a dataset event)")
        if event.get("run") is not None and job is None and event.get("job") is None:
            self._fault("job", "is missing: a run is of a job")
        inputs = self._datasets(event.get("inputs"), "inputs", "inputFacets")
        outputs = self._datasets(event.get("outputs"), "outputs", "outputFacets")
        if self.faults or at is None:
            return None
        return Report(
            at=at,
            state=state,
            job=job,
            run=run,
            parents=parents,
            inputs=inputs,
            outputs=outputs,
            datasets=() if dataset is None else (dataset,),
            producer=producer[:MAX_NAME] if isinstance(producer, str) else "",
        )

    def _time(self, value: Any) -> datetime | None:
        if not isinstance(value, str):
            self._fault("eventTime", "is missing, or is no text")
            return None
        try:
            return parse_instant(value)
        except InvalidInput as error:
            self._fault("eventTime", error.message)
            return None

    def _state(self, value: Any) -> str:
        if value is None:
            return "OTHER"
        if value not in _STATES:
            self._fault("eventType", f"must be one of {', '.join(_STATES)}")
        return str(value)

    def _run(self, value: Any, job: Mention | None) -> tuple[Mention | None, tuple[Mention, ...]]:
        if not isinstance(value, dict):
            self._fault("run", "must be an object")
            return None, ()
        facets = self._facets(value, "run", "facets")
        id_ = _uuid(value.get("runId"))
        if not id_:
            self._fault("run.runId", "must be a UUID")
        run = Mention(kind="run", namespace=job.namespace if job else "", name=id_, facets=facets)
        return run, tuple(_parents(facets))

    def _datasets(self, value: Any, where: str, more: str) -> tuple[Mention, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self._fault(where, "must be an array")
            return ()
        if len(value) > MAX_DATASETS:
            self._fault(where, f"has {len(value)} datasets; at most {MAX_DATASETS} are taken")
            return ()
        read = [self._named(one, f"{where}[{n}]", "dataset", more) for n, one in enumerate(value)]
        return tuple(one for one in read if one is not None)

    def _named(
        self, value: Any, where: str, kind: Literal["dataset", "job"], more: str = ""
    ) -> Mention | None:
        if not isinstance(value, dict):
            self._fault(where, "must be an object")
            return None
        names = [self._name(value.get(key), f"{where}.{key}") for key in ("namespace", "name")]
        facets = self._facets(value, where, "facets")
        if more:
            facets = facets | self._facets(value, where, more)
        if not all(names):
            return None
        aliases = tuple(_aliases(facets)) if kind == "dataset" else ()
        return Mention(kind=kind, namespace=names[0], name=names[1], facets=facets, aliases=aliases)

    def _name(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self._fault(where, "must be text, and not blank")
        elif not _is_name(value):
            self._fault(where, f"must be at most {MAX_NAME} characters, without control characters")
        else:
            return value
        return ""

    def _facets(self, value: dict[str, Any], where: str, key: str) -> dict[str, Any]:
        facets = value.get(key)
        if facets is None:
            return {}
        if not isinstance(facets, dict):
            self._fault(f"{where}.{key}", "must be an object")
            return {}
        for name, facet in facets.items():
            if not isinstance(facet, dict):
                self._fault(f"{where}.{key}.{name}", "must be an object")
        return facets

    def _fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))


def _parents(facets: dict[str, Any]) -> Iterator[Mention]:
    """The jobs that started this one. The facet has had two names; it may name the first of all."""
    parent = facets.get("parent", facets.get("parentRun"))
    if not isinstance(parent, dict):
        return
    root = parent.get("root")
    seen = None
    for value in (parent, root if isinstance(root, dict) else {}):
        named = _pair(value.get("job"))
        if named is not None and named != seen:
            seen = named
            yield Mention(kind="job", namespace=named[0], name=named[1])


def _aliases(facets: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Other names of a dataset: the table of a path, the path of a table."""
    symlinks = facets.get("symlinks")
    identifiers = symlinks.get("identifiers") if isinstance(symlinks, dict) else None
    for value in identifiers if isinstance(identifiers, list) else ():
        named = _pair(value)
        if named is not None:
            yield named


def _pair(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    namespace, name = value.get("namespace"), value.get("name")
    if not (_is_name(namespace) and _is_name(name)):
        return None
    return str(namespace), str(name)


def _is_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value.strip()) <= len(value) <= MAX_NAME
        and (value.isprintable())
    )


def _uuid(value: Any) -> str:
    try:
        return str(uuid.UUID(value)) if isinstance(value, str) else ""
    except ValueError:
        return ""


async def _read(request: Request) -> bytes:
    """The body, unpacked, as far as it is not too large."""
    packed = request.headers.get("content-encoding", "identity").lower()
    if packed not in ("identity", "gzip"):
        raise InvalidInput(f"the encoding {packed[:40]!r} is not understood", hint="send gzip")
    unpack = zlib.decompressobj(wbits=31) if packed == "gzip" else None
    parts, size = [], 0
    async for part in request.stream():
        try:
            data = part if unpack is None else unpack.decompress(part, MAX_BODY + 1 - size)
        except zlib.error:
            raise InvalidInput("the body is no gzip") from None
        size += len(data)
        if size > MAX_BODY:
            raise TooLarge(f"the event is above {MAX_BODY} bytes")
        parts.append(data)
    if unpack is not None and not unpack.eof:
        raise InvalidInput("the body is no whole gzip")
    return b"".join(parts)
