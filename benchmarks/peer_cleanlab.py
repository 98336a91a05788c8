"""What cleanlab takes for label issues, and how many are right: `peer_cleanlab.py FILE TURNS`."""

import json
import statistics
import sys
import time
import warnings

import numpy as np
from cleanlab.filter import find_label_issues


def main() -> None:
    warnings.simplefilter("ignore")
    file = np.load(sys.argv[1])
    labels, odds, flipped = file["labels"], file["odds"], file["flipped"]
    seconds = []
    for _ in range(min(int(sys.argv[2]), 5)):
        began = time.perf_counter()
        found = find_label_issues(labels, odds, n_jobs=1)
        seconds.append(time.perf_counter() - began)
    told = {"found": int(found.sum()), "right": int((found & flipped).sum())}
    print(json.dumps({"value": statistics.median(seconds), **told}))


main()
