"""ActionWork: does what a firing of an automation asks for, in this process."""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Callable
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol

from everloop.automation.messenger import Later, Messenger
from everloop.automation.places import Places
from everloop.core.context import acting
from everloop.core.policy import Automation, Firing, FiringOutcome, RunPipeline
from everloop.core.time import monotonic_ns, parse_instant
from everloop.core.webhook import retry_after_s
from everloop.errors import EverloopError, InvalidInput, RunWaiting, UserCodeError

if TYPE_CHECKING:
    from everloop.automation.service import AutomationService
    from everloop.pipelines.approvals import ApprovalService
    from everloop.tracking.service import TrackingService

__all__ = ["SCHEDULED_TAG", "ActionWork", "arguments_for", "told"]

_log = logging.getLogger("everloop.automation")

#: Tag of a run that says for which instant it was started.
SCHEDULED_TAG = "everloop.scheduled_for"


class Surroundings(Protocol):
    """What the work needs of a workspace."""

    @property
    def automation(self) -> AutomationService: ...
    @property
    def messenger(self) -> Messenger: ...
    @property
    def tracking(self) -> TrackingService: ...
    @property
    def approvals(self) -> ApprovalService: ...


class ActionWork:
    """Works off firings of automations.

    Args:
        workspace: Whose.
        places: Where pipelines are loaded from.
    """

    def __init__(self, workspace: Surroundings, places: Places) -> None:
        self._ws = workspace
        self._places = places

    def run(self, firing: Firing, cause: str) -> Firing:
        """Work a claimed firing off and close it.

        Args:
            firing: As claimed.
            cause: Id of the event that tells of the firing; what is done here follows from it.
        """
        began, run_id = monotonic_ns(), ""
        outcome: FiringOutcome = "done"
        actor = f"automation:{firing.loop}" if firing.action != "resume" else None
        with acting(actor=actor, cause=cause):
            try:
                if firing.action == "resume":
                    run_id, reason = self._resume(firing.run_id)
                else:
                    spec = self._ws.automation.automation(firing.loop)
                    run_id, reason = self._act(spec, firing)
            except RunWaiting as waits:
                # One that only went on has its own firing for each answer.
                outcome = "done" if firing.action == "resume" else "waiting"
                reason, run_id = waits.message, str(waits.details["run"])
            except Later as later:
                return self._again(firing, later)
            except EverloopError as error:
                outcome, reason = "failed", told(error)
                run_id = getattr(error, "run_id", "")
            except Exception as error:  # noqa: BLE001 - the pipeline is not ours
                _log.exception("firing %s of automation %s failed", firing.id, firing.loop)
                outcome, reason = "failed", f"{type(error).__name__}: {error}"
            seconds = (monotonic_ns() - began) / 1e9
            return self._ws.automation.finish(
                firing.id, outcome, reason, run_id, seconds, fence=firing.fence
            )

    def _act(self, spec: Automation, firing: Firing) -> tuple[str, str]:
        """Do it; the run and the sentence that says what came of it."""
        if isinstance(spec.action, RunPipeline):
            return self._run(spec, spec.action, firing)
        events = self._ws.automation.reasons(firing.id)
        return "", f"told {self._ws.messenger.tell(spec.action, firing, events)}"

    def _again(self, firing: Firing, later: Later) -> Firing:
        """Try a message again after a while, longer each time."""
        wait = retry_after_s(firing.attempts, later.after_s)
        service = self._ws.automation
        if wait is None:
            told = f"given up after {firing.attempts} tries: {later}"
            return service.finish(firing.id, "failed", told, fence=firing.fence)
        return service.give_back(firing.id, firing.fence, str(later), after_s=wait, tries=99)

    def _run(self, spec: Automation, action: RunPipeline, firing: Firing) -> tuple[str, str]:
        with self._places.loaded(action.pipeline, firing.run_id) as (pipeline, watcher):
            known = self._ws.tracking.run(firing.run_id) if firing.run_id else None
            if known is not None and known.state == "finished":
                return known.id, f"run {known.id} had finished"
            pipeline.run_id = ""
            try:
                if known is not None:
                    pipeline.run(resume=known.id)
                else:
                    event = self._event(firing)
                    given = arguments_for(pipeline.function, action, firing, event)
                    pipeline.run_watched(watcher, given, trigger=firing.id)
            except EverloopError as error:
                error.run_id = pipeline.run_id  # type: ignore[attr-defined]
                raise
            finally:
                if pipeline.run_id:
                    at = firing.scheduled_for.isoformat()
                    self._ws.tracking.set_tag(pipeline.run_id, SCHEDULED_TAG, at)
        return pipeline.run_id, f"run {pipeline.run_id} finished"

    def _resume(self, run_id: str) -> tuple[str, str]:
        """Have a run go on that somebody approved."""
        if self._ws.tracking.run(run_id).state != "waiting":
            return run_id, f"run {run_id} went on elsewhere"
        targets = [asked.target for asked in self._ws.approvals.approvals(run_id) if asked.target]
        if not targets:
            raise InvalidInput(
                f"nobody knows the file of run {run_id}",
                hint=f"go on where it was started: run(resume={run_id!r})",
            )
        with self._places.loaded(targets[-1], run_id) as (pipeline, _):
            pipeline.run(resume=run_id)
        return run_id, f"run {run_id} finished"

    def _event(self, firing: Firing) -> dict[str, Any]:
        """What happened, as a pipeline gets it; empty for a schedule."""
        events = self._ws.automation.reasons(firing.id)
        if not events:
            return {}
        first = events[0]
        return {
            "id": first.id,
            "kind": first.kind,
            "subject": first.subject,
            "at": first.at.isoformat(),
            "body": first.body,
            "merged": firing.body.get("merged", 0),
        }


def arguments_for(
    function: Callable[..., Any], action: RunPipeline, firing: Firing, event: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a run: what was declared, and what its firing knows if it asks for that.

    Raises:
        InvalidInput: If a declared text is no date or time where the pipeline wants one.
    """
    plain = inspect.unwrap(function)
    parameters = inspect.signature(plain).parameters
    hints = typing.get_type_hints(plain)
    known = {"scheduled_for": firing.scheduled_for, "event": event}
    given = {name: value for name, value in known.items() if name in parameters}
    for name, value in action.arguments.items():
        if isinstance(value, str) and hints.get(name) is datetime:
            given[name] = parse_instant(value)
        elif isinstance(value, str) and hints.get(name) is date:
            try:
                given[name] = date.fromisoformat(value)
            except ValueError:
                raise InvalidInput(f"{name}: {value!r} is no date") from None
        else:
            given[name] = value
    return given


def told(error: EverloopError) -> str:
    """The last line says what happened; a traceback stays with the run."""
    lines = error.message.strip().splitlines()
    return lines[-1] if isinstance(error, UserCodeError) else error.message
