"""The pages: an overview and pages of each loop, each with a ``.json`` twin.

They are rendered on the server and read without JavaScript; charts are islands on top. The one
form answers what a run waits for: ``everloop.api.guard`` refuses it from pages of other sites, and
the service whoever lacks the right.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from everloop.core.profile import Profile
from everloop.core.time import span_text
from everloop.errors import EverloopError, InvalidInput, http_status
from everloop.evaluation.data_tests.stored import data_tests_done, report_of
from everloop.ui import ledger_views, views
from everloop.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Environment

    from everloop.governance.sheet import DataSheet

__all__ = ["SECURITY_HEADERS", "routes", "sheet_html"]

_HERE = Path(__file__).parent
_METRICS_SHOWN = 3
#: Bytes of a form: a note has 2,000 characters at most, which may be escaped.
_MOST_FORM = 65_536
#: What links begin with, in the scope of a request: set by ``everloop.api.prefix``.
_PREFIX = "everloop.prefix"

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


#: What the marks in the charts mean, in the order of the legend.
_LEGEND = (
    ("alert", "alert open"),
    ("refused", "candidate refused by the gate"),
    ("passed", "candidate passed the gate"),
    ("promoted", "candidate promoted"),
    ("aborted", "rollout aborted"),
)


def routes(workspace: Workspace) -> list[BaseRoute]:
    """The routes of the pages."""

    def page(template: str, view: Callable[[str], Any]) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            name = request.path_params.get("name", "")
            as_json, root = request.url.path.endswith(".json"), str(request.scope.get(_PREFIX, ""))
            try:
                found = await run_in_threadpool(view, name)
            except EverloopError as error:
                if as_json:
                    raise
                return _told(error, root)
            if as_json:
                return Response(msgspec.json.encode(found), media_type="application/json")
            html = _templates().get_template(template).render(page=found, root=root, linked=True)
            return _html(html)

        return handler

    async def answer(request: Request) -> Response:
        root, run_id = str(request.scope.get(_PREFIX, "")), request.path_params["run_id"]
        try:
            fields = await _fields(request)
            await run_in_threadpool(_answer, workspace, run_id, fields)
        except EverloopError as error:
            return _told(error, root)
        return RedirectResponse(f"{root}/", 303, headers=SECURITY_HEADERS)

    first = page("overview.html", lambda _: views.overview(workspace))
    loop = page("loop.html", lambda name: views.loop_page(workspace, name))
    maturity = page("maturity.html", lambda name: workspace.governance.maturity(name))
    profile = page("profile.html", lambda ref: _profile(workspace, ref))
    ledger = page("ledger.html", lambda name: ledger_views.ledger_page(workspace, name))
    work = page("work.html", lambda owner: ledger_views.work_page(workspace, owner))
    data_test = page("data_test.html", lambda name: report_of(workspace.tracking, name))
    data_tests = page("data_tests.html", lambda _: data_tests_done(workspace.tracking))
    sheet = page("sheet.html", lambda ref: _sheet(workspace, ref))
    return [
        Route("/", first),
        Route("/datasets/{name}/profile.json", profile),
        Route("/datasets/{name}/profile", profile),
        Route("/datasets/{name}/ledger.json", ledger),
        Route("/datasets/{name}/ledger", ledger),
        Route("/worklist.json", work),
        Route("/worklist", work),
        Route("/worklist/{name}.json", work),
        Route("/worklist/{name}", work),
        Route("/data-tests.json", data_tests),
        Route("/data-tests", data_tests),
        Route("/data-tests/{name}.json", data_test),
        Route("/data-tests/{name}", data_test),
        Route("/datasets/{name}/sheet.json", sheet),
        Route("/datasets/{name}/sheet", sheet),
        Route("/overview.json", first),
        Route("/approvals/{run_id}", answer, methods=["POST"]),
        Route("/loops/{name}/maturity.json", maturity),
        Route("/loops/{name}/maturity", maturity),
        Route("/loops/{name}.json", loop),
        Route("/loops/{name}", loop),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]


async def _fields(request: Request) -> dict[str, str]:
    """What a form says, each field once."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_FORM:
            raise InvalidInput(f"a form has at most {_MOST_FORM} bytes")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=9)
    except ValueError as error:
        raise InvalidInput("that is no form") from error
    return dict(pairs)


def _answer(workspace: Workspace, run_id: str, fields: dict[str, str]) -> None:
    note, name = fields.get("note", ""), fields.get("name", "")
    if fields.get("answer") == "approve":
        workspace.approvals.approve(run_id, note, name)
    elif fields.get("answer") == "refuse":
        workspace.approvals.refuse(run_id, note, name)
    else:
        raise InvalidInput("say yes or no", [("answer", "must be approve or refuse")])


def _profile(workspace: Workspace, ref: str) -> Profile:
    version = workspace.data.find(ref)
    return workspace.data.profile(version.dataset, version.number)


def _sheet(workspace: Workspace, ref: str) -> DataSheet:
    version = workspace.data.find(ref)
    return workspace.governance.data_sheet(version.dataset, version.number)


def sheet_html(sheet: DataSheet) -> str:
    """A data sheet as one file: a page without a server, so without links to other pages."""
    style = (_HERE / "static" / "everloop.css").read_text()
    html = _templates().get_template("sheet_file.html").render(page=sheet, root="", style=style)
    return html + "\n"


def _told(error: EverloopError, root: str) -> Response:
    html = _templates().get_template("error.html").render(error=error, root=root)
    return _html(html, http_status(error))


def _html(text: str, status: int = 200) -> Response:
    return Response(
        text, status_code=status, media_type="text/html; charset=utf-8", headers=SECURITY_HEADERS
    )


@cache
def _templates() -> Environment:
    # Loaded with the first page: clients of the API start the server and never see one.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from everloop.evaluation.data_tests.html import fragment
    from everloop.evaluation.data_tests.text import headline

    environment.globals["legend"] = _LEGEND
    environment.filters["headline"] = headline
    # It escapes what it shows itself, as notebooks and files get it too.
    environment.filters["data_test"] = lambda report: Markup(fragment(report, titled=False))
    environment.filters["minute"] = _minute
    environment.filters["span"] = lambda length: "-" if length is None else span_text(length)
    environment.filters["date"] = lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
    environment.filters["metrics"] = _metrics
    environment.filters["value"] = _value
    environment.filters["moment"] = _moment
    environment.filters["place"] = lambda scope: str(scope).removeprefix("dataset:")
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.4g}"
    return environment


def _metrics(metrics: dict[str, float]) -> str:
    """The first few of a run, for one line of a table."""
    shown = [f"{name} {value:.4g}" for name, value in sorted(metrics.items())[:_METRICS_SHOWN]]
    return ", ".join(shown) or "-"


def _value(value: object) -> str:
    """A value of a row, for a cell."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _moment(value: object, kind: str) -> str:
    """A value of a column of this type; of a time without what says nothing."""
    told = _value(value)
    if kind != "timestamp" or not isinstance(value, str):
        return told
    return told.replace("T", " ", 1).removesuffix("+00:00").removesuffix(":00")


def _minute(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M") if at else "-"
