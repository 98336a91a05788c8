"""Where a version may come from, and where clients are told to fetch it."""

from __future__ import annotations

import pytest

from everloop.errors import InvalidInput
from tests.api.mlflow.door import ABSENT, Door


class Made:
    """A run, a logged model of it and a registered model, to write sources with."""

    def __init__(self, door: Door) -> None:
        self.run = door.run()
        self.logged = door.logged_model(source_run_id=self.run)
        self.local = door.experiment(artifact_location="/mnt/shared/exp")
        self.local_run = door.run(self.local)
        self.model = door.model("s3://bucket/first")
        body = {"name": self.model, "alias": "champion", "version": "1"}
        door.post("registered-models/alias", body)

    def write(self, text: str) -> str:
        for name, value in vars(self).items():
            text = text.replace(f"<{name}>", value)
        return text


@pytest.fixture(scope="module")
def made(door: Door) -> Made:
    return Made(door)


RUN = "mlflow-artifacts:/0/<run>/artifacts"
MODEL = "mlflow-artifacts:/0/models/<logged>/artifacts"


@pytest.mark.parametrize(
    ("source", "run_id", "model_id", "run_shown"),
    [
        ("s3://bucket/m", "", "", ""),
        ("s3://bucket/m", "<run>", "", "<run>"),
        ("s3://bucket/m", "no-such-run", "", "no-such-run"),
        ("dbfs:/models/m", "", "", ""),
        ("runs:/<run>/model", "<run>", "", "<run>"),
        ("runs:/<run>", "<run>", "", "<run>"),
        (RUN, "<run>", "", "<run>"),
        (f"{RUN}/", "<run>", "", "<run>"),
        (f"{RUN}/model/a b", "<run>", "", "<run>"),
        (f"{MODEL}/x", "", "<logged>", "<run>"),
        ("models:/<logged>", "", "<logged>", "<run>"),
        ("models:/<model>/1", "", "", ""),
        ("models:/<model>@champion", "", "", ""),
        ("models:/<model>/latest", "", "", ""),
        ("/mnt/shared/exp/<local_run>/artifacts/m", "<local_run>", "", "<local_run>"),
        ("file:///mnt/shared/exp/<local_run>/artifacts", "<local_run>", "", "<local_run>"),
    ],
)
def test_sources_that_are_good(
    door: Door, made: Made, source: str, run_id: str, model_id: str, run_shown: str
) -> None:
    body = {
        "name": door.model(),
        "source": made.write(source),
        "run_id": made.write(run_id),
        "model_id": made.write(model_id),
    }
    version = door.post("model-versions/create", body)["model_version"]
    assert version["source"] == body["source"]
    assert version.get("run_id", "") == made.write(run_shown)


