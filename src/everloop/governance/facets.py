"""Facets of OpenLineage, made from what the catalog holds. Pure functions.

The names are OpenLineage's; https://openlineage.io/docs/spec/facets says what each one means.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from everloop.core.dataset import DatasetVersion, RowChangeSummary
from everloop.core.expr import Column
from everloop.core.feature import Aggregate, Feature, FeatureSetSpec, FeatureView
from everloop.core.run import Run
from everloop.core.schema import Field, Schema

__all__ = [
    "PRODUCER",
    "VERSION",
    "assertions",
    "column_lineage",
    "documentation",
    "extent",
    "facet",
    "iso",
    "job_type",
    "ownership",
    "quality",
    "schema_of_features",
    "schema_of_fields",
    "source",
    "source_code",
    "version",
]

VERSION = importlib.metadata.version("everloop")
PRODUCER = f"urn:everloop:{VERSION}"
_SPEC = "https://openlineage.io/spec/facets"
_RULES = ("not_null", "ge", "le", "among", "regex", "max_length", "unique")


def facet(name: str, revision: str, /, **values: Any) -> dict[str, Any]:
    """A facet of OpenLineage's class `name`, without what is None."""
    url = f"{_SPEC}/{revision}/{name}.json#/$defs/{name}"
    told = {key: value for key, value in values.items() if value is not None}
    return {"_producer": PRODUCER, "_schemaURL": url, **told}


def schema_of_fields(schema: Schema) -> dict[str, Any]:
    """The fields of a dataset."""
    fields = [
        {"name": f.name, "type": f.type, **({"description": _about(f)} if _about(f) else {})}
        for f in schema.fields
    ]
    return facet("SchemaDatasetFacet", "1-2-0", fields=fields)


def _about(field: Field) -> str:
    unit = f" [{field.unit}]" if field.unit else ""
    pii = f" (personal data: {field.pii})" if field.pii else ""
    return f"{field.description}{unit}{pii}".strip()


def schema_of_features(features: Iterable[Feature]) -> dict[str, Any]:
    """The features of a view or set as the fields of a dataset."""
    fields = [{"name": feature.name, "type": feature.type} for feature in features]
    return facet("SchemaDatasetFacet", "1-2-0", fields=fields)


def source(name: str, uri: str) -> dict[str, Any]:
    """Where a dataset lies."""
    return facet("DatasourceDatasetFacet", "1-0-1", name=name, uri=uri)


def version(number: object) -> dict[str, Any]:
    """Which version of a dataset."""
    return facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=str(number))


def documentation(text: str, *, job: bool = False) -> dict[str, Any]:
    """What people say of it."""
    name = "DocumentationJobFacet" if job else "DocumentationDatasetFacet"
    return facet(name, "1-1-0", description=text)


def ownership(owner: str, *, job: bool = False, role: str = "OWNER") -> dict[str, Any]:
    """Who answers for it."""
    name = "OwnershipJobFacet" if job else "OwnershipDatasetFacet"
    return facet(name, "1-0-1", owners=[{"name": owner, "type": role}])


def job_type(kind: str) -> dict[str, Any]:
    """What kind of job."""
    return facet(
        "JobTypeJobFacet", "2-0-4", processingType="BATCH", integration="EVERLOOP", jobType=kind
    )


def source_code(run: Run) -> dict[str, Any] | None:
    """Where the code of a run is: its repository where it names one, else the kept snapshot."""
    commit = run.git.get("commit") or run.tags.get("mlflow.source.git.commit")
    repository = run.git.get("remote") or run.tags.get("mlflow.source.git.repoURL")
    if not (repository or run.code):
        return None
    return facet(
        "SourceCodeLocationJobFacet",
        "1-1-0",
        type="git" if repository else "snapshot",
        url=repository or f"urn:everloop:code:{run.code}",
        repoUrl=repository,
        path=run.tags.get("mlflow.source.name"),
        version=commit or run.code,
        branch=run.git.get("branch") or run.tags.get("mlflow.source.git.branch"),
    )


