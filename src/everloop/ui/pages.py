"""The pages: an overview and a page for each loop, each with a ``.json`` twin.

They are rendered on the server and read without JavaScript; charts are islands on top.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from everloop.core.time import span_text
from everloop.errors import EverloopError, http_status
from everloop.ui import views
from everloop.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["SECURITY_HEADERS", "routes"]

_HERE = Path(__file__).parent
_METRICS_SHOWN = 3
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
                html = _templates().get_template("error.html").render(error=error, root=root)
                return _html(html, http_status(error))
            if as_json:
                return Response(msgspec.json.encode(found), media_type="application/json")
            return _html(_templates().get_template(template).render(page=found, root=root))

        return handler

    first = page("overview.html", lambda _: views.overview(workspace))
    loop = page("loop.html", lambda name: views.loop_page(workspace, name))
    maturity = page("maturity.html", lambda name: workspace.governance.maturity(name))
    return [
        Route("/", first),
        Route("/overview.json", first),
        Route("/loops/{name}/maturity.json", maturity),
        Route("/loops/{name}/maturity", maturity),
        Route("/loops/{name}.json", loop),
        Route("/loops/{name}", loop),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]


def _html(text: str, status: int = 200) -> Response:
    return Response(
        text, status_code=status, media_type="text/html; charset=utf-8", headers=SECURITY_HEADERS
    )


@cache
def _templates() -> Environment:
    # Loaded with the first page: clients of the API start the server and never see one.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["legend"] = _LEGEND
    environment.filters["minute"] = _minute
    environment.filters["span"] = lambda length: "-" if length is None else span_text(length)
    environment.filters["date"] = lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
    environment.filters["metrics"] = _metrics
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.4g}"
    return environment


def _metrics(metrics: dict[str, float]) -> str:
    """The first few of a run, for one line of a table."""
    shown = [f"{name} {value:.4g}" for name, value in sorted(metrics.items())[:_METRICS_SHOWN]]
    return ", ".join(shown) or "-"


def _minute(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M") if at else "-"
