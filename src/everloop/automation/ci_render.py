"""A report of CI for readers: Markdown for a pull request, JUnit XML for what shows tests.

What cases tell comes from data, models and tracebacks: it is cut to a length, and no sign of it can
end a cell, a code block or a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import msgspec

from everloop.core.ci import CiCase, CiModel, CiReport

__all__ = ["junit_xml", "markdown"]

#: Letters of a comment on GitHub at most; what CI shows beside a run takes more.
_LONGEST = 60_000
_LONGEST_CELL = 400
_LONGEST_TEXT = 4_000
_MOST_ROWS = 200
_MARKS = {"passed": "✅", "refused": "❌", "failed": "💥", "not judged": "➖"}
_TITLES = {
    "loop": "File and source",
    "contract": "Data contracts",
    "step": "Pipeline",
    "check": "The candidate",
    "gate": "Model tests (the gates of the loop)",
}
#: Signs that mean something within a line: a name_like_this and a version@3 do not.
_MARKUP = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]|(?<!\w)[@#](?=\w)")
#: What XML 1.0 has no place for.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# --- Markdown ------------------------------------------------------------------------------------


def markdown(report: CiReport) -> str:
    """The report as Markdown of GitHub's kind, at most 60,000 letters."""
    text = "\n".join(_lines(report)) + "\n"
    if len(text) <= _LONGEST:
        return text
    # A line is never cut: half a table row would be read as text.
    kept = text[:_LONGEST].rpartition("\n")[0]
    return f"{kept}\n\n... cut here; report.json has everything.\n"


def _lines(report: CiReport) -> Iterator[str]:
    counts = ", ".join(f"{n} {status}" for status, n in report.counts().items() if n)
    yield f"## {_MARKS[report.outcome]} everloop ci: {report.outcome}"
    yield ""
    yield f"{counts or 'nothing was asked'}. {_about(report)}"
    yield ""
    for model in report.models:
        yield from _of_model(model)
    wrong = [case for case in report.cases if case.status in ("refused", "failed")]
    if wrong:
        yield from ("", "### What stands in the way", "")
        for case in wrong[:_MOST_ROWS]:
            yield f"- {_MARKS[case.status]} **{_cell(_name(case))}**: {_cell(case.told)}"
    for group, title in _TITLES.items():
        cases = [case for case in report.cases if case.group == group]
        if cases:
            yield from ("", f"### {title}", "", "| | what | told | s |", "|---|---|---|---|")
            yield from (_row(case) for case in cases[:_MOST_ROWS])
            if len(cases) > _MOST_ROWS:
                yield f"| | {len(cases) - _MOST_ROWS} more | in report.json | |"
    broken = [case for case in wrong if case.group == "step" and "\n" in case.told]
    for case in broken[:3]:
        yield from ("", "<details><summary>" + _cell(_name(case)) + "</summary>", "")
        yield from ("```text", _block(case.told), "```", "", "</details>")


def _about(report: CiReport) -> str:
    git, parts = report.git, [f"`{_code(report.file)}`"]
    if git:
        dirty = ", with changes that are not committed" if git.get("dirty") == "yes" else ""
        parts.append(f"commit `{_code(git.get('commit', ''))[:12]}` on"
                     f" `{_code(git.get('branch', ''))}`{dirty}")  # fmt: skip
    else:
        parts.append("no git repository")
    where = f"`{_code(report.against)}`" if report.against else "nothing (no source)"
    parts += [f"against {where}", f"sample {_cell(report.sample)}", f"{report.seconds:.1f} s"]
    return "; ".join(parts) + "."


def _of_model(model: CiModel) -> Iterator[str]:
    made = f"candidate `{model.digest[:12]}`" if model.candidate else "no candidate"
    against = f"champion `{_code(model.champion)}`" if model.champion else "no champion"
    until = f", learned until {model.until:%Y-%m-%d %H:%M} UTC" if model.until else ""
    code = f", code `{model.code[:12]}`" if model.code else ""
    yield f"- **{_cell(model.loop)}**: {made}{until}{code}; {against}"


def _name(case: CiCase) -> str:
    return f"{case.loop}: {case.name}" if case.loop else case.name


def _row(case: CiCase) -> str:
    seconds = f"{case.seconds:.2f}" if case.seconds else ""
    mark = f"{_MARKS[case.status]} {case.status}"
    return f"| {mark} | {_cell(_name(case))} | {_cell(case.told)} | {seconds} |"


def _cell(text: str) -> str:
    """Text that stays text wherever it stands in a line: no markup, no link, no mention."""
    flat = " ".join(_NO_XML.sub("?", _ended(text)).split())
    cut = flat if len(flat) <= _LONGEST_CELL else flat[:_LONGEST_CELL] + " ..."
    cut = cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", cut)


def _ended(text: str) -> str:
    """Of a traceback its end: there it says what was wrong."""
    if not text.startswith("Traceback"):
        return text
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return " ".join(lines[1:]) or text


def _code(text: str) -> str:
    return " ".join(_NO_XML.sub("?", text).split()).replace("`", "'")


def _block(text: str) -> str:
    return _NO_XML.sub("?", text[-_LONGEST_TEXT:]).replace("```", "'''")


# --- JUnit ---------------------------------------------------------------------------------------


def junit_xml(report: CiReport) -> bytes:
    """The report as JUnit XML: one test case for each case, one suite for each group and loop."""
    counts, suites = report.counts(), dict[tuple[str, str], list[CiCase]]()
    for case in report.cases:
        suites.setdefault((case.loop, case.group), []).append(case)
    root = ET.Element(
        "testsuites",
        name="everloop ci",
        tests=str(len(report.cases)),
        failures=str(counts["refused"]),
        errors=str(counts["failed"]),
        time=f"{report.seconds:.3f}",
    )
    for number, ((loop, group), cases) in enumerate(suites.items()):
        found = [case.status for case in cases]
        suite = ET.SubElement(
            root,
            "testsuite",
            id=str(number),
            name=_attribute(f"{loop or report.file}: {group}"),
            tests=str(len(cases)),
            failures=str(found.count("refused")),
            errors=str(found.count("failed")),
            skipped=str(found.count("not judged")),
            time=f"{sum(case.seconds for case in cases):.3f}",
            timestamp=f"{report.at:%Y-%m-%dT%H:%M:%S}",
            hostname="localhost",
        )
        for case in cases:
            _test_case(suite, case, loop or report.file)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _test_case(suite: ET.Element, case: CiCase, owner: str) -> None:
    test = ET.SubElement(
        suite,
        "testcase",
        classname=_attribute(f"{owner}.{case.group}"),
        name=_attribute(case.name),
        time=f"{max(case.seconds, 0):.3f}",
    )
    kinds = {"refused": "failure", "failed": "error", "not judged": "skipped"}
    if case.status in kinds:
        found = ET.SubElement(test, kinds[case.status], message=_attribute(_ended(case.told)))
        if case.status != "not judged":
            found.set("type", case.status)
            found.text = _text(case.told)
    shown = case.told if case.status == "passed" else ""
    if case.evidence:
        shown += f"\n{msgspec.json.encode(case.evidence).decode()}"
    if shown:
        ET.SubElement(test, "system-out").text = _text(shown.strip())


def _attribute(text: str) -> str:
    return " ".join(_text(text, _LONGEST_CELL).split())


def _text(text: str, longest: int = _LONGEST_TEXT) -> str:
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return _NO_XML.sub("?", cut)
