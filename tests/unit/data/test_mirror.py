"""A mirror of datasets brings what is asked for once, by content, and changes nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.data.files import add
from everloop.data.mirror import MirrorData
from everloop.data.sample import FEWEST, Sample, parse_sample, sampled
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.mirror import MirrorWorkspace
from everloop.workspace import Workspace

KEYED = Schema((Field("id", "string", nullable=False), Field("x", "float64")), key=("id",))


def rows(*numbers: int) -> pa.Table:
    return pa.table({"id": [f"row-{n}" for n in numbers], "x": [float(n) for n in numbers]})


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Workspace]:
    with ev.open(tmp_path / "there") as ws:
        ws.data.commit("flights", rows(*range(3)), schema=KEYED)
        ws.data.commit("flights", rows(*range(3, 6)))
        yield ws


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[Any]:
    opened = []

    def make(origin: Workspace | None, sample: Sample | None = None) -> MirrorData:
        opened.append(MirrorWorkspace(tmp_path / "here", origin=origin, sample=sample))
        return opened[-1].data

    yield make
    for workspace in opened:
        workspace.close()


def values(data: MirrorData, name: str, number: int | None = None) -> list[float]:
    found = data.version(name, number)
    return list(data.read(name, found.number).column("x").to_pylist())


def streams(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that are read of a workspace from now on."""
    seen: list[str] = []
    blobs = workspace.blobs
    read = blobs.stream

    def stream(digest: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        seen.append(digest)
        return read(digest, chunk)

    monkeypatch.setattr(blobs, "stream", stream)
    return seen


def test_content_is_brought_once_and_keeps_its_number(
    there: Workspace, mirrored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = streams(there, monkeypatch)
    here = mirrored(there)
    assert values(here, "flights", 1) == [0, 1, 2]
    assert here.version("flights").digest == there.data.version("flights").digest
    assert values(here, "flights") == [0, 1, 2, 3, 4, 5]
    assert len(seen) == 2  # one block each

    there.data.commit("flights", rows(6))
    assert here.version("flights").number == 2  # all of a run sees one state
    assert values(mirrored(there), "flights") == [0, 1, 2, 3, 4, 5, 6]
    assert len(seen) == 3  # the new block alone
    assert mirrored(there).version("flights").number == 3
    assert [found.number for found in mirrored(there).versions("flights")] == [1, 2, 3]
    assert len(seen) == 3


def test_a_commit_stays_here_and_ends_with_its_run(there: Workspace, mirrored: Any) -> None:
    here = mirrored(there)
    here.commit("flights", rows(7), schema=KEYED)
    here.commit("fresh", rows(1))
    assert values(here, "flights") == [0, 1, 2, 3, 4, 5, 7]
    assert here.stated == {"flights": KEYED}
    assert there.data.version("flights").rows == 6

    later = mirrored(there)
    assert values(later, "flights") == [0, 1, 2, 3, 4, 5]
    with pytest.raises(NotFound, match="fresh"):  # what another run left is not there
        later.version("fresh")
    later.commit("fresh", rows(2))
    assert values(later, "fresh") == [2]
    with pytest.raises(NotFound, match="flights"):
        mirrored(None).version("flights")


def test_whatever_a_mirror_of_a_sample_holds_is_a_sample(there: Workspace, mirrored: Any) -> None:
    there.data.commit("many", rows(*range(5_000)), schema=KEYED)
    here = mirrored(there, Sample(rows=200))
    kept = values(here, "many")
    assert len(kept) == 200
    assert kept == sorted(kept)
    assert here.commit("made", rows(*range(5_000)), schema=KEYED).rows == 200
    assert values(here, "made") == kept


@given(st.permutations(list(range(40))), st.integers(1, 40))
def test_a_sample_does_not_depend_on_the_order(order: list[int], size: int) -> None:
    whole = set(sampled(rows(*range(40)), KEYED, Sample(rows=size)).column("id").to_pylist())
    mixed = sampled(rows(*order), KEYED, Sample(rows=size)).column("id").to_pylist()
    assert set(mixed) == whole
    assert [n for n in order if f"row-{n}" in whole] == [int(name[4:]) for name in mixed]


def test_a_share_is_the_same_on_every_machine_and_grows_with_itself() -> None:
    many = rows(*range(30_000))
    kept = {
        share: sampled(many, KEYED, Sample(share=share)).column("x").to_pylist()
        for share in (0.1, 0.2)
    }
    assert kept[0.1][:6] == [32, 37, 68, 81, 89, 102]
    assert set(kept[0.1]) < set(kept[0.2])
    # Rows that came later move none of the earlier ones in or out.
    fewer = sampled(many.slice(0, 20_000), KEYED, Sample(share=0.1)).column("x").to_pylist()
    assert fewer == [number for number in kept[0.1] if number < 20_000]
    assert sampled(many.slice(0, 1_500), KEYED, Sample(share=0.1)).num_rows == FEWEST
    nameless = Schema(KEYED.fields)
    assert sampled(many, nameless, Sample(rows=5)).num_rows == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [("10%", Sample(share=0.1)), (" 2.5 % ", Sample(share=0.025)), ("5000", Sample(rows=5000)),
     ("all", None), ("100%", None)],
)  # fmt: skip
def test_a_sample_is_written_as_people_say_it(text: str, found: Sample | None) -> None:
    assert parse_sample(text) == found


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5", "many", "1e3", "5 rows"])
def test_what_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no sample"):
        parse_sample(text)


def test_files_are_brought_as_they_are(there: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    (source / "cats").mkdir(parents=True)
    (source / "cats/1").write_bytes(b"one")
    wanted = add(there, "photos", source)
    half = parse_sample("50 %")
    with MirrorWorkspace(tmp_path / "here", origin=there, sample=half) as here, using(here):
        assert ev.read("photos").digest == wanted.digest
        assert ev.read("photos")["cats/1"] == b"one"
        (source / "cats/2").write_bytes(b"two")
        assert ev.commit("photos", source).number == 2
        assert ev.read("photos")["cats/2"] == b"two"
        assert here.files.verify().damaged == ()
        with pytest.raises(Conflict):
            ev.commit("flights", source)
    assert there.files.version("photos").number == 1
