"""What an import or a merge did: counts by kind, what failed and why, what is worth knowing."""

from __future__ import annotations

import re
import threading

import msgspec

from everloop.core.intake import Refusal

__all__ = ["Findings", "Tally", "TransferReport"]


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How many of one kind. A thing that failed in part counts as failed; its rest was taken."""

    kind: str
    found: int
    imported: int
    there: int
    failed: int


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an import or a merge.

    Attributes:
        origin: Where things came from, without passwords.
        counts: By kind.
        bytes: Bytes of files that were taken, read back and compared.
        refusals: What failed, by name, with the reason.
        notes: What is not as it was there, and no failure.
    """

    origin: str
    counts: tuple[Tally, ...]
    bytes: int = 0
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing failed."""
        return not self.refusals


class Findings:
    """Gathers counts, failures and notes while the work goes on; any thread may tell."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.bytes = 0
        self.notes: list[str] = []
        self._refusals: dict[tuple[str, str, str], Refusal] = {}
        self._failed: dict[str, set[str]] = {}
        self._touched: set[str] = set()
        self._counts = {kind: {"found": 0, "imported": 0, "there": 0} for kind in kinds}
        self._lock = threading.Lock()

    def fail(self, kind: str, name: str, reason: str) -> None:
        """Note that something failed."""
        with self._lock:
            refusal = Refusal(kind, name[:300], reason[:500])
            self._refusals[(refusal.kind, refusal.name, refusal.reason)] = refusal
            self._failed.setdefault(kind, set()).add(refusal.name)
            self._touched.update(re.split(r"[\s/]", name))

    def add(self, kind: str, *, found: int = 0, imported: int = 0, there: int = 0) -> None:
        """Count."""
        counts = self._counts[kind]
        counts["found"] += found
        counts["imported"] += imported
        counts["there"] += there

    def count(self, kind: str, found: int, imported: int) -> None:
        """Count rows of which the rest was there already."""
        self.add(kind, found=found, imported=imported, there=found - imported)

    def note(self, text: str) -> None:
        """Note what is worth knowing, once."""
        if text not in self.notes:
            self.notes.append(text)

    def failed(self, kind: str, name: str) -> bool:
        """Whether this failed, in whole or in part."""
        return name in self._failed.get(kind, ())

    def touched(self, id_: str) -> bool:
        """Whether anything failed in whose name this id stands: itself, or a file of it."""
        return id_ in self._touched

    def report(self, origin: str) -> TransferReport:
        """Everything told so far."""
        counts = [
            Tally(kind=kind, failed=len(self._failed.get(kind, ())), **count)
            for kind, count in self._counts.items()
        ]
        return TransferReport(
            origin=origin,
            counts=tuple(counts),
            bytes=self.bytes,
            refusals=tuple(self._refusals.values()),
            notes=tuple(self.notes),
        )
