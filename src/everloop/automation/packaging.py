"""Builds packages: packs the files of a project, and tries them out by themselves.

The user's code is imported in processes of its own. The first looks at the project and says which
files it takes; the second imports what was packed, with nothing of the project beside it, and says
what that declares. So what is deployed elsewhere has been imported once already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from blake3 import blake3

from everloop.automation.triggers import collecting, declared
from everloop.core.package import NEVER, Manifest, Package, to_bytes
from everloop.core.policy import Automation, LoopSpec, RunPipeline
from everloop.core.project import distribution_of, is_project, module_file
from everloop.errors import (
    EverloopError,
    Fault,
    InvalidInput,
    NotFound,
    UserCodeError,
    error_from_wire,
    to_wire,
)
from everloop.packages.environment import find_lock, pins, python_version, unpinned, versions
from everloop.pipelines.api import Pipeline
from everloop.pipelines.code import CodePrint, fingerprint
from everloop.pipelines.definition import Step
from everloop.pipelines.load import load_module, load_pipeline
from everloop.pipelines.snapshot import (
    check_size,
    data_of,
    files_of,
    imported_names,
    left_out,
    unpack,
    with_imports,
)
from everloop.ports.blobs import BlobStore
from everloop.tracking.surroundings import (
    git_of,
    ignored_by_git,
    snapshot_code,
    top_of_git,
    unknown_to_git,
)

if TYPE_CHECKING:
    from everloop.packages.service import PackageService

__all__ = ["Built", "Contents", "build_package", "contents", "look_at", "tell"]

#: Never packed, whoever names them: what is hidden (``.env``, ``.netrc``), and keys.
_SECRET_ENDINGS = (".env", ".pem", ".key", ".p12", ".pfx")
_LOOK_S = 300.0


class Workplace(Protocol):
    """What packages are built in."""

    @property
    def blobs(self) -> BlobStore: ...
    @property
    def packages(self) -> PackageService: ...


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a file declares and what it takes, as a process that imported it found.

    Attributes:
        files: Module name -> file.
        data: Name in the package -> file, of the data files that the pipelines name.
        left_out: Data files that they name, and that are too large or lie elsewhere.
        outside: Modules of a project that do not lie in the folder of the file.
        loop_codes: By loop the digest of its pipeline's own code snapshot.
        distributions: Those that the files import.
        memory: Bytes that the hungriest step says it may use.
    """

    files: dict[str, str]
    data: dict[str, str]
    left_out: tuple[str, ...]
    outside: dict[str, str]
    loop_codes: dict[str, str]
    distributions: tuple[str, ...]
    pipelines: tuple[str, ...]
    loops: tuple[LoopSpec, ...]
    automations: tuple[Automation, ...]
    memory: int


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a build came to.

    Attributes:
        is_new: Whether there was no such package yet.
        left_out: Data files that the code names and that are not in the package, with the reason.
    """

    package: Package
    is_new: bool
    left_out: dict[str, str]


# --- in a process of its own ---------------------------------------------------------------------


def contents(entry: Path) -> Contents:
    """Import a file and all that it declares, in this process; say what it is made of.

    Raises:
        NotFound: If there is no such file, or it declares a pipeline that is not there.
        UserCodeError: If it raises.
    """
    entry = entry.resolve()
    with collecting():
        module = load_module(entry)
        specs = declared()
        paths = [path for spec in specs if (path := _pipeline_of(spec))]
        # A path given as text may lead to a file that nobody imports.
        found = [load_pipeline(path) for path in dict.fromkeys(paths)]
    own = {name: one for name, one in vars(module).items() if isinstance(one, Pipeline)}
    prints = [
        fingerprint(one.function) for one in {id(p): p for p in [*own.values(), *found]}.values()
    ]
    reached: dict[str, str] = {entry.stem: str(entry)}
    for print_ in prints:
        reached |= print_.files
    files = with_imports(reached)
    data: dict[str, str] = {}
    for print_ in prints:
        data |= data_of(print_)
    distributions = {name for print_ in prints for name in print_.distributions}
    distributions |= {
        distribution_of(name)[0] for file in files.values() for name in imported_names(file)
    }
    return Contents(
        files=files,
        data=data,
        left_out=tuple(sorted({file for p in prints for file in left_out(p)} - set(data.values()))),
        outside=_outside(entry.parent),
        distributions=tuple(sorted(distributions - {""})),
        pipelines=tuple(sorted(own)),
        loop_codes={
            s.name: _snapshot(fingerprint(load_pipeline(s.pipeline).function))
            for s in specs
            if isinstance(s, LoopSpec)
        },
        loops=tuple(s for s in specs if isinstance(s, LoopSpec)),
        automations=tuple(s for s in specs if isinstance(s, Automation)),
        memory=max((step.memory for step in _steps(files)), default=0),
    )


class _Digests:
    """Takes objects for their digests alone."""

    def put(self, data: bytes) -> tuple[str, int]:
        return blake3(data).hexdigest(), len(data)


def _snapshot(code: CodePrint) -> str:
    """The digest that a run of this code has."""
    return snapshot_code(files_of(code), _Digests(), data=data_of(code))


def _pipeline_of(spec: LoopSpec | Automation) -> str:
    if isinstance(spec, LoopSpec):
        return spec.pipeline
    return spec.action.pipeline if isinstance(spec.action, RunPipeline) else ""


def _outside(folder: Path) -> dict[str, str]:
    """Modules of this process that belong to a project and lie elsewhere, with their files."""
    return {
        name: file
        for name, module in sorted(sys.modules.items())
        if name != "__main__"
        and is_project(name)
        and (file := module_file(module))
        and not Path(file).resolve().is_relative_to(folder)
    }


def _steps(files: dict[str, str]) -> list[Step]:
    modules = [sys.modules[name] for name in files if name in sys.modules]
    return [one for module in modules for one in vars(module).values() if isinstance(one, Step)]


def tell(entry: Path, answer: Path) -> None:
    """Write what :func:`contents` finds to a file, or the error; the whole work of the process."""
    try:
        told: dict[str, Any] = {"contents": msgspec.to_builtins(contents(entry))}
    except EverloopError as error:
        told = {"error": to_wire(error)}
    answer.write_bytes(msgspec.json.encode(told))


def look_at(entry: str, folder: Path) -> Contents:
    """Have a process import the file `entry` in `folder`; what it found.

    Raises:
        UserCodeError: If the file raises when it is imported, or ends the process.
        EverloopError: As raised there.
    """
    with tempfile.TemporaryDirectory(prefix="everloop-look-") as name:
        answer = Path(name) / "answer.json"
        command = [sys.executable, "-m", "everloop", "_contents", entry, str(answer)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            # What the file prints as it is imported is talk: results go to stdout.
            done = subprocess.run(
                command, cwd=folder, env=environment, stdout=sys.stderr, timeout=_LOOK_S,
                check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserCodeError(f"importing {entry} took longer than {_LOOK_S:.0f} s") from None
        if not answer.exists():
            raise UserCodeError(
                f"importing {entry} ended the process with status {done.returncode}",
                hint="what it printed stands above",
            )
        told = json.loads(answer.read_bytes())
    if "error" in told:
        raise error_from_wire(told["error"])
    return msgspec.convert(told["contents"], Contents)


# --- building ------------------------------------------------------------------------------------


def build_package(
    workspace: Workplace,
    entry: Path,
    *,
    name: str = "",
    include: tuple[Path, ...] = (),
    lock: Path | None = None,
) -> Built:
    """Pack what a file declares with all that it needs of the project, and try it out.

    Args:
        workspace: Where to.
        entry: The file with loops, automations or pipelines.
        name: Of the package; by default that of its only loop, else of the file.
        include: Further files, or folders, below the current folder.
        lock: The project's lock file; by default the nearest one that has a known name.

    Raises:
        NotFound: If there is no such file.
        UserCodeError: If it raises when it is imported, also by itself; with its traceback.
        InvalidInput: If it takes what must not be packed, or was not tried with what its lock file
            says; all faults are listed.
        TooLarge: If it is above 100 MB; names the largest files.
    """
    if not entry.is_file():
        raise NotFound(f"there is no file {entry}", hint="give the path of a Python file")
    here = Path.cwd()
    top = top_of_git(entry.resolve().parent) or entry.resolve().parent
    seen = look_at(str(entry.absolute()), here)
    if not (seen.pipelines or seen.loops or seen.automations):
        raise InvalidInput(
            f"{entry} declares neither a pipeline nor a loop nor an automation",
            hint="package the file that does",
        )
    data, skipped = _data(seen, include, here, top)
    size = check_size(
        {**seen.files, **data},
        "the package",
        hint="keep data in datasets: everloop data commit",
    )
    code = snapshot_code(seen.files, workspace.blobs, data=data)
    with tempfile.TemporaryDirectory(prefix="everloop-package-") as folder:
        unpack(code, f"{entry.name}", workspace.blobs, Path(folder))
        alone = look_at(f"{entry.stem}.py", Path(folder))
        if alone.outside:
            raise InvalidInput(
                f"{entry} imports what is not in the package",
                [Fault(module, f"is {file}") for module, file in alone.outside.items()],
                hint="import it where its names are known, not by changing sys.path",
            )
    locked = lock or find_lock(entry.resolve().parent, top)
    text = locked.read_bytes() if locked is not None else b""
    distributions = versions(alone.distributions)
    if locked is not None:
        _check_lock(locked, text, distributions)
    manifest = Manifest(
        name=name or _name(alone, entry),
        code=code,
        entry=f"{entry.stem}.py",
        python=python_version(),
        distributions=distributions,
        lock=workspace.blobs.put(text)[0] if text else "",
        lock_name=locked.name if locked is not None and text else "",
        pipelines=alone.pipelines,
        loop_codes=seen.loop_codes,
        loops=tuple(msgspec.structs.replace(s, **_TIMELESS) for s in alone.loops),
        automations=tuple(
            msgspec.structs.replace(s, source=f"{entry.stem}.py", **_TIMELESS)
            for s in alone.automations
        ),
        memory=alone.memory,
        size=size,
    )
    digest = workspace.blobs.put(to_bytes(manifest))[0]
    known = _is_known(workspace, manifest.name, digest)
    git = git_of(top)
    if git and unknown_to_git(top, [*seen.files.values(), *data.values()]):
        git["dirty"] = "yes"
    added = workspace.packages.add(digest, git)
    return Built(package=added, is_new=not known, left_out=skipped)


_TIMELESS: dict[str, Any] = {"created_at": NEVER, "updated_at": NEVER}


def _is_known(workspace: Workplace, name: str, digest: str) -> bool:
    try:
        return bool(workspace.packages.package(f"{name}@{digest}"))
    except NotFound:
        return False


def _name(seen: Contents, entry: Path) -> str:
    return seen.loops[0].name if len(seen.loops) == 1 else entry.stem


def _data(
    seen: Contents, include: tuple[Path, ...], here: Path, top: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Data files by their names in the package, and those that are left out with the reason.

    Raises:
        InvalidInput: If a module is ignored by git, or an included file must not be packed.
    """
    included, faults = _included(include, here)
    ignored = ignored_by_git(top, [*seen.files.values(), *seen.data.values()])
    faults += [
        Fault(file, "is a module that git ignores")
        for file in sorted(set(seen.files.values()) & ignored)
    ]
    faults += [Fault(name, "may hold a secret") for name in included if _is_secret(name)]
    if faults:
        raise InvalidInput(
            "this must not be packed",
            faults,
            hint="read secrets where the package runs (ev.Secret); what is none can be added to git"
            " with: git add -f",
        )
    skipped = dict.fromkeys(seen.left_out, "larger than 16 MB, or not below the project")
    data = {}
    for name, file in seen.data.items():
        if _is_secret(name):
            skipped[file] = "may hold a secret"
        elif file in ignored:
            skipped[file] = "ignored by git"
        else:
            data[name] = file
    return {**data, **included}, {k: v for k, v in skipped.items() if k not in included.values()}