@pytest.mark.parametrize(
    ("source", "run_id", "model_id"),
    [
        ("/etc/passwd", "", ""),
        ("/etc/passwd", "<run>", ""),
        ("/mnt/shared/exp/<local_run>/artifacts", "<run>", ""),
        ("/mnt/shared/exp/<local_run>/artifacts-of-others", "<local_run>", ""),
        ("/mnt/shared/exp/<local_run>/artifacts/../../x", "<local_run>", ""),
        ("file:///etc/passwd", "<run>", ""),
        ("file:etc/passwd", "<run>", ""),
        ("C:\\models\\m", "<run>", ""),
        ("C:/models/m", "<run>", ""),
        ("models", "<run>", ""),
        ("./models", "", ""),
        ("s3://bucket/../other", "", ""),
        ("s3://bucket/%2e%2e/other", "", ""),
        ("s3://bucket/%252e%252e%252fother", "", ""),
        ("s3://bucket/..\\other", "", ""),
        ("s3://bucket/m;..;/x", "", ""),
        ("http://host/m\n/x", "", ""),
        ("mlflow-artifacts:/../../etc", "<run>", ""),
        ("mlflow-artifacts:/0/other/artifacts", "<run>", ""),
        ("mlflow-artifacts://other-host/0/<run>/artifacts", "<run>", ""),
        ("mlflow-artifacts:0/<run>/artifacts", "<run>", ""),
        (RUN, "", ""),
        (RUN, "no-such-run", ""),
        (f"{RUN}-of-others", "<run>", ""),
        (f"{RUN}/../x", "<run>", ""),
        ("runs:/<run>/model", "", ""),
        ("runs:/<run>/model", "other", ""),
        ("runs:/<run>/../model", "<run>", ""),
        ("runs:/", "<run>", ""),
        ("models:/<logged>", "", ""),
        ("models:/<logged>", "<run>", ""),
        ("models:/", "", ""),
        ("models:/<model>/x", "", ""),
        ("models:/<model>@nobody", "", ""),
        ("", "", ""),
        ("   ", "", ""),
    ],
)
def test_sources_that_are_forged(
    door: Door, made: Made, source: str, run_id: str, model_id: str
) -> None:
    name = door.model()
    body = {
        "name": name,
        "source": made.write(source),
        "run_id": made.write(run_id),
        "model_id": made.write(model_id),
    }
    message = door.refused(door.send("POST", "model-versions/create", body))
    assert "source" in message or "alias" in message
    assert "latest_versions" not in door.get("registered-models/get", name=name)["registered_model"]


@pytest.mark.parametrize(
    ("source", "model_id", "said"),
    [
        ("models:/nobody/1", "", "Registered Model with name=nobody not found"),
        ("models:/<model>/99", "", "Model Version (name=<model>, version=99) not found"),
        ("models:/m-none", "m-none", "Logged model with ID 'm-none' not found"),
        ("s3://bucket/m", "m-none", "Logged model with ID 'm-none' not found"),
    ],
)
def test_sources_that_are_not_there(
    door: Door, made: Made, source: str, model_id: str, said: str
) -> None:
    body = {"name": door.model(), "source": made.write(source), "model_id": model_id}
    answer = door.send("POST", "model-versions/create", body)
    assert door.refused(answer, ABSENT) == made.write(said)


def test_where_to_fetch_a_version(door: Door, made: Made) -> None:
    name = door.model("s3://bucket/m")
    body = {"name": name, "source": f"models:/{made.logged}", "model_id": made.logged}
    door.post("model-versions/create", body)
    path = "model-versions/get-download-uri"
    assert door.get(path, name=name, version="1") == {"artifact_uri": "s3://bucket/m"}
    found = door.get(path, name=name, version="2")
    assert found == {"artifact_uri": made.write(MODEL)}
    door.post("model-versions/create", {"name": name, "source": f"models:/{name}/2"})
    assert door.get(path, name=name, version="3") == found


def test_the_logged_model_says_where_it_is_registered(door: Door) -> None:
    logged, name = door.logged_model(), door.model()
    body = {"name": name, "source": f"models:/{logged}", "model_id": logged}
    for _ in range(2):
        door.post("model-versions/create", body)
    info = door.get(f"logged-models/{logged}")["model"]["info"]
    [note] = info["tags"]
    assert note["key"] == "mlflow.modelVersions"
    assert note["value"] == f'[{{"name":"{name}","version":1}},{{"name":"{name}","version":2}}]'


def test_a_tag_of_ones_own_in_its_place_is_written_over(door: Door) -> None:
    tags = [{"key": "mlflow.modelVersions", "value": "mine"}]
    logged = door.logged_model(tags=tags)
    body = {"name": door.model(), "source": f"models:/{logged}", "model_id": logged}
    door.post("model-versions/create", body)
    info = door.get(f"logged-models/{logged}")["model"]["info"]
    assert info["tags"][0]["value"].startswith('[{"name"')


def test_native_callers_meet_the_same_checks(door: Door) -> None:
    with pytest.raises(InvalidInput, match="artifact_location"):
        door.workspace.tracking.create_experiment("x", location="runs:/a/b")
