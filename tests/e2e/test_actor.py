"""Who acts is the same name, however a workspace is opened."""

from __future__ import annotations

import pyarrow as pa
import pytest

from everloop.core.context import acting
from everloop.workspace import Workspace


@pytest.mark.parametrize("actor", ["Łukasz", "Zoë & co", "100%41", "two\nlines"])
def test_an_actor_of_any_letters_is_recorded(ws: Workspace, actor: str) -> None:
    with acting(actor=actor):
        made = ws.data.commit("flights", pa.table({"a": [1]}))
    assert made.author == actor
