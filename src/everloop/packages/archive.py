"""A package as one file, ``.elpkg``: a zip with its description and its objects, by digest.

What is read here may come from anybody. Nothing of it is unpacked to a path that it names, all of
it is held against its digests before the first object is stored, and all faults are told together.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
from blake3 import blake3

from everloop.core.package import Manifest, Package, from_bytes
from everloop.errors import BackendError, EverloopError, Fault, InvalidInput, NotFound, TooLarge
from everloop.pipelines.snapshot import MOST_CODE, read_tree, tree_faults
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    from everloop.packages.service import PackageService

__all__ = ["export_package", "import_package"]

_ABOUT = "package.json"
_OBJECTS = "objects/"
#: Bytes of all that a file may hold, and how many things.
_MOST, _MOST_MEMBERS = 2 * MOST_CODE, 20_000
#: Of a file of this format; another one is refused.
_FORMAT = "everloop package 1"
# As no file knows when it was written, the same package is the same file.
_WHEN = (1980, 1, 1, 0, 0, 0)


class Workplace(Protocol):
    """What a package comes from or goes to."""

    @property
    def blobs(self) -> BlobStore: ...
    @property
    def packages(self) -> PackageService: ...


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says beside the objects. The digest vouches for the package, not for this."""

    format: str
    digest: str
    git: dict[str, str] = {}
    builder: str = ""
    built_at: datetime
    reached: tuple[str, ...] = ()


def export_package(workspace: Workplace, ref: str, file: Path) -> Package:
    """Write a package to a file, which is there whole or not at all.

    Raises:
        NotFound: If there is no such package, or something of it is gone.
        BackendError: If the file cannot be written.
    """
    found = workspace.packages.package(ref)
    moves = workspace.packages.history(found.name)
    reached = [*found.reached, *(m.environment for m in moves if m.after == found.digest)]
    about = _About(
        format=_FORMAT,
        digest=found.digest,
        git=found.git,
        builder=found.builder,
        built_at=found.built_at,
        reached=tuple(dict.fromkeys(reached)),
    )
    digests = {found.digest, *_objects_of(found.manifest, workspace.blobs.get)}
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        with os.fdopen(handle, "wb") as target:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(_member(_ABOUT), msgspec.json.encode(about))
                for digest in sorted(digests):
                    archive.writestr(_member(f"{_OBJECTS}{digest}"), workspace.blobs.get(digest))
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise BackendError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return found


def _member(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, _WHEN)
    made.compress_type = zipfile.ZIP_DEFLATED
    made.external_attr = 0o644 << 16
    return made


def _objects_of(manifest: Manifest, get: Callable[[str], bytes]) -> set[str]:
    """Digests of everything that a manifest names."""
    tree = read_tree(get(manifest.code))
    return {manifest.code, *tree.values()} | ({manifest.lock} if manifest.lock else set())


def import_package(workspace: Workplace, file: Path) -> Package:
    """Take a package out of a file into a workspace; twice is once.

    Raises:
        NotFound: If there is no such file.
        InvalidInput: If it is not whole, or no package; says what and where, nothing is taken then.
        TooLarge: If it holds more than a package may.
    """
    if not file.is_file():
        raise NotFound(f"there is no file {file}")
    if file.stat().st_size > _MOST:
        raise TooLarge(f"{file} is above {_MOST // 10**6} MB, which no package is")
    try:
        with zipfile.ZipFile(file) as archive:
            about, objects = _read(archive, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(
            f"{file} is no whole package: {error}", hint="copy or export it again"
        ) from None
    except OSError as error:
        raise BackendError(f"{file} cannot be read: {error.strerror or error}") from error
    workspace.blobs.put_many(list(objects.values()))
    return workspace.packages.receive(
        about.digest,
        git=about.git,
        builder=about.builder,
        built_at=about.built_at,
        reached=list(about.reached),
        origin=file.name,
    )


def _read(archive: zipfile.ZipFile, file: Path) -> tuple[_About, dict[str, bytes]]:
    """What the file says, and its objects: exactly those of the package, as their digests say."""
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > _MOST or len(members) > _MOST_MEMBERS:
        raise TooLarge(
            f"{file} holds {len(members)} things of {total / 10**6:.0f} MB; a package holds at most"
            f" {_MOST_MEMBERS} of {_MOST // 10**6} MB"
        )
    faults = [fault for member in members if (fault := _fault_of(member))]
    names = [member.filename for member in members]
    often = Counter(names)
    faults += [Fault(n[:80], "is there twice") for n in sorted(often) if often[n] > 1]
    if _ABOUT not in names:
        faults.append(Fault(_ABOUT, "is missing"))
    if faults:
        raise InvalidInput(f"{file} is no package", faults)
    try:
        about = msgspec.json.decode(_bytes(archive, _ABOUT), type=_About)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is no package", [(_ABOUT, str(error))]) from None
    if about.format != _FORMAT:
        raise InvalidInput(
            f"{file} has format {about.format[:80]!r}, not {_FORMAT!r}",
            hint="upgrade Everloop: pip install --upgrade everloop",
        )
    return about, _objects(archive, about, names, file)


def _fault_of(member: zipfile.ZipInfo) -> Fault | None:
    name = member.filename
    digest = name.removeprefix(_OBJECTS)
    kind = stat.S_IFMT(member.external_attr >> 16)
    is_object = name != digest and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    if kind not in (0, stat.S_IFREG):
        return Fault(name[:80], "is a link or another thing that is no file")
    if name != _ABOUT and not is_object:
        return Fault(name[:80], "has no place in a package")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Fault(name[:80], "is compressed in a way that packages are not")
    return None


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        # Asked for as much, it unpacks no more than the member says it has, bomb or not.
        return member.read(archive.getinfo(name).file_size + 1)


def _objects(
    archive: zipfile.ZipFile, about: _About, names: list[str], file: Path
) -> dict[str, bytes]:
    faults: list[Fault] = []
    objects: dict[str, bytes] = {}
    for name in names:
        if name != _ABOUT:
            digest = name.removeprefix(_OBJECTS)
            objects[digest] = _bytes(archive, name)
            if blake3(objects[digest]).hexdigest() != digest:
                faults.append(Fault(name, "is not what its digest says"))
    try:
        if not faults:
            manifest = from_bytes(objects[about.digest])
            wanted = {about.digest, *_objects_of(manifest, objects.__getitem__)}
            tree = read_tree(objects[manifest.code])
            faults += tree_faults(tree)
            faults += [Fault(f"{_OBJECTS}{d}", "is missing") for d in sorted(wanted - set(objects))]
            faults += [
                Fault(f"{_OBJECTS}{d}", "is not of this package")
                for d in sorted(set(objects) - wanted)
            ]
    except KeyError as error:
        faults.append(Fault(f"{_OBJECTS}{str(error.args[0])[:80]}", "is missing"))
    except EverloopError as error:
        faults.append(Fault(_ABOUT, error.message))
    if faults:
        raise InvalidInput(f"{file} is no whole package", faults, hint="copy or export it again")
    return objects
