"""Makes ``gx_golden.json``: random frames, and the rows that Great Expectations itself names.

Great Expectations is no dependency of this project: its environment is larger than ours. Run this
with a Python that has it (`pip install great_expectations pandas`), and nothing else of here::

    python tests/unit/data/gx_golden.py > tests/unit/data/gx_golden.json

Each case is one expectation over one frame: whether it succeeded, and the numbers of the rows that
its pandas engine calls unexpected (none for what is of a whole table).
"""

import json
import random
import sys

import great_expectations as gx
import pandas as pd

FRAMES = 24
REALS = [None, -2.5, -1.5, 0.0, 1.0, 2.5, 4.0]
WHOLES = [-2, -1, 0, 1, 2, 3, 4]
TEXTS = [None, "", "a", "b", "ab", "abc", "B1", "äb"]
COLUMN = "expect_column_"


def expectations(choose):
    """Every expectation with one choice of its arguments."""
    low, high = sorted(choose.sample([-1.5, -1, 0, 1, 2, 2.5], 2))
    strict = {"strict_min": choose.random() < 0.5, "strict_max": choose.random() < 0.5}
    span = {"min_value": low, "max_value": high}
    f, i, s, pair = {"column": "f"}, {"column": "i"}, {"column": "s"}, ["i", "f"]
    both = {"column_A": "f", "column_B": "g"}
    either = {**both, "ignore_row_if": "either_value_is_missing"}
    found = [
        ("values_to_be_between", {**f, **span}),
        ("values_to_be_between", {**f, **span, **strict}),
        ("values_to_be_between", {**i, "min_value": 0}),
        ("values_to_be_between", {**i, "max_value": 2.5, "strict_max": True}),
        ("values_to_be_in_set", {**f, "value_set": [0.0, 1.0, 2.5]}),
        ("values_to_be_in_set", {**i, "value_set": [0, 1, 2]}),
        ("values_to_be_in_set", {**s, "value_set": ["a", "ab"]}),
        ("values_to_not_be_in_set", {**s, "value_set": ["a", "ab"]}),
        ("values_to_not_be_in_set", {**i, "value_set": [0]}),
        ("values_to_not_be_null", f),
        ("values_to_not_be_null", s),
        ("values_to_be_null", f),
        ("values_to_be_unique", f),
        ("values_to_be_unique", s),
        ("values_to_match_regex", {**s, "regex": choose.choice(["^a", "b$", "a|1"])}),
        ("values_to_not_match_regex", {**s, "regex": "b"}),
        ("values_to_match_regex_list", {**s, "regex_list": ["^a", "1"], "match_on": "any"}),
        ("values_to_not_match_regex_list", {**s, "regex_list": ["^a", "1"]}),
        ("value_lengths_to_be_between", {**s, "min_value": 1, "max_value": 2}),
        ("value_lengths_to_equal", {**s, "value": 2}),
        ("values_to_be_increasing", i),
        ("values_to_be_increasing", {**i, "strictly": True}),
        ("values_to_be_decreasing", f),
        ("pair_values_a_to_be_greater_than_b", both),
        ("pair_values_a_to_be_greater_than_b", {**both, "or_equal": True}),
        (
            "pair_values_a_to_be_greater_than_b",
            either,
        ),
        ("pair_values_to_be_equal", both),
        ("pair_values_to_be_equal", {**both, "ignore_row_if": "neither"}),
    ]
    found = [(COLUMN + name, {**given, **tolerance(choose)}) for name, given in found]
    lists = [{"column_list": pair}, {"column_list": ["s", "f"]}]
    lists += [{"column_list": ["s", "f"], "ignore_row_if": "any_value_is_missing"}]
    found += [("expect_compound_columns_to_be_unique", one) for one in lists]
    figures = ["mean", "median", "stdev", "min", "max", "sum", "unique_value_count"]
    for name in figures:
        found.append((f"{COLUMN}{name}_to_be_between", {**f, **span, **strict}))
    share = {"min_value": 0.5, "max_value": 0.9}
    found.append((f"{COLUMN}proportion_of_unique_values_to_be_between", {**s, **share}))
    found.append((f"{COLUMN}proportion_of_non_null_values_to_be_between", {**s, "min_value": 0.7}))
    found.append(("expect_table_row_count_to_be_between", {"min_value": 2, "max_value": 5}))
    found.append(("expect_table_row_count_to_equal", {"value": 4}))
    return found


def tolerance(choose):
    given = {}
    if choose.random() < 0.4:
        given["mostly"] = choose.choice([0.5, 0.7, 0.9])
    if choose.random() < 0.4:
        given["row_condition"] = choose.choice(
            ["i > 0", "i != 1 and s == 'a'", "not (f > 0)", "f != 1", "s.isnull() or i in [0, 1]"]
        )
        given["condition_parser"] = "pandas"
    return given


def main():
    choose = random.Random(7)
    context = gx.get_context(mode="ephemeral")
    source = context.data_sources.add_pandas("pandas")
    batches = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    frames, cases = [], []
    for number in range(FRAMES):
        rows = number and choose.randrange(1, 9)
        columns = {
            "i": [choose.choice(WHOLES) for _ in range(rows)],
            "f": [choose.choice(REALS) for _ in range(rows)],
            "g": [choose.choice(REALS) for _ in range(rows)],
            "s": [choose.choice(TEXTS) for _ in range(rows)],
        }
        frames.append(columns)
        types = {"i": "int64", "f": "float64", "g": "float64", "s": "str"}
        frame = pd.DataFrame({n: pd.Series(v, dtype=types[n]) for n, v in columns.items()})
        batch = batches.get_batch({"dataframe": frame})
        for kind, given in expectations(choose):
            name = "".join(word.title() for word in kind.split("_"))
            expectation = getattr(gx.expectations, name)(**given)
            found = batch.validate(expectation, result_format="COMPLETE")
            if found.exception_info.get("raised_exception") or any(
                isinstance(v, dict) and v.get("raised_exception")
                for v in found.exception_info.values()
            ):
                print(kind, given, number, found.exception_info, file=sys.stderr)
                continue
            rows_named = found.result.get("unexpected_index_list") or []
            cases.append([number, kind, given, bool(found.success), sorted(rows_named)])
    made = {
        "great_expectations": gx.__version__, "pandas": pd.__version__,
        "frames": frames, "cases": cases,
    }  # fmt: skip
    json.dump(made, sys.stdout, separators=(",", ":"), ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
