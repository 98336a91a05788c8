"""The filter and order grammar of searches: text -> tree, and the tree over records in memory.

::

    filter  = either | either OR filter
    either  = term | term AND either
    term    = clause | NOT term | ( filter )
    clause  = name op value | name [NOT] IN ( value, ... [,] ) | name IS [NOT] NULL
    name    = [entity .] key        key in backticks or double quotes where it is no plain word
    op      = | != | > | >= | < | <= | LIKE | ILIKE | RLIKE

MLflow's grammar is the part without OR, NOT and parentheses; what else differs between its searches
is told by a :class:`Grammar`. ``runs.py`` compiles the tree to SQL;
what is small enough is matched here, and the tests hold the two equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from everloop.errors import InvalidInput

__all__ = [
    "All",
    "Any_",
    "Clause",
    "Grammar",
    "Not",
    "Order",
    "compare",
    "matches",
    "parse",
    "parse_order",
    "wildcard",
]

Kind = Literal["text", "number"]
_NUMBER_OPS = frozenset({"=", "!=", ">", ">=", "<", "<="})
_TEXT_OPS = frozenset({"=", "!=", "LIKE", "ILIKE"})
_RANGE_OPS = frozenset({">", ">=", "<", "<="})
_SET_OPS = frozenset({"IN", "NOT IN"})
_NULL_OPS = frozenset({"IS NULL", "IS NOT NULL"})
_INT64 = 1 << 63
_DEEPEST = 50
_SHOWN = 1000


class Clause(NamedTuple):
    """One comparison. `value` is a number, a text, a tuple of them, or None for IS [NOT] NULL."""

    entity: str
    key: str
    op: str
    value: Any


class All(NamedTuple):
    """Every part holds."""

    parts: tuple[Any, ...]


class Any_(NamedTuple):  # noqa: N801 (Any is taken)
    """At least one part holds."""

    parts: tuple[Any, ...]


class Not(NamedTuple):
    """The part does not hold."""

    part: Any


class Order(NamedTuple):
    """One key to sort by; `dataset` and `digest` narrow the metric of a logged model."""

    entity: str
    key: str
    descending: bool
    dataset: str = ""
    digest: str = ""


class Grammar(msgspec.Struct, frozen=True):
    """What may be searched for.

    Attributes:
        attributes: Name -> whether it is text or a number.
        entities: Spelling -> entity, for all but attributes.
        aliases: Other spellings of attributes.
        keys: Of entities that know only certain keys; these are not sorted by.
        lists: Entities that may be compared with lists of texts.
        measured: Entities that ``>`` and the like compare as numbers, other operators as text.
        nullable: Attributes that a record may lack.
        has_patterns: Whether text is compared with regular expressions by RLIKE.
        quotes_numbers: Whether a number may stand in quotes.
        bares_texts: Whether a text that is a number may stand without quotes.
    """

    attributes: dict[str, Kind]
    entities: dict[str, str]
    aliases: dict[str, str] = {}
    keys: dict[str, tuple[str, ...]] = {}
    lists: frozenset[str] = frozenset({"attribute", "dataset"})
    measured: frozenset[str] = frozenset()
    nullable: frozenset[str] = frozenset()
    has_patterns: bool = False
    quotes_numbers: bool = False
    bares_texts: bool = False


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^']|'')*' | "[^"]*")
    | (?P<quoted>`[^`]*`)
    | (?P<op>!=|>=|<=|=|>|<)
    | (?P<mark>[().,])
    | (?P<word>[^\W\d]\w*)
    | (?P<bad>\S)
    )""",
    re.VERBOSE,
)
_KEYWORDS = frozenset(
    {"AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "RLIKE", "ASC", "DESC"}
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        word, at = match.group(kind), match.start(kind)
        if kind == "word" and word.upper() in _KEYWORDS:
            kind, word = "keyword", word.upper()
        found.append(_Token(kind, word, at))
    return [*found, _Token("end", "", len(text))]


def _wrong(text: str, token: _Token, wanted: str, what: str = "filter") -> NoReturn:
    got = repr(token.text[:_SHOWN]) if token.text else "the end"
    said = "clause(s) in filter string" if what == "filter" else "order_by clause"
    raise InvalidInput(
        f"Invalid {said}: {text[:_SHOWN]!r}",
        [(what, f"at {token.at}: wanted {wanted}, got {got}")],
        hint="write it as: metrics.auc > 0.8 AND params.lr = '0.1'",
    )


class _Parser:
    """A Pratt parser: OR binds 10, AND 20, NOT 30."""

    def __init__(self, text: str, grammar: Grammar, and_only: bool, what: str = "filter") -> None:
        self.text = text
        self._what = what
        self.tokens = _tokens(text)
        self.at = 0
        self._grammar = grammar
        self._and_only = and_only
        self._depth = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def wrong(self, token: _Token, wanted: str) -> NoReturn:
        _wrong(self.text, token, wanted, self._what)

    def expression(self, power: int) -> Any:
        self._depth += 1
        if self._depth > _DEEPEST:
            self.wrong(self.next, f"at most {_DEEPEST} levels of parentheses")
        left = self._prefix()
        while True:
            token = self.next
            if token == ("keyword", "AND", token.at) and power < 20:
                self.take()
                left = _join(All, left, self.expression(20))
            elif token == ("keyword", "OR", token.at) and power < 10:
                if self._and_only:
                    self.wrong(token, "AND, as OR is not supported here")
                self.take()
                left = _join(Any_, left, self.expression(10))
            else:
                self._depth -= 1
                return left

    def _prefix(self) -> Any:
        token = self.next
        if not self._and_only and token[:2] == ("keyword", "NOT"):
            self.take()
            return Not(self.expression(30))
        if not self._and_only and token[:2] == ("mark", "("):
            self.take()
            inner = self.expression(0)
            if self.next[:2] != ("mark", ")"):
                self.wrong(self.next, "')'")
            self.take()
            return inner
        return self._clause()

    def name(self) -> tuple[str, str, _Token]:
        first = self.take()
        if first.kind not in ("word", "text", "quoted"):
            self.wrong(first, "a name such as metrics.auc")
        words = [_unquoted(first)]
        while self.next[:2] == ("mark", "."):
            self.take()
            word = self.take()
            if word.kind not in ("word", "text", "quoted", "keyword", "number"):
                self.wrong(word, "a key")
            words.append(_unquoted(word))
        entity, key = "attribute", words[0]
        if len(words) > 1:
            spelled, key = words[0].lower(), ".".join(words[1:])
            entity = (
                "attribute" if spelled in _ATTRIBUTE else self._grammar.entities.get(spelled, "")
            )
            if not entity:
                there = ", ".join(sorted({"attribute", *self._grammar.entities.values()}))
                self.wrong(first, f"one of {there}")
        if entity == "attribute":
            key = self._grammar.aliases.get(key, key)
            if key not in self._grammar.attributes:
                self.wrong(first, f"one of {', '.join(sorted(self._grammar.attributes))}")
        known = self._grammar.keys.get(entity, (key,))
        if key not in known:
            self.wrong(first, f"{entity} with one of {', '.join(known)}")
        return entity, key, first

    def _clause(self) -> Clause:
        entity, key, named = self.name()
        kind = self._kind(entity, key)
        op = self._operator()
        allowed = self._allowed(entity, key, kind)
        if op not in allowed:
            self.wrong(named, f"one of {', '.join(sorted(allowed))} after it, not {op}")
        if op in _NULL_OPS:
            return Clause(entity, key, op, None)
        if op in _SET_OPS:
            return Clause(entity, key, op, self._values(kind))
        if op in _RANGE_OPS:
            kind = "number"
        return Clause(entity, key, op, self._value(kind))

    def _allowed(self, entity: str, key: str, kind: Kind) -> frozenset[str]:
        grammar = self._grammar
        if kind == "number":
            return _NUMBER_OPS
        allowed = _TEXT_OPS
        if grammar.has_patterns:
            allowed |= {"RLIKE"}
        if entity in grammar.lists:
            allowed |= _SET_OPS
        if entity in grammar.measured:
            allowed |= _RANGE_OPS
        if key in grammar.nullable if entity == "attribute" else entity != "dataset":
            allowed |= _NULL_OPS
        return allowed

    def _kind(self, entity: str, key: str) -> Kind:
        if entity == "metric":
            return "number"
        return self._grammar.attributes[key] if entity == "attribute" else "text"

    def _operator(self) -> str:
        token = self.take()
        if token.kind == "op" or token.text in ("LIKE", "ILIKE", "RLIKE", "IN"):
            return token.text
        if token[:2] == ("keyword", "NOT") and self.next[:2] == ("keyword", "IN"):
            self.take()
            return "NOT IN"
        if token[:2] == ("keyword", "IS"):
            word = self.take()
            negated = word.text == "NOT"
            if (self.take() if negated else word)[:2] == ("keyword", "NULL"):
                return "IS NOT NULL" if negated else "IS NULL"
        _wrong(self.text, token, "an operator")

    def _value(self, kind: Kind) -> Any:
        token = self.take()
        if kind == "text":
            if token.kind == "number" and self._grammar.bares_texts:
                return token.text
            if token.kind != "text":
                self.wrong(token, "a text in quotes")
            return _unquoted(token)
        if token.kind == "text" and self._grammar.quotes_numbers:
            inside = _tokens(_unquoted(token))
            if [part.kind for part in inside] == ["number", "end"]:
                token = inside[0]._replace(at=token.at)
        if token.kind != "number":
            self.wrong(token, "a number")
        return self._number(token)

    def _number(self, token: _Token) -> int | float:
        try:
            value: int | float = int(token.text)
        except ValueError:
            value = float(token.text)
        fits = abs(value) < _INT64 if isinstance(value, int) else math.isfinite(value)
        if not fits:
            self.wrong(token, "a number that fits 64 bits")
        return value

    def _values(self, kind: Kind) -> tuple[Any, ...]:
        if self.next[:2] != ("mark", "("):
            self.wrong(self.next, "a list such as ('a', 'b')")
        self.take()
        values = [self._value(kind)]
        while self.next[:2] == ("mark", ","):
            self.take()
            if self.next[:2] == ("mark", ")"):
                break
            values.append(self._value(kind))
        if self.next[:2] != ("mark", ")"):
            self.wrong(self.next, "')'")
        self.take()
        return tuple(values)


_ATTRIBUTE = frozenset({"attribute", "attributes", "attr", "run"})


def _unquoted(token: _Token) -> str:
    if token.kind in ("text", "quoted"):
        return token.text[1:-1].replace("''", "'")
    return token.text


def _join(kind: Any, left: Any, right: Any) -> Any:
    parts = left.parts if isinstance(left, kind) else (left,)
    return kind((*parts, right))


def parse(text: str, grammar: Grammar, *, and_only: bool = False) -> Any:
    """The tree of a filter; None for an empty one.

    Raises:
        InvalidInput: With the place where it goes wrong and what was wanted there.
    """
    if not text.strip():
        return None
    parser = _Parser(text, grammar, and_only)
    tree = parser.expression(0)
    if parser.next.kind != "end":
        parser.wrong(parser.next, "AND or the end")
    return tree


#: Clients also quote entity and key as one: "`metrics.acc` DESC".
_WHOLE = re.compile(r"^\s*`(\w+)\.([^`]+)`")


def parse_order(items: Sequence[str], grammar: Grammar) -> list[Order]:
    """The keys of an order.

    Raises:
        InvalidInput: If one is no name with an optional ASC or DESC, or stands twice.
    """
    found: list[Order] = []
    for item in items:
        item = _WHOLE.sub(r"\1.`\2`", item)
        parser = _Parser(item, grammar, and_only=True, what="order_by")
        entity, key, named = parser.name()
        if entity in grammar.keys:
            parser.wrong(named, f"no {entity}: runs have several")
        token = parser.take()
        if token.text not in ("ASC", "DESC", "") or parser.next.kind != "end":
            parser.wrong(token, "ASC, DESC or the end")
        if any(order[:2] == (entity, key) for order in found):
            parser.wrong(named, "each field once in order_by")
        found.append(Order(entity, key, token.text == "DESC"))
    return found


def wildcard(pattern: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression: ``%`` is any text, ``_`` any character."""
    parts = {"%": ".*", "_": "."}
    text = "".join(parts.get(letter) or re.escape(letter) for letter in pattern)
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def compare(op: str, left: Any, right: Any) -> bool:
    """Whether ``left op right``; `left` is there."""
    if op in ("LIKE", "ILIKE"):
        return wildcard(right, ignore_case=op == "ILIKE").fullmatch(left) is not None
    if op in _SET_OPS:
        return (left in tuple(right)) == (op == "IN")
    operations: Mapping[str, Callable[[], bool]] = {
        "=": lambda: left == right,
        "!=": lambda: left != right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
    }
    return bool(operations[op]())


def matches(tree: Any, values: Callable[[str, str], Sequence[Any]]) -> bool:
    """Whether a record in memory meets a filter.

    Args:
        tree: As parsed; None is met by all.
        values: Gives the values of (entity, key): none, one, or several for datasets.
    """
    if tree is None:
        return True
    if isinstance(tree, All):
        return all(matches(part, values) for part in tree.parts)
    if isinstance(tree, Any_):
        return any(matches(part, values) for part in tree.parts)
    if isinstance(tree, Not):
        return not matches(tree.part, values)
    found = values(tree.entity, tree.key)
    if tree.op in _NULL_OPS:
        return (len(found) > 0) is (tree.op == "IS NOT NULL")
    return any(compare(tree.op, value, tree.value) for value in found)
