"""``everloop demo credit``: better data beside a better model, on real loan applications."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from everloop.cli.output import json_document, say
from everloop.core.context import using
from everloop.workspace import open_workspace

__all__ = ["credit"]

_PAGE = "credit.html"


def credit(folder: Path, example: Callable[[str], ModuleType], as_json: bool) -> None:
    """Run the example in a workspace in `folder`, and write its page there.

    Args:
        example: Loads a module of it.
    """
    planted, improve, page = (example(name) for name in ("planted", "improve", "page"))
    say("4,454 real loan applications; some outcomes are turned round, some people left out ...")
    bank = planted.bank(0)
    with open_workspace(str(folder), actor="the demo") as workspace, using(workspace):
        found = improve.improve(bank)
    place = folder / _PAGE
    place.write_text(page.page(bank, found), encoding="utf-8")
    if as_json:
        json_document(document_of(found) | {"page": str(place)})
        return
    print(found.coverage.summary().splitlines()[0])
    print(f"label issues: {len(found.issues)} flagged, {found.corrected} of them wrong\n")
    print(found.test.summary())
    print("\nbeside the tuned model:")
    for name in ("filled up", "outcomes reviewed"):
        effect = found.duel.effect(name)
        print(f"  {name}: {effect.answer}, {effect.estimate:+.4f}", end="")
        print(f" [{effect.low:+.4f}, {effect.high:+.4f}] auc")
    say(f"\nthe page:   {place}")
    say(f"the server: everloop server --dir {folder}   then /data-tests/{found.test.id}")


def document_of(found: Any) -> dict[str, Any]:
    """What it came to, as plain data."""
    auc = found.coverage.auc
    return {
        "coverage": {"auc": auc.estimate, "low": auc.low, "high": auc.high},
        "label_issues": {"flagged": len(found.issues), "corrected": found.corrected},
        "settings": found.settings,
        "test": msgspec.to_builtins(found.test.report),
        "beside_tuned": msgspec.to_builtins(found.duel.report),
    }
