"""Recognisers of personal data: which kind a text is of, by its form, its check digits, its column.

Pure functions. A recogniser has a shape that a whole value has (a regular expression that Python,
Polars and RE2 understand alike, so that columns can be looked through quickly) and a check of what
has it. What neither can tell, such as a date of birth, is known by the name of the column alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

from everloop.core import checksums

__all__ = ["BY_NAME", "RECOGNISERS", "Recogniser", "hinted", "recognise"]


class Recogniser(NamedTuple):
    """One kind of personal data.

    Attributes:
        kind: As it is tagged: ``Field(pii=kind)``.
        shape: What a whole value looks like, spaces around it aside.
        check: Whether a value of this shape is one; of the value without separators, in capitals.
        chance: How many of random values of this shape pass the check, about.
        hints: Words of column names that speak for it.
        digits: Lengths that a whole number of it has with its leading zeros; empty if it is no
            number, or one that is too seldom kept as one.
        inside: What is sought inside of longer texts; empty where too much else looks like it.
    """

    kind: str
    shape: str
    check: Callable[[str], bool]
    chance: float
    hints: frozenset[str] = frozenset()
    digits: tuple[int, ...] = ()
    inside: str = ""

    def matches(self, text: str) -> bool:
        """Whether a value is of this kind."""
        stripped = text.strip()
        return bool(_compiled(self.shape).fullmatch(stripped)) and self.is_one(stripped)

    def is_one(self, text: str) -> bool:
        """Whether a value that has the shape is of this kind."""
        return self.check(text if self.kind in _AS_IS else _SEPARATORS.sub("", text).upper())


_SEPARATORS = re.compile(r"[\s./()\-]")
#: Kinds in whose values separators mean something.
_AS_IS = ("email", "ip-address", "phone", "us-ssn", "fi-hetu")

# --- checks of what has no check digit -----------------------------------------------------------


def _email(text: str) -> bool:
    # RFC 5321, 4.5.3.1: at most 64 octets before the sign, 254 in all.
    local, _, domain = text.rpartition("@")
    return (
        len(text) <= 254
        and 0 < len(local) <= 64
        and ".." not in text
        and not local.startswith(".")
        and not local.endswith(".")
        and all(0 < len(p) <= 63 and p[0] != "-" != p[-1] for p in domain.split("."))
    )


def _ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


#: Country codes of telephone numbers. Source: ITU, List of assigned country codes (E.164).
_CODES = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 "
    "64 65 66 81 82 84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 "
    "228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 243 244 245 246 247 248 249 250 "
    "251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299 "
    "350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 379 380 381 382 "
    "383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 "
    "595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 "
    "690 691 692 850 852 853 855 856 880 886 960 961 962 963 964 965 966 967 968 970 971 972 973 "
    "974 975 976 977 992 993 994 995 996 998"
)
_COUNTRIES = frozenset(_CODES.split())


def _phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if text.startswith(("+", "00")):
        digits = digits.removeprefix("00")
        known = any(digits[:n] in _COUNTRIES for n in (1, 2, 3))
        return known and 8 <= len(digits) <= 15
    if digits[0] == "0":  # a trunk prefix: Europe, Asia
        return 9 <= len(digits) <= 12 and len(set(digits)) > 2
    # The North American plan: neither part begins with 0 or 1 (NANPA).
    digits = digits.removeprefix("1") if len(digits) == 11 else digits
    return len(digits) == 10 and digits[0] in "23456789" and digits[3] in "23456789"


def _ssn(text: str) -> bool:
    return checksums.us_ssn(re.sub(r"\D", "", text))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LETTERS = "[A-Za-z]"
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
_IP4 = r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"
_MAIL = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\-]+@(?:[A-Za-z0-9\-]+\.)+[A-Za-z]{2,24}"
_IBAN = r"[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,4})?"

#: In the order in which one goes before another where a value is of several kinds.
RECOGNISERS: tuple[Recogniser, ...] = (
    Recogniser("email", _MAIL, _email, 0.0, _words("mail email"), inside=_MAIL),
    Recogniser("iban", _IBAN, checksums.iban, 1e-4, _words("iban account"), inside=_IBAN),
    Recogniser(
        "payment-card", r"\d{4}[ -]?\d{4,6}[ -]?\d{4,5}[ -]?\d{0,7}", checksums.card, 0.02,
        _words("card pan creditcard cardnumber"), (13, 14, 15, 16, 19),
        inside=r"\b\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}\b",
    ),
    Recogniser(
        "ip-address", rf"{_IP4}|[0-9A-Fa-f]{{0,4}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}(?:{_IP4})?", _ip,
        0.001, _words("ip ipaddress host addr"), inside=rf"\b{_IP4}\b",
    ),
    Recogniser(
        "it-codice-fiscale", rf"{_LETTERS}{{6}}\w{{2}}{_LETTERS}\w{{2}}{_LETTERS}\w{{3}}{_LETTERS}",
        checksums.italian_codice_fiscale, 0.001, _words("cf codice fiscale codicefiscale"),
    ),
    Recogniser(
        "fi-hetu", rf"{_DAY}{_MONTH}\d{{2}}[-+A-FU-Y]\d{{3}}[0-9A-Y]", checksums.finnish_hetu, 0.03,
        _words("hetu henkilotunnus"),
    ),
    Recogniser(
        "es-dni", rf"[0-9XYZxyz]\d{{7}}[ -]?{_LETTERS}", checksums.spanish_dni, 1 / 26,
        _words("dni nie nif"),
    ),
    Recogniser(
        "uk-nino", r"[A-Za-z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Da-d]", checksums.uk_nino, 0.7,
        _words("nino insurance"),
    ),
    Recogniser(
        "fr-nir", r"[1-478] ?\d{2} ?\d{2} ?\d[0-9ABab] ?\d{3} ?\d{3} ?\d{2}", checksums.french_nir,
        1 / 150, _words("nir insee secu"), (15,),
    ),
    Recogniser(
        "be-rrn", r"\d{2}[. ]?(?:0\d|1[0-2])[. ]?[0-3]\d[- ]?\d{3}[. ]?\d{2}",
        checksums.belgian_rrn, 1 / 49, _words("rrn rijksregister nrn niss"), (11,),
    ),
    Recogniser(
        "pl-pesel", r"\d{11}", checksums.polish_pesel, 0.01, _words("pesel"), (11,),
    ),
    Recogniser(
        "se-personnummer", rf"(?:18|19|20)?\d{{2}}{_MONTH}(?:[0-26-8]\d|[39][01])[-+]?\d{{4}}",
        checksums.swedish_personnummer, 0.1, _words("personnummer pnr"), (10, 12),
    ),
    Recogniser(
        "de-tax-id", r"[1-9]\d[ ]?\d{3}[ ]?\d{3}[ ]?\d{3}", checksums.german_tax_id, 0.002,
        _words("steuer steuerid idnr tin"), (11,),
    ),
    Recogniser(
        "br-cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", checksums.brazilian_cpf, 0.01,
        _words("cpf"), (11,),
    ),
    Recogniser(
        "us-ssn", r"\d{3}-\d{2}-\d{4}", _ssn, 0.01, _words("ssn"),
        inside=r"\b\d{3}-\d{2}-\d{4}\b",
    ),
    Recogniser("us-ssn", r"\d{9}", _ssn, 0.9, _words("ssn social"), (9,)),
    Recogniser("nl-bsn", r"\d{9}", checksums.dutch_bsn, 1 / 11, _words("bsn sofi"), (9,)),
    Recogniser(
        "phone", r"\+\d[\d ()./\-]{6,20}\d", _phone, 0.01,
        _words("phone tel telephone telefon mobile cell fax handy"),
        inside=r"\+\d[\d ()/\-]{6,16}\d",
    ),
    Recogniser(
        "phone", r"(?:1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}", _phone, 0.05,
        _words("phone tel telephone telefon mobile cell fax handy"),
    ),
    Recogniser(
        "phone", r"[0-9][\d ()./\-]{7,16}\d", _phone, 0.9,
        _words("phone tel telephone telefon mobile cell fax handy"), (10, 11),
    ),
)  # fmt: skip

#: Kinds that only the name of a column tells: words that all stand in it -> the kind.
BY_NAME: tuple[tuple[frozenset[str], str], ...] = tuple(
    (_words(words), kind)
    for kind, several in {
        "date-of-birth": ("dob", "birth", "birthday", "birthdate", "born", "geburtstag",
                          "geburtsdatum", "naissance", "nacimiento", "nascita"),
        "person-name": ("first name", "firstname", "last name", "lastname", "surname", "forename",
                        "full name", "fullname", "given name", "family name", "vorname",
                        "nachname", "maiden name"),
        "postal-address": ("street", "street address", "home address", "postal address",
                           "address line", "strasse"),
        "passport": ("passport",),
        "gender": ("gender", "sex"),
        "ethnicity": ("ethnicity", "race"),
        "religion": ("religion",),
    }.items()
    for words in several
)  # fmt: skip


def hinted(column: str) -> frozenset[str]:
    """The words of a column's name, as hints know them: ``homePhone_nr`` has home, phone, nr."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column)
    return frozenset(re.findall(r"[a-z]+", parted.lower()))


def recognise(text: str, column: str = "") -> tuple[str, ...]:
    """The kinds of personal data that one value can be of, the likeliest first.

    Args:
        text: The value.
        column: The name of its column: what is a form alone counts only where the name speaks for
            it, as nine digits in ``ssn``.
    """
    words = hinted(column)
    return tuple(
        dict.fromkeys(
            one.kind
            for one in RECOGNISERS
            if (one.chance < 0.5 or not words.isdisjoint(one.hints)) and one.matches(text)
        )
    )


_patterns: dict[str, re.Pattern[str]] = {}


def _compiled(shape: str) -> re.Pattern[str]:
    found = _patterns.get(shape)
    if found is None:
        found = _patterns[shape] = re.compile(shape, re.ASCII)
    return found
