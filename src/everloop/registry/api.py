"""``ev.register``: register a model in the current workspace, from a pipeline or by hand."""

from __future__ import annotations

from everloop.core.artifact import ModelArtifact
from everloop.core.context import current_workspace
from everloop.core.model import ModelVersion
from everloop.core.reads import fixed, note
from everloop.errors import NotFound
from everloop.features.sets import FeatureSet
from everloop.pipelines.api import current_run

__all__ = ["champion", "register"]


def register(
    name: str,
    artifact: ModelArtifact,
    *,
    feature_set: FeatureSet | None = None,
    alias: str = "",
    description: str = "",
) -> ModelVersion:
    """Register a model as a new version of `name`.

    Within a pipeline the version carries the run; the same model registered again in the same run
    (a resumed one) is the same version.

    Args:
        name: Of the model; it is made on first use.
        artifact: What ``ev.model(...)`` gave.
        feature_set: The features that it takes, where it takes a set: the definition is kept with
            it, so that it can be served without the code that made it.
        alias: Also move this alias to the new version.
        description: For people.

    Raises:
        InvalidInput: If the name or the alias has a wrong form.
        NotFound: If the model takes a feature set that nobody applied.
    """
    workspace, run = current_workspace(), current_run()
    known = fixed("register", name)
    if known is not None:  # the repetition of a run changes nothing
        done: ModelVersion = workspace.registry.version(name, int(known))
        return done
    if feature_set is not None:
        workspace.features.apply(feature_set)
    elif artifact.feature_set:
        workspace.features.feature_set(artifact.feature_set)  # it must be known already
    made: ModelVersion = workspace.registry.register(
        name,
        artifact,
        run_id=run.id if run else "",
        code=run.code if run else "",
        alias=alias,
        description=description,
    )
    note("register", name, str(made.version))
    return made


def champion(name: str) -> ModelVersion | None:
    """The version of `name` that serves as champion, or None while there is none."""
    registry = current_workspace().registry
    known = fixed("champion", name)
    if known is not None:
        then: ModelVersion | None = registry.version(name, int(known)) if known else None
        return then
    try:
        found: ModelVersion = registry.by_alias(name, "champion")
    except NotFound:
        note("champion", name, "")
        return None
    note("champion", name, str(found.version))
    return found
