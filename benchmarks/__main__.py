"""`python -m benchmarks`: run the benchmarks and print what they found."""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Sequence

from benchmarks.harness import Bench, Context, Row, area_names, load_area
from benchmarks.report import json_lines, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen areas.

    Returns:
        0 if every benchmark ran and all answers were equal, 1 if not, 2 for an unknown area.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--area", help="run this area only")
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats, for a look")
    parser.add_argument("--no-peers", action="store_true", help="install and measure no peers")
    parser.add_argument("--postgres", default="", help="URL of a database, to measure on it too")
    options = parser.parse_args(argv)
    context = Context(options.quick, not options.no_peers, options.postgres)
    areas = area_names()
    if options.area is not None:
        if options.area not in areas:
            near = difflib.get_close_matches(options.area, areas, n=1) or areas
            known = ", ".join(near) if near else "there is none yet"
            print(f"no benchmark area {options.area!r}; known: {known}", file=sys.stderr)
            return 2
        areas = [options.area]
    rows: list[Row] = []
    failed = []
    for area in areas:
        for function in load_area(area):
            print(f"{area}: {function.__name__} ...", file=sys.stderr, flush=True)
            try:
                rows += run(function, context)
            except Exception:  # noqa: BLE001 - one broken benchmark must not cost the others
                traceback.print_exc()
                failed.append(f"{area}.{function.__name__}")
    if rows:
        print(table(rows), json_lines(rows), sep="\n\n")
    else:
        print("no benchmark ran", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or not all(row.answers_equal for row in rows) else 0


def run(function: Bench, context: Context) -> list[Row]:
    """Run one benchmark and return its rows as a list."""
    found = function(context)
    return [found] if isinstance(found, Row) else list(found)


if __name__ == "__main__":
    sys.exit(main())
