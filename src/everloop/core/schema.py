"""Schema: the one object that checks data, types features, signs models and validates requests.

A :class:`Schema` is an ordered tuple of :class:`Field` and of :class:`Check`. It is plain data with
one canonical JSON form, and its digest is the identity that manifests and signatures carry.
Translation to Arrow lives in ``everloop.data.arrow``, validation of frames in
``everloop.data.checks``, of requests in ``everloop.serving.signature``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from everloop.core.canonical import canonical_json
from everloop.core.check import Check, OnFail
from everloop.core.kinds import FIELD_TYPES, FieldType
from everloop.core.mask import mask_fault
from everloop.core.regex import regex_fault
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = [
    "FIELD_TYPES",
    "Check",
    "Field",
    "FieldType",
    "OnFail",
    "Schema",
    "Semantic",
    "canonical_json",
]

Semantic = Literal["", "numeric", "categorical", "id", "text", "embedding", "timestamp", "target"]

_NUMERIC = frozenset(t for t in FIELD_TYPES if t.startswith(("int", "uint", "float")))


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column.

    Attributes:
        name: Column name, not empty.
        type: One of ``FIELD_TYPES``; ``timestamp`` is UTC microseconds, ``date`` a calendar day.
        nullable: Whether nulls may stand in it. NaN counts as a null in a numeric column that is
            not nullable.
        ge, le: Inclusive bounds for numbers.
        among: Allowed values, of the field's type; empty means any.
        regex: The whole text must match. Without look-around, back-references and what engines
            read differently, so that a match takes linear time and means the same over a frame
            and over a request; only rare characters outside ASCII may be a letter or a space to
            one and not to the other.
        max_length: Longest text, in characters; 0 means any.
        unique: No two rows hold the same value (of a frame, not of all versions).
        unit: Unit of measure, such as ``"mile"``.
        semantic: What the values mean; decides what monitors watch.
        on_fail: What a row that breaks a rule of this field gets: ``fail`` (no version is made),
            ``drop`` (the row is left out and recorded), ``warn`` (kept, recorded), ``quarantine``
            or ``repair``; see :class:`~everloop.core.check.Check`.
        required: The column must be there also where ``extra="allow"``, which otherwise takes a
            nullable column that is missing for one of nulls.
        pii: Kind of personal data, such as ``"email"``; empty means none.
        owner: Who must correct it.
        description: For people.
        repair: Name of the function that corrects rows; with ``on_fail="repair"``.
        mask: What whoever may not see personal data gets instead, such as ``"hash"``; see
            ``everloop.core.mask``. Empty, with `pii`: ``redact`` for text, else ``null``.
    """

    name: str
    type: FieldType
    nullable: bool = True
    ge: float | None = None
    le: float | None = None
    among: tuple[str | int | float | bool, ...] = ()
    regex: str = ""
    max_length: int = 0
    unique: bool = False
    unit: str = ""
    semantic: Semantic = ""
    on_fail: OnFail = "fail"
    pii: str = ""
    owner: str = ""
    description: str = ""
    repair: str = ""
    mask: str = ""
    required: bool = False

    def __post_init__(self) -> None:
        # 60 and 60.0, a list and a tuple: what is equal must have one digest, also after a journey.
        for name in ("ge", "le"):
            if isinstance(bound := getattr(self, name), int):
                msgspec.structs.force_setattr(self, name, float(bound))
        if not isinstance(given := getattr(self, "among"), tuple):  # noqa: B009 (it may be a list)
            msgspec.structs.force_setattr(self, "among", tuple(given))

    @property
    def is_numeric(self) -> bool:
        return self.type in _NUMERIC

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the definition itself."""
        if not self.name:
            yield Fault("fields", "a field needs a name")
        if self.type not in FIELD_TYPES:
            yield Fault(f"fields.{self.name}", f"unknown type {self.type!r}")
        if (self.ge is not None or self.le is not None) and not self.is_numeric:
            yield Fault(f"fields.{self.name}", f"bounds need a number, not {self.type}")
        if self.ge is not None and self.le is not None and self.ge > self.le:
            yield Fault(f"fields.{self.name}", f"ge {self.ge} is above le {self.le}")
        if any(bound is not None and not math.isfinite(bound) for bound in (self.ge, self.le)):
            yield Fault(f"fields.{self.name}", "a bound must be finite; leave it out for none")
        if (self.regex or self.max_length) and self.type != "string":
            yield Fault(f"fields.{self.name}", f"regex and max_length need text, not {self.type}")
        if self.regex and (reason := regex_fault(self.regex)):
            yield Fault(f"fields.{self.name}", f"regex {self.regex!r}: {reason}")
        for value in self.among:
            if not _is_of(value, self.type):
                yield Fault(
                    f"fields.{self.name}", f"among holds {value!r}, which is no {self.type}"
                )
        if (self.on_fail == "repair") != bool(self.repair):
            yield Fault(f"fields.{self.name}", "on_fail='repair' and repair=NAME go together")
        if self.mask and (reason := mask_fault(self.mask, self.type)):
            yield Fault(f"fields.{self.name}", reason)


def _is_of(value: object, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind.startswith("float"):
        return isinstance(value, int) or math.isfinite(value)
    if kind not in _NUMERIC or not (isinstance(value, int) or value.is_integer()):
        return False
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return bool(low <= value < high)


class Schema(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ordered, typed fields with their rules.

    Attributes:
        fields: In the order of the columns.
        checks: Rules over rows.
        key: Columns that together name a row; none of them nullable.
        time: Column that holds the event time, or empty.
        extra: Whether columns that are not listed are kept (``allow``) or refused (``refuse``).
    """

    fields: tuple[Field, ...]
    checks: tuple[Check, ...] = ()
    key: tuple[str, ...] = ()
    time: str = ""
    extra: Literal["allow", "refuse"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("fields", "checks", "key"):
            if not isinstance(given := getattr(self, name), tuple):
                msgspec.structs.force_setattr(self, name, tuple(given))
        faults = [fault for field in self.fields for fault in field.faults()]
        names = [field.name for field in self.fields]
        faults += [
            Fault("fields", f"{n!r} stands twice")
            for n in sorted({n for n in names if names.count(n) > 1})
        ]
        checks = [check.name for check in self.checks]
        faults += [
            Fault("checks", f"{n!r} stands twice" if n else "a check needs a name")
            for n in sorted({n for n in checks if not n or checks.count(n) > 1})
        ]
        types = {field.name: field.type for field in self.fields}
        for check in self.checks:
            faults += check.faults(types, is_open=self.extra == "allow")
        for part in (*self.key, *((self.time,) if self.time else ())):
            if part not in names:
                faults.append(Fault("key" if part in self.key else "time", f"no field {part!r}"))
        if faults:
            raise InvalidInput("the schema is wrong", faults)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def digest(self) -> str:
        """Identity: sha256 of the canonical JSON, 64 hex digits."""
        import hashlib  # OpenSSL, which few processes need

        return hashlib.sha256(canonical_json(self)).hexdigest()

    def field(self, name: str) -> Field:
        """The field called `name`.

        Raises:
            NotFound: If there is none; with the nearest names.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise NotFound.named("column", name, self.names)

    def select(self, names: Sequence[str]) -> Schema:
        """A schema of just these fields, in this order, without checks or key."""
        return Schema(tuple(self.field(name) for name in names))
