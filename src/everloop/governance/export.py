"""LineageExporter: reads the event log and hands it on as OpenLineage, each fact at least once.

Its place in the log moves only after the receiver has what came before, so a crash, a restart or
a receiver that is away costs repetition and never a fact. Nobody waits for it: it reads what was
committed, in its own time.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from everloop.errors import BackendError, EverloopError, InvalidInput
from everloop.governance.openlineage import EventMaker, Told
from everloop.ports.sink import EventSink

__all__ = ["Exported", "LineageExporter", "everything", "reader_of"]

_log = logging.getLogger("everloop.openlineage")
_AT_ONCE = 200
_LONGEST_PAUSE_S = 300.0


class Exported(msgspec.Struct, frozen=True):
    """What one export did.

    Attributes:
        sent: Events that the receiver took.
        refused: Events that it will never take; the log of this process says why.
        seq: Position in the event log up to which everything was handed on.
    """

    sent: int = 0
    refused: int = 0
    seq: int = 0


def reader_of(target: str) -> str:
    """The name under which the place of a target is kept; says nothing of keys in a URL."""
    parts = urlsplit(target)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return f"openlineage:{hashlib.sha256(plain.encode()).hexdigest()[:16]}"


class LineageExporter:
    """Hands the event log on to one target.

    Args:
        workspace: Whose log.
        sink: Where the events go.
        reader: Name of the place in the log, see :func:`reader_of`.
        namespace: Of our jobs and datasets.
    """

    def __init__(
        self, workspace: Told, sink: EventSink, reader: str, *, namespace: str = "everloop"
    ) -> None:
        self._ws = workspace
        self._sink = sink
        self._reader = reader
        self._maker = EventMaker(workspace, namespace)

    def run_once(self) -> Exported:
        """Hand on what came since the last time, up to now.

        Raises:
            BackendError: If the receiver is away; what it took until then is not sent again.
        """
        done = Exported(seq=self._ws.lineage.place(self._reader))
        while True:
            before = done
            done = self._some(done)
            if done.seq == before.seq:
                return done

    def run_forever(self, stop: threading.Event, interval_s: float = 5.0) -> None:
        """Hand on what comes, until `stop` is set; asks less often while the receiver is away."""
        pause = interval_s
        while not stop.is_set():
            try:
                self.run_once()
                pause = interval_s
            except EverloopError as error:
                _log.warning("OpenLineage events wait: %s", error)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            stop.wait(pause)

    def _some(self, done: Exported) -> Exported:
        sent, refused, seq = done.sent, done.refused, done.seq
        failure: BackendError | None = None
        for fact in self._ws.lineage.events(after=done.seq, limit=_AT_ONCE):
            try:
                taken = [self._send(msgspec.json.encode(one)) for one in self._maker.of(fact)]
            except BackendError as error:
                failure = error
                break
            sent, refused = sent + sum(taken), refused + taken.count(False)
            seq = fact.seq
        if seq > done.seq:
            self._sink.flush()
            self._ws.lineage.mark(self._reader, seq)
        if failure is not None:
            raise failure
        return Exported(sent, refused, seq)

    def _send(self, event: bytes) -> bool:
        try:
            self._sink.send(event)
        except InvalidInput as error:
            _log.error("an OpenLineage event was refused and is left out: %s", error)
            return False
        return True


def everything(workspace: Told, *, namespace: str = "everloop") -> Iterator[bytes]:
    """The whole event log as OpenLineage events, oldest first; keeps no place."""
    maker, seq = EventMaker(workspace, namespace), 0
    while facts := workspace.lineage.events(after=seq, limit=_AT_ONCE):
        for fact in facts:
            yield from (msgspec.json.encode(event) for event in maker.of(fact))
        seq = facts[-1].seq
