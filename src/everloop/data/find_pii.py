"""Personal data in the columns of a table: the recognisers over a sample that is always the same.

Polars passes over what cannot be any kind; of what is left up to 4,000 distinct values are checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from everloop.core.pii import PiiFinding, PiiReport
from everloop.core.recognisers import BY_NAME, RECOGNISERS, Recogniser, hinted
from everloop.core.schema import Field, Schema

__all__ = ["pii_in", "sampled_rows"]

#: Distinct values that a weak check must have held of before it says anything by itself.
_FEWEST = 20
#: Distinct values that are checked of one kind; a share of them is off by 1.5 points at most.
_CHECKED = 4_000
#: Texts that are longer on average are looked into, and not only at.
_LONG = 40
#: Of random digits more pass a check than this: then a name, or all values, must speak for it.
_WEAK = 0.02


def sampled_rows(rows: int, most: int) -> list[int] | None:
    """Which of `rows` rows are looked at: evenly spread, the same each time; None is all."""
    if most <= 0 or rows <= most:
        return None
    return [n * rows // most for n in range(most)]


def pii_in(frame: pl.DataFrame, schema: Schema, *, total: int, ref: str = "") -> PiiReport:
    """What kinds of personal data the columns of a frame hold.

    Args:
        frame: The rows that are looked at.
        schema: Of the same columns; its tags are told beside what was found.
        total: Rows of which `frame` is the sample.
        ref: The version, or empty.
    """
    found = [one for field in schema.fields for one in _column(frame[field.name], field)]
    return PiiReport(ref=ref, rows=total, looked_at=frame.height, findings=tuple(found))


def _column(values: pl.Series, field: Field) -> Iterator[PiiFinding]:
    words = hinted(field.name)
    known = values.drop_nulls()
    told = _by_name(field, words, len(known))
    texts = _texts(known, field)
    if texts is None or not len(known):
        if told is not None:
            yield told
        return
    counted = texts.value_counts(name="times")
    if len(counted) > _CHECKED:  # the same ones are chosen each time
        counted = counted.sort(texts.name)
    distinct, times = counted[texts.name], counted["times"]
    best: dict[str, PiiFinding] = {}
    for one in RECOGNISERS:
        if (one.digits and field.is_numeric) or not field.is_numeric:
            judged = _judged(one, distinct, times, len(known), field, words)
            if judged is not None and judged.share > _share(best.get(one.kind)):
                best[one.kind] = judged
    order = {one.kind: n for n, one in reversed(list(enumerate(RECOGNISERS)))}
    ranked = sorted(best.values(), key=lambda f: (not f.found, -f.share, order[f.kind]))
    if told is not None and not any(finding.found for finding in ranked):
        yield told
    # A value that is one thing by its check is no other thing by its form alone.
    taken = next((f for f in ranked if f.found), None)
    yield from (f for f in ranked if taken is None or f is taken or (f.inside and f.found))


def _share(finding: PiiFinding | None) -> float:
    return -1.0 if finding is None else finding.share


def _texts(known: pl.Series, field: Field) -> pl.Series | None:
    """The values as texts, if this type of column is looked into."""
    if field.type == "string":
        return known.str.strip_chars()
    if field.type in ("int64", "uint64", "int32", "uint32"):
        return known.cast(pl.String)
    return None


def _by_name(field: Field, words: frozenset[str], rows: int) -> PiiFinding | None:
    for wanted, kind in BY_NAME:
        if wanted <= words:
            return PiiFinding(
                column=field.name, kind=kind, tagged=field.pii, matched=0, values=rows, found=True,
                threshold=0.0, reason="the name of the column says so; values were not looked at",
            )  # fmt: skip
    return None


def _judged(
    one: Recogniser,
    distinct: pl.Series,
    times: pl.Series,
    rows: int,
    field: Field,
    words: frozenset[str],
) -> PiiFinding | None:
    is_hinted = not words.isdisjoint(one.hints)
    if one.chance >= 0.5 and not is_hinted:
        return None  # a form that any number has says nothing by itself
    if field.is_numeric:
        distinct = _padded(distinct, one)
    shaped = distinct.str.contains(f"^(?:{_ascii(one.shape)})$")
    matched, kinds = _count(distinct.filter(shaped), times.filter(shaped), one.is_one)
    inside = False
    if one.inside and not matched and field.type == "string" and _mean(distinct) > _LONG:
        within = distinct.str.contains(_ascii(one.inside))
        matched, kinds = _count(
            distinct.filter(within), times.filter(within), lambda text: _within(one, text)
        )
        inside = True
    if not matched:
        return None
    threshold = _threshold(one.chance, is_hinted)
    share = matched / rows
    few = one.chance > _WEAK and not is_hinted and kinds < _FEWEST
    found = share >= threshold and not few
    return PiiFinding(
        column=field.name, kind=one.kind, tagged=field.pii, matched=matched, values=rows,
        found=found, threshold=threshold, inside=inside,
        reason=_reason(one, share, threshold, is_hinted=is_hinted, few=few, inside=inside),
    )  # fmt: skip


def _threshold(chance: float, is_hinted: bool) -> float:
    """The share of values from which a column counts as of a kind."""
    if chance <= 0.001:
        return 0.02
    if chance <= _WEAK:
        return 0.1 if is_hinted else 0.3
    return 0.3 if is_hinted else 0.9


def _reason(
    one: Recogniser, share: float, threshold: float, *, is_hinted: bool, few: bool, inside: bool
) -> str:
    how = "hold one" if inside else "have its form"
    if one.chance and one.chance < 0.5 and not inside:
        how += f" and pass its check, as about {one.chance:.1%} of such values do by chance"
    name = "; the name of the column speaks for it" if is_hinted else ""
    if few:
        return f"{share:.1%} {how}, of too few distinct values to tell{name}"
    beside = "at least" if share >= threshold else "below"
    return f"{share:.1%} {how}, {beside} {threshold:.0%}{name}"


def _count(candidates: pl.Series, times: pl.Series, is_one: Any) -> tuple[int, int]:
    """How many values are of the kind, and how many distinct ones, of those that look like it.

    Of many distinct ones some are checked, evenly spread, and stand for the others.
    """
    stand_for = max(len(candidates) / _CHECKED, 1.0)
    if stand_for > 1:
        at = [n * len(candidates) // _CHECKED for n in range(_CHECKED)]
        candidates, chosen = candidates[at], times[at]
        stand_for = float(times.sum()) / float(chosen.sum())
        times = chosen
    mask = pl.Series([is_one(text) for text in candidates.to_list()], dtype=pl.Boolean)
    return round(int(times.filter(mask).sum() or 0) * stand_for), int(mask.sum() or 0)


def _within(one: Recogniser, text: str) -> bool:
    import re

    return any(one.is_one(part.strip()) for part in re.findall(one.inside, text, re.ASCII))


def _padded(distinct: pl.Series, one: Recogniser) -> pl.Series:
    """Whole numbers with the zeros that they lost: up to the next length that the kind has."""
    made = distinct
    for size in sorted(one.digits, reverse=True):
        lengths = made.str.len_chars()
        lost = (lengths < size) & (lengths >= size - 1) & ~lengths.is_in(list(one.digits))
        made = made.zip_with(~lost, made.str.zfill(size))
    return made


def _mean(texts: pl.Series) -> float:
    mean = texts.str.len_chars().mean()
    return float(mean) if isinstance(mean, int | float) else 0.0


def _ascii(shape: str) -> str:
    # Rust's \d, \w and \b are Unicode's; the check is for ASCII, as the recognisers are.
    return shape.replace(r"\d", "[0-9]").replace(r"\w", "[0-9A-Za-z_]").replace(r"\b", r"(?-u:\b)")
