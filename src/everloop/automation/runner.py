"""LoopRunner: does what the loops have decided. Watch, decide, retrain, judge, roll out.

Nothing here decides: bounds and hysteresis lie in monitoring, cooldown and budget in ``policy``,
pass or fail in the gates, steps of a rollout in ``core.machines``. The runner hands each its facts
and carries the cause along, so that the log tells the story.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.automation.dispatch import Dispatcher
from everloop.automation.holdout import subject_of
from everloop.automation.judging import Judged, judge_on_log
from everloop.automation.places import Places
from everloop.automation.project import MOST_FILES, ProjectFiles, matching_files
from everloop.automation.triggers import collecting, declared
from everloop.automation.work import ActionWork, told
from everloop.core.context import acting, using
from everloop.core.deploy import Deployment, Rollout
from everloop.core.gate import Verdict
from everloop.core.ids import new_id
from everloop.core.machines import RolloutObservation
from everloop.core.model import ModelVersion
from everloop.core.policy import Automation, Firing, FiringOutcome, LoopSpec
from everloop.core.time import Clock, from_micros, monotonic_ns, to_micros
from everloop.errors import EverloopError, GateRefused, InvalidInput, NotFound, RunWaiting
from everloop.evaluation.gates import first_verdict, same_model
from everloop.pipelines.load import load_module
from everloop.registry.flavors import load_predictor

if TYPE_CHECKING:
    from everloop.automation.messenger import Messenger
    from everloop.automation.service import AutomationService
    from everloop.catalog.engine import Catalog
    from everloop.deployment.predictions import PredictionService
    from everloop.deployment.service import DeploymentService
    from everloop.evaluation.service import EvaluationService
    from everloop.monitoring.service import MonitoringService
    from everloop.packages.service import PackageService
    from everloop.pipelines.approvals import ApprovalService
    from everloop.ports.blobs import BlobStore
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService

__all__ = ["LoopRunner", "Tick", "Workplace"]

_log = logging.getLogger("everloop.automation")

_LEASE_S = 30.0


class Workplace(Protocol):
    """What a runner needs of a workspace."""

    @property
    def catalog(self) -> Catalog | None: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def automation(self) -> AutomationService: ...
    @property
    def monitoring(self) -> MonitoringService: ...
    @property
    def registry(self) -> RegistryService: ...
    @property
    def evaluation(self) -> EvaluationService: ...
    @property
    def deployment(self) -> DeploymentService: ...
    @property
    def predictions(self) -> PredictionService: ...
    @property
    def tracking(self) -> TrackingService: ...
    @property
    def messenger(self) -> Messenger: ...
    @property
    def approvals(self) -> ApprovalService: ...
    @property
    def blobs(self) -> BlobStore: ...
    @property
    def packages(self) -> PackageService: ...
    def files_at(self, pattern: str, most: int) -> dict[str, str]: ...


class Tick(msgspec.Struct, frozen=True):
    """What one tick did.

    Attributes:
        alerts: Ids of the alerts that fired or cleared.
        fired: New firings, the ones held back too.
        finished: Firings that were worked off, as they ended.
        rollouts: Rollouts that moved or were looked at.
    """

    alerts: tuple[str, ...] = ()
    fired: tuple[Firing, ...] = ()
    finished: tuple[Firing, ...] = ()
    rollouts: tuple[Rollout, ...] = ()


class LoopRunner:
    """Runs the loops of a workspace in this process.

    Args:
        workspace: Whose loops.
        root: Folder that pipeline paths are relative to; the current one if not given.
        holder: Names this runner among others; made up from host and process if not given.
    """

    def __init__(self, workspace: Workplace, *, root: Path | None = None, holder: str = "") -> None:
        self._ws = workspace
        self._root = (root or Path.cwd()).resolve()
        self._files = ProjectFiles(self._root)
        self._unseen: dict[str, str] = {}
        self._leads = threading.Event()
        self._places = Places(workspace, self._root, self._files)
        self._work = ActionWork(workspace, self._places)
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{new_id()[-6:]}"

    def load(self, path: str | Path) -> list[LoopSpec | Automation]:
        """Import a file and declare what it writes, in this runner's workspace.

        Automations that the file declared before and does not any more are removed.

        Raises:
            NotFound: If there is no such file.
            UserCodeError: If it raises when it is imported.
        """
        file = Path(path).resolve()
        before = {spec.name: spec for spec in declared()}
        with using(self._ws), collecting():
            load_module(file)
        self._files.note()
        found = [
            spec
            for spec in declared()
            if before.get(spec.name) is not spec or self._file_of(spec) == file
        ]
        service = self._ws.automation
        names = {spec.name for spec in found}
        for known in service.automations():
            if self._file_of(known) == file and known.name not in names:
                service.remove(known.name, f"{path} declares it no more")
        return [
            service.declare(spec) if isinstance(spec, LoopSpec) else service.automate(spec)
            for spec in found
        ]

    def tick(self) -> Tick:
        """Bring everything up to the clock's now once, in this process.

        A loop that is in trouble does not hold up the others; its trouble goes to the log of this
        process, and to the event log where it is its own.
        """
        seen = self.watch()
        fired = self._ws.automation.decide()
        finished = []
        while (firing := self._ws.automation.claim()) is not None:
            finished.append(self.run(firing))
        return msgspec.structs.replace(seen, fired=tuple(fired), finished=tuple(finished))

    def watch(self) -> Tick:
        """Move the rollouts on, look at the monitors and at the files that are watched."""
        loops = self._ws.automation.loops()
        # First the rollouts: a promotion that is due settles an alert before it can fire again.
        rollouts = [r for spec in loops for r in self._guarded(spec, self._advance, [])]
        alerts = [a for spec in loops for a in self._guarded(spec, self._watch, [])]
        self.look_at_files()
        return Tick(alerts=tuple(alerts), rollouts=tuple(rollouts))

    def look_at_files(self) -> None:
        """Tell the automation of files that came, changed or went, of each pattern watched."""
        service = self._ws.automation
        triggers = [t for spec in service.loops() for t in spec.triggers]
        triggers += [t for spec in service.automations() for t in spec.triggers]
        patterns = {trigger.value for trigger in triggers if trigger.on == "files"}
        for pattern in sorted(patterns):
            try:
                found = (
                    self._ws.files_at(pattern, MOST_FILES)
                    if "://" in pattern
                    else matching_files(self._root, pattern)
                )
            except EverloopError as error:  # it is looked at again; said once
                if self._unseen.get(pattern) != error.message:
                    _log.warning("%s: %s", pattern, error)
                self._unseen[pattern] = error.message
                continue
            self._unseen.pop(pattern, None)
            service.note_files(pattern, found)

    def recover(self) -> list[Firing]:
        """Take up what a runner that died left behind; only one runner may be at work then."""
        self._ws.tracking.reap()
        self._ws.approvals.expire()
        return self._ws.automation.recover()

    def run_forever(
        self,
        stop: threading.Event,
        interval_s: float = 5.0,
        *,
        workers: Sequence[str] = (),
        size: int = 4,
    ) -> None:
        """Supervise until `stop` is set, while this runner leads; stands by while another does.

        Args:
            stop: Ends it.
            interval_s: Between two looks at rollouts, monitors and files.
            workers: What starts a child that works on a firing, see ``dispatch``; without it the
                work is done here, and all else waits for it.
            size: Children that work at the same time.
        """
        dispatcher = None
        if workers:
            leads = self._leads.is_set
            dispatcher = Dispatcher(self._ws, workers, size=size, leads=leads)
            thread = threading.Thread(
                target=dispatcher.run_forever, args=(stop,), name="everloop-dispatch"
            )
            thread.start()
        while not stop.is_set():
            try:
                if self._ws.automation.lead(self.holder, _LEASE_S):
                    with self._heartbeat():
                        self.recover()
                        self._leads.set()
                        if dispatcher is None:
                            self.tick()
                        else:
                            self.watch()
                else:
                    self._leads.clear()
            except EverloopError:
                # The catalog may be away for a while; a supervisor outlives that.
                _log.exception("the supervisor could not tick; it tries again")
            stop.wait(interval_s)
        if dispatcher is not None:
            thread.join()
        if self._leads.is_set():
            self._ws.automation.resign(self.holder)

    def run(self, firing: Firing) -> Firing:
        """Work a claimed firing off; of a loop: train, judge, then roll out or archive."""
        if firing.action != "train":
            return self._work.run(firing, self._event_of(firing))
        spec = self._ws.automation.loop(firing.loop)
        with acting(actor=f"loop:{spec.name}", cause=self._event_of(firing)):
            run_id, began = "", monotonic_ns()
            seconds: float | None = None
            outcome: FiringOutcome = "done"
            try:
                made = self._made(spec, firing)
                if made is None:
                    version, run_id = self._train(spec, firing)
                    # By a watch: the workspace's clock stands still where the past is replayed.
                    seconds = (monotonic_ns() - began) / 1e9
                else:
                    version, run_id = made, made.run_id
                reason = self._judge(spec, version, run_id)
            except RunWaiting as waits:
                outcome, reason = "waiting", waits.message
                run_id = str(waits.details["run"])
            except EverloopError as error:
                outcome, reason = "failed", told(error)
            except Exception as error:  # noqa: BLE001 - the model is not ours, and it was called
                _log.exception("firing %s of loop %s failed", firing.id, spec.name)
                outcome, reason = "failed", f"{type(error).__name__}: {error}"
            return self._ws.automation.finish(
                firing.id, outcome, reason, run_id, seconds, fence=firing.fence
            )

    # --- watching and rolling out ----------------------------------------------------------------

    def _watch(self, spec: LoopSpec) -> list[str]:
        monitoring = self._ws.monitoring
        found = [] if self._deployed(spec) is None else monitoring.update(spec.name)
        return [alert.id for alert in [*found, *monitoring.judge(spec.name)]]

    def _advance(self, spec: LoopSpec) -> list[Rollout]:
        rollout = self._open_rollout(spec.name)
        if rollout is None:
            return []
        # No cause is given: a step of a rollout follows from the step before, as the log has it.
        with acting(actor=f"loop:{spec.name}"):
            try:
                moved = self._ws.deployment.advance(spec.name, self._observe(rollout))
            except GateRefused as error:
                # The alias is protected: the rollout stays at its step until what is missing comes.
                _log.warning("loop %s waits: %s", spec.name, error.message)
                return []
        return [] if moved is None else [moved]

    def _open_rollout(self, name: str) -> Rollout | None:
        if self._deployed_name(name) is None:
            return None
        return next(iter(self._ws.deployment.rollouts(name, open_only=True)), None)

    def _observe(self, rollout: Rollout) -> RolloutObservation:
        """What the log says of the candidate since its step began.

        By when it was logged: a request may be for a time that is long past or yet to come.
        """
        now = self._ws.clock.now()
        seen = self._ws.predictions.read(
            rollout.deployment,
            since=datetime.min.replace(tzinfo=UTC),
            until=datetime.max.replace(tzinfo=UTC),
            columns=["version", "error", "latency_us"],
            logged_since=from_micros(round(rollout.state.since_s * 1e6)),
        )
        own = seen.filter(pc.equal(seen.column("version"), rollout.candidate))
        latency = own.column("latency_us").cast(pa.float64()).to_numpy()
        errors = pc.sum(pc.not_equal(pc.fill_null(own.column("error"), ""), "")).as_py()
        return RolloutObservation(
            now_s=to_micros(now) / 1e6,
            requests=own.num_rows,
            errors=int(errors or 0),
            p99_ms=float(np.percentile(latency, 99)) / 1000 if len(latency) else 0.0,
        )

    # --- training --------------------------------------------------------------------------------

    def _made(self, spec: LoopSpec, firing: Firing) -> ModelVersion | None:
        """The version that needs no training any more, or None.

        A runner that died had trained it for this firing, or nothing is served yet and somebody
        has registered one already.
        """
        try:
            versions = self._ws.registry.versions(spec.name)
        except NotFound:
            return None
        if firing.run_id:
            if not self._is_finished(firing.run_id):
                return None
            versions = [version for version in versions if version.run_id == firing.run_id]
        elif self._deployed(spec) is not None:
            return None
        else:
            versions = [version for version in versions if version.state != "archived"]
        return versions[-1] if versions else None

    def _is_finished(self, run_id: str) -> bool:
        return self._ws.tracking.run(run_id).state == "finished"

    def _train(self, spec: LoopSpec, firing: Firing) -> tuple[ModelVersion, str]:
        """Run the pipeline on what is earlier than the hold-out; the version and the run's id.

        The first model is judged against nobody, so it may learn from everything.
        """
        until = firing.scheduled_for
        if self._deployed(spec) is not None:
            # What the gate judges on must be later than all that the candidate saw.
            until -= timedelta(days=max((gate.days for gate in spec.gates), default=0))
        resumed = "" if firing.run_id and self._is_finished(firing.run_id) else firing.run_id
        with self._places.loaded(spec.pipeline, resumed) as (pipeline, watcher):
            given = {} if resumed else {"until": until}
            trigger = "" if resumed else firing.id
            result: object = pipeline.run_watched(watcher, given, resume=resumed, trigger=trigger)
        if not isinstance(result, ModelVersion) or result.name != spec.name:
            got = result.ref if isinstance(result, ModelVersion) else type(result).__name__
            raise InvalidInput(
                f"pipeline {spec.pipeline} must return a version of {spec.name!r}, got {got}",
                hint=f'end it with: return ev.register("{spec.name}", model)',
            )
        return result, pipeline.run_id

    # --- judging ---------------------------------------------------------------------------------

    def _judge(self, spec: LoopSpec, version: ModelVersion, run_id: str) -> str:
        """Judge the candidate and act on the verdict; returns the sentence that says what came."""
        deployed = self._deployed(spec)
        champion = deployed.arm("champion") if deployed is not None else None
        if deployed is None or champion is None:
            return self._first(spec, version, run_id)
        if version.version == champion.version:
            return f"{version.ref} is champion already: the pipeline made nothing new"
        if version.state == "archived":
            return f"{version.ref} was refused before: the pipeline made nothing new"
        given = self._given(version, run_id, champion.version)
        if given is not None and given.passed and self._rollout_of(given) is not None:
            return f"{version.ref} passed the gate; its rollout had begun"
        holder = self._ws.registry.version(spec.name, champion.version)
        nothing = same_model(version, holder, now=self._ws.clock.now(), run_id=run_id)
        if nothing is not None:
            return self._refused(spec, version, given or self._ws.evaluation.record(nothing))
        judged = self._verdict(spec, version, champion.version, run_id)
        verdict = given or self._ws.evaluation.record(judged.verdict)
        if not verdict.passed:
            return self._refused(spec, version, verdict)
        with acting(cause=self._event_id(f"verdict:{verdict.id}")):
            if not version.reference:
                self._ws.registry.set_reference(spec.name, version.version, judged.reference())
            rollout = self._ws.deployment.start_rollout(
                spec.name, version.version, spec.rollout, verdict=verdict.id
            )
        return f"{version.ref} passed the gate; rollout {rollout.id} began"

    def _refused(self, spec: LoopSpec, version: ModelVersion, verdict: Verdict) -> str:
        failed = [result.reason for result in verdict.results if not result.passed]
        told = "; ".join(failed or verdict.reasons)
        with acting(cause=self._event_id(f"verdict:{verdict.id}")):
            self._ws.registry.set_state(
                spec.name, version.version, "archived", reason=told, evidence=verdict.id
            )
        return f"{version.ref} was refused: {told}"

    def _given(self, version: ModelVersion, run_id: str, champion: int) -> Verdict | None:
        """The verdict that a runner which died then had given on what this run made, or None."""
        wanted = (run_id, champion)
        verdicts = self._ws.evaluation.verdicts(version.name, version.version)
        return next((v for v in verdicts if run_id and (v.run_id, v.champion) == wanted), None)

    def _rollout_of(self, verdict: Verdict) -> Rollout | None:
        rollouts = self._ws.deployment.rollouts(verdict.model)
        return next((one for one in rollouts if one.verdict == verdict.id), None)

    def _first(self, spec: LoopSpec, version: ModelVersion, run_id: str) -> str:
        verdict = self._given(version, run_id, 0) or self._ws.evaluation.record(
            first_verdict(
                spec.gates,
                version,
                subject=lambda: subject_of(version, self._load(version)),
                now=self._ws.clock.now(),
                run_id=run_id,
            )
        )
        if not verdict.passed:
            # A failure, not a setback: the loop serves nothing yet, so it tries again and again.
            raise GateRefused(
                self._refused(spec, version, verdict), hint="the first model must pass them too"
            )
        with acting(cause=self._event_id(f"verdict:{verdict.id}")):
            self._ws.deployment.create(
                spec.name, model=spec.name, version=version.version, owner=spec.owner
            )
        return f"{version.ref} went live: there was no champion yet"

    def _verdict(self, spec: LoopSpec, version: ModelVersion, champion: int, run_id: str) -> Judged:
        now, registry = self._ws.clock.now(), self._ws.registry
        since = now - timedelta(days=max(gate.days for gate in spec.gates))
        holder = registry.version(spec.name, champion)
        return judge_on_log(
            spec.gates,
            self._ws.predictions.read(spec.name, since=since, until=now, labelled=True, as_of=now),
            candidate=(version, self._load(version)),
            champion=(holder, self._load(holder)),
            version_of=lambda number: registry.version(spec.name, number),
            now=now,
            run_id=run_id,
            uses=self._ws.evaluation.uses(spec.name, since, now),
        )

    def _load(self, version: ModelVersion) -> Any:
        registry = self._ws.registry
        files = registry.files(version.name, version.version)
        return load_predictor(version, files, registry=registry)

    # --- inside ----------------------------------------------------------------------------------

    def _file_of(self, spec: LoopSpec | Automation) -> Path:
        if isinstance(spec, Automation):
            return (self._root / spec.source).resolve()
        return (self._root / spec.pipeline.rpartition(":")[0]).resolve()

    def _deployed(self, spec: LoopSpec) -> Deployment | None:
        return self._deployed_name(spec.name)

    def _deployed_name(self, name: str) -> Deployment | None:
        try:
            return self._ws.deployment.deployment(name)
        except NotFound:
            return None

    def _guarded(self, spec: LoopSpec, act: Any, otherwise: list[Any]) -> list[Any]:
        try:
            found: list[Any] = act(spec)
            return found
        except EverloopError:
            _log.exception("loop %s: %s failed; it is tried again", spec.name, act.__name__)
            return otherwise

    def _event_of(self, firing: Firing) -> str:
        return self._event_id(f"firing:{firing.id}", "trigger.Fired") or firing.cause

    def _event_id(self, subject: str, kind: str = "") -> str:
        catalog = self._ws.catalog
        if catalog is None:
            return ""
        found = catalog.events(subject=subject, kind=kind, limit=1)
        return found[0].id if found else ""

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Keep the lead while a tick lasts, however long a training takes."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(_LEASE_S / 3):
                try:
                    if not self._ws.automation.lead(self.holder, _LEASE_S):
                        self._leads.clear()
                    self._ws.tracking.reap()
                except EverloopError:
                    _log.exception("the lead could not be renewed; it is tried again")

        thread = threading.Thread(target=renew, name="everloop-lead", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
