"""What Pandera takes for the same rules on Polars: `peer_pandera.py FILE TURNS`.

Prints a JSON object with the median of seconds, and how many rows each rule says are broken.
"""

import json
import statistics
import sys
import time

import pandera.polars as pa
import polars as pl


def main() -> None:
    frame = pl.read_parquet(sys.argv[1])
    checks = {f"x{n}": [pa.Check.ge(-6)] for n in range(3)}
    checks |= {f"n{n}": [pa.Check.le(1000)] for n in range(3)}
    checks["state"] = [pa.Check.isin(["CA", "NY", "TX", "WA"])]
    checks["kind"] = [pa.Check.isin(["new", "old"])]
    checks["mail"] = [pa.Check.str_matches(r"^(?:[^@\s]+@[^@\s]+\.[a-z]+)$")]
    schema = pa.DataFrameSchema(
        {
            name: pa.Column(
                kind, checks.get(name, []), nullable=name == "mail", unique=name == "id"
            )
            for name, kind in frame.schema.items()
        }
    )
    seconds, broken = [], 0
    for _ in range(min(int(sys.argv[2]), 5)):
        began = time.perf_counter()
        try:
            schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as error:
            broken = len(error.failure_cases)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"value": statistics.median(seconds), "broken": broken}))


main()