def _is_secret(name: str) -> bool:
    parts = Path(name).parts
    return any(part.startswith(".") for part in parts) or parts[-1].endswith(_SECRET_ENDINGS)


def _included(include: tuple[Path, ...], here: Path) -> tuple[dict[str, str], list[Fault]]:
    found: dict[str, str] = {}
    faults = []
    for place in include:
        full = (here / place).resolve()
        files = [full] if full.is_file() else sorted(f for f in full.rglob("*") if f.is_file())
        if not files:
            faults.append(Fault(str(place), "is no file, and no folder with files"))
        for file in files:
            real = file.resolve()
            if not real.is_relative_to(here):
                faults.append(Fault(str(place), "lies outside of the current folder"))
            elif "__pycache__" not in file.parts:
                found[file.relative_to(here).as_posix()] = str(real)
    return found, faults


def _check_lock(lock: Path, text: bytes, distributions: dict[str, str]) -> None:
    changes = unpinned(distributions, pins(lock.name, text))
    if changes:
        raise InvalidInput(
            f"this environment is not what {lock.name} says",
            [Fault(one.part, f"{one.now} is installed, {one.before} is locked") for one in changes],
            hint=f"install what is locked: pip install -r {lock.name}"
            if lock.suffix != ".toml" and lock.name.startswith("requirements")
            else "install what is locked",
        )
