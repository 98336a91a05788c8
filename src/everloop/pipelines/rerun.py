"""The exact repetition of a run: its code, arguments and data as they were, every step afresh.

`restore` puts the code snapshot into a folder, `environment_changes` says what is not as it was,
`repeat` executes in a process of its own, and `compare` tells which steps gave something else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from everloop.core.pipeline import PartChange, Rerun, StepComparison
from everloop.core.reads import READS_TAG, fixing, from_text
from everloop.core.run import Run, StepRun
from everloop.errors import NotFound, StateError
from everloop.pipelines.api import Pipeline
from everloop.pipelines.beside import content_beside, environment_digest
from everloop.pipelines.explain import changes
from everloop.pipelines.snapshot import unpack
from everloop.ports.blobs import BlobStore
from everloop.tracking.surroundings import environment_of

__all__ = ["RERUN_TAG", "compare", "environment_changes", "repeat", "repeatable", "restore"]

#: Tag of a repetition: the run that it repeats.
RERUN_TAG = "everloop.rerun_of"
_ENDED = ("finished", "failed", "killed", "lost")


def repeatable(workspace: Any, run_id: str) -> Run:
    """The run `run_id`, if it can be repeated.

    Raises:
        NotFound: If there is no such run.
        StateError: If it still runs, is no run of a pipeline, or has no code snapshot.
    """
    run: Run = workspace.tracking.run(run_id)
    if run.state not in _ENDED:
        raise StateError(f"run {run_id} is {run.state}", hint="wait until it has ended")
    if not run.pipeline:
        raise StateError(f"run {run_id} is no run of a pipeline", hint="see: everloop run list")
    if not run.code:
        raise StateError(
            f"run {run_id} has no code snapshot",
            hint="it ended before it was taken, or its code was not in files (a notebook)",
        )
    return run


def restore(run: Run, blobs: BlobStore, folder: Path) -> list[str]:
    """Write the code snapshot of `run` into `folder`; names of the files.

    Raises:
        NotFound: If objects of it are gone; nothing is executed then.
        InvalidInput: If a name in it leads out of the folder.
    """
    return unpack(run.code, f"run {run.id}", blobs, folder)


def environment_changes(
    run: Run, parts: Iterable[dict[str, str]], files: Iterable[str]
) -> tuple[PartChange, ...]:
    """What is not as it was: Python, distributions, declared variables, data files not kept.

    Args:
        run: The first run.
        parts: Of the keys of its steps.
        files: Those restored, which need not be compared.
    """
    then = {f"environment:{name}": value for name, value in run.environment.items()}
    here = environment_of({})
    now = {f"environment:{n}": here[n] if n in here else _version(n) for n in run.environment}
    kept = set(files)
    for part, value in sorted({item for of_step in parts for item in of_step.items()}):
        kind, _, name = part.partition(":")
        if kind == "env":
            then[part], now[part] = value, environment_digest(name)
        elif kind == "file" and not _is_kept(name, kept):
            then[part], now[part] = value, content_beside(name)[:32]
    return changes(then, now)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _is_kept(place: str, files: set[str]) -> bool:
    # Absolute places are kept under the folder of their modules, so their last part decides.
    name = place.strip("/")
    return any(f == name or name.endswith(f"/{f}") or f.startswith(f"{name}/") for f in files) or (
        os.path.isdir(place)
    )


def repeat(workspace: Any, run: Run, folder: Path, tell: Callable[[str], None]) -> None:
    """Execute the pipeline of `run` from `folder` as a new run, every step afresh.

    It takes this process: the folder comes first on the module path and is the current one.

    Args:
        workspace: Where both runs are.
        run: The first run.
        folder: What `restore` filled.
        tell: Told the id of the new run when it has ended, however it ended.

    Raises:
        NotFound: If the snapshot holds no such pipeline.
        UserCodeError: If the user's code raised; the new run failed.
    """
    started = Path.cwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    pipeline = _pipeline(run.pipeline, folder)
    arguments = pipeline.arguments_of(run.id)
    for name, value in arguments.items():
        if isinstance(value, Path) and not value.is_absolute() and not value.exists():
            arguments[name] = started / value
    answers = {("dataset", i.dataset): [str(i.version)] for i in run.inputs if i.version}
    answers |= from_text(run.tags.get(READS_TAG, ""))
    try:
        with fixing(run.id, answers):
            pipeline.run(force=True, **arguments)
    finally:
        if pipeline.run_id:
            workspace.tracking.set_tag(pipeline.run_id, RERUN_TAG, run.id)
            tell(pipeline.run_id)


def _pipeline(name: str, folder: Path) -> Pipeline[Any, Any]:
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        base = folder.joinpath(*parts[:count])
        if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
            found: Any = importlib.import_module(".".join(parts[:count]))
            for attribute in parts[count:]:
                found = getattr(found, attribute, None)
            if isinstance(found, Pipeline):
                return found
    raise NotFound(f"the code snapshot holds no pipeline {name}")


def compare(
    workspace: Any, run_id: str, rerun_id: str, environment: tuple[PartChange, ...] = ()
) -> Rerun:
    """Compare the outputs of two runs step by step."""
    service = workspace.pipelines
    before = [(row, _parts(service, row)) for row in service.steps(run_id)]
    now = [(row, _parts(service, row)) for row in service.steps(rerun_id)]
    pairs = _paired(before, now)
    rest = [item for item in now if all(item is not pair[1] for pair in pairs)]
    found = [_comparison(first, second) for first, second in pairs]
    found += [_comparison(None, item) for item in rest]
    same_end = len({workspace.tracking.run(r).state for r in (run_id, rerun_id)}) == 1
    equal = same_end and all(step.verdict in ("equal", "not compared") for step in found)
    return Rerun(
        run=run_id,
        rerun=rerun_id,
        equal=equal,
        state=workspace.tracking.run(rerun_id).state,
        steps=tuple(found),
        environment=environment,
    )


_Call = tuple[StepRun, dict[str, str]]


def _parts(service: Any, row: StepRun) -> dict[str, str]:
    memo = service.memo(row.key) if row.key else None
    # Which run a step that is never cached belongs to is no difference.
    return {k: v for k, v in memo.key.parts.items() if k not in ("run", "call")} if memo else {}


def _inputs(parts: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in parts.items() if k.startswith(("input:", "param:"))}


def _paired(before: list[_Call], now: list[_Call]) -> list[tuple[_Call, _Call | None]]:
    """Each call with the one that repeats it: of the same step with the same inputs, else the next.

    Steps that run side by side end in any order, so the order alone does not tell.
    """
    left = list(now)
    pairs: dict[int, _Call | None] = {}
    for is_alike in (_same_inputs, _same_step):
        for index, call in enumerate(before):
            if index not in pairs:
                match = next((item for item in left if is_alike(call, item)), None)
                if match is not None:
                    pairs[index] = match
                    left.remove(match)
    return [(call, pairs.get(index)) for index, call in enumerate(before)]


def _same_step(one: _Call, other: _Call) -> bool:
    return one[0].step == other[0].step


def _same_inputs(one: _Call, other: _Call) -> bool:
    return _same_step(one, other) and _inputs(one[1]) == _inputs(other[1])


def _comparison(first: _Call | None, second: _Call | None) -> StepComparison:
    present = first or second
    assert present is not None
    step = present[0].step
    then = first[0].output or first[0].error if first else ""
    now = second[0].output or second[0].error if second else ""
    if first is None or second is None:
        verdict: Any = "only now" if first is None else "only then"
        return StepComparison(step=step, before=then, now=now, verdict=verdict)
    differ = changes(first[1], second[1])
    if not then and not now:
        verdict = "not compared"
    elif then == now:
        verdict = "equal"
    else:
        moved = any(change.part.startswith(("input:", "param:")) for change in differ)
        verdict = "follows" if moved else "not deterministic"
    return StepComparison(step=step, before=then, now=now, verdict=verdict, changes=differ)
