"""What an online store keeps of an entity: its latest rows of a view as one run of bytes.

A blob is a row of fixed-width little-endian records, sorted by visible time, so that the blobs of
many entities are joined and read at once. Views with text features add the distinct words behind
the records: MessagePack, then its length in four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from everloop.core.expr import Kind
from everloop.errors import BackendError
from everloop.features.plan import Plan
from everloop.features.vectors import Array, Vector

__all__ = ["Codec", "damaged"]

_WIDTHS: dict[str, tuple[Kind, str]] = {
    "float64": ("float", "<f8"),
    "int64": ("int", "<i8"),
    "timestamp": ("timestamp", "<i8"),
    "bool": ("bool", "?"),
    "string": ("string", "<i4"),
}


class Codec:
    """Reads and writes the blobs of one view.

    Attributes:
        dtype: A record: ``visible``, then ``event`` and ``known`` where rows may become visible
            out of order, ``id`` where the source has one, and each value with whether it is there.
        has_text: Whether a value is text.
    """

    def __init__(self, plan: Plan) -> None:
        self._kinds = [_WIDTHS[wanted.type] for wanted in plan.inputs]
        fields = [("visible", "<i8")]
        if plan.ranked:
            fields += [("event", "<i8"), ("known", "<i8")]
        if plan.view.source.id:
            fields.append(("id", "<u8"))
        fields += [(f"v{place}", width) for place, (_, width) in enumerate(self._kinds)]
        fields += [(f"n{place}", "?") for place in range(len(self._kinds))]
        self.dtype = np.dtype(fields)
        self.has_text = any(kind == "string" for kind, _ in self._kinds)
        self._texts = [place for place, (kind, _) in enumerate(self._kinds) if kind == "string"]

    def decode(self, blobs: Sequence[bytes]) -> tuple[Array, Array, list[str]]:
        """The records of `blobs` in a row, how many each had, and the words of their texts.

        Raises:
            BackendError: If the bytes are no records of this view.
        """
        size = self.dtype.itemsize
        if not self.has_text:
            lengths = np.array([len(blob) for blob in blobs], np.int64)
            if (lengths % size).any():
                raise damaged()
            joined = blobs[0] if len(blobs) == 1 else b"".join(blobs)
            return np.frombuffer(joined, self.dtype), lengths // size, []
        return self._decode_texts(blobs)

    def _decode_texts(self, blobs: Sequence[bytes]) -> tuple[Array, Array, list[str]]:
        parts: list[Array] = []
        words: list[str] = []
        places: dict[str, int] = {}
        for blob in blobs:
            tail = int.from_bytes(blob[-4:], "little")
            try:
                own: list[str] = msgspec.msgpack.decode(blob[-4 - tail : -4], type=list[str])
                records = np.frombuffer(blob[: -4 - tail], self.dtype).copy()
            except (msgspec.DecodeError, ValueError):
                raise damaged() from None
            for word in own:
                if word not in places:
                    places[word] = len(words)
                    words.append(word)
            codes = np.array([places[word] for word in own] or [0], np.int32)
            for place in self._texts:
                records[f"v{place}"] = codes[records[f"v{place}"]]
            parts.append(records)
        joined = np.concatenate(parts) if parts else np.empty(0, self.dtype)
        return joined, np.array([len(part) for part in parts], np.int64), words

    def encode(self, records: Array, ends: Array, words: Sequence[str]) -> list[bytes]:
        """One blob for each run of records; run i ends before ``ends[i]``."""
        size = self.dtype.itemsize
        blobs, start = [], 0
        if not self.has_text:
            joined = records.tobytes()
            for end in (ends * size).tolist():
                blobs.append(joined[start:end])
                start = end
            return blobs
        for end in ends.tolist():
            part = records[start:end].copy()
            used = np.unique(np.concatenate([part[f"v{place}"] for place in self._texts]))
            for place in self._texts:
                part[f"v{place}"] = np.searchsorted(used, part[f"v{place}"])
            tail = msgspec.msgpack.encode([words[code] for code in used.tolist()])
            blobs.append(part.tobytes() + tail + len(tail).to_bytes(4, "little"))
            start = end
        return blobs

    def values(self, records: Array, words: Sequence[str]) -> list[Vector]:
        """The values of records as vectors."""
        found = []
        for place, (kind, _) in enumerate(self._kinds):
            valid = records[f"n{place}"]
            data = np.ascontiguousarray(records[f"v{place}"])
            texts = (words or [""]) if kind == "string" else None
            found.append(Vector(kind, data, None if valid.all() else valid, texts))
        return found

    def put(self, records: Array, place: int, vector: Vector, known: dict[str, int]) -> None:
        """Write the values of input `place` into records; text is numbered by `known`."""
        data = vector.data
        if vector.words is not None:
            codes = [known.setdefault(word, len(known)) for word in vector.words]
            data = np.array(codes or [0], np.int32)[data]
        # What is null is zero, so that equal rows are equal bytes.
        records[f"v{place}"] = data if vector.valid is None else np.where(vector.valid, data, 0)
        records[f"n{place}"] = True if vector.valid is None else vector.valid


def damaged() -> BackendError:
    """Say that bytes of a store cannot be read."""
    return BackendError(
        "the online store holds bytes that are no rows of this view",
        hint="clear the view and push its history again",
    )
