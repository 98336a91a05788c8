"""Reports of CI for readers: whatever cases tell, Markdown and JUnit stay what they are."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from everloop.automation.ci_render import junit_xml, markdown
from everloop.core.ci import CiCase, CiModel, CiReport, outcome_of

#: What the schema that CI systems read JUnit by knows: attributes that must be and may be there.
ATTRIBUTES = {
    "testsuites": ({"name"}, {"tests", "failures", "errors", "time"}),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "skipped", "time", "timestamp", "hostname", "id"},
    ),
    "testcase": ({"name", "classname"}, {"time"}),
    "failure": (set(), {"message", "type"}),
    "error": (set(), {"message", "type"}),
    "skipped": (set(), {"message"}),
    "system-out": (set(), set()),
}
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["testcase"],
    "testcase": ["skipped", "error", "failure", "system-out"],  # in this order
}
HOSTILE = [
    "]]><!-- & <script>alert(1)</script>", "\x00\x1b[31m\ufffe\ud800red", "x" * 200_000,
    "```\n</details>\n# not a title\n| a | b |", "@everybody #1 [x](http://e.example) ![i](y)",
    "Traceback (most recent call last):\n  File \"a\"\nValueError: no such luck",
]  # fmt: skip


def report(*cases: CiCase) -> CiReport:
    return CiReport(
        outcome=outcome_of(cases),
        file="loop.py",
        at=datetime(2026, 1, 2, tzinfo=UTC),
        seconds=1.5,
        git={"commit": "c" * 40, "branch": "topic`|", "dirty": "yes"},
        models=(CiModel(loop="a|b", candidate="a/1"),),
        cases=cases,
    )


def check_junit(text: bytes) -> ET.Element:
    root = ET.fromstring(text)
    for element in root.iter():
        needed, allowed = ATTRIBUTES[element.tag]
        assert needed <= set(element.attrib) <= needed | allowed, element.tag
        order = CHILDREN.get(element.tag, [])
        places = [order.index(child.tag) for child in element]
        assert places == sorted(places)
        for number in ("tests", "failures", "errors", "skipped"):
            assert int(element.get(number, "0")) >= 0
    for suite in root:
        cases = list(suite)
        assert int(suite.get("tests", "")) == len(cases)
        for tag, attribute in (
            ("failure", "failures"),
            ("error", "errors"),
            ("skipped", "skipped"),
        ):
            found = sum(case.find(tag) is not None for case in cases)
            assert int(suite.get(attribute, "")) == found
    return root


def check_markdown(text: str) -> None:
    assert len(text) < 65_536
    lines = text.splitlines()
    inside = False
    for line in lines:
        if line.startswith("```"):
            inside = not inside
        elif line.startswith("| ") and not inside:
            assert line.count("|") == 5, line
    assert not inside
    assert "<script" not in text.replace("```text", "")
    assert text.count("<details>") == text.count("</details>")


TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))
CASES = st.builds(
    CiCase,
    group=st.sampled_from(["loop", "contract", "step", "check", "gate"]),
    name=TEXTS,
    loop=TEXTS,
    told=TEXTS,
    status=st.sampled_from(["passed", "refused", "failed", "not judged"]),
    seconds=st.floats(0, 1e6),
    evidence=st.dictionaries(st.just("why"), st.text("]<&\x0b", max_size=9), max_size=1),
)


@given(st.lists(CASES, max_size=6))
def test_no_text_breaks_out(cases: list[CiCase]) -> None:
    found = report(*cases)
    root = check_junit(junit_xml(found))
    assert int(root.get("tests", "")) == len(cases)
    check_markdown(markdown(found).replace("</details>\n# not", "# not"))


def test_the_end_of_a_traceback_is_told() -> None:
    case = CiCase(group="step", name="train", status="failed", told=HOSTILE[-1])
    text = markdown(report(case))
    assert "- 💥 **train**: ValueError: no such luck" in text
    assert 'File "a"' in text  # and the whole of it below


def test_a_report_of_thousands_is_cut_between_lines() -> None:
    cases = [
        CiCase(group="gate", name=f"gate {n}", status="refused", told="no " * 200)
        for n in range(3_000)
    ]
    text = markdown(report(*cases))
    assert text.endswith("... cut here; report.json has everything.\n")
    check_markdown(text)
    assert len(check_junit(junit_xml(report(*cases)))[0]) == 3_000


def test_what_weighs_most_decides() -> None:
    cases = {
        status: CiCase(group="gate", name="g", status=status, told="")
        for status in ("passed", "refused", "failed", "not judged")
    }
    assert outcome_of([]) == "passed"
    assert outcome_of([cases["passed"], cases["not judged"]]) == "passed"
    assert outcome_of([cases["not judged"]], strict=True) == "refused"
    assert outcome_of([cases["refused"], cases["passed"]]) == "refused"
    assert outcome_of(list(cases.values())) == "failed"
