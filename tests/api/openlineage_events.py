"""Events in the shape that the OpenLineage integrations of Spark, Airflow and dbt send them.

A nightly story: an Airflow task starts a Spark job that reads two paths and writes a third, which
is also a table of the catalog; dbt then builds a model from that table.
"""

from __future__ import annotations

from typing import Any

SPARK = "https://github.com/OpenLineage/OpenLineage/tree/1.38.0/integration/spark"
AIRFLOW = "https://github.com/apache/airflow/tree/providers-openlineage/2.2.0"
DBT = "https://github.com/OpenLineage/OpenLineage/tree/1.40.0/integration/dbt"
_SPEC = "https://openlineage.io/spec"

DAG_RUN = "01908223-0782-79b8-9495-b1c38aaee839"
TASK_RUN = "01908223-0782-7fc0-9d69-b1df9dac2c60"
SPARK_RUN = "01904485-d04b-793d-ad79-1caae6f2e5d1"
DBT_RUN = "019a977e-6c3f-7b18-a638-05655c338077"

LAKE = {"namespace": "s3://lake", "name": "flights/clean"}


def facet(producer: str, schema: str, /, **values: Any) -> dict[str, Any]:
    url = f"{_SPEC}/facets/1-0-0/{schema}.json#/$defs/{schema}"
    return {"_producer": producer, "_schemaURL": url, **values}


def _event(producer: str, kind: str | None, at: str, **parts: Any) -> dict[str, Any]:
    event = {
        "eventTime": at,
        "producer": producer,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "inputs": [],
        "outputs": [],
        **parts,
    }
    return event if kind is None else {"eventType": kind, **event}


def _dataset(namespace: str, name: str, **more: Any) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, **more}


def airflow_dag(
    kind: str = "START", at: str = "2013-03-30T02:00:00.979349+00:00"
) -> dict[str, Any]:
    """A DAG run: a job without datasets; what Airflow knows of it is in a facet of its own."""
    dag = {"dag_id": "nightly", "owner": "lake-team", "schedule_interval": "@daily", "tags": ["x"]}
    facets = {
        "nominalTime": facet(
            AIRFLOW, "NominalTimeRunFacet", nominalStartTime="2013-03-30T00:00:00+00:00"
        ),
        "airflowDagRun": facet(AIRFLOW, "BaseFacet", dag=dag, dagRun={"conf": {}, "run_id": "s1"}),
    }
    job_type = facet(
        AIRFLOW, "JobTypeJobFacet", integration="AIRFLOW", jobType="DAG", processingType="BATCH"
    )
    return _event(
        AIRFLOW,
        kind,
        at,
        run={"runId": DAG_RUN, "facets": facets},
        job={
            "namespace": "http://airflow-host:8081",
            "name": "nightly",
            "facets": {"jobType": job_type},
        },
    )


def airflow_task(kind: str = "START", at: str = "2013-03-30T02:00:04+00:00") -> dict[str, Any]:
    """A task, whose parent is the DAG."""
    parent = facet(
        AIRFLOW,
        "ParentRunFacet",
        job={"namespace": "http://airflow-host:8081", "name": "nightly"},
        run={"runId": DAG_RUN},
    )
    return _event(
        AIRFLOW,
        kind,
        at,
        run={"runId": TASK_RUN, "facets": {"parent": parent}},
        job={
            "namespace": "http://airflow-host:8081",
            "name": "nightly.clean_flights",
            "facets": {
                "ownership": facet(AIRFLOW, "OwnershipJobFacet", owners=[{"name": "lake-team"}])
            },
        },
    )


