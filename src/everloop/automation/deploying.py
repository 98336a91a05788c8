"""Deploys packages: looks whether they fit here, tries them out, declares what they declare.

What is declared names its pipelines by the digest of the package, so every supervisor of the
workspace runs the same code, wherever its working tree is and whatever is in it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from everloop.automation.packaging import look_at
from everloop.automation.places import folder_of
from everloop.core.context import acting
from everloop.core.package import Package, parse_place, place_of
from everloop.core.pipeline import PartChange
from everloop.core.policy import LoopSpec, RunPipeline
from everloop.errors import BackendError, Conflict, EverloopError, InvalidInput, StateError
from everloop.packages.environment import differences
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    from everloop.automation.service import AutomationService
    from everloop.lineage.service import LineageService
    from everloop.packages.service import PackageService

__all__ = ["Deployer", "following"]

_log = logging.getLogger("everloop.automation")

_LOOK_S = 2.0
_GONE = "declares it no more"


class Workplace(Protocol):
    """Where packages are deployed."""

    @property
    def blobs(self) -> BlobStore: ...
    @property
    def packages(self) -> PackageService: ...
    @property
    def automation(self) -> AutomationService: ...
    @property
    def lineage(self) -> LineageService: ...


class Deployer:
    """Deploys packages in a workspace and follows their environments.

    Args:
        workspace: Where.
        refs: Packages: ``name@environment``, which is followed, or ``name@digest``.
        allow_differences: Deploy also what does not fit here.
        reason: Why that is allowed.

    Raises:
        InvalidInput: If differences are allowed without a reason, or a package is given twice.
    """

    def __init__(
        self,
        workspace: Workplace,
        refs: Sequence[str],
        *,
        allow_differences: bool = False,
        reason: str = "",
    ) -> None:
        names = [ref.partition("@")[0] for ref in refs]
        faults = [(ref, "names no environment and no digest") for ref in refs if "@" not in ref]
        faults += [
            (name, "is given twice: its environments would declare the same loops")
            for name in sorted(set(names))
            if names.count(name) > 1
        ]
        if faults:
            raise InvalidInput("these packages cannot be deployed", faults)
        if allow_differences and not reason.strip():
            raise InvalidInput("differences are allowed with a reason", [("reason", "is missing")])
        self._ws = workspace
        self._refs = tuple(refs)
        self._allow = allow_differences
        self._reason = reason
        self._seen: dict[str, str] = {}

    def deploy(self) -> list[Package]:
        """Deploy all of them; nothing is declared before each of them was found to fit.

        Raises:
            NotFound: If there is no such package, or an environment is empty.
            StateError: If it does not fit here; lists all differences.
            UserCodeError: If its code raises when it is imported here.
        """
        found = [(ref, self._ws.packages.package(ref)) for ref in self._refs]
        allowed = [self._tried(ref, package) for ref, package in found]
        for (ref, package), changes in zip(found, allowed, strict=True):
            self._declare(ref, package, changes)
        return [package for _, package in found]

    def follow(self) -> list[Package]:
        """Deploy those whose environment has moved since; what does not fit is told and left."""
        moved = []
        for ref in self._refs:
            package = self._ws.packages.package(ref)
            seen = self._seen.get(ref)
            if package.digest == seen:
                continue
            if seen is None and self._is_declared(package):
                self._seen[ref] = package.digest  # by `everloop up`, before this process began
                continue
            try:
                self._declare(ref, package, self._tried(ref, package))
            except BackendError:
                raise  # it is tried again
            except EverloopError as error:
                _log.error("%s stays as it was: %s", ref, error)
                self._seen[ref] = package.digest
            else:
                moved.append(package)
        return moved

    def _tried(self, ref: str, package: Package) -> tuple[PartChange, ...]:
        """What differs here, where that is allowed; the code was imported."""
        changes = differences(package.manifest)
        try:
            if changes and not self._allow:
                told = [f"{c.part} must be {c.before}, is {c.now}" for c in changes]
                raise StateError(
                    f"package {package.ref} does not fit here: {'; '.join(told)}",
                    hint="install what it was built with (everloop package show "
                    f'{package.ref} --lock), or --allow-differences --reason "..."',
                )
            folder = folder_of(package, self._ws.blobs)
            alone = look_at(package.manifest.entry, folder)
            if alone.outside:
                told = [f"{module} is {file}" for module, file in alone.outside.items()]
                raise StateError(f"package {package.ref} imports other code: {'; '.join(told)}")
            self._check_names(package)
        except BackendError:
            raise
        except EverloopError as error:
            self._note(ref, package, (), refused=error.message)
            raise
        return changes

    def _is_declared(self, package: Package) -> bool:
        service, place = self._ws.automation, place_of(package, "")
        loops = {one.name: one.pipeline for one in service.loops()}
        automations = {one.name: one for one in service.automations()}
        source = f"package:{package.name}"
        names = {one.name for one in package.manifest.automations}
        if names != {name for name, one in automations.items() if one.source == source}:
            return False
        wanted = {one.name for one in package.manifest.loops}
        if any(
            _is_of(o, package) and o.name not in wanted and not o.paused for o in service.loops()
        ):
            return False
        actions = [automations[name].action for name in names]
        paths = [action.pipeline for action in actions if isinstance(action, RunPipeline)]
        paths += [loops.get(one.name, "") for one in package.manifest.loops]
        return all(path.startswith(place) for path in paths)

    def _check_names(self, package: Package) -> None:
        """Refuse a loop that is called as an automation is, or the other way round."""
        service, made = self._ws.automation, package.manifest
        loops, automations = ({o.name for o in kind} for kind in (made.loops, made.automations))
        source = f"package:{package.name}"
        others = {one.name for one in service.automations() if one.source != source}
        taken = (loops & others) | (automations & {one.name for one in service.loops()})
        if taken:
            raise Conflict(
                f"package {package.ref} cannot be deployed: a loop and an automation would both be"
                f" called {' and '.join(sorted(taken))}",
                hint="give one of them another name",
            )

    def _declare(self, ref: str, package: Package, changes: tuple[PartChange, ...]) -> None:
        name, _, environment = ref.partition("@")
        moves = self._ws.packages.history(name, environment)
        with acting(cause=moves[-1].event if moves else None):
            self._declare_all(package)
            self._note(ref, package, changes)
        self._seen[ref] = package.digest

    def _declare_all(self, package: Package) -> None:
        service, source = self._ws.automation, f"package:{package.name}"
        gone = f"{package.ref} {_GONE}"
        loops = {loop.name for loop in package.manifest.loops}
        for loop in package.manifest.loops:
            path = place_of(package, loop.pipeline)
            now = service.declare(msgspec.structs.replace(loop, pipeline=path))
            if now.paused and self._is_paused_by(package.name, loop.name):
                service.pause(loop.name, False, f"{package.ref} declares it again")
        for one in service.loops():
            # It has a history and may serve a model, so it is not removed, as an automation is.
            if _is_of(one, package) and one.name not in loops:
                service.pause(one.name, True, gone)
        names = set()
        for automation in package.manifest.automations:
            names.add(automation.name)
            action = automation.action
            if isinstance(action, RunPipeline):
                path = place_of(package, action.pipeline)
                action = msgspec.structs.replace(action, pipeline=path)
            service.automate(msgspec.structs.replace(automation, action=action, source=source))
        for known in service.automations():
            if known.source == source and known.name not in names:
                service.remove(known.name, gone)

    def _is_paused_by(self, package: str, loop: str) -> bool:
        """Whether a loop rests because a package did not declare it, not because of a person."""
        events = self._ws.lineage.events(
            kind="loop.Paused", subject=f"loop:{loop}", limit=1, newest=True
        )
        said = str(events[0].body.get("reason", "")) if events else ""
        return said.startswith(f"{package}@") and said.endswith(_GONE)

    def _note(
        self, ref: str, package: Package, changes: tuple[PartChange, ...], refused: str = ""
    ) -> None:
        name, _, wanted = ref.partition("@")
        is_followed = any(one.environment == wanted for one in self._ws.packages.environments(name))
        self._ws.packages.note_deployment(
            package.digest,
            wanted if is_followed else "",
            socket.gethostname(),
            differences=list(changes),
            reason=self._reason if changes else "",
            refused=refused,
        )


def _is_of(loop: LoopSpec, package: Package) -> bool:
    place = parse_place(loop.pipeline)
    return place is not None and place.name == package.name


@contextlib.contextmanager
def following(deployer: Deployer, stop: threading.Event) -> Iterator[None]:
    """Within the block the supervisor moves with the environments, in a thread of its own.

    Serving is not touched by it, and a run that has begun keeps the code that it began with.
    """

    def follow() -> None:
        while not stop.wait(_LOOK_S):
            try:
                for package in deployer.follow():
                    _log.warning("%s is deployed", package.ref)
            except EverloopError:
                # The catalog may be away for a while; a supervisor outlives that.
                _log.exception("packages could not be followed; it is tried again")

    thread = threading.Thread(target=follow, name="everloop-packages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
