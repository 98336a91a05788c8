"""The page of the credit example: what was planted, what was found, what it was worth."""

from __future__ import annotations

from html import escape

import planted
from improve import SETTINGS, Improved

from everloop.evaluation.data_tests.html import forest_of, whole_page

_SHOWN = 12


def page(bank: planted.Bank, found: Improved) -> str:
    """A whole page that needs nothing beside it."""
    before = _planted(bank) + _duel(found) + _coverage(found) + _issues(bank, found)
    title = "Improve the data, not the model: what became of 4,454 loans"
    return whole_page(found.test.report, title=title, before=before)


def _planted(bank: planted.Bank) -> str:
    return _section(
        "What is real here, and what was planted",
        "<p>The applications and their outcomes are real. On purpose, so that it is known:"
        f" {planted.WRONG:.0%} of the outcomes were turned round at random, and the first sample"
        f" has only {planted.PRESENT:.0%} of those with <code>{escape(planted.MISSING)}</code>:"
        f" {len(bank.sample):,} applications were collected, {len(bank.archive):,} lie in the"
        " archive."
        f" The {len(bank.holdout):,} later applications on which all is judged are as they came."
        "</p>",
    )


def _duel(found: Improved) -> str:
    report = found.duel.report
    return _section(
        "Better data beside a better model",
        f"<p>Zero is the best of {SETTINGS} random settings, found by cross-validation on the first"
        " data. The dots say by how much a model that nobody tuned is better or worse than that."
        "</p>" + forest_of(report, skip=(report.against,)),
    )


def _coverage(found: Improved) -> str:
    shown = found.coverage
    low, high = shown.auc.low, shown.auc.high
    rows = "".join(
        f'<tr><td>{escape(one.name)}</td><td class="number">{one.distance:.3f}</td></tr>'
        for one in shown.features[:5]
    )
    return _section(
        "Whom the sample lacks",
        f"<p>A classifier tells the collected sample from the people who apply with AUC"
        f" {shown.auc.estimate:.3f} [{low:.3f}, {high:.3f}]; 0.5 would be the same people. What"
        " gives them away, and how far apart the two distributions are (0 to 1):</p>"
        f'<table><thead><tr><th>column</th><th class="number">distance</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>",
    )


def _issues(bank: planted.Bank, found: Improved) -> str:
    worst = found.issues.table.take(found.issues.numbers[:_SHOWN])
    names = ("id", "status", "age", "job", "records", "income", "amount")
    head = "".join(f"<th>{name}</th>" for name in (*names, "the paper says"))
    body = ""
    for row in worst.to_arrow().to_pylist():
        shown = [str(row[name]) for name in names] + [bank.paper[row["id"]]]
        body += "<tr>" + "".join(f"<td>{escape(one)}</td>" for one in shown) + "</tr>\n"
    share = found.corrected / max(len(found.issues), 1)
    return _section(
        "Whose outcome is probably wrong",
        f"<p>Confident learning flagged {len(found.issues)} applications. A clerk took out these"
        f" files (played by the outcomes as they came) and found {found.corrected} of them wrong,"
        f" {share:.0%}; among all it is {planted.WRONG:.0%}. The most suspicious ones:</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"