def spark(kind: str = "COMPLETE", at: str = "2013-03-30T02:09:36.109Z") -> dict[str, Any]:
    """A Spark command, whose parent is the task and whose root is the DAG."""
    parent = facet(
        SPARK,
        "ParentRunFacet",
        job={"namespace": "http://airflow-host:8081", "name": "nightly.clean_flights"},
        run={"runId": TASK_RUN},
        root={
            "job": {"namespace": "http://airflow-host:8081", "name": "nightly"},
            "run": {"runId": DAG_RUN},
        },
    )
    fields = [{"name": "flight", "type": "long"}, {"name": "dep_time", "type": "timestamp"}]
    source = {"namespace": "s3://raw", "name": "flights", "field": "flight"}
    used = {"type": "DIRECT", "subtype": "IDENTITY", "description": "", "masking": False}
    out = _dataset(
        LAKE["namespace"],
        LAKE["name"],
        facets={
            "dataSource": facet(SPARK, "DatasourceDatasetFacet", name="s3://lake", uri="s3://lake"),
            "schema": facet(SPARK, "SchemaDatasetFacet", fields=fields),
            "columnLineage": facet(
                SPARK,
                "ColumnLineageDatasetFacet",
                fields={"flight": {"inputFields": [{**source, "transformations": [used]}]}},
            ),
            "symlinks": facet(
                SPARK,
                "SymlinksDatasetFacet",
                identifiers=[
                    {"namespace": "hive://metastore:9083", "name": "lake.flights", "type": "TABLE"}
                ],
            ),
        },
        outputFacets={
            "outputStatistics": facet(
                SPARK, "OutputStatisticsOutputDatasetFacet", rowCount=336776, size=9_000_000
            )
        },
    )
    plan = [{"class": "org.apache.spark.sql.execution.datasources.InsertIntoHadoopFsRelation"}]
    return _event(
        SPARK,
        kind,
        at,
        run={
            "runId": SPARK_RUN,
            "facets": {
                "parent": parent,
                "spark.logicalPlan": facet(SPARK, "RunFacet", plan=plan),
                "processing_engine": facet(
                    SPARK, "ProcessingEngineRunFacet", version="3.5.1", name="spark"
                ),
            },
        },
        job={
            "namespace": "spark",
            "name": "clean_flights.execute_insert_into_hadoop_fs_relation_command.flights_clean",
            "facets": {},
        },
        inputs=[
            _dataset("s3://raw", "flights", facets={}, inputFacets={}),
            _dataset("s3://raw", "carriers"),
        ],
        outputs=[out],
    )


def dbt(kind: str = "COMPLETE", at: str = "2013-03-30T03:04:21.094242+00:00") -> dict[str, Any]:
    """A dbt model built from the table that Spark wrote."""
    run = facet(DBT, "DbtRunRunFacet", dbt_runtime="core", project_name="flights")
    return _event(
        DBT,
        kind,
        at,
        run={
            "runId": DBT_RUN,
            "facets": {"dbt_run": run, "dbt_version": facet(DBT, "Base", version="1.10.15")},
        },
        job={"namespace": "dbt", "name": "lake.analytics.flights.delays.build.run"},
        inputs=[_dataset("hive://metastore:9083", "lake.flights")],
        outputs=[_dataset("postgres://db:5432", "lake.analytics.delays")],
    )


def job_event() -> dict[str, Any]:
    """A job as it is designed, without a run."""
    return {
        "eventTime": "2013-03-29T00:00:00+00:00",
        "producer": DBT,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/JobEvent",
        "job": {"namespace": "dbt", "name": "lake.analytics.airports.run"},
        "inputs": [_dataset("s3://raw", "airports")],
        "outputs": [_dataset("postgres://db:5432", "lake.analytics.airports")],
    }


def dataset_event() -> dict[str, Any]:
    """A dataset as it is, without a job."""
    return {
        "eventTime": "2013-03-29T00:00:00+00:00",
        "producer": DBT,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/DatasetEvent",
        "dataset": _dataset(
            "s3://raw",
            "airports",
            facets={"ownership": facet(DBT, "OwnershipDatasetFacet", owners=[{"name": "ann"}])},
        ),
    }