def quality(made: DatasetVersion, *, for_input: bool = False) -> dict[str, Any]:
    """How much of it there is."""
    name, revision = "DataQualityMetricsDatasetFacet", "1-0-1"
    if for_input:
        name, revision = "DataQualityMetricsInputDatasetFacet", "1-0-3"
    rows, size, files = extent(made)
    return facet(name, revision, rowCount=rows, bytes=size, fileCount=files, columnMetrics={})


def extent(made: DatasetVersion) -> tuple[int | None, int, int]:
    """Rows, bytes and files of a version; files that are no table have no rows."""
    if made.kind == "table":
        return made.rows, sum(block.size for block in made.blocks), len(made.blocks)
    return None, made.size, made.files


def assertions(schema: Schema, changes: Iterable[RowChangeSummary]) -> dict[str, Any]:
    """Each rule of a schema, and whether every row that was given met it.

    A version exists only if no row broke a rule that refuses; of the others the ledger tells.
    """
    broken: dict[str, int] = {}
    for change in changes:
        broken[change.rule] = broken.get(change.rule, 0) + change.rows
    found = [
        {
            "assertion": kind,
            "success": not broken.get(name),
            "severity": "error" if on_fail == "fail" else "warn",
            "name": name,
            **({"column": column} if column else {}),
            **({"actual": f"{broken[name]} rows"} if broken.get(name) else {}),
            **({"content": content, "contentType": "sql"} if content else {}),
        }
        for name, kind, column, on_fail, content in _rules(schema)
    ]
    return facet("DataQualityAssertionsDatasetFacet", "1-1-0", assertions=found)


def _rules(schema: Schema) -> Iterator[tuple[str, str, str, str, str]]:
    """Name as in the ledger, kind, column, what a row gets that breaks it, and its text."""
    for field in schema.fields:
        for kind in _RULES:
            if _stated(field, kind):
                yield f"{field.name}.{kind}", kind, field.name, field.on_fail, ""
    if schema.key:
        yield "key.unique", "unique", "", "fail", ""
    for check in schema.checks:
        kind = "expression" if check.kind == "rows" else check.kind
        column = check.columns[0] if len(check.columns) == 1 else ""
        yield check.name, kind, column, check.on_fail, check.rule


def _stated(field: Field, kind: str) -> bool:
    if kind == "not_null":
        return not field.nullable
    value = getattr(field, kind)
    return value is not None if kind in ("ge", "le") else bool(value)


def column_lineage(definition: FeatureView | FeatureSetSpec, namespace: str) -> dict[str, Any]:
    """From which columns each feature comes, as its expression says."""
    if isinstance(definition, FeatureView):
        dataset = definition.source.dataset
        fields = {
            feature.name: _fields(feature, dict.fromkeys(feature.columns, dataset), namespace)
            for feature in definition.features
        }
    else:
        origin = {f.name: f"feature_views/{v.name}" for v in definition.views for f in v.features}
        fields = {}
        for feature in definition.features:
            if feature.name in origin:
                feature = Feature(feature.name, Column(feature.name), feature.type)
            columns = {name: origin[name] for name in feature.columns if name in origin}
            fields[feature.name] = _fields(feature, columns, namespace)
    return facet("ColumnLineageDatasetFacet", "1-2-0", fields=fields)


def _fields(feature: Feature, columns: dict[str, str], namespace: str) -> dict[str, Any]:
    subtype = "TRANSFORMATION"
    if isinstance(feature.value, Aggregate):
        subtype = "AGGREGATION"
    elif isinstance(feature.value, Column):
        subtype = "IDENTITY"
    how = {"type": "DIRECT", "subtype": subtype, "description": "", "masking": False}
    return {
        "inputFields": [
            {"namespace": namespace, "name": dataset, "field": name, "transformations": [how]}
            for name, dataset in columns.items()
        ]
    }


def iso(at: datetime) -> str:
    """A time as OpenLineage writes it."""
    return at.isoformat().replace("+00:00", "Z")
