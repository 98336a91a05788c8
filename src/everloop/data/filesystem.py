"""``everloop://dataset@version/path``: datasets as a file system for whatever speaks fsspec.

A directory shows its files, a table the Parquet files that hold its rows. What is written becomes a
version of a directory: one for each act, or one for all of a transaction, within which reads see
what was written. A version by number, tag or time does not change; ``photos`` and ``photos@branch``
do.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from everloop.core.context import current_workspace, open_at
from everloop.core.dataset import MAIN, DatasetVersion
from everloop.data.chunks import LARGE, chunked
from everloop.data.files import Files
from everloop.data.scan import Storing
from everloop.data.tree import EMPTY, Entry, Load, encode, find, listed
from everloop.data.tree_edit import edited
from everloop.errors import Conflict, EverloopError, InvalidInput, MissingExtra, NotFound

try:
    from fsspec import AbstractFileSystem
    from fsspec.transaction import Transaction
except ImportError as error:  # whoever asks for it by name, as nothing here does
    raise MissingExtra.of("fsspec", "everloop:// as a file system") from error

__all__ = ["EverloopFileSystem"]

_RACES = 1000
#: Bytes of a transaction that are held in memory before they are stored.
_HELD = 64 << 20
_opened: dict[tuple[int, str], Any] = {}
_opening = threading.Lock()


class _Where(NamedTuple):
    """A path taken apart."""

    dataset: str
    which: str
    path: bytes

    @property
    def ref(self) -> str:
        return f"{self.dataset}@{self.which}" if self.which else self.dataset


class _Tree(NamedTuple):
    """A directory to look into."""

    load: Load
    root: str

    def entry(self, path: bytes) -> Entry | None:
        if not path:
            return Entry(b"", "d", bytes.fromhex(self.root), 0, 0)
        return find(self.load, self.root, path)


class _Stage:
    """What is written to a line and is no version yet."""

    def __init__(self, home: Any, dataset: str, branch: str, base: DatasetVersion | None) -> None:
        self.base = base
        self.dataset = dataset
        self.branch = branch
        self.edits: dict[bytes, Entry | None] = {}
        self._blobs = home.blobs
        self._held: dict[str, bytes] = {}
        self._bytes = 0
        self.root = base.root if base else ""
        if not self.root:
            self._take(encode([]).objects)
            self.root = EMPTY

    def load(self, digests: Sequence[str]) -> list[bytes]:
        missing = [digest for digest in digests if digest not in self._held]
        found = dict(zip(missing, self._blobs.get_many(missing), strict=True)) if missing else {}
        return [found[d] if d in found else self._held[d] for d in digests]

    def hold(self, data: bytes) -> bytes:
        digest = blake3(data)
        self._take({digest.hexdigest(): data})
        return digest.digest()

    def apply(self, edits: dict[bytes, Entry | None]) -> None:
        """Change paths; what removes or replaces comes in the order that it was asked for."""
        made = edited(self.load, self.root, edits)
        self._take(made.objects)
        self.root = made.digest
        for path, entry in edits.items():
            self.edits.pop(path, None)
            self.edits[path] = entry

    def store(self) -> None:
        """Put what is held into the object store."""
        self._blobs.put_many(list(self._held.values()))
        self._held.clear()
        self._bytes = 0

    def _take(self, objects: dict[str, bytes]) -> None:
        self._held.update(objects)
        self._bytes += sum(map(len, objects.values()))
        if self._bytes > _HELD:
            self.store()


class _Transaction(Transaction):  # type: ignore[misc]
    """All that is written within to a dataset becomes one version of it, or nothing does.

    Of several datasets one is made after the other.
    """

    def __init__(self, fs: EverloopFileSystem, **options: Any) -> None:
        super().__init__(fs, **options)
        self._of = fs

    def complete(self, commit: bool = True) -> None:
        self.files.clear()
        fs, self.fs = self._of, None
        try:
            if commit:
                fs.publish()
        finally:
            fs.forget()
            fs._intrans = False
            fs._transaction = None


class EverloopFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Datasets of a workspace as directories.

    Args:
        workspace: Location as ``everloop.open`` takes it; None is the workspace of the context.
    """

    protocol = "everloop"
    root_marker = ""
    cachable = False  # the workspace of a context is another one tomorrow
    transaction_type = _Transaction

    def __init__(self, workspace: str | None = None, **options: Any) -> None:
        super().__init__(workspace=workspace, **options)
        # Bound here: readers call from threads of their own, which have no context.
        self._home = current_workspace() if workspace is None else _open(workspace)
        self._lock = threading.RLock()
        self._stages: dict[tuple[str, str], _Stage] = {}

    def __reduce__(self) -> Any:
        return _again, (self._home.place().location,)

    # --- reading ------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        where = self._where(path)
        with _told(path):
            if not where.dataset:
                names = {dataset.name for dataset in self._home.data.datasets()}
                names |= {dataset for dataset, _ in self._stages}
                found = [_directory(name) for name in sorted(names)]
            else:
                found = self._listed(where, path)
        return found if detail else [item["name"] for item in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        where = self._where(path)
        name = self._strip_protocol(path)
        with _told(path):
            if not where.dataset:
                return _directory("")
            tree = self._tree(where)
            if isinstance(tree, list):
                if not where.path:
                    return _directory(name)
                for part in tree:
                    if part.name == os.fsdecode(where.path):
                        return _local(name, part)
                raise FileNotFoundError(path)
            entry = tree.entry(where.path)
            if entry is None:
                raise FileNotFoundError(path)
            return self._shown(tree, name, where.path, entry)

    def _listed(self, where: _Where, path: str) -> list[dict[str, Any]]:
        name = self._strip_protocol(path)
        tree = self._tree(where)
        if isinstance(tree, list):
            if where.path:
                return [self.info(path)]
            return [_local(f"{name}/{part.name}", part) for part in tree]
        entry = tree.entry(where.path)
        if entry is None:
            raise FileNotFoundError(path)
        if entry.kind != "d":
            return [self._shown(tree, name, where.path, entry)]
        prefix = where.path + b"/" if where.path else b""
        return [
            self._shown(tree, f"{name}/{os.fsdecode(one.name)}", prefix + one.name, one)
            for one in listed(tree.load, entry.digest, where.path)
        ]

    def _shown(self, tree: _Tree, name: str, path: bytes, entry: Entry) -> dict[str, Any]:
        if entry.kind == "d":
            return _directory(name)
        more = {}
        if entry.kind == "l":
            more = {"islink": True, "destination": os.fsdecode(entry.content)}
            try:
                entry = Files(tree.load, tree.root, "directory").entry(os.fsdecode(path))
            except NotFound:
                return {"name": name, "size": 0, "type": "other", **more}
        content = entry.content.hex()
        return {"name": name, "size": entry.size, "type": "file", "digest": content, **more}

    def ukey(self, path: str) -> str:
        """Digest of a file's content: equal for equal bytes."""
        return str(self.info(path).get("digest", super().ukey(path)))

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **_: Any) -> Any:
        where = self._where(path)
        if mode == "rb":
            with _told(path):
                return self._reader(where, path)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"files of everloop:// are read or written as a whole, not {mode!r}")
        with _told(path):
            self._line(where, path)
            if mode == "xb" and self.exists(path):
                raise FileExistsError(path)
            before = self.cat_file(path) if mode == "ab" and self.exists(path) else b""
        return _Writer(self, path, before)

    def _reader(self, where: _Where, path: str) -> Any:
        tree = self._tree(where)
        if isinstance(tree, list):
            for part in tree:
                if part.name == os.fsdecode(where.path):
                    return io.BufferedReader(_Part(part), 1 << 20)
            raise FileNotFoundError(path)
        entry = tree.entry(where.path)
        if entry is None:
            raise FileNotFoundError(path)
        if entry.kind == "d":
            raise IsADirectoryError(path)
        return Files(tree.load, tree.root, "directory").open(os.fsdecode(where.path))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        with self.open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            first, last, _step = slice(start, end).indices(size)
            file.seek(first)
            return bytes(file.read(max(last - first, 0)))

    def created(self, path: str) -> Any:
        """When the version was made."""
        with _told(path):
            return self._home.data.find(self._where(path).ref).created_at

    modified = created

    # --- writing ------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        where = self._where(path)
        with _told(path):
            if self.exists(path):
                raise FileExistsError(path)
            parent = self._parent(path)
            if not create_parents and where.path and not self.exists(parent):
                raise FileNotFoundError(parent)
            content = bytes.fromhex(EMPTY)
            with self._writing(where, path) as stage:
                stage.hold(encode([]).objects[EMPTY])
                if where.path:
                    stage.apply({where.path: Entry(b"", "d", content, 0, 0)})

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            self.mkdir(path)
        except FileExistsError:
            if not exist_ok:
                raise

    def rmdir(self, path: str) -> None:
        if self.ls(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self.rm(path)

    def rm_file(self, path: str) -> None:
        self.rm(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        paths = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        for one in paths:
            where = self._where(one)
            with _told(one):
                if not self.exists(one):
                    if recursive:  # it went with the directory that it was in
                        continue
                    raise FileNotFoundError(one)
                if self.isdir(one) and not recursive and self.ls(one):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), one)
                with self._writing(where, one) as stage:
                    self._remove(stage, where.path, keep_parent=bool(where.path))

    def _remove(self, stage: _Stage, path: bytes, *, keep_parent: bool) -> None:
        if not path:
            names = [entry.name for entry in listed(stage.load, stage.root)]
            stage.apply(dict.fromkeys(names))
            return
        above = path.rpartition(b"/")[0]
        stage.apply({path: None})
        if keep_parent and above and find(stage.load, stage.root, above) is None:
            # As in any other file system, the directory that it was in stays.
            stage.hold(encode([]).objects[EMPTY])
            stage.apply({above: Entry(b"", "d", bytes.fromhex(EMPTY), 0, 0)})

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source, target = self._where(path1), self._where(path2)
        with _told(path1):
            tree = self._tree(source)
            entry = None if isinstance(tree, list) else tree.entry(source.path)
            if entry is not None and entry.kind == "d":
                return self.makedirs(path2, exist_ok=True)
            if entry is None or source.dataset == "":
                self.pipe_file(path2, self.cat_file(path1))
                return None
            # No byte is moved: the same content, under another name.
            staged = self._stages.get((source.dataset, source.which or MAIN))
            if staged is not None and source.dataset != target.dataset:
                staged.store()
            with self._writing(target, path2) as stage:
                stage.apply({target.path: entry})
            return None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")

    def write(self, path: str, file: Any) -> None:
        """Make the file at `path` of what `file` holds, from its beginning."""
        where = self._where(path)
        with _told(path), self._writing(where, path) as stage:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size <= LARGE:
                entry = Entry(b"", "f", stage.hold(file.read()), size, 1)
            else:
                storing = Storing(self._home.blobs.put_many)
                try:
                    digest, size = chunked(file.fileno(), storing.put)
                finally:
                    storing.close()
                entry = Entry(b"", "F", bytes.fromhex(digest), size, 1)
            self._refuse_file_above(stage, where.path, path)
            stage.apply({where.path: entry})

    def _refuse_file_above(self, stage: _Stage, path: bytes, shown: str) -> None:
        here = find(stage.load, stage.root, path)
        if here is not None and here.kind == "d":
            raise IsADirectoryError(shown)
        names = path.split(b"/")
        for depth in range(1, len(names)):
            above = find(stage.load, stage.root, b"/".join(names[:depth]))
            if above is not None and above.kind != "d":
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), shown)

    def publish(self) -> None:
        """Make a version of each line that was written to."""
        with self._lock:
            stages = list(self._stages.values())
            for stage in stages:  # one may have a file that was copied from another
                stage.store()
            for stage in stages:
                self._publish(stage)
            self._stages.clear()

    def forget(self) -> None:
        """Leave out what was written and is no version yet."""
        with self._lock:
            self._stages.clear()

    def _publish(self, stage: _Stage) -> None:
        for _ in range(_RACES):
            stage.store()
            try:
                self._home.files.commit(
                    stage.dataset,
                    stage.root,
                    kind="directory",
                    branch=stage.branch,
                    expect=stage.base.number if stage.base else 0,
                    note="written by everloop://",
                )
            except Conflict as error:
                if "winner" not in error.details:
                    raise
            else:
                return
            # Another version came: what was written here is written to that one.
            edits, base = stage.edits, self._home.files.version(stage.dataset, None)
            if stage.branch != MAIN:
                base = self._home.data.find(f"{stage.dataset}@{stage.branch}")
            stage = _Stage(self._home, stage.dataset, stage.branch, base)
            for path, entry in edits.items():
                # What others put into a directory that was left empty here stays.
                here = find(stage.load, stage.root, path) if entry is not None else None
                if entry is None or entry.kind != "d" or here is None or here.kind != "d":
                    stage.apply({path: entry})
        raise Conflict(f"others commit to {stage.dataset} all the time", hint="write again")

    @contextmanager
    def _writing(self, where: _Where, path: str) -> Iterator[_Stage]:
        with self._lock:
            branch, base = self._line(where, path)
            key = (where.dataset, branch)
            stage = self._stages.get(key) or _Stage(self._home, where.dataset, branch, base)
            self._stages[key] = stage
            try:
                yield stage
            except BaseException:  # Ctrl-C too: what was begun must not ride with the next write
                if not self._intrans:
                    self._stages.pop(key, None)
                raise
            if not self._intrans:
                try:
                    self._publish(stage)
                finally:
                    self._stages.pop(key, None)

    def _line(self, where: _Where, path: str) -> tuple[str, DatasetVersion | None]:
        """The line that a path is written to, and its latest version."""
        if not where.dataset:
            raise PermissionError(errno.EPERM, "the first part of a path is a dataset", path)
        branch = MAIN if where.which in ("", "latest", MAIN) else where.which
        if branch == MAIN:
            try:
                base = self._home.files.version(where.dataset, None)
            except NotFound:
                return MAIN, None
        else:
            lines = {line.branch: line for line in self._home.data.branches(where.dataset)}
            if branch not in lines:
                why = f"{where.ref} does not change; write to {where.dataset} or to a branch"
                raise OSError(errno.EROFS, why, path)
            base = self._home.files.version(where.dataset, lines[branch].number)
        if base.kind == "table":
            raise OSError(errno.EROFS, f"{where.dataset} is a table: use everloop.commit", path)
        if base.kind == "file":
            raise OSError(errno.EROFS, f"{where.dataset} is a file: everloop data add it", path)
        return branch, base

    # --- paths --------------------------------------------------------------------------------

    def _where(self, path: str) -> _Where:
        head, _, rest = self._strip_protocol(path).partition("/")
        name, _, which = head.partition("@")
        inner = os.fsencode(rest.strip("/"))
        if inner and any(part in (b"", b".", b"..") for part in inner.split(b"/")):
            raise FileNotFoundError(errno.ENOENT, "no directory holds such a name", path)
        return _Where(name, which, inner)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(super()._strip_protocol(path)).strip("/")

    def _tree(self, where: _Where) -> _Tree | list[Path]:
        """The directory that a path is in, or the Parquet files of a table."""
        branch = MAIN if where.which in ("", "latest", MAIN) else where.which
        stage = self._stages.get((where.dataset, branch))
        if stage is not None:
            return _Tree(stage.load, stage.root)
        version = self._home.data.find(where.ref)
        if version.kind == "table":
            from everloop.data.paths import parquet_paths

            return parquet_paths(self._home, version)
        return _Tree(self._home.blobs.get_many, version.root)


