"""``everloop ci``: what a commit does to contracts, pipeline and model, before it is merged."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from everloop.cli.main import common
from everloop.cli.output import say, table
from everloop.errors import BackendError, EverloopError, InvalidInput, NotFound

if TYPE_CHECKING:
    from everloop.automation.ci import ContinuousIntegration
    from everloop.core.ci import CiReport
    from everloop.data.sample import Sample
    from everloop.workspace import Workspace

__all__ = ["ci"]

_WAIT_S = 3_600.0


@click.command()
@click.argument("file", metavar="FILE.py", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--against",
    metavar="LOCATION",
    help="Where data and champion are: folder, catalog URL or server URL. Without it the"
    " workspace of --dir, if there is one.",
)
@click.option(
    "--sample",
    default="10%",
    show_default=True,
    metavar="SIZE",
    help="First run the pipeline on so much of each dataset: 10%, 5000 (rows), or all for no"
    " sample.",
)
@click.option("--sample-only", is_flag=True, help="Do not run it on all rows after that.")
@click.option(
    "--set",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the pipelines; may be given again.",
)
@click.option("--strict", is_flag=True, help="What cannot be judged counts as a no.")
@click.option("--record", is_flag=True, help="Also note the outcome where the champion is.")
@click.option(
    "--out",
    default="ci-report",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.md, report.json and junit.xml.",
)
@click.option(
    "--cache",
    default=".everloop/ci",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Workspace of CI; kept between runs, steps that did not change are not run again.",
)
@common
def ci(
    file: str,
    against: str | None,
    sample: str,
    sample_only: bool,
    arguments: tuple[str, ...],
    strict: bool,
    record: bool,
    out: Path,
    cache: Path,
    location: str | None,
    as_json: bool,
) -> None:
    """Judge a commit: contracts, pipeline, model tests, champion.

    Runs the loops of FILE.py in a workspace of its own; nothing that is live is changed. Exit
    status: 0 nothing says no, 3 a contract, check or gate said no, 1 something broke, 2 usage.
    """
    from blake3 import blake3

    from everloop.automation.ci_render import junit_xml, markdown
    from everloop.data.sample import parse_sample
    from everloop.settings import ci_place, forget_objects

    size = parse_sample(sample)
    if sample_only and size is None:
        raise click.UsageError("--sample-only needs a --sample.")
    _check_writable(out)
    with _alone(cache), contextlib.ExitStack() as stack:
        source, trouble = _source(against, location, stack)
        forget_objects()
        if record and source is None and trouble is None:
            raise click.UsageError("--record needs a place to record in: give --against.")
        # What users' code prints must not get into the document.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr) if as_json else stack)
        run = _continuous_integration(
            file, cache, source, size, arguments, stack,
            sample_only=sample_only, strict=strict, branch=ci_place().branch,
        )  # fmt: skip
        report = run.run(trouble)
        document = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        text = markdown(report)
        (out / "report.md").write_text(text, "utf-8")
        (out / "report.json").write_bytes(document)
        (out / "junit.xml").write_bytes(junit_xml(report))
        _summarise(ci_place().summary, text)
        run.record(report, blake3(document).hexdigest(), in_source=record and source is not None)
    if as_json:
        sys.stdout.write(document.decode())
    else:
        _show(report, out)
    status = {"passed": 0, "refused": 3}.get(report.outcome, 1)
    if status:
        sys.exit(status)


def _continuous_integration(
    file: str,
    cache: Path,
    source: Workspace | None,
    sample: Sample | None,
    arguments: tuple[str, ...],
    stack: contextlib.ExitStack,
    **options: Any,
) -> ContinuousIntegration:
    """The run, and the workspaces that it works in."""
    from everloop import __version__
    from everloop.automation.ci import ContinuousIntegration
    from everloop.cli.run import parse_arguments
    from everloop.mirror import MirrorWorkspace

    whole = stack.enter_context(MirrorWorkspace(cache / "all", origin=source))
    small = None
    if sample is not None:
        folder = cache / f"sample-{sample.name.replace('%', 'pct')}"
        small = stack.enter_context(MirrorWorkspace(folder, origin=whole, sample=sample))
    return ContinuousIntegration(
        Path(file),
        root=Path.cwd(),
        whole=whole,
        small=small,
        source=source,
        arguments=lambda function: parse_arguments(function, arguments),
        sample="all" if sample is None else sample.name,
        everloop=__version__,
        tell=say,
        **options,
    )


def _source(
    against: str | None, location: str | None, stack: contextlib.ExitStack
) -> tuple[Workspace | None, EverloopError | None]:
    """The workspace that is live, or None; why it could not be opened, if it could not."""
    from everloop import settings
    from everloop.workspace import open_workspace

    where = against or location or settings.load().location or settings.DEFAULT_DIR
    is_there = "://" in where or os.path.exists(os.path.join(where, "catalog.sqlite"))
    if not is_there and where == settings.DEFAULT_DIR:
        say("there is no workspace to compare with: what needs a champion is not judged")
        return None, None
    try:
        if not is_there:
            raise NotFound(f"there is no workspace in {where}", hint="say where it is: --against")
        return stack.enter_context(open_workspace(where, upgrade=False)), None
    except EverloopError as error:
        return None, error


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One run at a time in a cache folder; another one waits."""
    from everloop.cli.locks import held

    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--cache {cache} cannot be written: {error.strerror}") from None
    with held(cache / "lock") as now:
        if now is not None:
            yield
            return
    say(f"another run of CI is at work in {cache}: waiting for it")
    with held(cache / "lock", _WAIT_S) as later:
        if later is None:
            raise BackendError(
                f"another run of CI has been at work in {cache} for an hour",
                hint="give each its own --cache, or end the other one",
            )
        yield


def _check_writable(out: Path) -> None:
    """Before anything runs: an hour of training must not end without a report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidInput(f"--out {out} cannot be written: {error.strerror}") from None


def _summarise(path: str, text: str) -> None:
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        say(f"GITHUB_STEP_SUMMARY {path} cannot be written: {error.strerror}")


def _show(report: CiReport, out: Path) -> None:
    shown = sorted(report.cases, key=lambda case: case.status in ("refused", "failed"))
    table(
        ("answer", "kind", "what", "told", "seconds"),
        [
            (
                case.status,
                case.group,
                f"{case.loop}: {case.name}" if case.loop else case.name,
                " ".join(case.told.split()),
                case.seconds or None,
            )
            for case in shown
        ],
    )
    counts = ", ".join(f"{n} {status}" for status, n in report.counts().items() if n)
    say(f"{report.outcome}: {counts}; {report.seconds:.1f} s; the report is in {out}")
