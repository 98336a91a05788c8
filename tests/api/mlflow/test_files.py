"""Artifacts through the door: up, down, in ranges, in parts, listed, and never outside."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from everloop.backends.blobs.local import LocalBlobs
from everloop.ports.blobs import BlobStore
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.api.mlflow.door import ABSENT, FILES, Door
from tests.servers import Answer, ask

DATA = bytes(range(256)) * 40
UNSUPPORTED = ("NOT_IMPLEMENTED", 501)


@pytest.fixture(scope="module")
def run_id(door: Door) -> str:
    id_ = door.run()
    for path in ("top.bin", "m/MLmodel", "m/data/model.pkl", "m/a b å.txt", "empty"):
        door.put(f"0/{id_}/artifacts/{path}", b"" if path == "empty" else DATA)
    return id_


def fetch(door: Door, path: str, range_: str = "", method: str = "GET") -> Answer:
    headers = {"Range": range_} if range_ else {}
    return ask(door.app, method, f"{FILES}/artifacts/{quote(path)}", headers=headers)


@pytest.mark.parametrize(
    ("range_", "status", "data", "said"),
    [
        ("", 200, DATA, None),
        ("bytes=0-0", 206, DATA[:1], "bytes 0-0/10240"),
        ("bytes=5-9", 206, DATA[5:10], "bytes 5-9/10240"),
        ("bytes=10239-", 206, DATA[-1:], "bytes 10239-10239/10240"),
        ("bytes=-4", 206, DATA[-4:], "bytes 10236-10239/10240"),
        ("bytes=10-99999", 206, DATA[10:], "bytes 10-10239/10240"),
    ],
)
def test_ranges(
    door: Door, run_id: str, range_: str, status: int, data: bytes, said: str | None
) -> None:
    answer = fetch(door, f"0/{run_id}/artifacts/top.bin", range_)
    assert (answer.status, answer.body) == (status, data)
    assert answer.headers.get("content-range") == said
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("range_", "status"), [("bytes=10240-", 416), ("bytes=9-5", 400), ("x", 400)]
)
def test_ranges_that_are_none(door: Door, run_id: str, range_: str, status: int) -> None:
    answer = fetch(door, f"0/{run_id}/artifacts/top.bin", range_)
    assert answer.status == status
    assert DATA[:20] not in answer.body


def test_head_says_the_size_and_sends_nothing(door: Door, run_id: str) -> None:
    answer = fetch(door, f"0/{run_id}/artifacts/top.bin", method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "10240", b"")


def test_a_folder_is_no_file(door: Door, run_id: str) -> None:
    message = door.refused(fetch(door, f"0/{run_id}/artifacts/m"))
    assert "refers to a directory" in message
    path = f"0/{run_id}/artifacts/none"
    assert door.refused(fetch(door, path), ABSENT) == f"No such artifact: '{path}'"


def test_lists(door: Door, run_id: str) -> None:
    root = f"0/{run_id}/artifacts"
    found = door.get(f"{FILES}/artifacts", path=f"{root}/m")["files"]
    assert found == [
        {"path": "MLmodel", "is_dir": False, "file_size": 10240},
        {"path": "a b å.txt", "is_dir": False, "file_size": 10240},
        {"path": "data", "is_dir": True},
    ]
    listed = door.get("artifacts/list", run_id=run_id, path="m")
    assert listed["root_uri"] == f"mlflow-artifacts:/{root}"
    assert [file["path"] for file in listed["files"]] == ["m/MLmodel", "m/a b å.txt", "m/data"]
    assert [f["path"] for f in door.get("artifacts/list", run_id=run_id)["files"]] == [
        "empty",
        "m",
        "top.bin",
    ]
    for path in ("m/MLmodel", "none"):
        assert door.get(f"{FILES}/artifacts", path=f"{root}/{path}") == {}
        assert "files" not in door.get("artifacts/list", run_id=run_id, path=path)
    door.refused(door.send("GET", f"artifacts/list?run_id={run_id}&path=../.."))


def test_pages_read_files_of_runs_and_versions(door: Door, run_id: str) -> None:
    name = door.model()
    source = f"mlflow-artifacts:/0/{run_id}/artifacts/m"
    body = {"name": name, "source": source, "run_id": run_id}
    door.post("model-versions/create", body)
    for target in (
        f"/get-artifact?run_id={run_id}&path=m/MLmodel",
        f"/get-artifact?run_uuid={run_id}&path=m%2FMLmodel",
        f"/model-versions/get-artifact?name={name}&version=1&path=MLmodel",
    ):
        answer = door.send("GET", target)
        assert (answer.status, answer.body) == (200, DATA)
        assert "sandbox" in answer.headers["content-security-policy"]
    for target, error in (
        (f"/get-artifact?run_id={run_id}&path=none", ABSENT),
        (f"/get-artifact?run_id={run_id}", None),
        ("/get-artifact?path=x", None),
        (f"/get-artifact?run_id={run_id}&path=../../x", None),
        (f"/get-artifact?run_id={run_id}&path=%252e%252e/x", None),
        ("/get-artifact?run_id=none&path=x", ABSENT),
        (f"/model-versions/get-artifact?name={name}&version=9&path=x", ABSENT),
        (f"/model-versions/get-artifact?name={name}&version=1&path=../../x", None),
        (f"/model-versions/get-artifact?name={name}&path=x", None),
    ):
        answer = door.send("GET", target)
        door.refused(answer, error) if error else door.refused(answer)


@pytest.mark.parametrize("path", [".", "./", "./m", "m/.", "m/./data"])
def test_a_dot_is_the_folder_where_it_stands(door: Door, run_id: str, path: str) -> None:
    plain = path.replace("./", "").rstrip("/.")
    listed = door.get("artifacts/list", run_id=run_id, path=plain)
    assert listed["files"]
    assert door.get("artifacts/list", run_id=run_id, path=path) == listed
    folder = f"{FILES}/artifacts"
    root = f"0/{run_id}/artifacts"
    assert door.get(folder, path=f"{root}/{path}") == door.get(folder, path=f"{root}/{plain}")
    assert fetch(door, f"{root}/./m/MLmodel").body == DATA


@pytest.mark.parametrize("path", ["../x", "%252e%252e/x", "/x", "C:/x", "a//b", "a%5Cb"])
def test_a_path_is_judged_before_what_it_belongs_to(door: Door, path: str) -> None:
    for target in (
        f"artifacts/list?run_id=none&path={path}",
        f"logged-models/m-none/artifacts/directories?artifact_directory_path={path}",
        f"logged-models/m-none/artifacts/files?artifact_file_path={path}",
        f"/get-artifact?run_id=none&path={path}",
        f"/model-versions/get-artifact?name=none&version=1&path={path}",
    ):
        assert door.refused(door.send("GET", target)) == "Invalid path"


def test_files_of_a_version_whose_source_is_of_a_run(door: Door, run_id: str) -> None:
    name = door.model()
    for source in (f"runs:/{run_id}/m", f"models:/{name}/1"):
        body = {"name": name, "source": source, "run_id": run_id}
        number = door.post("model-versions/create", body)["model_version"]["version"]
        target = f"/model-versions/get-artifact?name={name}&version={number}&path=MLmodel"
        assert door.send("GET", target).body == DATA


def test_files_of_logged_models(door: Door) -> None:
    id_ = door.logged_model()
    door.put(f"0/models/{id_}/artifacts/data/model.pkl", DATA)
    listed = door.get(f"logged-models/{id_}/artifacts/directories")
    assert listed["files"] == [{"path": "data", "is_dir": True}]
    listed = door.get(f"logged-models/{id_}/artifacts/directories", artifact_directory_path="data")
    assert [file["path"] for file in listed["files"]] == ["data/model.pkl"]
    path = f"/ajax-api/2.0/mlflow/logged-models/{id_}/artifacts/files"
    assert door.send("GET", f"{path}?artifact_file_path=data/model.pkl").body == DATA
    door.refused(door.send("GET", path))
    door.refused(door.send("GET", f"{path}?artifact_file_path=../x"))
    door.refused(door.send("GET", f"{path}?artifact_file_path=none"), ABSENT)


def test_uploads_of_the_pages(door: Door) -> None:
    run_id = door.run()
    path = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run_id}"
    most = b"x" * (10 << 20)
    for name, data in (("a/b.txt", b"data"), ("large", most)):
        assert door.good(door.send("POST", f"{path}&path={name}", data, headers={})) == {}
        assert fetch(door, f"0/{run_id}/artifacts/{name}").body == data
    for target, data, said in (
        (f"{path}&path=x", most + b"x", "too large"),
        (f"{path}&path=x", b"", "must specify data"),
        (path, b"x", "Request must specify path."),
        (path.partition("?")[0], b"x", "Request must specify run_uuid."),
        (f"{path}&path=../x", b"", "Invalid path"),
    ):
        assert said in door.refused(door.send("POST", target, data, headers={}))


def test_artifacts_elsewhere_are_not_fetched_for_anybody(door: Door) -> None:
    experiment_id = door.experiment(artifact_location="s3://bucket/exp")
    run_id, model_id = door.run(experiment_id), door.logged_model(experiment_id)
    for answer in (
        door.send("GET", f"artifacts/list?run_id={run_id}"),
        door.send("GET", f"/get-artifact?run_id={run_id}&path=x"),
        door.send("GET", f"logged-models/{model_id}/artifacts/directories"),
    ):
        assert "does not read" in door.refused(answer, UNSUPPORTED)


def test_presigned_urls_are_not_supported(door: Door, run_id: str) -> None:
    body = {"run_id": run_id, "path": "x"}
    for answer in (
        door.send("POST", "artifacts/presigned-upload-url", body),
        door.send("POST", "artifacts/presigned-download-url", body),
        door.send("GET", f"{FILES}/presigned/0/x"),
    ):
        assert "not supported" in door.refused(answer, UNSUPPORTED)
    door.refused(door.send("POST", "artifacts/presigned-upload-url", {}))
    door.refused(door.send("POST", "artifacts/presigned-upload-url", {"path": "x"}))
    unknown = {"path": "x", "run_id": "none"}
    door.refused(door.send("POST", "artifacts/presigned-download-url", unknown), ABSENT)
    door.refused(door.send("GET", f"{FILES}/presigned/../x"))


# --- in parts -----------------------------------------------------------------------------------

_NUMBERS = itertools.count()


def begin(door: Door, parts: int, path: str = "") -> tuple[str, dict[str, Any]]:
    folder = path or f"0/parts-{next(_NUMBERS)}"
    local = {"path": "/mnt/me/big.bin", "num_parts": parts}
    return folder, door.post(f"{FILES}/mpu/create/{folder}", local)


def send_part(door: Door, begun: dict[str, Any], number: int, data: bytes) -> dict[str, Any]:
    [credential] = [c for c in begun["credentials"] if c["part_number"] == number]
    url = urlsplit(credential["url"])
    assert url.netloc == "127.0.0.1:7410"
    answer = ask(door.app, "PUT", url.path, [data[:5], data[5:]], headers=credential["headers"])
    assert answer.status == 200
    return {"part_number": number, "etag": answer.headers["etag"], "url": credential["url"]}


def complete(door: Door, folder: str, begun: dict[str, Any], parts: list[Any]) -> Answer:
    body = {"path": "big.bin", "upload_id": begun["upload_id"], "parts": parts}
    return door.send("POST", f"{FILES}/mpu/complete/{folder}", body)


def test_parts_in_any_order_are_joined_in_theirs(door: Door) -> None:
    folder, begun = begin(door, 3)
    parts = [send_part(door, begun, n, b"%d" % n * 1000) for n in (2, 3, 1)]
    parts[0] = send_part(door, begun, 2, b"two" * 100)  # a part may be sent again
    door.refused(fetch(door, f"{folder}/big.bin"), ABSENT)
    assert door.good(complete(door, folder, begun, parts)) == {}
    found = fetch(door, f"{folder}/big.bin")
    assert found.body == b"1" * 1000 + b"two" * 100 + b"3" * 1000
    door.refused(complete(door, folder, begun, parts), ABSENT)


def test_what_is_missing_or_other_is_said_and_the_upload_goes_on(door: Door) -> None:
    folder, begun = begin(door, 2)
    first = send_part(door, begun, 1, b"first part")
    second = {"part_number": 2, "etag": "", "url": ""}
    message = door.refused(complete(door, folder, begun, [first, second]))
    assert "parts[2]: was never uploaded" in message
    second = send_part(door, begun, 2, b"second")
    other = {**first, "etag": second["etag"]}
    message = door.refused(complete(door, folder, begun, [other, second]))
    assert "parts[1]: is not what its etag says" in message
    door.refused(complete(door, folder, begun, []))
    door.good(complete(door, folder, begun, [first, second]))
    assert fetch(door, f"{folder}/big.bin").body == b"first partsecond"


def test_an_aborted_upload_is_gone(door: Door) -> None:
    folder, begun = begin(door, 1)
    part = send_part(door, begun, 1, b"data")
    abort = {"path": "big.bin", "upload_id": begun["upload_id"]}
    assert door.post(f"{FILES}/mpu/abort/{folder}", abort) == {}
    door.refused(door.send("POST", f"{FILES}/mpu/abort/{folder}", abort), ABSENT)
    door.refused(complete(door, folder, begun, [part]), ABSENT)
    url = urlsplit(begun["credentials"][0]["url"])
    door.refused(ask(door.app, "PUT", url.path, b"late"), ABSENT)


def test_an_upload_is_bound_to_its_path(door: Door) -> None:
    folder, begun = begin(door, 1)
    part = send_part(door, begun, 1, b"data")
    door.refused(complete(door, f"{folder}-other", begun, [part]), ABSENT)
    door.good(complete(door, folder, begun, [part]))


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    with Workspace(str(tmp_path / ".everloop"), actor="tester") as workspace:
        door = Door(workspace)
        folder, begun = begin(door, 2)
        first = send_part(door, begun, 1, b"before ")
    with Workspace(str(tmp_path / ".everloop"), actor="tester") as workspace:
        door = Door(workspace)
        second = send_part(door, begun, 2, b"after")
        door.good(complete(door, folder, begun, [first, second]))
        assert fetch(door, f"{folder}/big.bin").body == b"before after"


@pytest.mark.parametrize(
    ("step", "body", "error"),
    [
        ("create", {}, None),
        ("create", {"path": "f"}, None),
        ("create", {"path": "f", "num_parts": 0}, None),
        ("create", {"path": "f", "num_parts": 10_001}, None),
        ("create", {"path": "../f", "num_parts": 1}, None),
        ("create", {"path": "..", "num_parts": 1}, None),
        ("create", {"path": "a\\f", "num_parts": 1}, None),
        ("complete", {"path": "f", "upload_id": "x"}, None),
        ("complete", {"path": "f", "upload_id": "x", "parts": [{"part_number": 1}]}, ABSENT),
        ("complete", {"path": "f", "upload_id": "../..", "parts": [{"part_number": 1}]}, ABSENT),
        ("complete", {"path": "f", "upload_id": "0" * 32, "parts": [{"part_number": 1}]}, ABSENT),
        ("complete", {"path": "f", "upload_id": "x", "parts": [{"part_number": -1}]}, None),
        ("abort", {"path": "f", "upload_id": "0" * 32}, ABSENT),
        ("abort", {"path": "f"}, None),
    ],
)
def test_steps_that_are_wrong(door: Door, step: str, body: Any, error: Any) -> None:
    answer = door.send("POST", f"{FILES}/mpu/{step}/0/x", body)
    door.refused(answer, error) if error else door.refused(answer)


@pytest.mark.parametrize("folder", ["../x", "a/%2e%2e/b", "%252e%252e/x", "a//b"])
def test_folders_that_climb(door: Door, folder: str) -> None:
    answer = door.send("POST", f"{FILES}/mpu/create/{folder}", {"path": "f", "num_parts": 1})
    assert "Invalid path" in door.refused(answer)


@pytest.mark.parametrize("number", ["0", "10001", "99999999999999999999"])
def test_parts_that_are_none(door: Door, number: str) -> None:
    _, begun = begin(door, 1)
    path = f"{FILES}/mpu/parts/{begun['upload_id']}/{number}"
    door.refused(ask(door.app, "PUT", path, b"x"))


class _Plain:
    """A store without parts and paths."""

    def __init__(self, inner: BlobStore) -> None:
        for name in ("put", "put_many", "keep", "get", "stream", "exists", "delete", "digests"):
            setattr(self, name, getattr(inner, name))


def test_a_store_without_parts_says_so(tmp_path: Path) -> None:
    with Workspace(str(tmp_path / ".everloop"), actor="tester") as workspace:
        plain = _Plain(LocalBlobs(tmp_path / "objects"))
        workspace.__dict__["blobs"] = plain
        door = Door(workspace)
        assert door.get("/api/3.0/mlflow/server-info")["multipart_uploads_enabled"] is False
        answer = door.send("POST", f"{FILES}/mpu/create/0", {"path": "f", "num_parts": 1})
        door.refused(answer, UNSUPPORTED)
        door.put("0/a.bin", DATA)
        assert fetch(door, "0/a.bin").body == DATA


def test_large_files_go_through_in_flat_memory(door: Door) -> None:
    piece, count = b"x" * (1 << 20), 48
    app = make_app(door.workspace)
    tracemalloc.start()
    try:
        path = f"{FILES}/artifacts/0/large.bin"
        assert ask(app, "PUT", path, [piece] * count).status == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    part = ask(app, "GET", path, headers={"Range": f"bytes={(count << 20) - 3}-"})
    assert (part.status, part.body) == (206, b"xxx")
