"""Numbers of people and their accounts: the rules and check digits that tell them apart.

Each function takes a text without spaces and separators, in capitals, and says whether it is a
valid number of its kind; that it was ever given to anybody, nobody can tell from it.
"""

from __future__ import annotations

from datetime import date

__all__ = [
    "belgian_rrn",
    "brazilian_cpf",
    "card",
    "dutch_bsn",
    "finnish_hetu",
    "french_nir",
    "german_tax_id",
    "iban",
    "italian_codice_fiscale",
    "luhn",
    "mod_11_10",
    "polish_pesel",
    "spanish_dni",
    "swedish_personnummer",
    "uk_nino",
    "us_ssn",
]

#: Source: SWIFT, IBAN Registry, release 99.
_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
#: Length of an IBAN by country.
IBAN_LENGTHS = {pair[:2]: int(pair[2:]) for pair in _LENGTHS.split()}

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"
#: What a character of a codice fiscale counts at an odd place (1, 3, 5...).
_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3,
         6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip
#: Letters that stand for digits where two people would have the same codice fiscale.
_OMOCODIA = str.maketrans("LMNPQRSTUV", "0123456789")
_CF_DIGITS = (6, 7, 9, 10, 12, 13, 14)


def luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B: finds every wrong digit."""
    total = 0
    for n, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + n % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod_11_10(digits: str) -> bool:
    """The check digit of ISO/IEC 7064, MOD 11,10: finds every wrong digit."""
    product = 10
    for digit in digits[:-1]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def iban(text: str) -> bool:
    """An account number: the length of its country, and mod 97 is 1. Source: ISO 13616-1."""
    if len(text) != IBAN_LENGTHS.get(text[:2], 0) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def card(digits: str) -> bool:
    """A payment card: the range of an issuer, a length that it has, and the Luhn digit.

    Source: the issuers' ranges as registered under ISO/IEC 7812 (Visa, Mastercard, American
    Express, Discover, Diners Club, JCB, UnionPay).
    """
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if not 13 <= size <= 19:
        return False
    known = (
        (digits[0] == "4" and size in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)
        or (two in (34, 37) and size == 15)
        or ((four == 6011 or 644 <= three <= 649 or two == 65) and size >= 16)
        or ((300 <= three <= 305 or two in (36, 38, 39)) and size >= 14)
        or (3528 <= four <= 3589 and size >= 16)
        or (two == 62 and size >= 16)
    )  # fmt: skip
    return known and luhn(digits)


def us_ssn(digits: str) -> bool:
    """A US social security number by what is never given out; it has no check digit.

    Source: Social Security Administration, POMS RM 10201.035, and the numbers of advertisements.
    """
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    return digits not in ("078051120", "219099999") and len(set(digits)) > 1


def uk_nino(text: str) -> bool:
    """A UK national insurance number; it has no check digit. Source: HMRC, NIM39110."""
    first, second, prefix = text[0], text[1], text[:2]
    if first in "DFIQUV" or second in "DFIOQUV":
        return False
    return prefix not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") and text[8:] in "ABCD"


def german_tax_id(digits: str) -> bool:
    """A German Identifikationsnummer: one digit twice or thrice, and ISO 7064 MOD 11,10.

    Source: Bundeszentralamt fuer Steuern; Abgabenordnung 139b.
    """
    first = digits[:10]
    times = sorted((first.count(digit) for digit in set(first)), reverse=True)
    in_a_row = any(digit * 3 in first for digit in set(first))
    is_spread = times[0] in (2, 3) and times[1] == 1 and not in_a_row
    return digits[0] != "0" and is_spread and mod_11_10(digits)


def dutch_bsn(digits: str) -> bool:
    """A Dutch burgerservicenummer: the eleven test. Source: Logisch ontwerp BSN, RvIG."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    total = sum(w * int(d) for w, d in zip(weights, digits, strict=True))
    return total % 11 == 0 and int(digits) > 0


