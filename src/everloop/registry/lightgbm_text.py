"""Checks a model in LightGBM's text format before LightGBM reads it.

LightGBM reads trees in threads and follows the nodes of a tree without looking where they lead: a
file that is cut short or crafted ends the process instead of raising.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput

__all__ = ["check_lightgbm"]

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)"
_NUMBERS = re.compile(rf"(?:{_NUMBER}(?: +|$))*")
_MOST = 1 << 24

#: One value for each inner node, and for each leaf; those in the second of each may be left out.
_OF_NODES = (
    ("split_feature", "threshold", "decision_type", "left_child", "right_child"),
    ("split_gain", "internal_value", "internal_weight", "internal_count"),
)
_OF_LEAVES = (("leaf_value",), ("leaf_weight", "leaf_count"))


def check_lightgbm(text: str) -> None:
    """Refuse what LightGBM would not survive.

    Raises:
        InvalidInput: With the tree that is wrong.
    """
    head, found, body = text.partition("\nTree=0\n")
    try:
        said = _fields(head, bare=True)
        width = _count(said, "max_feature_idx") + 1
        per_round, classes = _count(said, "num_tree_per_iteration"), _count(said, "num_class")
        if not width or per_round != classes or not per_round:
            raise ValueError("it says no number of features or classes")
        for name in ("feature_names", "feature_infos"):
            if len(said[name].split(" ")) != width:
                raise ValueError(f"{name} of another number of features")
        sizes = _whole(said["tree_sizes"])
        if len(sizes) % per_round:
            raise ValueError("a round that is not whole")
    except (KeyError, ValueError) as error:
        raise _wrong("its head", error) from None
    trees = ("Tree=0\n" + body).encode() if found else b""
    if (sizes < 0).any() or sizes.sum() > len(trees):
        raise _wrong("its head", ValueError("it is cut short"))
    for number, (end, size) in enumerate(zip(accumulate(sizes.tolist()), sizes, strict=True)):
        try:
            _check_tree(trees[end - size : end].decode(), number, width)
        except (KeyError, ValueError) as error:
            raise _wrong(f"tree {number}", error) from None
    if found and not trees[int(sizes.sum()) :].startswith(b"end of trees"):
        raise _wrong("its end", ValueError("trees follow that it does not tell of"))


def _wrong(where: str, error: Exception) -> InvalidInput:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return InvalidInput(f"the file is no LightGBM model: {where}: {what}")


def _fields(text: str, *, bare: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if name and (equals or not bare) and name in found:
            raise ValueError(f"{name[:40]!r} twice")
        if equals:
            found[name] = value.strip(" ")
        elif name and not bare:
            raise ValueError(f"the line {name[:40]!r}")
    return found


def _count(said: Mapping[str, str], name: str) -> int:
    number = said[name]
    if not number.isascii() or not number.isdecimal() or not int(number) < _MOST:
        raise ValueError(f"{name} is {number[:40]!r}")
    return int(number)


def _whole(text: str) -> npt.NDArray[np.int64]:
    return np.array([int(part) for part in text.split()], dtype=np.int64)


def _check_tree(text: str, number: int, width: int) -> None:
    if "\n\n" in text.rstrip("\n") or "\r" in text:  # for LightGBM it ends there
        raise ValueError("an empty line within it")
    said = _fields(text)
    if said.pop("Tree", "") != str(number):
        raise ValueError("it does not begin where it should")
    leaves, categorical = _count(said, "num_leaves"), _count(said, "num_cat")
    for value in said.values():
        if not _NUMBERS.fullmatch(value):
            raise ValueError(f"what is no number in {value[:40]!r}")
    if not leaves:
        raise ValueError("it has no leaf")
    for names, size in ((_OF_NODES, leaves - 1), (_OF_LEAVES, leaves)):
        for name in (*(names[0] if leaves > 1 else ()), *(n for n in names[1] if said.get(n))):
            if len(said[name].split()) != size:
                raise ValueError(f"{name} of another number of nodes")
    if leaves == 1 and len(said["leaf_value"].split()) != 1:
        raise ValueError("leaf_value of another number of nodes")
    if leaves > 1:
        _check_nodes(said, leaves, categorical, width)
    if said.get("is_linear", "0") != "0":
        _check_linear(said, leaves, width)


def _check_nodes(said: Mapping[str, str], leaves: int, categorical: int, width: int) -> None:
    children = np.concatenate([_whole(said["left_child"]), _whole(said["right_child"])])
    # A child is the number of a node, or -1 for the first leaf, -2 for the second...
    inside = (children < leaves - 1) & (children != 0) & (children >= -leaves)
    # No walk from the first node can come back where each is the child of one at most.
    if not inside.all() or len(np.unique(children)) != len(children):
        raise ValueError("a child that is none")
    _check_range(_whole(said["split_feature"]), width, "split_feature")
    by_category = (_whole(said["decision_type"]) & 1).astype(bool)
    chosen = np.array([float(part) for part in said["threshold"].split()])[by_category]
    if not np.isfinite(chosen).all():
        raise ValueError("a category that is none")
    _check_range(chosen.astype(np.int64), categorical, "threshold")
    if categorical:
        ends = _whole(said["cat_boundaries"])
        words = len(said["cat_threshold"].split())
        ordered = len(ends) == categorical + 1 and ends[0] == 0 and (np.diff(ends) >= 0).all()
        if not ordered or ends[-1] != words:
            raise ValueError("cat_boundaries of other categories")


def _check_linear(said: Mapping[str, str], leaves: int, width: int) -> None:
    counts, features = _whole(said["num_features"]), _whole(said["leaf_features"])
    total = int(counts.sum())
    if len(counts) != leaves or (counts < 0).any() or len(said["leaf_const"].split()) != leaves:
        raise ValueError("linear leaves of another number")
    if len(features) != total or len(said["leaf_coeff"].split()) != total:
        raise ValueError("linear leaves of other features")
    _check_range(features, width, "leaf_features")


def _check_range(values: npt.NDArray[np.int64], end: int, what: str) -> None:
    if ((values < 0) | (values >= end)).any():
        raise ValueError(f"{what} outside of 0 to {end - 1}")