class _Part(io.RawIOBase):
    """A file of this machine that may be left open: Arrow closes nothing that it is given."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._handle = os.open(path, os.O_RDONLY)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (os.fstat(self._handle).st_size if begin is None else begin)
        return self._at

    def readinto(self, target: Any) -> int:
        count = os.preadv(self._handle, [target], self._at)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


class _Writer(io.BufferedIOBase):
    """A file that is written when it is closed, and left out where its block raised."""

    def __init__(self, fs: EverloopFileSystem, path: str, before: bytes) -> None:
        super().__init__()
        self._fs = fs
        self._path = path
        self._file = tempfile.SpooledTemporaryFile(max_size=LARGE)  # noqa: SIM115 (close does)
        self._file.write(before)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def discard(self) -> None:
        """Leave it out."""
        self._file.close()
        super().close()

    def commit(self) -> None:
        """The transaction commits for all of its files."""

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.discard()
        else:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if not self._file.closed:
                self._fs.write(self._path, self._file)
        finally:
            self._file.close()
            super().close()

    def __del__(self) -> None:
        # What nobody closed is nothing: a half would look whole.
        self.discard()


def _again(location: str) -> EverloopFileSystem:
    """A file system that came from another process."""
    return EverloopFileSystem(workspace=location)


def _open(location: str) -> Any:
    """One workspace for each place in a process; it is open until the process ends."""
    key = (os.getpid(), location)
    with _opening:
        if key not in _opened:
            _opened[key] = open_at(location, actor=None, clock=None)
        return _opened[key]


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _local(name: str, part: Path) -> dict[str, Any]:
    return {"name": name, "size": part.stat().st_size, "type": "file"}


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Errors as whoever reads files knows them; ours is the cause."""
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(errno.ENOENT, error.message, path) from error
    except InvalidInput as error:
        raise OSError(errno.EINVAL, error.summary, path) from error
    except EverloopError as error:
        raise OSError(errno.EIO, error.message, path) from error
