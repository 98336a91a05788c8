"""Stored values: results and arguments of steps as JSON text with objects for what is large.

A value is a tree. Its small leaves stand in the text, exactly: ``1``, ``1.0`` and ``True`` differ,
NaN and -0.0 survive. Tables, arrays, bytes and model files are objects of the blob store, named in
the text by digest: tables as Arrow IPC and arrays as .npy, so that a reader maps them without
copying, read-only. The digest of the text is therefore the digest of the content.

Nothing is pickled. What has no form here is refused, with its path inside the value.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import io
import math
import os
import sys
import uuid
import weakref
import zoneinfo
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from everloop.core.artifact import ModelArtifact
from everloop.core.pipeline import StoredValue
from everloop.core.project import module_name
from everloop.core.secret import Secret
from everloop.errors import EverloopError, InvalidInput
from everloop.pipelines.beside import named_place
from everloop.pipelines.loaded import is_a, is_exactly
from everloop.pipelines.paths import content_of_path
from everloop.ports.blobs import BlobStore, HasPaths

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Encoder", "Unreadable", "load", "store", "text_of"]

#: Text up to this many bytes stands in the catalog; longer text is an object of its own.
INLINE = 16_384
_DEEPEST = 200
#: Arrays from this many bytes are stored from where they are.
_OWN_MEMORY = 1 << 20
_INT64 = 1 << 63
#: How deep in an argument a text may name a file: by itself, or in a list or dict of such.
_NAMES_UP_TO = 2

_WANTED = (
    "return tables (ev.Table, Arrow, Polars, pandas), NumPy arrays, numbers, text, bytes, times, "
    "lists, tuples, dicts, dataclasses, msgspec structs or ev.model(...)"
)


class Unreadable(Exception):
    """A stored value cannot be rebuilt here; the step has to run again.

    Attributes:
        damaged: Digest of the object whose bytes are not what its name says, or empty.
    """

    def __init__(self, message: str, damaged: str = "") -> None:
        super().__init__(message)
        self.damaged = damaged


Put = Callable[[Any], tuple[str, int]]
Keep = Callable[[str], bool]


def hash_only(data: Any) -> tuple[str, int]:
    """Digest and size of bytes, or of a list of pieces, storing nothing."""
    if not isinstance(data, list):
        return blake3(data).hexdigest(), memoryview(data).nbytes
    hasher, size = blake3(max_threads=blake3.AUTO), 0
    for piece in data:
        hasher.update(piece)
        size += len(piece)
    return hasher.hexdigest(), size


class _Pieces:
    """A file for Arrow to write to, which copies nothing."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []

    def write(self, data: Any) -> None:
        piece = memoryview(data)
        if piece.nbytes:
            self.pieces.append(piece.cast("B"))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Encoder:
    """Turns one value into text, giving the bytes of its large leaves to `put`.

    Attributes:
        size: Bytes of the large leaves.
        classes: Classes whose instances were met; their code belongs to a step's key.
        tables: The ``ev.Table`` and ``ev.Files`` objects met, with the path of each.
    """

    def __init__(
        self, put: Put = hash_only, *, keep: Keep = lambda _: True, files: bool = False
    ) -> None:
        self._put = put
        self._keep = keep
        self._files = files
        self.size = 0
        self.faults: list[tuple[str, str]] = []
        self.classes: list[type] = []
        self.tables: list[tuple[str, Any]] = []

    def text(self, value: Any, path: str) -> bytes:
        """The canonical text of `value`; faults are collected, not raised."""
        try:
            return msgspec.json.encode(self.node(value, path, 0))
        except UnicodeEncodeError:
            self.faults.append((path, "text with half a surrogate pair"))
            return b"null"

    def node(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._named_file(value) if self._files and depth <= _NAMES_UP_TO else value
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_INT64 <= value < _INT64 else {"$int": str(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if depth > _DEEPEST:
            return self._fault(path, f"nested deeper than {_DEEPEST}, or it holds itself")
        if kind is list:
            return self._items(value, path, depth)
        if kind is tuple:
            return {"$tuple": self._items(value, path, depth)}
        if kind is dict:
            return self._dict(value, path, depth)
        if kind is bytes:
            return {"$bytes": self._blob(value)}
        simple = _SIMPLE.get(kind)
        if simple is not None:
            return {f"${simple[0]}": simple[1](value)}
        return self._rare(value, path, depth)

    def _named_file(self, value: str) -> Any:
        """A text; if it names a file, with the file's content, as whoever takes it may open it."""
        place = named_place(value) if "." in value or "/" in value else ""
        if place and os.path.isfile(place):
            return {"$text": value, "content": content_of_path(Path(place))}
        return value

    def _fault(self, path: str, message: str) -> None:
        self.faults.append((path, message))

    def _items(self, items: Any, path: str, depth: int) -> list[Any]:
        return [self.node(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]

    def _dict(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {
                key: self.node(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()
            }
        pairs = []
        for key, item in value.items():
            name = f"{path}[{key!r}]"
            pairs.append([self.node(key, f"{name} (key)", depth + 1), self.node(item, name, depth)])
        return {"$dict": pairs}

    def _rare(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, PurePath):
            node = {"$path": str(value)}
            if self._files and isinstance(value, Path):
                node["content"] = content_of_path(value)
            return node
        if isinstance(value, dt.datetime):
            return _datetime_node(value)
        if isinstance(value, set | frozenset):
            nodes = self._items(value, path, depth)
            return {f"${type(value).__name__}": sorted(nodes, key=msgspec.json.encode)}
        if is_a(value, "numpy", "generic") and not value.dtype.hasobject:
            data = base64.b64encode(value.tobytes()).decode()
            return {"$scalar": [_dtype(value.dtype), data]}
        if is_a(value, "numpy", "ndarray"):
            return self._array(value, path)
        if is_a(value, "pyarrow", "Table"):
            return {"$arrow": self._arrow(value), "rows": value.num_rows}
        frame = _frame_kind(value)
        if frame:
            return self._frame(frame, value, path)
        if is_a(value, "everloop.data.files", "Files"):
            self.tables.append((path, value))
            # The content is the key, whichever version it was read from.
            beside = {} if self._files else {"sources": [list(source) for source in value.sources]}
            return {"$files": value.digest, "kind": value.kind, **beside}
        if type(value) is ModelArtifact:
            return self._model(value, path, depth)
        if type(value) is Secret:
            return {"$secret": value.name, "version": value.version}
        return self._instance(value, path, depth)

    def _instance(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        name = f"{module_name(kind.__module__)}:{kind.__qualname__}"
        if isinstance(value, enum.Enum):
            self.classes.append(kind)
            return {"$enum": name, "name": value.name}
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            self.classes.append(kind)
            return {"$namedtuple": name, "items": self._items(value, path, depth)}
        if isinstance(value, msgspec.Struct):
            fields = kind.__struct_fields__
            tag = "$struct"
        elif dataclasses.is_dataclass(value):
            fields = tuple(field.name for field in dataclasses.fields(value))
            tag = "$dataclass"
        else:
            full = f"{kind.__module__}.{kind.__qualname__}"
            return self._fault(path, f"a {full} cannot be stored")
        if "<locals>" in name:
            return self._fault(path, f"{kind.__qualname__} is defined inside a function")
        self.classes.append(kind)
        nodes = {f: self.node(getattr(value, f), f"{path}.{f}", depth + 1) for f in fields}
        return {tag: name, "fields": nodes}

    # What is large

    def _blob(self, data: Any) -> str:
        digest, size = self._put(data)
        self.size += size
        return digest

    def _array(self, value: np.ndarray, path: str) -> Any:
        known = _known_node(value)
        if known is not None and self._keep(known["$numpy"]):
            return known
        if value.dtype.hasobject or not is_exactly(value, "numpy", "ndarray"):
            return self._fault(path, f"a {type(value).__name__} of {value.dtype} cannot be stored")
        return {"$numpy": self._blob(_npy(value)), "shape": list(value.shape)}

    def _arrow(self, table: pa.Table) -> str:
        known = _known_node(table)
        if known is not None and self._keep(known):
            return str(known)
        import pyarrow as pa

        sink = _Pieces()
        whole = table.unify_dictionaries().combine_chunks()
        with pa.ipc.new_file(pa.PythonFile(sink, "w"), whole.schema) as writer:
            writer.write_table(whole)
        return self._blob(sink.pieces)

    def _frame(self, kind: str, value: Any, path: str) -> Any:
        import pyarrow as pa

        node: dict[str, Any] = {}
        try:
            table = pa.Table.from_pandas(value) if kind == "pandas" else value.to_arrow()
        except (pa.ArrowException, TypeError, ValueError) as error:
            return self._fault(path, f"a {kind} frame that Arrow cannot hold: {error}")
        if kind == "table":
            self.tables.append((path, value))
            node["sources"] = [list(source) for source in value.sources]
            node["key"] = list(value.key)
        return {f"${kind}": self._arrow(table), "rows": table.num_rows, **node}

    def _model(self, value: ModelArtifact, path: str, depth: int) -> Any:
        fields = {
            name: self.node(getattr(value, name), f"{path}.{name}", depth + 1)
            for name in value.__struct_fields__
            if name not in ("files", "reference")
        }
        files = {name: self._blob(data) for name, data in value.files.items()}
        return {
            "$model": files,
            "reference": self._blob(value.reference) if value.reference else "",
            "fields": fields,
        }


def _npy(value: np.ndarray) -> list[memoryview]:
    """The pieces of a .npy file; of a large array its own memory."""
    import numpy as np

    sink = io.BytesIO()
    is_plain = value.dtype.fields is None and value.flags.c_contiguous
    if is_plain and value.nbytes >= _OWN_MEMORY:
        header = np.lib.format.header_data_from_array_1_0(value)
        np.lib.format.write_array_header_1_0(sink, header)
        return [sink.getbuffer(), value.reshape(-1).view(np.uint8).data]
    np.lib.format.write_array(sink, value, allow_pickle=False)
    return [sink.getbuffer()]


def _frame_kind(value: Any) -> str:
    module = type(value).__module__
    if module.startswith("everloop.data.") and hasattr(value, "to_arrow"):
        return "table"
    name = type(value).__name__
    if name == "DataFrame" and module.partition(".")[0] in ("pandas", "polars"):
        return module.partition(".")[0]
    return ""


def _dtype(dtype: np.dtype[Any]) -> Any:
    return dtype.str if dtype.fields is None else dtype.descr


def _datetime_node(value: dt.datetime) -> Any:
    zone = value.tzinfo
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        naive = value.replace(tzinfo=None, fold=0).isoformat()
        return {"$datetime": naive, "zone": zone.key, "fold": value.fold}
    return {"$datetime": value.isoformat()}


_SIMPLE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.timedelta: ("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    decimal.Decimal: ("decimal", str),
    uuid.UUID: ("uuid", str),
    complex: ("complex", lambda v: [repr(v.real), repr(v.imag)]),
    range: ("range", lambda v: [v.start, v.stop, v.step]),
}


def text_of(value: Any) -> bytes:
    """The text of a value, storing nothing; equal for equal content."""
    return Encoder(files=True).text(value, "value")


def store(value: Any, blobs: BlobStore, where: str) -> tuple[StoredValue, Encoder]:
    """Make `value` durable; its bytes are in the store when this returns.

    Raises:
        InvalidInput: With the path of every part of the value that has no stored form.
    """

    def keep(digest: str) -> bool:
        return blobs.keep(digest)

    # What came out of the store is not put again, but it must not go before it is named anew.
    encoder = Encoder(blobs.put, keep=keep)
    text = encoder.text(value, "result")
    if encoder.faults:
        raise InvalidInput(
            f"the result of {where} cannot be stored",
            encoder.faults,
            hint=f"{_WANTED}; or keep the object inside one step",
        )
    digest = blake3(text).hexdigest()
    is_short = len(text) <= INLINE
    meta = {"text": text.decode()} if is_short else {"text_object": blobs.put(text)[0]}
    size = encoder.size + len(text)
    return StoredValue(kind=_kind(value), digest=digest, size=size, meta=meta), encoder


def _kind(value: Any) -> str:
    if isinstance(value, ModelArtifact):
        return "model"
    if is_exactly(value, "pyarrow", "Table"):
        return "arrow"
    return "numpy" if is_exactly(value, "numpy", "ndarray") else _frame_kind(value) or "json"


def _not_readable() -> tuple[type[BaseException], ...]:
    arrow = sys.modules.get("pyarrow")
    of_arrow = () if arrow is None else (arrow.ArrowException,)
    return EverloopError, LookupError, OSError, ValueError, *of_arrow


def load(stored: StoredValue, blobs: BlobStore) -> Any:
    """Rebuild a stored value; tables and arrays are mapped and read-only.

    Raises:
        Unreadable: If bytes are missing or damaged, or a class is no longer there.
    """
    try:
        text = stored.meta.get("text")
        if text is None:
            text = blobs.get(stored.meta["text_object"])
        return _Decoder(blobs).value(msgspec.json.decode(text))
    except _not_readable() as error:
        damaged = getattr(error, "details", {}).get("digest", "")
        raise Unreadable(str(error), damaged) from error
    except (TypeError, AttributeError) as error:  # a class of the project has other fields now
        raise Unreadable(str(error)) from error


class _Decoder:
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = next(iter(node), "")
        if not tag.startswith("$"):
            return {key: self.value(item) for key, item in node.items()}
        return getattr(self, f"_{tag[1:]}")(node[tag], node)

    def _int(self, text: str, _: Any) -> int:
        return int(text)

    def _float(self, text: str, _: Any) -> float:
        return float(text)

    def _complex(self, parts: list[str], _: Any) -> complex:
        return complex(float(parts[0]), float(parts[1]))

    def _tuple(self, items: list[Any], _: Any) -> tuple[Any, ...]:
        return tuple(self.value(item) for item in items)

    def _dict(self, pairs: list[list[Any]], _: Any) -> dict[Any, Any]:
        return {self.value(key): self.value(item) for key, item in pairs}

    def _set(self, items: list[Any], _: Any) -> set[Any]:
        return {self.value(item) for item in items}

    def _frozenset(self, items: list[Any], _: Any) -> frozenset[Any]:
        return frozenset(self.value(item) for item in items)

    def _path(self, text: str, _: Any) -> Path:
        return Path(text)

    def _datetime(self, text: str, node: Any) -> dt.datetime:
        value = dt.datetime.fromisoformat(text)
        if "zone" in node:
            return value.replace(tzinfo=zoneinfo.ZoneInfo(node["zone"]), fold=node["fold"])
        return value

    def _date(self, text: str, _: Any) -> dt.date:
        return dt.date.fromisoformat(text)

    def _time(self, text: str, _: Any) -> dt.time:
        return dt.time.fromisoformat(text)

    def _timedelta(self, parts: list[int], _: Any) -> dt.timedelta:
        return dt.timedelta(*parts)

    def _decimal(self, text: str, _: Any) -> decimal.Decimal:
        return decimal.Decimal(text)

    def _uuid(self, text: str, _: Any) -> uuid.UUID:
        return uuid.UUID(text)

    def _range(self, parts: list[int], _: Any) -> range:
        return range(*parts)

    def _bytes(self, digest: str, _: Any) -> bytes:
        return self._blobs.get(digest)

    def _scalar(self, parts: list[Any], _: Any) -> Any:
        import numpy as np

        kind, data = parts
        dtype = np.dtype(kind if isinstance(kind, str) else [tuple(field) for field in kind])
        return np.frombuffer(base64.b64decode(data), dtype=dtype)[0]

    def _numpy(self, digest: str, node: Any) -> np.ndarray:
        import numpy as np

        if isinstance(self._blobs, HasPaths) and math.prod(node["shape"]) and node["shape"]:
            mapped = np.load(self._blobs.path(digest), mmap_mode="r", allow_pickle=False)
            array: np.ndarray = mapped.view(np.ndarray)
        else:
            array = np.load(io.BytesIO(self._blobs.get(digest)), allow_pickle=False)
            array.setflags(write=False)
        _remember(array, node)
        return array

    def _arrow(self, digest: str, _: Any) -> pa.Table:
        import pyarrow as pa

        if isinstance(self._blobs, HasPaths):
            source = pa.memory_map(str(self._blobs.path(digest)))
        else:
            source = pa.BufferReader(self._blobs.get(digest))
        table = pa.ipc.open_file(source).read_all()
        _remember(table, digest)
        return table

    def _table(self, digest: str, node: Any) -> Any:
        frame = importlib.import_module("everloop.data.frame")
        rows = self._arrow(digest, node)
        return frame.Table(rows, sources=node["sources"], key=node["key"])

    def _files(self, digest: str, node: Any) -> Any:
        files = importlib.import_module("everloop.data.files")
        load = self._blobs.get_many
        return files.Files(load, digest, node["kind"], sources=node["sources"])

    def _pandas(self, digest: str, node: Any) -> Any:
        return self._arrow(digest, node).to_pandas()

    def _polars(self, digest: str, node: Any) -> Any:
        import polars

        return polars.from_arrow(self._arrow(digest, node))

    def _model(self, files: dict[str, str], node: Any) -> ModelArtifact:
        return ModelArtifact(
            files={name: self._blobs.get(digest) for name, digest in files.items()},
            reference=self._blobs.get(node["reference"]) if node["reference"] else b"",
            **{name: self.value(item) for name, item in node["fields"].items()},
        )

    def _secret(self, name: str, node: Any) -> Secret:
        return Secret(name, version=node["version"])

    def _enum(self, name: str, node: Any) -> Any:
        return _class(name)[node["name"]]  # type: ignore[index]

    def _namedtuple(self, name: str, node: Any) -> Any:
        return _class(name)(*(self.value(item) for item in node["items"]))

    def _struct(self, name: str, node: Any) -> Any:
        return _class(name)(**{k: self.value(item) for k, item in node["fields"].items()})

    def _dataclass(self, name: str, node: Any) -> Any:
        cls = _class(name)
        value: Any = object.__new__(cls)
        for key, item in node["fields"].items():
            object.__setattr__(value, key, self.value(item))
        return value


def _class(name: str) -> type:
    # Only what is loaded already, or ours: a stored value must not be able to import anything.
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None and module == module_name("__main__"):
        found = sys.modules["__main__"]
    if found is None and module.startswith("everloop."):
        found = importlib.import_module(module)
    if found is None:
        raise Unreadable(f"the module {module} of a stored {qualname} is not loaded")
    for part in qualname.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise Unreadable(f"{name} is no class any more")
    return found


# Nodes of values that came out of the store and cannot change: they need not be digested again.
_nodes: dict[int, tuple[weakref.ref[Any], Any]] = {}


def _remember(value: Any, node: Any) -> None:
    key = id(value)
    _nodes[key] = (weakref.ref(value, lambda _: _nodes.pop(key, None)), node)


def _known_node(value: Any) -> Any:
    found = _nodes.get(id(value))
    same: Any = None if found is None else found[0]()
    if found is None or same is not value:
        return None
    if is_a(same, "numpy", "ndarray") and same.flags.writeable:
        return None  # somebody made it writable; it may have changed
    return found[1]
