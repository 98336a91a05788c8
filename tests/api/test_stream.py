"""The points of a run as server-sent events."""

from __future__ import annotations

import http.client
import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import everloop as ev
from everloop.api import stream
from tests.servers import serve


class Events:
    """Reads events from one stream."""

    def __init__(self, url: str, target: str, last: str = "") -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        headers = {"Last-Event-ID": last} if last else {}
        self.connection.request("GET", target, headers=headers)
        self.answer = self.connection.getresponse()

    def next(self) -> tuple[str, str, Any]:
        """Kind, id and data."""
        fields: dict[str, str] = {}
        while (line := self.answer.readline().decode().rstrip("\n")) or not fields:
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
        return fields["event"], fields["id"], json.loads(fields["data"])

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def test_points_are_pushed_and_a_lost_connection_goes_on(tmp_path: Path) -> None:
    with ev.open(tmp_path) as embedded, serve(embedded) as url, ev.open(url) as ws:
        run = ev.run("e", workspace=ws)
        target = f"/api/v1/runs/{run.id}/stream?key=loss&key=auc"
        run.log(loss=0.5, other=1.0, step=1, sync=True)
        events = Events(url, target)
        assert events.answer.headers["Content-Type"].startswith("text/event-stream")
        kind, cursor, data = events.next()
        assert kind == "points"
        assert [(p["key"], p["value"], p["step"]) for p in data] == [("loss", 0.5, 1)]
        run.log(auc=math.inf, step=2, sync=True)
        kind, cursor, data = events.next()
        assert [(p["key"], p["value"], p["step"]) for p in data] == [("auc", "inf", 2)]
        events.close()
        run.log(loss=math.nan, step=3, sync=True)
        again = Events(url, target, last=cursor)
        kind, _, data = again.next()
        assert [(p["key"], p["value"], p["step"]) for p in data] == [("loss", "nan", 3)]
        run.end()
        assert again.next()[0::2] == ("end", {"state": "finished"})
        assert again.answer.read() == b""
        again.close()


def test_long_history_comes_in_events_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAGE", 10)
    with ev.open(tmp_path) as embedded, serve(embedded) as url:
        with ev.run("e", workspace=embedded) as run:
            for step in range(25):
                run.log(loss=1.0, step=step)
        events = Events(url, f"/api/v1/runs/{run.id}/stream?key=loss")
        sizes = [len(events.next()[2]) for _ in range(3)]
        assert (sizes, events.next()[0]) == ([10, 10, 5], "end")
        events.close()


def test_bad_requests_are_answered_and_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ev.open(tmp_path) as embedded, serve(embedded) as url:
        run = ev.run("e", workspace=embedded)
        cases = {
            f"/api/v1/runs/{run.id}/stream": 400,
            f"/api/v1/runs/{run.id}/stream?" + "&".join(f"key=k{i}" for i in range(51)): 400,
            f"/api/v1/runs/{run.id}/stream?key=loss&cursor=nonsense": 400,
            "/api/v1/runs/nothing/stream?key=loss": 404,
        }
        for target, status in cases.items():
            asked = Events(url, target)
            assert (asked.answer.status, target) == (status, target)
            asked.close()
        monkeypatch.setattr(stream, "MAX_STREAMS", 1)
        first = Events(url, f"/api/v1/runs/{run.id}/stream?key=loss")
        refused = Events(url, f"/api/v1/runs/{run.id}/stream?key=loss")
        assert (first.answer.status, refused.answer.status) == (200, 503)
        refused.close()
        run.end()
        assert first.next()[0] == "end"
        first.close()
