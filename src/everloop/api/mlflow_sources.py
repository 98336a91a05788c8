"""Where the files of a model version come from, and which run or logged model they belong to.

A source that a client forged could make others load what is no model of its run, so a source in
this store must lie within what the request names.
"""

from __future__ import annotations

import re

from everloop.api.mlflow_places import location_of, model_uri, run_uri
from everloop.core.model import ModelVersion
from everloop.core.run import Artifact
from everloop.errors import InvalidInput, NotFound
from everloop.tracking.limits import clean_path
from everloop.tracking.places import OURS, check_uri, path_within
from everloop.workspace import Workspace

__all__ = [
    "LOGGED_MODEL",
    "PROMPT_TAG",
    "check_prompt_source",
    "files_of_source",
    "files_uri",
    "run_of_source",
    "stored_uri",
]

#: What marks a model, and each version of it, as a prompt: its text is a tag, and it has no files.
PROMPT_TAG = "mlflow.prompt.is_prompt"
#: What clients send as the source of a prompt, which must be something.
_NO_SOURCE = ("dummy-source", "prompt-template")

LOGGED_MODEL = re.compile(r"models:/(m-[\w-]+)")

_VERSION = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>[^/@]+)|@(?P<alias>[^/@]+))")
_OF_RUN = re.compile(r"runs:/+(?P<run>[^/]+)(/|$)")


def run_of_source(workspace: Workspace, source: str, run_id: str, model_id: str) -> str:
    """Check the source of a new version; the run that made what lies there, or empty.

    Raises:
        InvalidInput: If it climbs, is a path of the client's machine, or lies outside the run or
            logged model that the request names.
        NotFound: If it names a version or logged model that is not there.
    """
    check_uri(source, _wrong(source))
    scheme = source.partition(":")[0].lower() if ":" in source else ""
    made_by = run_id
    if model_id:
        made_by = workspace.tracking.logged_model(model_id).source_run_id or run_id
    if scheme == "models":
        return _of_model(workspace, source, model_id, made_by)
    if scheme == "runs":
        run = _OF_RUN.match(source)
        if run is None or run["run"] != run_id:
            raise _outside(source, "run_id")
    elif scheme == "mlflow-artifacts":
        _check_stored(workspace, source, run_id, model_id)
    elif scheme in ("", "file") or len(scheme) == 1:
        _check_local(workspace, source, run_id, model_id)
    return made_by


def check_prompt_source(source: str) -> None:
    """Refuse a source of a prompt: it has no files, and could lead to those of others.

    Raises:
        InvalidInput: If it is none of the words that clients send in its place.
    """
    if source not in _NO_SOURCE:
        raise InvalidInput(
            f"Invalid prompt source: {source[:200]!r}. A prompt has no files; its source must be "
            f"{_NO_SOURCE[0]!r}."
        )


def _of_model(workspace: Workspace, source: str, model_id: str, made_by: str) -> str:
    if logged := LOGGED_MODEL.fullmatch(source):
        if logged[1] != model_id:
            raise _outside(source, "model_id")
        return made_by
    named = _VERSION.fullmatch(source)
    if named is None:
        raise _outside(source, "model_id")
    found = _version_of(workspace, named)
    if found is None:
        raise _wrong(source)
    return found.run_id or made_by


def _version_of(workspace: Workspace, named: re.Match[str]) -> ModelVersion | None:
    registry, name = workspace.registry, named["name"]
    if registry.model(name).tags.get(PROMPT_TAG, "").lower() == "true":
        raise InvalidInput(f"{_wrong(named.string)}. A prompt cannot be the source of a model.")
    if alias := named["alias"]:
        if alias not in registry.model(name).aliases:
            raise InvalidInput(f"Registered model alias {alias} not found.")
        return registry.by_alias(name, alias)
    if re.fullmatch(r"[0-9]{1,9}", named["version"]):
        return registry.version(name, int(named["version"]))
    return registry.latest(name) if named["version"].lower() == "latest" else None


