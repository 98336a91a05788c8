"""Recognisers: what is valid is found, and what one digit makes invalid is not."""

from __future__ import annotations

import string
from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from everloop.core import checksums
from everloop.core.recognisers import RECOGNISERS, hinted, recognise

#: Examples of authorities, standards and test suites; none is a person's.
EXAMPLES = {
    "email": ["ann@example.org", "a.b+c@mail.example.co.uk"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "NO9386011117947"],
    "payment-card": ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444"],
    "ip-address": ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.128"],
    "it-codice-fiscale": ["RSSMRA85T10A562S"],
    "fi-hetu": ["131052-308T"],
    "es-dni": ["12345678Z", "X1234567L"],
    "fr-nir": ["2 55 08 14 168 025 38", "1 84 12 76 451 089 46"],
    "be-rrn": ["85.07.30-033 28", "17073003384"],
    "pl-pesel": ["44051401359"],
    "se-personnummer": ["811228-9874", "19811228-9874"],
    "de-tax-id": ["86 095 742 719", "65929970489"],
    "br-cpf": ["111.444.777-35"],
    "us-ssn": ["212-09-9998"],
    "phone": ["+49 30 901820", "+1 (212) 555-0123", "(212) 555-0123"],
}
HINTED = {"uk-nino": ("AB123456C", "nino"), "nl-bsn": ("111222333", "bsn"),
          "us-ssn": ("212099998", "SSN"), "phone": ("030 901820", "telefon")}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_are_recognised(kind: str) -> None:
    for text in EXAMPLES[kind]:
        assert kind in recognise(text), text


def test_every_recogniser_has_an_example() -> None:
    assert {one.kind for one in RECOGNISERS} == EXAMPLES.keys() | HINTED.keys()


@pytest.mark.parametrize("kind", HINTED)
def test_a_mere_form_counts_only_under_a_name_that_speaks_for_it(kind: str) -> None:
    text, column = HINTED[kind]
    assert kind in recognise(text, column)
    weak = next(o for o in RECOGNISERS if o.kind == kind and o.matches(text)).chance >= 0.5
    assert (kind in recognise(text, "amount")) is not weak


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "hello", "1.2.3", "999.1.1.1", "20130401", "2013-04-01", "3.14", "ann@", "@x.org",
        "a..b@example.org", "ann@example", "000-12-3456", "666-12-3456", "900-12-3456",
        "078-05-1120", "00000000000", "000000000", "12:30:00", "DE00 3704 0044 0532 0130 00",
        "XX89370400440532013000", "1234567890123456", "A" * 500, "٣" * 11, "\u0661" * 9,
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_not_recognised(text: str) -> None:
    assert recognise(text) == ()


digits = st.text("0123456789", min_size=1)


def number(size: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=size, max_size=size)


def completed(check: Callable[[str], bool], body: str, ending: int) -> str | None:
    """The body with the check digits that make it valid; None if none do."""
    for n in range(10**ending):
        if check(text := f"{body}{n:0{ending}}"):
            return text
    return None


# Kind, digits before the check digits, and how many of those. All of these find every wrong digit,
# as their moduli (10 with weights coprime to it, 11, 97) say.
SINGLE = [
    (checksums.luhn, 15, 1),
    (checksums.mod_11_10, 10, 1),
    (checksums.dutch_bsn, 8, 1),
    (checksums.german_tax_id, 10, 1),
    (checksums.polish_pesel, 10, 1),
    (checksums.card, 15, 1),
    (checksums.french_nir, 13, 2),
    (checksums.swedish_personnummer, 9, 1),
]


@pytest.mark.parametrize(("check", "size", "ending"), SINGLE)
@given(data=st.data())
def test_one_wrong_digit_is_found(
    check: Callable[[str], bool], size: int, ending: int, data: st.DataObject
) -> None:
    day = data.draw(st.dates(date(1950, 1, 1), date(1999, 12, 31)))
    rest = data.draw(number(size))
    bodies = {
        checksums.german_tax_id: "1234567899",
        checksums.polish_pesel: f"{day:%y%m%d}{rest[:4]}",
        checksums.swedish_personnummer: f"{day:%y%m%d}{rest[:3]}",
        checksums.card: f"4{rest[1:]}",
        checksums.french_nir: f"1{day:%y%m}{rest[5:]}",
    }
    valid = completed(check, bodies.get(check, rest), ending)
    assume(valid is not None)
    assert valid is not None
    at = data.draw(st.integers(0, len(valid) - 1))
    wrong = data.draw(st.sampled_from([d for d in "0123456789" if d != valid[at]]))
    assert not check(valid[:at] + wrong + valid[at + 1 :])


@given(country=st.sampled_from(sorted(checksums.IBAN_LENGTHS)), data=st.data())
def test_an_iban_of_every_country_is_found_and_one_wrong_sign_is_not(
    country: str, data: st.DataObject
) -> None:
    size = checksums.IBAN_LENGTHS[country] - 4
    body = data.draw(st.text(string.digits + string.ascii_uppercase, min_size=size, max_size=size))
    plain = "".join(str(int(c, 36)) for c in f"{body}{country}00")
    valid = f"{country}{98 - int(plain) % 97:02}{body}"
    assert checksums.iban(valid)
    assert "iban" in recognise(valid)
    at = data.draw(st.integers(4, len(valid) - 1))
    assume(valid[at].isdigit())
    wrong = data.draw(st.sampled_from([d for d in "0123456789" if d != valid[at]]))
    assert not checksums.iban(valid[:at] + wrong + valid[at + 1 :])


@given(number(8), st.integers(0, 7), st.integers(1, 9))
def test_a_spanish_number_has_one_letter(body: str, at: int, add: int) -> None:
    letter = next(c for c in string.ascii_uppercase if checksums.spanish_dni(body + c))
    assert recognise(body + letter) == ("es-dni",)
    wrong = str((int(body[at]) + add) % 10)
    assert not checksums.spanish_dni(body[:at] + wrong + body[at + 1 :] + letter)


@given(st.text(max_size=40), st.text(max_size=12))
def test_any_text_is_told_without_an_error(text: str, column: str) -> None:
    recognise(text, column)


@given(st.from_regex(r"[0-9A-Z+\-. @:]{1,24}", fullmatch=True))
def test_any_code_is_told_without_an_error(text: str) -> None:
    for column in ("", "phone ssn bsn nino"):
        recognise(text, column)


def test_names_of_columns_are_words() -> None:
    assert hinted("homePhone_nr") == {"home", "phone", "nr"}
    assert hinted("DATE-OF-BIRTH") == {"date", "of", "birth"}
    assert hinted("") == frozenset()
