"""What datacompy takes to compare two frames in memory: `peer_datacompy.py OLD NEW TURNS`.

Prints a JSON object with the median of seconds; the frames are read before the clock starts.
"""

import json
import statistics
import sys
import time

import datacompy
import polars


def main() -> None:
    old, new = (polars.read_parquet(file) for file in sys.argv[1:3])
    seconds = []
    for _ in range(min(int(sys.argv[3]), 3)):
        began = time.perf_counter()
        found = datacompy.PolarsCompare(old, new, join_columns="id")
        count = int((~found.intersect_rows["real0_match"]).sum())
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"value": statistics.median(seconds), "changed": count}))


main()
