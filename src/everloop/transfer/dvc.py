"""Reads the data of a DVC repository: what ``.dvc`` files and ``dvc.lock`` name, out of the cache.

Neither DVC nor its remotes are needed, and nothing there is written. Each output (``outs``) is a
dataset of files, and each revision of Git that is asked for is a version of it. What the cache says
is held against its MD5; an output that is not whole makes no version.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import posixpath
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import yaml
from blake3 import blake3

from everloop.core.dataset import DatasetVersion
from everloop.data.chunks import LARGE, chunked
from everloop.data.file_service import FileService
from everloop.data.scan import Storing
from everloop.data.service import DataService
from everloop.data.tree import Entry
from everloop.data.tree_edit import edited
from everloop.errors import EverloopError, InvalidInput, NotFound
from everloop.ports.blobs import BlobStore
from everloop.transfer.report import Findings, TransferReport

__all__ = ["IMPORTED", "DvcImporter"]

#: Kinds in the order of the report.
IMPORTED = ("output", "dataset version", "tag")
_MD5 = re.compile(r"([0-9a-f]{2})([0-9a-f]{30})(\.dir)?")
#: Bytes of small files that are stored at once, and lines of Git or YAML that are believed.
_AT_ONCE = 8 << 20
_LARGEST = 256 << 20


class Home(Protocol):
    """What is needed of a workspace."""

    @property
    def data(self) -> DataService:
        """Datasets."""
        ...

    @property
    def files(self) -> FileService:
        """Versions of files."""
        ...

    @property
    def blobs(self) -> BlobStore:
        """The object store."""
        ...


class Output(NamedTuple):
    """What DVC keeps: a file or a directory at a path of the repository."""

    path: str
    md5: str
    is_executable: bool

    @property
    def is_directory(self) -> bool:
        return self.md5.endswith(".dir")


class _Lost(Exception):
    """An output that cannot be had whole, and why."""


class DvcImporter:
    """One import of a repository.

    Args:
        repo: Its folder, with ``.dvc`` in it.
        home: Where the data goes.
        names: Path of an output -> name of the dataset; others are called by their path, with a
            point for each slash.
        tell: Called with a line of progress now and then.
    """

    def __init__(
        self,
        repo: Path,
        home: Home,
        names: dict[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._repo = Path(os.path.abspath(repo))
        if not (self._repo / ".dvc").is_dir():
            raise InvalidInput(f"{repo} is no repository of DVC", hint="it has a folder .dvc")
        self._home = home
        self._names = names
        self._tell = tell
        self._findings = Findings(IMPORTED)
        self._caches = list(_caches(self._repo))
        self._stored: dict[str, Entry] = {}

    def run(self, revisions: Sequence[str]) -> TransferReport:
        """Import the working tree, or revisions of Git, in this order; twice is once.

        Raises:
            InvalidInput: If it is no repository of Git and revisions are given.
            NotFound: If there is no such revision.
        """
        if not revisions:
            self._import(_Folder(self._repo), "the working tree")
        commits = [(revision, *_commit(self._repo, revision)) for revision in revisions]
        for revision, commit, date in commits:
            self._tell(f"{revision} ...")
            made = self._import(_Revision(self._repo, commit), f"{commit[:12]} of {date}")
            if _is_tag(self._repo, revision):
                self._tag(made, revision)
        return self._findings.report(str(self._repo))

    def _import(self, source: _Folder | _Revision, what: str) -> list[DatasetVersion]:
        made = []
        taken: dict[str, str] = {}
        for output in self._outputs(source):
            self._findings.add("output", found=1)
            name = self._name(output.path)
            if taken.setdefault(name, output.path) != output.path:
                reason = f"{taken[name]} has this name too: name one of them otherwise"
                self._findings.fail("output", output.path, reason)
                continue
            try:
                made.append(self._take(output, name, f"DVC {output.path}, {what}"))
            except _Lost as error:
                self._findings.fail("output", output.path, str(error))
            except EverloopError as error:
                self._findings.fail("output", output.path, error.message)
        return made

    def _name(self, path: str) -> str:
        if path in self._names:
            return self._names[path]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.replace("/", ".")).lstrip(".-")
        return name[:200] or "data"

    # --- what there is ------------------------------------------------------------------------

    def _outputs(self, source: _Folder | _Revision) -> Iterator[Output]:
        seen: dict[str, str] = {}
        for name in sorted(source.names()):
            try:
                document = yaml.safe_load(source.read(name))
            except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
                self._findings.fail("output", name, f"is no YAML: {str(error).splitlines()[0]}")
                continue
            for found in _outs(document, name):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(name), found.path))
                if found.problem or posixpath.isabs(path) or path.split("/")[0] in ("..", "."):
                    reason = found.problem or "lies outside of the repository"
                    self._findings.fail("output", f"{name}: {found.path}", reason)
                elif path not in seen:
                    seen[path] = found.md5
                    yield Output(path, found.md5, found.is_executable)
                elif seen[path] != found.md5:
                    self._findings.fail("output", path, f"{name} says it is another one")

    # --- taking it ----------------------------------------------------------------------------

    def _take(self, output: Output, name: str, note: str) -> DatasetVersion:
        if output.is_directory:
            wanted = self._listed(output)
        else:
            wanted = {posixpath.basename(output.path): output.md5}
        edits: dict[bytes, Entry | None] = {}
        lost = []
        for path, entry in self._entries(wanted, output.is_executable):
            if isinstance(entry, str):
                lost.append(f"{path}: {entry}")
            else:
                edits[os.fsencode(path)] = entry
        if lost:
            shown = "; ".join(lost[:5])
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            raise _Lost(f"{len(lost)} files cannot be had ({shown}{more}); try dvc fetch")
        tree = edited(self._home.blobs.get_many, "", edits)
        self._home.blobs.put_many(list(tree.objects.values()))
        kind: Literal["directory", "file"] = "directory" if output.is_directory else "file"
        known = self._known(name)
        there = [v for v in known if v.root == tree.digest and v.note == note]
        same = known[-1:] if known and known[-1].root == tree.digest else []
        self._findings.add("dataset version", found=1)
        if there or same:
            self._findings.add("dataset version", there=1)
            return (there or same)[0]
        made: DatasetVersion = self._home.files.commit(name, tree.digest, kind=kind, note=note)
        self._findings.add("dataset version", imported=1)
        self._findings.bytes += tree.size
        return made

    def _known(self, name: str) -> list[DatasetVersion]:
        try:
            return list(self._home.data.versions(name))
        except NotFound:
            return []

    def _listed(self, output: Output) -> dict[str, str]:
        """The files of a directory: path and MD5."""
        data = self._cached(output.md5)
        try:
            listed = json.loads(data)
            found = {str(item["relpath"]): str(item["md5"]) for item in listed}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _Lost(f"its list of files is none: {error}") from None
        if len(found) != len(listed):
            raise _Lost("its list of files names one twice")
        wrong = [path for path in found if not _is_within(path)]
        if wrong:
            shown = ", ".join(map(repr, wrong[:5]))
            raise _Lost(f"its list of files names what no directory holds: {shown}")
        above = {path[:n] for path in found for n in range(len(path)) if path[n] == "/"}
        if clash := sorted(above & found.keys()):
            raise _Lost(f"{clash[0]!r} is a file and a directory")
        return found

    def _entries(
        self, wanted: dict[str, str], is_executable: bool
    ) -> Iterator[tuple[str, Entry | str]]:
        """Each path with its entry, or why there is none; what was not stored yet is stored."""
        waiting: list[bytes] = []
        size = 0
        for path, md5 in wanted.items():
            known = self._stored.get(md5)
            if known is None:
                try:
                    known, data = self._read(md5)
                except _Lost as error:
                    yield path, str(error)
                    continue
                self._stored[md5] = known
                waiting += [data] if data is not None else []
                size += len(data or b"")
            if size >= _AT_ONCE:
                self._home.blobs.put_many(waiting)
                waiting, size = [], 0
            kinds: dict[str, Literal["x", "X"]] = {"f": "x", "F": "X"}
            kind = kinds[known.kind] if is_executable else known.kind
            yield path, Entry(b"", kind, known.content, known.size, 1)
        self._home.blobs.put_many(waiting)

    def _read(self, md5: str) -> tuple[Entry, bytes | None]:
        file, is_old = self._file(md5)
        if file.stat().st_size <= LARGE:
            data = self._cached(md5)
            return Entry(b"", "f", blake3(data).digest(), len(data), 1), data
        with open(file, "rb") as handle:
            if md5 not in _digests(handle, is_old=is_old):
                raise _Lost("the cache has other bytes than its MD5 says")
            os.lseek(handle.fileno(), 0, os.SEEK_SET)
            storing = Storing(self._home.blobs.put_many)
            try:
                digest, size = chunked(handle.fileno(), storing.put)
            finally:
                storing.close()
        return Entry(b"", "F", bytes.fromhex(digest), size, 1), None

    def _cached(self, md5: str) -> bytes:
        """A small object of the cache, held against its MD5."""
        file, is_old = self._file(md5)
        if file.stat().st_size > _LARGEST:
            raise _Lost(f"{file.name} is no list of files: it is too large")
        data = file.read_bytes()
        digests = _digests(io.BytesIO(data), is_old=is_old)
        if md5.removesuffix(".dir") not in digests:
            raise _Lost("the cache has other bytes than its MD5 says")
        return data

    def _file(self, md5: str) -> tuple[Path, bool]:
        """The file of an object, and whether it lies where DVC before 3 put it."""
        parts = _MD5.fullmatch(md5)
        if parts is None:
            raise _Lost(f"{md5[:50]!r} is no MD5")
        inner = Path(parts[1]) / (parts[2] + (parts[3] or ""))
        for cache in self._caches:
            for folder, is_old in ((cache / "files" / "md5", False), (cache, True)):
                if (folder / inner).is_file():
                    return folder / inner, is_old
        raise _Lost(f"{md5} is not in the cache")

    def _tag(self, made: list[DatasetVersion], tag: str) -> None:
        for version in made:
            name = f"{version.dataset}@{tag}"
            self._findings.add("tag", found=1)
            known = {one.tag: one.number for one in self._home.data.tags(version.dataset)}
            if known.get(tag) == version.number:
                self._findings.add("tag", there=1)
                continue
            try:
                self._home.data.tag(version.dataset, tag, version.number, expected=0)
            except EverloopError as error:
                self._findings.fail("tag", name, error.message)
            else:
                self._findings.add("tag", imported=1)


def _digests(file: BinaryIO, *, is_old: bool) -> set[str]:
    """The MD5 of a file; DVC before 3 took that of text with Unix line ends."""
    plain, unix = (hashlib.md5(usedforsecurity=False) for _ in range(2))
    rest = b""
    while data := file.read(_AT_ONCE):
        plain.update(data)
        if is_old:
            data = rest + data
            rest = b"\r" if data.endswith(b"\r") else b""
            unix.update(data[: len(data) - len(rest)].replace(b"\r\n", b"\n"))
    unix.update(rest)
    return {plain.hexdigest(), unix.hexdigest()} if is_old else {plain.hexdigest()}


def _is_within(path: str) -> bool:
    try:
        names = os.fsencode(path).split(b"/")
    except UnicodeEncodeError:
        return False
    return all(0 < len(n) <= 255 and n not in (b".", b"..") and b"\0" not in n for n in names)


# --- where things are said ------------------------------------------------------------------------


class _Found(NamedTuple):
    path: str
    md5: str
    is_executable: bool
    problem: str


def _outs(document: Any, name: str) -> Iterator[_Found]:
    """The outputs of a ``.dvc`` file or of a ``dvc.lock``, relative to its folder."""
    if not isinstance(document, dict):
        yield _Found("", "", False, "is no file of DVC")
        return
    groups = [(document, document.get("wdir", "."))]
    if posixpath.basename(name) == "dvc.lock":
        stages = document.get("stages", document)  # before DVC 2 the stages were the document
        stages = stages if isinstance(stages, dict) else {}
        groups = [(stage, ".") for stage in stages.values() if isinstance(stage, dict)]
    for group, folder in groups:
        outs = group.get("outs")
        for out in outs if isinstance(outs, list) else []:
            path = out.get("path") if isinstance(out, dict) else None
            if not isinstance(path, str) or not path or not isinstance(folder, str):
                yield _Found(str(path)[:200], "", False, "has no path")
                continue
            md5, problem = out.get("md5"), ""
            if not isinstance(md5, str) or out.get("hash", "md5") not in ("md5", "md5-dos2unix"):
                problem = "has no MD5: it is not in the cache of DVC"
            elif out.get("cache") is False:
                problem = "is kept by Git and not in the cache"
            elif "://" in path or posixpath.isabs(path):
                problem = "lies outside of the repository"
            is_executable = out.get("isexec") is True
            where = posixpath.normpath(posixpath.join(folder, path))
            yield _Found(where, str(md5), is_executable, problem)


class _Folder:
    """The working tree."""

    def __init__(self, repo: Path) -> None:
        self._repo = repo

    def names(self) -> list[str]:
        found: list[str] = []
        for here, folders, names in os.walk(self._repo):
            folders[:] = [n for n in folders if n not in (".git", ".dvc", ".everloop")]
            found += [os.path.relpath(os.path.join(here, n), self._repo) for n in names if _says(n)]
        return found

    def read(self, name: str) -> bytes:
        return (self._repo / name).read_bytes()


class _Revision:
    """A commit of Git."""

    def __init__(self, repo: Path, commit: str) -> None:
        self._repo = repo
        self._commit = commit

    def names(self) -> list[str]:
        listed = _git(self._repo, "ls-tree", "-r", "-z", "--name-only", self._commit)
        names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
        return [name for name in names if _says(posixpath.basename(name)) and ".dvc/" not in name]

    def read(self, name: str) -> bytes:
        return _git(self._repo, "cat-file", "blob", f"{self._commit}:./{name}")


def _says(name: str) -> bool:
    return name == "dvc.lock" or (name.endswith(".dvc") and name != ".dvc")


def _commit(repo: Path, revision: str) -> tuple[str, str]:
    """Full name and date of a revision."""
    if revision.startswith("-"):
        raise NotFound(f"no revision {revision!r}")
    try:
        found = _git(repo, "log", "-1", "--format=%H %cI", "--end-of-options", revision, "--")
    except InvalidInput as error:
        if not (repo / ".git").exists() and not any((p / ".git").exists() for p in repo.parents):
            raise InvalidInput(f"{repo} is no repository of Git, so it has no revisions") from error
        raise NotFound(f"no revision {revision!r} of {repo}") from error
    commit, _, date = found.decode().strip().partition(" ")
    return commit, date


def _is_tag(repo: Path, revision: str) -> bool:
    try:
        _git(repo, "show-ref", "--verify", "--quiet", f"refs/tags/{revision}")
    except InvalidInput:
        return False
    return True


def _git(repo: Path, *words: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(repo), *words], capture_output=True, check=False, timeout=300
        )
    except FileNotFoundError as error:
        raise InvalidInput("revisions are read by git, which is not installed") from error
    if done.returncode:
        raise InvalidInput(f"git {words[0]}: {done.stderr.decode(errors='replace').strip()[:300]}")
    return done.stdout


def _caches(repo: Path) -> Iterator[Path]:
    """Where objects may be: the cache that is configured, then the usual one."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read(repo / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        stated = parser.get("cache", "dir", fallback="")
        if stated:
            yield repo / ".dvc" / os.path.expanduser(stated)
    yield repo / ".dvc" / "cache"
