"""What Great Expectations takes for the same rules on pandas: `peer_gx.py FILE TURNS FORMAT`.

FORMAT is its result format: COMPLETE names every failing row, BASIC a few of them. Prints a JSON
object with the median of seconds, and how many rows each rule says are broken, all together.
"""

import json
import statistics
import sys
import time

import great_expectations as gx
import pandas as pd


def main() -> None:
    frame = pd.read_parquet(sys.argv[1])
    expect = gx.expectations
    rules = [expect.ExpectColumnValuesToNotBeNull(column=name) for name in frame if name != "mail"]
    for n in range(3):
        rules.append(expect.ExpectColumnValuesToBeBetween(column=f"x{n}", min_value=-6))
        rules.append(expect.ExpectColumnValuesToBeBetween(column=f"n{n}", max_value=1000))
    sets = {"state": ["CA", "NY", "TX", "WA"], "kind": ["new", "old"]}
    rules += [
        expect.ExpectColumnValuesToBeInSet(column=name, value_set=among)
        for name, among in sets.items()
    ]
    rules.append(expect.ExpectColumnValuesToBeUnique(column="id"))
    mail = r"^[^@\s]+@[^@\s]+\.[a-z]+$"
    rules.append(expect.ExpectColumnValuesToMatchRegex(column="mail", regex=mail))
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("pandas")
    asset = source.add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite("rules", expectations=rules)
    seconds, broken = [], 0
    for _ in range(min(int(sys.argv[2]), 5)):
        began = time.perf_counter()
        found = batch.validate(suite, result_format=sys.argv[3])
        seconds.append(time.perf_counter() - began)
        broken = sum(one.result.get("unexpected_count", 0) for one in found.results)
    print(json.dumps({"value": statistics.median(seconds), "broken": broken}))


main()
