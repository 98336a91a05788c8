"""Where MLflow's clients find artifacts: URIs of runs and models, and paths in this store."""

from __future__ import annotations

from collections.abc import Iterable

from everloop.api.mlflow_wire import NotServed
from everloop.core.run import Experiment, LoggedModel, Run
from everloop.tracking.limits import clean_path
from everloop.tracking.places import OURS, path_within
from everloop.workspace import Workspace

__all__ = ["below", "location_of", "locations", "model_uri", "run_uri", "stored"]


def location_of(experiment: Experiment) -> str:
    """URI under which the artifacts of an experiment lie."""
    return experiment.location or f"{OURS}{experiment.id}"


def locations(workspace: Workspace, experiments: Iterable[str]) -> dict[str, str]:
    """The location of each experiment by its id."""
    return {id_: location_of(workspace.tracking.experiment(id_)) for id_ in set(experiments)}


def run_uri(run: Run, location: str) -> str:
    """URI of a run's artifacts."""
    return f"{location}/{run.id}/artifacts"


def model_uri(model: LoggedModel, location: str) -> str:
    """URI of a logged model's files."""
    return f"{location}/models/{model.id}/artifacts"


def below(path: str) -> str:
    """`path` below a folder of artifacts, without steps that go nowhere: clients ask for ``.``.

    Raises:
        InvalidInput: If it leaves the folder.
    """
    return clean_path("/".join(part for part in path.split("/") if part != "."), empty=True)


def stored(uri: str) -> str:
    """The path in our store that a URI names.

    Raises:
        NotServed: If it lies elsewhere: this server never fetches for a client.
    """
    path = path_within(uri)
    if path is None:
        raise NotServed(f"The artifacts lie at {uri[:200]!r}, which this server does not read")
    return path
