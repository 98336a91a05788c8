"""What skrub's TableReport takes: `peer_skrub.py FILE TURNS`; prints the median of seconds."""

import json
import statistics
import sys
import time

import polars as pl
from skrub import TableReport


def main() -> None:
    frame = pl.read_parquet(sys.argv[1])
    seconds = []
    for _ in range(min(int(sys.argv[2]), 3)):
        began = time.perf_counter()
        report = json.loads(TableReport(frame, verbose=0).json())
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"value": statistics.median(seconds), "rows": report["n_rows"]}))


main()