def _roots(workspace: Workspace, run_id: str, model_id: str) -> list[str]:
    """URIs of the folders that belong to what a request names."""
    roots = []
    if model_id:
        model = workspace.tracking.logged_model(model_id)
        location = location_of(workspace.tracking.experiment(model.experiment))
        roots.append(model_uri(model, location))
        run_id = run_id or model.source_run_id
    try:
        run = workspace.tracking.run(run_id)
    except NotFound:
        return roots  # nothing lies within a run that is not there
    location = location_of(workspace.tracking.experiment(run.experiment))
    return [*roots, run_uri(run, location)]


def _check_stored(workspace: Workspace, source: str, run_id: str, model_id: str) -> None:
    if not source.startswith(OURS) or source.startswith(f"{OURS}/"):
        raise _wrong(source)
    if not _lies_in(source, _roots(workspace, run_id, model_id)):
        raise _outside(source, "run_id")


def _check_local(workspace: Workspace, source: str, run_id: str, model_id: str) -> None:
    roots = _roots(workspace, run_id, model_id)
    plain = [root.removeprefix("file://") for root in roots if not root.startswith(OURS)]
    if not _lies_in(source.removeprefix("file://"), plain):
        raise InvalidInput(
            f"Invalid model version source: {source[:200]!r}. To use a local path as a model "
            "version source, let it lie in the artifact directory of the run_id or model_id that "
            "is given, or log the model to this server first"
        )


def _lies_in(source: str, roots: list[str]) -> bool:
    plain = source.rstrip("/")
    return any(plain == root or plain.startswith(f"{root}/") for root in roots)


def files_uri(workspace: Workspace, name: str, number: int) -> str:
    """Where clients find the files of a version.

    Raises:
        NotFound: If it was not registered by a client of this kind.
    """
    source = workspace.registry.version(name, number).source
    if logged := LOGGED_MODEL.fullmatch(source):
        return _logged_uri(workspace, logged[1])
    named = _VERSION.fullmatch(source)
    if named and (named["version"] or "").isdecimal():  # an alias may have moved since
        return files_uri(workspace, named["name"], int(named["version"]))
    if not source:
        raise NotFound(
            f"Model Version (name={name}, version={number}) was not logged by MLflow "
            "and has no artifacts of its kind"
        )
    return source


def stored_uri(workspace: Workspace, name: str, number: int) -> str:
    """The same, with a source within a run resolved to where the run's files lie."""
    return _stored_uri(workspace, files_uri(workspace, name, number))


def files_of_source(workspace: Workspace, source: str) -> list[Artifact]:
    """What lies in this store at a source that was checked, by path within it."""
    of_version = _VERSION.fullmatch(source)
    if of_version and not LOGGED_MODEL.fullmatch(source):
        found = _version_of(workspace, of_version)
        return list(found.files) if found else []
    path = path_within(_stored_uri(workspace, source))
    if not path:
        return []
    files = _walk(workspace, clean_path(path))
    start = len(clean_path(path)) + 1
    return [Artifact(path=f.path[start:], digest=f.digest, size=f.size) for f in files]


def _stored_uri(workspace: Workspace, source: str) -> str:
    if logged := LOGGED_MODEL.fullmatch(source):
        return _logged_uri(workspace, logged[1])
    if of_run := _OF_RUN.match(source):
        run = workspace.tracking.run(of_run["run"])
        location = location_of(workspace.tracking.experiment(run.experiment))
        return f"{run_uri(run, location)}/{source[of_run.end() :]}"
    return source


def _walk(workspace: Workspace, folder: str) -> list[Artifact]:
    found = []
    for item in workspace.tracking.list_artifacts(folder):
        found += [item] if item.digest else _walk(workspace, item.path)
    return found


def _logged_uri(workspace: Workspace, model_id: str) -> str:
    model = workspace.tracking.logged_model(model_id)
    return model_uri(model, location_of(workspace.tracking.experiment(model.experiment)))


def _wrong(source: str) -> InvalidInput:
    return InvalidInput(
        f"Invalid model version source: {source[:200]!r}. If supplying a source as an http, https, "
        "ftp, object store or mlflow-artifacts URI, let it be absolute, with no relative parts"
    )


def _outside(source: str, field: str) -> InvalidInput:
    return InvalidInput(
        f"Invalid model version source: {source[:200]!r}. The {field} request parameter must "
        "identify the resource that contains the source."
    )
