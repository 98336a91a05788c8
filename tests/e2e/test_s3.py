"""A loop whose objects are in a bucket: trained on one machine, served by another one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

import everloop as ev
from everloop.backends.blobs.s3_bucket import Bucket
from everloop.cli.main import main
from tests.e2e.test_up import REQUEST
from tests.e2e.trees import answers, descendants, is_alive, wait_for


def everloop(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "everloop", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trained_here_and_served_there(s3: str, s3_endpoint: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    everloop(here, "init", "--objects", f"{s3}/loop")
    everloop(here, "run", "loop.py:retrain")
    assert not (here / ".everloop" / "objects").exists()
    # The other machine has the code and the catalog, and nothing of the objects.
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    with (there / "up.log").open("w") as log:
        command = [sys.executable, "-m", "everloop", "up", "loop.py"]
        command += ["--port", "0", "--serving-port", "0"]
        up = subprocess.Popen(command, cwd=there, stderr=log)
    try:
        text = (there / "up.log").read_text
        wait_for("two addresses", lambda: len(re.findall(r"http://[\d.:]+", text())) == 2)
        _, serving = re.findall(r"http://[\d.:]+", text())
        wait_for("the model", lambda: answers(f"{serving}/v2/models/my-model/ready"))
        answer = json.loads(answers(f"{serving}/v2/models/my-model/infer", REQUEST))
        children = descendants(up.pid)
        up.terminate()
        assert up.wait(120) == 0
        assert not [pid for pid in children if is_alive(pid)]
    finally:
        up.kill()
        up.wait()
    assert list((there / ".everloop" / "cache" / "objects").rglob("*"))
    # Its last predictions are in the bucket, and told from here on.
    place = ["--dir", str(there / ".everloop")]
    told = CliRunner().invoke(main, ["why", answer["parameters"]["prediction_id"], *place])
    assert "model my-model/" in told.output
    with ev.open(there / ".everloop") as ws:
        before = set(ws.blobs.digests())
        ws.objects.collect(grace="0s")
        assert ws.files.verify().damaged == ()
        assert set() < set(ws.blobs.digests()) <= before
    for entry in Bucket(s3, endpoint=s3_endpoint).list("loop"):
        assert entry.key.split("/")[1] in ("objects", "packs", "marks", "store")
