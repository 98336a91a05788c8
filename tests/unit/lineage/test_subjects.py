"""How subjects are written: one name for one thing, whoever names it."""

from __future__ import annotations

import pytest

from everloop.core.lineage import check_subject, external_ref
from everloop.errors import InvalidInput


@pytest.mark.parametrize(
    ("namespace", "name", "ref"),
    [
        ("s3://lake", "flights", "external:s3://lake/flights"),
        ("s3://lake", "/flights", "external:s3://lake/flights"),
        ("s3://lake/", "flights", "external:s3://lake/flights"),
        ("s3://lake/flights", "", "external:s3://lake/flights"),
        ("file", "/data/x", "external:file:///data/x"),
        ("file:///data/x", "", "external:file:///data/x"),
        ("file://", "data/x", "external:file:///data/x"),
        ("postgres://db:5432", "lake.public.x", "external:postgres://db:5432/lake.public.x"),
        ("files", "x", "external:files/x"),
    ],
)
def test_one_dataset_has_one_name(namespace: str, name: str, ref: str) -> None:
    assert external_ref(namespace, name) == ref
    check_subject(ref)


def test_job_is_named_by_its_system() -> None:
    assert external_ref("http://host:8081", "dag.task", job=True) == "job:http://host:8081/dag.task"
    assert external_ref("file", "x", job=True) == "job:file/x"


def test_long_name_is_cut_and_stays_its_own() -> None:
    one, other = (external_ref("s3://x", "y" * 3000 + end) for end in "ab")
    assert one != other
    assert len(one) <= 521
    check_subject(one)
    check_subject(external_ref("s3://x", "\U0001f600" * 3000))


@pytest.mark.parametrize("wrong", ["", "x", "x:", ":x", "da ta:x", "run:\n", "run:" + "é" * 600])
def test_what_is_no_subject_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="names nothing"):
        check_subject(wrong)
