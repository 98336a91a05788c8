"""What a run that a program opens was made of: code, repository, environment, machine, command."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from everloop.core.project import distribution_of, is_project, module_file, module_name
from everloop.core.run import Run
from everloop.errors import EverloopError
from everloop.ports.blobs import BlobStore
from everloop.tracking.surroundings import diff_of, environment_of, git_of, snapshot_code

__all__ = ["command_line", "describe"]

_SECRET = re.compile(r"pass(word|wd|phrase)?|secret|token|api[-_]?key|credential", re.IGNORECASE)


def describe(workspace: Any, run: Run) -> None:
    """Record what the run is made of; beside the run, as it may take a while."""
    folder, blobs = _folder(), workspace.blobs
    try:
        workspace.tracking.annotate_run(
            run.id,
            run.fence,
            code=snapshot_code(_project_files(), blobs),
            git=_repository(folder, blobs),
            environment={**environment_of(_distributions()), **_machine(), **_command()},
        )
    except EverloopError:
        # The run's own commits meet the same trouble and report it; this is only its record.
        return


def command_line(arguments: list[str]) -> str:
    """The command as it could be typed again; values that look like secrets are left out."""
    shown, hide = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_option = argument.startswith("-")
        if hide and not is_option:
            argument = "***"
        elif equals and _SECRET.search(name):
            argument = f"{name}=***"
        hide = is_option and not equals and bool(_SECRET.search(argument))
        shown.append(shlex.quote(argument) if "***" not in argument else argument)
    return " ".join(shown)


def _folder() -> Path:
    file = module_file(sys.modules["__main__"])
    return Path(file).absolute().parent if file else Path.cwd()


def _project_files() -> dict[str, str]:
    found = {}
    for name in list(sys.modules):
        file = module_file(sys.modules[name]) if is_project(name) else ""
        if file.endswith(".py"):
            found[module_name(name)] = file
    return found


def _distributions() -> dict[str, str]:
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    known = [distribution_of(top) for top in sorted(tops) if not is_project(top)]
    return {name: version for name, version in known if name and version}


def _repository(folder: Path, blobs: BlobStore) -> dict[str, str]:
    found = git_of(folder)
    if found.get("dirty") == "yes" and (diff := diff_of(folder, blobs)):
        found["diff"] = diff
    return found


def _command() -> dict[str, str]:
    arguments = getattr(sys, "orig_argv", sys.argv)
    return {"command": command_line(list(arguments))[:4000]}


def _machine() -> dict[str, str]:
    found = {"hardware.cpus": str(os.cpu_count() or 0)}
    if hasattr(os, "sched_getaffinity"):
        found["hardware.cpus_usable"] = str(len(os.sched_getaffinity(0)))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["hardware.memory_bytes"] = str(memory)
    # The driver tells without a library.
    for index, file in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                found[f"hardware.gpu_{index}"] = line.partition(":")[2].strip()
    return found