def french_nir(text: str) -> bool:
    """A French numero d'inscription au repertoire with its key, mod 97. Source: INSEE."""
    month = int(text[3:5]) if text[3:5].isdigit() else 0
    if text[0] not in "123478" or not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    body = text[:13].replace("2A", "19", 1) if text[5:7] == "2A" else text[:13]
    body = body.replace("2B", "18", 1) if text[5:7] == "2B" else body
    return body.isdigit() and 97 - int(body) % 97 == int(text[13:])


def spanish_dni(text: str) -> bool:
    """A Spanish DNI or NIE with its letter, mod 23. Source: Real Decreto 1553/2005."""
    number = text[:8].translate(str.maketrans("XYZ", "012"))
    return number.isdigit() and _DNI[int(number) % 23] == text[8]


def italian_codice_fiscale(text: str) -> bool:
    """An Italian codice fiscale with its letter. Source: Decreto ministeriale 23 December 1976."""
    plain = "".join(c.translate(_OMOCODIA) if n in _CF_DIGITS else c for n, c in enumerate(text))
    if not all(plain[n].isdigit() for n in _CF_DIGITS) or plain[8] not in "ABCDEHLMPRST":
        return False
    day = int(plain[9:11]) % 40
    total = sum(
        _ODD[c] if n % 2 == 0 else int(c) if c.isdigit() else ord(c) - ord("A")
        for n, c in enumerate(text[:15])
    )
    return 1 <= day <= 31 and chr(65 + total % 26) == text[15]


def polish_pesel(digits: str) -> bool:
    """A Polish PESEL: a date with its century in the month, and a check digit.

    Source: Ustawa o ewidencji ludnosci, 2010.
    """
    year, month, day = int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    total = sum(w * int(d) for w, d in zip((1, 3, 7, 9) * 3, digits[:10], strict=False))
    return _is_date(century + year, month % 20, day) and (10 - total % 10) % 10 == int(digits[10])


def swedish_personnummer(digits: str) -> bool:
    """A Swedish personnummer or samordningsnummer (day + 60), of 10 or 12 digits; Luhn.

    Source: Skatteverket, SKV 704 and 707.
    """
    short = digits[-10:]
    year, month, day = int(short[:2]), int(short[2:4]), int(short[4:6])
    centuries = (int(digits[:2]),) if len(digits) == 12 else (19, 20)
    is_day = any(_is_date(100 * c + year, month, day - 60 * (day > 60)) for c in centuries)
    return is_day and centuries[0] in (18, 19, 20) and luhn(short)


def belgian_rrn(digits: str) -> bool:
    """A Belgian rijksregisternummer: 97 less the rest, with a 2 before it from 2000 on.

    Source: Koninklijk besluit 3 April 1984. Month and day may be 0 where they are not known.
    """
    month, day, key = int(digits[2:4]), int(digits[4:6]), int(digits[9:])
    keys = (97 - int(digits[:9]) % 97, 97 - int("2" + digits[:9]) % 97)
    return month <= 12 and day <= 31 and digits[6:9] not in ("000", "999") and key in keys


def finnish_hetu(text: str) -> bool:
    """A Finnish henkilotunnus: a date, the sign of its century, and mod 31. Source: DVV."""
    century = {"+": 1800, **dict.fromkeys("-YXWVU", 1900), **dict.fromkeys("ABCDEF", 2000)}
    year = century[text[6]] + int(text[4:6])
    known = _is_date(year, int(text[2:4]), int(text[:2])) and int(text[7:10]) >= 2
    return known and _HETU[int(text[:6] + text[7:10]) % 31] == text[10]


def brazilian_cpf(digits: str) -> bool:
    """A Brazilian CPF with its two check digits, mod 11. Source: Receita Federal."""
    if len(set(digits)) == 1:
        return False
    for size in (9, 10):
        total = sum((size + 1 - n) * int(digits[n]) for n in range(size))
        if total * 10 % 11 % 10 != int(digits[size]):
            return False
    return True


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
