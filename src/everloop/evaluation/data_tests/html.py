"""A data test as HTML: forest plots as inline SVG, without script and without inline style.

The fragment stands within a page of the server, in a notebook and in a file of its own alike;
colours are attributes of the drawing, so the strictest content policy lets it through.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from everloop.core.data_test import Blame, DataTestReport, Effect, VersionResult
from everloop.evaluation.data_tests.text import (
    answered,
    blame_sentence,
    figure,
    headline,
    with_interval,
)

__all__ = ["forest_of", "fragment", "whole_page"]

_COLOURS = {
    "better": "#23905a",
    "worse": "#c4384a",
    "no difference shown": "#7a869c",
    "same data": "#7a869c",
    "too small to tell": "#b0b8c6",
}
_LEFT, _PLOT, _RIGHT, _ROW = 250, 330, 240, 26
_LONGEST = 38

STYLE = """
:root{color-scheme:light dark;--ink:light-dark(#1c2436,#dbe4f2);--soft:light-dark(#5a6a85,#93a3bd);
--paper:light-dark(#f6f8fb,#10151f);--card:light-dark(#fff,#182030);--line:light-dark(#dfe5ee,#2a3448)}
body{margin:0 auto;max-width:60rem;padding:1rem 2rem 3rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem 1.2rem;
margin:1rem 0;overflow-x:auto}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:0 0 .6rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}th{text-align:left;color:var(--soft)}
th,td{padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
figure{margin:0 0 1rem}figcaption,.empty{color:var(--soft);font-size:.85rem}
pre{overflow-x:auto;font-size:.8rem}
""".strip()


class _Line(NamedTuple):
    """One line of a forest plot; `dots` are the single seeds."""

    label: str
    effect: Effect
    dots: Sequence[float] = ()


def whole_page(
    report: DataTestReport, *, title: str = "", before: str = "", after: str = ""
) -> str:
    """A page that needs nothing beside it, with a policy that lets nothing else in.

    Args:
        title: What found the test, if not given.
        before: HTML before the test, already escaped.
        after: HTML behind it.
    """
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    shown = escape(title or headline(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown}</title><style>{STYLE}</style></head><body>"
        f"<h1>{shown}</h1>\n{before}{fragment(report, titled=bool(title))}{after}</body></html>\n"
    )


def fragment(report: DataTestReport, *, titled: bool = True) -> str:
    """The test as a part of a page."""
    return "\n".join(_parts(report, titled))


def _parts(report: DataTestReport, titled: bool) -> Iterator[str]:
    if titled:
        yield f"<h2>{escape(headline(report))}</h2>"
    held = report.holdout
    others = [one.name for one in report.versions if one.train]
    data = len(report.versions) - len(others)
    beside = f"; beside it {escape(', '.join(others))}" if others else ""
    share = "" if held.positives is None else f", {held.positives:.1%} of them positive"
    yield (
        f"<p>The same code (<code>{escape(report.train)}</code>) with the same"
        f" {len(report.seeds)} seeds on {data} versions of the data, judged on"
        f" {held.rows} rows of {escape(held.name)}{share}. Only the data differs{beside}.</p>"
    )
    for place, metric in enumerate(report.metrics):
        yield _section(f"By how much better: {metric}", _versions(report, place))
    failed = [one for one in report.versions if one.error]
    for one in failed:
        yield _section(f"{one.name} could not be trained", f"<pre>{escape(one.error)}</pre>")
    if report.slices:
        yield _section(f"Where: {report.metrics[0]} on parts of the hold-out", _slices(report))
    for blame in report.blames:
        yield _section(f"Which rows make the difference: {blame.by}", _blame(blame))
    yield _section("How to read this", _reading(report))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


# --- parts ----------------------------------------------------------------------------------------


def forest_of(report: DataTestReport, *, skip: Sequence[str] = ()) -> str:
    """The forest plot of the first metric alone, without some versions."""
    lines, _ = _effects(report, 0)
    caption = f"{report.metrics[0]}; above 0 is better than {report.against}"
    return _forest([line for line in lines if line.label not in skip], caption)


def _versions(report: DataTestReport, place: int) -> str:
    lines, rows = _effects(report, place)
    head = ("version", "rows trained on", report.metrics[place], "interval", "effect")
    caption = f"above 0 is better than {report.against}; small dots are single seeds"
    return _forest(lines, caption) + _table(head, rows, numbers=(1, 2, 3))


def _effects(report: DataTestReport, place: int) -> tuple[list[_Line], list[tuple[str, ...]]]:
    """Lines of a plot and rows of a table, for one metric."""
    sign = -1 if report.metrics[place] in report.lower_is_better else 1
    against = report.version(report.against)
    base = against.metrics[place].by_seed
    lines: list[_Line] = []
    rows: list[tuple[str, ...]] = []
    for one in report.versions:
        if one.error:
            continue
        metric = one.metrics[place]
        if metric.effect is not None:
            dots = [
                sign * (value - other)
                for value, other in zip(metric.by_seed, base, strict=True)
                if value is not None and other is not None
            ]
            lines.append(_Line(one.name, metric.effect, dots if len(dots) > 1 else ()))
        shown = "" if metric.low is None else f"{figure(metric.low)} to {figure(metric.high)}"
        effect = "what the others are held against"
        if metric.effect is not None:
            effect = answered(metric.effect)
        rows.append((_name(one), str(one.rows), figure(metric.value), shown, effect))
    return lines, rows


def _name(one: VersionResult) -> str:
    return f"{one.name} (= {one.same_as})" if one.same_as else one.name


def _slices(report: DataTestReport) -> str:
    several = len({part.version for part in report.slices}) > 1
    judged = [part for part in report.slices if part.effect.answer != "too small to tell"]
    small = [part for part in report.slices if part.effect.answer == "too small to tell"]
    lines = [
        _Line(f"{part.slice} · {part.version}" if several else part.slice, part.effect)
        for part in judged
    ]
    rows = [
        (part.slice, part.version, str(part.rows), figure(part.before), figure(part.after),
         answered(part.effect))
        for part in judged
    ]  # fmt: skip
    told = ", ".join(dict.fromkeys(f"{part.slice} ({part.rows} rows)" for part in small))
    after = f'<p class="empty">Too small to tell: {escape(told)}.</p>' if told else ""
    head = ("part", "version", "rows", report.against, "then", "effect")
    caption = f"intervals hold together for all {len(judged)} of them"
    return _forest(lines, caption) + _table(head, rows, numbers=(2, 3, 4)) + after


def _blame(blame: Blame) -> str:
    lines = [_Line(f"{one.name} ({one.rows})", one.worth) for one in blame.groups]
    lines.append(_Line("together", blame.total))
    rows = [
        (one.name, str(one.rows), with_interval(one.worth), figure(one.alone, signed=True)
         if one.alone is not None else "-", figure(one.last, signed=True)
         if one.last is not None else "-")
        for one in blame.groups
    ]  # fmt: skip
    head = ("changed rows", "rows", "worth", "alone", "on top of all others")
    sentence = f"<p>{escape(blame_sentence(blame))}; {blame.trainings} trainings.</p>"
    notes = "".join(f'<p class="empty">{escape(note)}</p>' for note in blame.notes)
    return sentence + _forest(lines, "above 0 is better") + _table(head, rows, (1, 2, 3, 4)) + notes


def _reading(report: DataTestReport) -> str:
    held = report.holdout
    rows = [
        f"Intervals are {1 - report.level:.0%} over {held.drawn} of the hold-out ({held.blocks}"
        f" groups of them are drawn) and over {len(report.seeds)} seeds; those of one plot hold"
        " together.",
        "They do not hold the luck of which training rows were collected: the data are what is"
        " tested.",
        f"{report.trained} trainings were done, {report.cached} taken from the store.",
        *report.notes,
        *(f"{one.name}: {note}" for one in report.versions for note in one.notes),
    ]
    return "<ul>" + "".join(f"<li>{escape(row)}</li>" for row in rows) + "</ul>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    def cell(tag: str, place: int, text: str) -> str:
        of = ' class="number"' if place in numbers else ""
        return f"<{tag}{of}>{escape(text)}</{tag}>"

    top = "".join(cell("th", n, text) for n, text in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", n, text) for n, text in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>"


# --- the plot -------------------------------------------------------------------------------------


def _forest(lines: Sequence[_Line], caption: str) -> str:
    """Estimates with intervals around the line of no effect."""
    if not lines:
        return ""
    ends = [0.0]
    for line in lines:
        effect = line.effect
        ends += [v for v in (effect.estimate, effect.low, effect.high, *line.dots) if v is not None]
    low, high, ticks = _axis(min(ends), max(ends))
    height = _ROW * len(lines) + 40
    width = _LEFT + _PLOT + _RIGHT

    def x(value: float) -> str:
        return f"{_LEFT + (value - low) / (high - low) * _PLOT:.1f}"

    bottom = height - 30
    drawn = [
        f'<line x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{bottom}" stroke="currentColor"'
        f' stroke-opacity="{0.6 if tick == 0 else 0.12}"></line>'
        f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle" font-size="11"'
        f' fill="currentColor" fill-opacity=".7">{"0" if tick == 0 else f"{tick:+g}"}</text>'
        for tick in ticks
    ]
    for n, line in enumerate(lines):
        drawn.append(_drawn(line, 4 + _ROW * n + _ROW / 2, x))
    told = "; ".join(f"{line.label}: {answered(line.effect)}" for line in lines)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' font-family="system-ui, sans-serif" aria-label="{escape(told)}">{"".join(drawn)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _drawn(line: _Line, y: float, x: Callable[[float], str]) -> str:
    effect, colour = line.effect, _COLOURS[line.effect.answer]
    short = line.label if len(line.label) <= _LONGEST else line.label[: _LONGEST - 1] + "…"
    parts = [
        f'<text x="{_LEFT - 14}" y="{y + 4:.1f}" text-anchor="end" font-size="13"'
        f' fill="currentColor"><title>{escape(line.label)}</title>{escape(short)}</text>',
    ]
    parts += [
        f'<circle cx="{x(dot)}" cy="{y + 7:.1f}" r="1.6" fill="currentColor" fill-opacity=".35">'
        "</circle>"
        for dot in line.dots
    ]
    if effect.low is not None and effect.high is not None:
        parts.append(
            f'<line x1="{x(effect.low)}" x2="{x(effect.high)}" y1="{y:.1f}" y2="{y:.1f}"'
            f' stroke="{colour}" stroke-width="2.5" stroke-linecap="round"></line>'
        )
    if effect.estimate is not None:
        parts.append(
            f'<circle cx="{x(effect.estimate)}" cy="{y:.1f}" r="5" fill="{colour}"></circle>'
        )
    words = effect.answer if effect.estimate is None else with_interval(effect)
    parts.append(
        f'<text x="{_LEFT + _PLOT + 14}" y="{y + 4:.1f}" font-size="12" fill="{colour}">'
        f"{escape(words)}</text>"
    )
    return "".join(parts)


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends a little beyond, and four to eight round ticks with 0 among them."""
    span = (high - low) or 0.02
    low, high = low - 0.06 * span, high + 0.06 * span
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return low, high, [round(n * step, 10) for n in range(first, last + 1)]
