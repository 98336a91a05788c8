"""The reader of meta.yaml gives what a whole YAML reader gives, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import yaml  # comes with MLflow's client, which the tests need anyway
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.errors import InvalidInput
from everloop.transfer.meta import read_meta

# YAML takes these for line breaks of its own; they are refused.
ODD_BREAKS = "\r\x85\u2028\u2029"
WORDS = [
    "a",
    "x: y",
    "'q'",
    '"d"',
    "#",
    "\n",
    "long" * 9,
    " ",
    "é",
    "\\",
    "- z",
    "12",
    "true",
    "{a}",
]
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters=ODD_BREAKS), max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
)
SCALARS = st.one_of(TEXTS, st.integers(-(2**63), 2**63), st.none(), st.booleans())
KEYS = st.sampled_from(["name", "tags", "run_id", "mlflow.x", "y", "12", "null", "a b", "k'"])


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(
        KEYS, st.one_of(SCALARS, st.dictionaries(KEYS, SCALARS, max_size=3)), min_size=1
    ),
    st.booleans(),
)
def test_what_is_written_is_read(fields: dict[str, Any], unicode: bool) -> None:
    text = yaml.safe_dump(fields, default_flow_style=False, allow_unicode=unicode)
    assert read_meta(text) == fields


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "just words\n",
        "name: [a, b]\n",
        "name: {a: b}\n",
        "name: |\n  block\n",
        "name: &anchor x\n",
        "name: 'open\n",
        "name: x\n- item\n",
        "name: !!python/object:x {}\n",
        "name: a: b\n",
        "\x00\x01",
        'name: "\\q"\n',
        "name: 'x\u2028y'\n",
    ],
)
def test_what_lies_outside_is_refused_and_not_guessed(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_meta(text)
