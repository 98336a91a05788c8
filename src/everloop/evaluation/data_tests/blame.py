"""What each group of changed rows is worth, by training with and without it.

The Shapley value of a group is what it adds to the others, averaged over all orders in which the
changes could have been made: the only shares that add up to the whole difference and treat alike
what acts alike. Up to five groups it is exact (2^5 trainings a seed); with more, some orders and
their reverses are drawn, and the interval holds that too.

Sources:
    Shapley, A Value for n-Person Games (1953). Ghorbani and Zou, Data Shapley (ICML 2019), for data
    as players. Mitchell, Cooper, Frank and Holmes, Sampling Permutations for Shapley Value
    Estimation, JMLR 23 (2022), for orders with their reverses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from everloop.core.data_test import Blame, Effect, GroupWorth
from everloop.errors import InvalidInput, UserCodeError
from everloop.evaluation.data_tests.effects import Measured, effect_of, measured, number
from everloop.evaluation.data_tests.groups import Changes, grouped
from everloop.evaluation.data_tests.inputs import Contender
from everloop.evaluation.data_tests.plan import Plan
from everloop.evaluation.data_tests.running import Order, in_run, train_all

__all__ = ["blame_groups"]

#: Up to so many groups every set of them is trained on.
_EXACT = 5
_METHODS = ("auto", "shapley", "leave one out")

_Set = frozenset[int]


def blame_groups(
    test: Plan,
    new: Contender,
    old: Contender,
    *,
    scores: Mapping[str, Sequence[Any]],
    by: str | Mapping[str, str],
    method: str,
    seeds: int | None,
    orders: int,
    tags: Mapping[str, str],
) -> Blame:
    """See ``DataTest.blame``.

    Args:
        scores: Of both versions, by name: those of each seed of the test.
        tags: Of the run that trains.
    """
    chosen = _checked(test, method, seeds, orders)
    if new.rival is not old.rival:
        raise InvalidInput(
            f"{new.name} and {old.name} were trained by other code",
            [("against", "rows can be blamed only where nothing else differs")],
        )
    training = test.training(new)
    changes = grouped(old, new, test.key, by)
    plan = _plan(len(changes.names), method, orders)
    wanted = [one for one in plan.sets if 0 < len(one) < len(changes.names)]

    def work() -> Any:
        todo = [
            Order((made, seed), training, partial(changes.table, made), seed)
            for made in wanted
            for seed in test.seeds[:chosen]
        ]
        return train_all(test.holdout.features, todo, test.workers)

    found, run = in_run(f"{test.experiment}: blame", test.train, work, tags, test.workers)
    whole = frozenset(range(len(changes.names)))
    by_set = {whole: scores[new.name][:chosen], frozenset(): scores[old.name][:chosen]}
    for made in wanted:
        outcomes = [found[made, seed] for seed in test.seeds[:chosen]]
        failed = next((one.error for one in outcomes if one.scores is None), "")
        if failed:
            names = ", ".join(changes.names[n] for n in sorted(made))
            raise UserCodeError(
                f"{failed}\n\nwith the changes of {names} alone the training fails",
                hint="group the rows otherwise, so that each set of groups can be trained on",
            )
        by_set[made] = [one.scores for one in outcomes]
    spec, held = test.specs[0], test.holdout
    values = {
        made: measured(spec, held.y, list(some), held.blocks).scaled(spec.sign)
        for made, some in by_set.items()
    }
    return _told(test, new, old, changes, plan, values, (chosen, run.id))


def _checked(test: Plan, method: str, seeds: int | None, orders: int) -> int:
    faults = []
    if method not in _METHODS:
        faults.append(("method", f"{method!r} is none of {', '.join(_METHODS)}"))
    if seeds is not None and (type(seeds) is not int or not 1 <= seeds <= len(test.seeds)):
        faults.append(("seeds", f"{seeds!r} is no number from 1 to {len(test.seeds)}"))
    if type(orders) is not int or orders < 1:
        faults.append(("orders", f"{orders!r} is no number from 1"))
    if faults:
        raise InvalidInput("the blame cannot be measured like this", faults)
    return seeds or len(test.seeds)


class _Sets(NamedTuple):
    """Which sets of changes are trained on, and what a group's worth is in them.

    Attributes:
        marginals: For each group ``(weight, with it, without it)``; the weights add up to 1.
    """

    method: Any
    sets: tuple[_Set, ...]
    marginals: tuple[tuple[tuple[float, _Set, _Set], ...], ...]


def _plan(count: int, method: str, orders: int) -> _Sets:
    whole = frozenset(range(count))
    some: tuple[tuple[tuple[float, _Set, _Set], ...], ...]
    if method == "leave one out":
        some = tuple(((1.0, whole, whole - {g}),) for g in range(count))
        name = "leave one out"
    elif count <= _EXACT:
        some = tuple(tuple(_exact(g, count)) for g in range(count))
        name = "shapley"
    else:
        some = _sampled(count, orders)
        name = "sampled shapley"
    used = {made for marginals in some for _, *both in marginals for made in both}
    ordered = sorted(used | {frozenset(), whole}, key=lambda one: (len(one), sorted(one)))
    return _Sets(name, tuple(ordered), some)


def _exact(group: int, count: int) -> Iterator[tuple[float, _Set, _Set]]:
    others = [g for g in range(count) if g != group]
    for size in range(count):
        weight = 1 / (count * math.comb(count - 1, size))
        for chosen in combinations(others, size):
            without = frozenset(chosen)
            yield weight, without | {group}, without


def _sampled(count: int, orders: int) -> tuple[tuple[tuple[float, _Set, _Set], ...], ...]:
    generator = np.random.default_rng(count)
    drawn = [generator.permutation(count).tolist() for _ in range(orders)]
    drawn += [order[::-1] for order in drawn]
    found: list[list[tuple[float, _Set, _Set]]] = [[] for _ in range(count)]
    for order in drawn:
        for place, group in enumerate(order):
            before = frozenset(order[:place])
            found[group].append((1 / len(drawn), before | {group}, before))
    return tuple(tuple(one) for one in found)


def _told(
    test: Plan,
    new: Contender,
    old: Contender,
    changes: Changes,
    plan: _Sets,
    values: Mapping[_Set, Measured],
    how: tuple[int, str],
) -> Blame:
    whole, nothing = frozenset(range(len(changes.names))), frozenset[int]()
    family = len(changes.names)
    groups = []
    for place, (name, size) in enumerate(zip(changes.names, changes.sizes, strict=True)):
        worth = _worth(plan.marginals[place], values, test.level, family)
        alone, last = frozenset({place}), whole - {place}
        groups.append(
            GroupWorth(
                name=name,
                rows=size,
                worth=worth,
                alone=_apart(values, alone, nothing),
                last=_apart(values, whole, last),
            )
        )
    chosen, run_id = how
    spec = test.specs[0]
    return Blame(
        version=new.name,
        against=old.name,
        metric=spec.name,
        by=changes.by,
        method=plan.method,
        total=effect_of(values[whole] - values[nothing], 1, level=test.level),
        groups=tuple(sorted(groups, key=lambda one: -abs(one.worth.estimate or 0))),
        trainings=chosen * (len(plan.sets) - 2),
        run_id=run_id,
        notes=changes.notes,
    )


def _worth(
    marginals: Sequence[tuple[float, _Set, _Set]],
    values: Mapping[_Set, Measured],
    level: float,
    family: int,
) -> Effect:
    parts = [(weight, values[made] - values[less]) for weight, made, less in marginals]
    mean = Measured(
        sum((w * one.exact for w, one in parts), np.zeros(1)),
        sum((w * one.drawn for w, one in parts), np.zeros(1)),
        parts[0][1].blocks,
    )
    is_sampled = len(marginals) > 1 and len({w for w, *_ in marginals}) == 1 and family > _EXACT
    orders = 0.0
    if is_sampled:
        # An order and its reverse are one draw: they are not independent.
        half = len(parts) // 2
        pairs = [
            (float(parts[n][1].exact.mean()) + float(parts[n + half][1].exact.mean())) / 2
            for n in range(half)
        ]
        orders = float(np.var(pairs, ddof=1)) / half if half > 1 else math.nan
    return effect_of(mean, 1, level=level, family=family, more_variance=orders)


def _apart(values: Mapping[_Set, Measured], made: _Set, less: _Set) -> float | None:
    if made not in values or less not in values:
        return None
    return number(float((values[made].exact - values[less].exact).mean()))
