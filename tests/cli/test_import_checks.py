"""``everloop data import-checks`` and ``data check --with``: rules of other products."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import everloop as ev
from everloop.cli.main import main
from everloop.errors import InvalidInput

SUITE = {
    "name": "flights",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}},
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "delay", "max_value": 60, "mostly": 0.5},
        },
        {"type": "expect_column_kl_divergence_to_be_less_than", "kwargs": {"column": "delay"}},
    ],
}
PANDERA = """
import pandera.polars as pa
import polars as pl

SCHEMA = pa.DataFrameSchema(
    {"id": pa.Column(pl.Int64, pa.Check.ge(2)), "delay": pa.Column(pl.Float64)}
)
LIST = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with ev.open(str(tmp_path / ".everloop")) as ws:
        rows = ev.Table.of({"id": [1, 2, 3], "delay": [1.0, 90.0, 99.0]})
        ws.data.commit("flights", rows.to_arrow())
    (tmp_path / "contract.py").write_text(PANDERA)
    (tmp_path / "suite.json").write_text(json.dumps(SUITE))
    kept = {**SUITE, "expectations": SUITE["expectations"][:2]}
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    return tmp_path


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, list(words))
    return done.exit_code, done.stdout, done.stderr


def test_a_suite_is_printed_as_code_and_what_is_left_out_is_told(folder: Path) -> None:
    code, out, told = run("data", "import-checks", "suite.json", "--like", "flights")
    assert code == 0
    assert "# - expectations[2] expect_column_kl_divergence" in out
    assert "not translated: expectations[2]" in told
    names: dict[str, object] = {}
    exec(out, names)
    assert names["SCHEMA"] == ev.schema_from(
        "kept.json", like=ev.Table.of({"id": [1], "delay": [1.0]})
    )
    code, out, _ = run("data", "import-checks", "contract.py:SCHEMA", "--json")
    assert code == 0
    assert json.loads(out)["untranslated"] == []


def test_a_dataset_is_held_against_a_suite_and_a_schema_of_pandera(folder: Path) -> None:
    code, out, _ = run("data", "check", "flights", "--with", "kept.json", "--json")
    assert code == 3
    [broken] = json.loads(out)["broken"]
    assert [row["row"] for row in broken["rows"]] == [1, 2]
    code, out, _ = run("data", "check", "flights", "--with", "contract.py:SCHEMA", "--json")
    assert (code, [one["rule"] for one in json.loads(out)["broken"]]) == (3, ["id.ge"])


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("nope.json", "there is no file nope.json"),
        ("suite.json", "has no counterpart here"),
        ("contract.py:NOPE", "contract.py has no NOPE"),
        ("contract.py:LIST", "LIST of contract.py is no"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_its_name(
    folder: Path, rules: str, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        CliRunner().invoke(
            main, ["data", "check", "flights", "--with", rules], catch_exceptions=False
        )
