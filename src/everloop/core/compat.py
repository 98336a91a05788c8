"""Whether one signature can stand where another is expected, and why not.

A schema accepts another if all data that the other allows is data that it allows too. Backward:
the new inputs accept the old ones, and the old outputs accept the new ones. Forward: the same with
old and new exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator

from everloop.core.model import Compatibility, Signature
from everloop.core.schema import Field, Schema

__all__ = ["compatible"]


def compatible(old: Signature, new: Signature, *, against: int = 0) -> Compatibility:
    """Compare two signatures as their callers would meet them.

    Args:
        old: What callers were written for.
        new: What is to take its place.
        against: Number of the version that `old` is of, to be told with the outcome.
    """
    return Compatibility(
        against=against,
        backward=tuple(_replaces(old, new)),
        forward=tuple(_replaces(new, old)),
    )


def _replaces(known: Signature, other: Signature) -> Iterator[str]:
    """Why callers that know `known` cannot meet `other`."""
    for reason in _refused(other.inputs, known.inputs):
        yield f"inputs.{reason}"
    # Callers read the outputs that they know; one more does not disturb them.
    for reason in _refused(known.outputs, other.outputs, extra=True):
        yield f"outputs.{reason}"


def _refused(taker: Schema, given: Schema, *, extra: bool = False) -> Iterator[str]:
    """Why data of `given` is not always data of `taker`."""
    have = {field.name: field for field in given.fields}
    for field in taker.fields:
        other = have.pop(field.name, None)
        if other is None:
            if not field.nullable:
                yield f"{field.name}: is required"
        else:
            yield from (f"{field.name}: {reason}" for reason in _narrower(field, other))
    if taker.extra == "refuse" and not extra:
        yield from (f"{name}: is not known" for name in have)


def _narrower(field: Field, given: Field) -> Iterator[str]:
    if not _widens(given.type, field.type):
        yield f"takes {field.type}, not {given.type}"
        return
    if given.nullable and not field.nullable:
        yield "takes no null"
    if given.unit != field.unit and given.unit and field.unit:
        yield f"is in {field.unit}, not in {given.unit}"
    if field.ge is not None and (given.ge is None or given.ge < field.ge):
        yield f"takes nothing below {field.ge:g}"
    if field.le is not None and (given.le is None or given.le > field.le):
        yield f"takes nothing above {field.le:g}"
    if field.among and not (given.among and set(given.among) <= set(field.among)):
        yield f"takes only {', '.join(map(repr, field.among))}"
    if field.regex and field.regex != given.regex:
        yield f"takes only what matches {field.regex!r}"
    if field.max_length and not 0 < given.max_length <= field.max_length:
        yield f"takes nothing longer than {field.max_length}"


# Bits of the whole numbers that each float holds exactly.
_EXACT = {"float32": 24, "float64": 53}


def _widens(given: str, taken: str) -> bool:
    """Whether every value of one field type is, unchanged, one of the other."""
    if given == taken or (given, taken) == ("float32", "float64"):
        return True
    small = _whole(given)
    if small is None:
        return False
    large = _whole(taken)
    if large is not None:
        unsigned_fits = small[0] == "u" and large[0] == "" and small[1] < large[1]
        return unsigned_fits or (small[0] == large[0] and small[1] <= large[1])
    return small[1] <= _EXACT.get(taken, 0)


def _whole(kind: str) -> tuple[str, int] | None:
    sign, found, bits = kind.partition("int")
    return (sign, int(bits)) if found and sign in ("", "u") else None
