"""The composition root: settings -> back ends -> services. The only place that names a back end.

A :class:`Workspace` is one catalog and one object store. Embedded it opens them itself; remote it
holds the same services as stand-ins that call a server. Services load when they are first used.
"""

from __future__ import annotations

import os
from contextvars import Token
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from everloop import settings
from everloop.access.policy import Authorizer
from everloop.access.roles import RoleAuthorizer
from everloop.access.service import Service
from everloop.catalog.location import catalog_of
from everloop.core.context import Place, current_principal, enter_workspace, leave_workspace
from everloop.core.time import Clock
from everloop.data.upkeep import Upkeep, copies_in
from everloop.errors import InvalidInput, StateError
from everloop.ports.blobs import BlobStore
from everloop.ports.plugins import plugged_in
from everloop.transfer.imports import Imports

if TYPE_CHECKING:
    from everloop.access.directory import Directory
    from everloop.access.login import Login
    from everloop.access.remote import Transport
    from everloop.access.signing import SigningKey
    from everloop.access.users import AccessService
    from everloop.automation.courier import Courier
    from everloop.automation.hooks import HookService
    from everloop.automation.messenger import Messenger
    from everloop.automation.runner import LoopRunner
    from everloop.automation.service import AutomationService
    from everloop.automation.webhooks import WebhookService
    from everloop.catalog.engine import Catalog
    from everloop.catalog.stores import ObjectPlace
    from everloop.core.source import DataSource
    from everloop.data.file_service import FileService
    from everloop.data.objects import ObjectService
    from everloop.data.service import DataService
    from everloop.deployment.predictions import PredictionService
    from everloop.deployment.service import DeploymentService
    from everloop.evaluation.service import EvaluationService
    from everloop.features.online import OnlineFeatures
    from everloop.features.service import FeatureService
    from everloop.governance.export import LineageExporter
    from everloop.governance.service import GovernanceService
    from everloop.lineage.service import LineageService
    from everloop.monitoring.service import MonitoringService
    from everloop.packages.service import PackageService
    from everloop.pipelines.approvals import ApprovalService
    from everloop.pipelines.service import PipelineService
    from everloop.ports.executor import Executor
    from everloop.ports.notifier import Notifier
    from everloop.ports.online import OnlineStore
    from everloop.ports.secrets import SecretBox
    from everloop.ports.sink import EventSink
    from everloop.ports.source import FileServer, QueryServer
    from everloop.registry.service import RegistryService
    from everloop.serving.loader import Router
    from everloop.serving.route import Answers, ServedFeatures
    from everloop.serving.worker import ServingServices
    from everloop.tracking.service import TrackingService
    from everloop.tracking.traces import TraceService

__all__ = ["AREAS", "Workspace", "open_workspace"]

#: The services by the name of their area, which is also the attribute of the workspace.
AREAS = (
    "access",
    "objects",
    "data",
    "files",
    "lineage",
    "tracking",
    "traces",
    "pipelines",
    "approvals",
    "features",
    "registry",
    "evaluation",
    "packages",
    "deployment",
    "predictions",
    "monitoring",
    "automation",
    "webhooks",
    "hooks",
    "governance",
)

_S = TypeVar("_S", bound=Service)


def open_workspace(
    location: str | os.PathLike[str] | None = None,
    *,
    clock: Clock | None = None,
    actor: str | None = None,
    token: str | None = None,
    upgrade: bool = True,
    objects: str = "",
) -> Workspace:
    """Open the workspace at `location`, making it if it is a folder that does not exist yet.

    Args:
        location: A folder, ``postgresql://...`` (objects then lie where ``EVERLOOP_OBJECTS`` says,
            or in ``./.everloop``), or ``http://host:port`` of a server, or
            ``http://user:password@host:port``. Nothing means ``EVERLOOP_DIR``, or ``./.everloop``.
        clock: Tells the time of every decision; the machine's clock if not given.
        actor: Whom events name; the user of this process if not given. A server that asks who is
            there names who logged in instead.
        token: Shown to the server; ``EVERLOOP_TOKEN`` if not given, else what ``.netrc`` says.
        upgrade: Bring a catalog of an older Everloop up to date; else it is refused.
        objects: ``s3://bucket/prefix`` where its objects are kept, remembered from then on.
            Nothing means ``EVERLOOP_OBJECTS``, or what is remembered, or the folder.

    Raises:
        BackendError: If it cannot be opened; says why and what to do.
        InvalidInput: If a location is none.
    """
    found = settings.load()
    where = os.fspath(location) if location is not None else found.location
    if not where:
        raise InvalidInput("the location of a workspace must not be empty")
    if objects and ("://" not in objects or where.startswith(("http://", "https://"))):
        raise InvalidInput(
            "objects= is a URL, for a workspace that is opened here and not through a server",
            hint="as in s3://bucket/prefix; EVERLOOP_OBJECTS may be a folder of this machine",
        )
    return Workspace(
        where,
        objects=objects or found.objects,
        clock=clock,
        actor=actor or found.actor,
        token=token,
        upgrade=upgrade,
    )


class Workspace(Upkeep, Imports):
    """One catalog and one object store, with a service for each area.

    Use it as a context manager, or call :meth:`close`.
    """

    def __init__(
        self,
        location: str,
        *,
        objects: str = "",
        clock: Clock | None = None,
        actor: str = "",
        authorizer: Authorizer | None = None,
        token: str | None = None,
        upgrade: bool = True,
    ) -> None:
        self.location = location
        self.actor = actor
        self._authorizer = authorizer or RoleAuthorizer()
        self.catalog: Catalog | None = None
        self._transport: Transport | None = None
        self._entered: list[Token[Any]] = []
        if location.startswith(("http://", "https://")):
            from everloop.access.remote import Transport

            address, authorization = settings.server_login(location, token)
            self.location = address  # without a password, as it is shown and handed on
            self._login = authorization
            self._transport = Transport(address, actor=actor, authorization=authorization)
            self.folder = Path(settings.DEFAULT_DIR)
            return
        from everloop.catalog.engine import Catalog

        url, folder = catalog_of(location)
        # A run of a package works in a folder of its own.
        self.folder = folder.absolute()
        self.catalog = Catalog(url, clock=clock, actor=actor, upgrade=upgrade)
        self._objects = objects
        if "://" in objects:  # it is remembered from now on, whatever is done with it
            try:
                _ = self._object_place
            except BaseException:  # Ctrl-C too: nobody has the workspace who could close it
                self.catalog.close()
                raise

    @property
    def is_remote(self) -> bool:
        """Whether the services are executed by a server."""
        return self._transport is not None

    @property
    def clock(self) -> Clock:
        """The clock of decisions; the machine's for a remote workspace."""
        if self.catalog is not None:
            return self.catalog.clock
        from everloop.core.time import SystemClock

        return SystemClock()

    @cached_property
    def access(self) -> AccessService:
        """Users, roles, tokens."""
        from everloop.access.users import AccessService

        if self._transport is not None:
            return self._remote(AccessService)
        return AccessService(self._catalog, self._authorizer, self._directory)

    @cached_property
    def _directory(self) -> Directory:
        from everloop.access.directory import Directory

        return Directory(self._catalog)

    @cached_property
    def login(self) -> Login:
        """What tells the doors of this process who asks."""
        from everloop.access.login import Login

        self._local("who may log in")
        return Login(self._directory, self.clock)

    def authorize(self, action: str, subject: str = "") -> None:
        """Refuse whoever asks if they may not; for a door that must know before it calls a service.

        Raises:
            NotAllowed: If not.
        """
        self._authorizer.authorize(current_principal(), action, subject)

    @cached_property
    def blobs(self) -> BlobStore:
        """The object store."""
        if self.is_remote:
            from everloop.data.remote_blobs import RemoteBlobs

            return RemoteBlobs(self.objects)
        from everloop.data.guarded import Guard, guarded
        from everloop.data.privacy import Privacy

        privacy = Privacy(self._catalog, self._authorizer, self._signing)
        return guarded(self._store, Guard(self._catalog, privacy))

    @cached_property
    def _store(self) -> BlobStore:
        """The object store of what masks by itself; all others have the guarded one."""
        return self._opened(self._object_place)

    @cached_property
    def _object_place(self) -> ObjectPlace:
        from everloop.catalog.stores import find_place

        return find_place(self._catalog, self._objects, self.folder, check=self._opened)

    def _opened(self, place: ObjectPlace) -> BlobStore:
        """The object store at a folder, or at a URL by its scheme."""
        if not place.is_url:
            from everloop.backends.blobs.local import LocalBlobs

            return LocalBlobs(place.where)
        if not place.where.startswith("s3://"):
            plugged: BlobStore = plugged_in("blobs", place.where)
            return plugged
        from everloop.backends.blobs.s3 import S3Blobs

        found, cache = settings.load(), self.folder / "cache" / "objects"
        options: Any = {"endpoint": found.s3_endpoint, "cache_bytes": found.object_cache}
        return S3Blobs(place.where, cache, owner=place.owner, **options)

    def blobs_at(self, folder: Path) -> BlobStore:
        """The objects in a folder of another workspace, or of a backup."""
        from everloop.backends.blobs.local import LocalBlobs

        return LocalBlobs(folder)

    @cached_property
    def online(self) -> OnlineStore:
        """The online store of features, written by one process."""
        from everloop.backends.online.lmdb import LmdbOnline

        return LmdbOnline(self._local("the online store") / "online")

    @cached_property
    def objects(self) -> ObjectService:
        """Immutable bytes."""
        from everloop.data.objects import ObjectService

        if self._transport is not None:
            return self._remote(ObjectService)
        return ObjectService(self._catalog, self.blobs, self._authorizer)

    @cached_property
    def data(self) -> DataService:
        """Datasets and their versions."""
        from everloop.data.service import DataService

        if self._transport is not None:
            return self._remote(DataService)
        return DataService(
            self._catalog, self._store, self._authorizer, self._signing, copies_in(self.folder)
        )

    @cached_property
    def _signing(self) -> SigningKey:
        from everloop.access.signing import SigningKey

        return SigningKey(self.folder / "signing.key")

    @cached_property
    def files(self) -> FileService:
        """Versions of directories and files."""
        from everloop.data.file_service import FileService

        return self._service(FileService)

    @cached_property
    def lineage(self) -> LineageService:
        """What led to what, and the event log."""
        from everloop.lineage.service import LineageService

        if self._transport is not None:
            return self._remote(LineageService)
        return LineageService(self._catalog, self._authorizer)

    @cached_property
    def tracking(self) -> TrackingService:
        """Experiments and runs."""
        from everloop.tracking.service import TrackingService

        return self._service(TrackingService)

    @cached_property
    def traces(self) -> TraceService:
        """Traces of applications."""
        from everloop.tracking.traces import TraceService

        return self._service(TraceService)

    @cached_property
    def pipelines(self) -> PipelineService:
        """Runs of pipelines and stored results of steps."""
        from everloop.pipelines.service import PipelineService

        return self._service(PipelineService)

    @cached_property
    def approvals(self) -> ApprovalService:
        """Questions of runs that people answer."""
        from everloop.pipelines.approvals import ApprovalService

        if self._transport is not None:
            return self._remote(ApprovalService)
        return ApprovalService(self._catalog, self._authorizer)

    @cached_property
    def features(self) -> FeatureService:
        """Feature definitions."""
        from everloop.features.service import FeatureService

        return self._service(FeatureService, "data")

    @cached_property
    def registry(self) -> RegistryService:
        """Models, versions, aliases."""
        from everloop.registry.service import RegistryService

        return self._service(RegistryService)

    @cached_property
    def evaluation(self) -> EvaluationService:
        """Verdicts."""
        from everloop.evaluation.service import EvaluationService

        if self._transport is not None:
            return self._remote(EvaluationService)
        return EvaluationService(self._catalog, self._authorizer)

    @cached_property
    def packages(self) -> PackageService:
        """Packages of pipelines and the environments that they are in."""
        from everloop.packages.service import PackageService

        return self._service(PackageService)

    @cached_property
    def deployment(self) -> DeploymentService:
        """Deployments and rollouts."""
        from everloop.deployment.service import DeploymentService

        if self._transport is not None:
            return self._remote(DeploymentService)
        return DeploymentService(self._catalog, self._authorizer, self.registry)

    @cached_property
    def predictions(self) -> PredictionService:
        """The log of predictions and labels."""
        from everloop.deployment.predictions import PredictionService

        return self._service(PredictionService)

    @cached_property
    def monitoring(self) -> MonitoringService:
        """Monitors, windows, alerts."""
        from everloop.monitoring.service import MonitoringService

        return self._service(MonitoringService, "predictions", "registry", "deployment")

    @cached_property
    def automation(self) -> AutomationService:
        """Loops, triggers, firings."""
        from everloop.automation.service import AutomationService

        if self._transport is not None:
            return self._remote(AutomationService)
        return AutomationService(self._catalog, self._authorizer)

    @cached_property
    def webhooks(self) -> WebhookService:
        """Webhooks and their deliveries."""
        from everloop.automation.webhooks import WebhookService

        if self._transport is not None:
            return self._remote(WebhookService)
        return WebhookService(self._catalog, self._authorizer, self._notifier, self._secrets)

    @cached_property
    def hooks(self) -> HookService:
        """Webhooks of others."""
        from everloop.automation.hooks import HookService

        if self._transport is not None:
            return self._remote(HookService)
        return HookService(self._catalog, self._authorizer, settings.secret)

    @cached_property
    def _notifier(self) -> Notifier:
        from everloop.backends.notify.webhook import WebhookNotifier

        return WebhookNotifier(settings.load().webhook_hosts)

    @cached_property
    def _secrets(self) -> SecretBox:
        from everloop.backends.secrets.fernet import FernetBox

        return FernetBox(self.folder / "secret.key", settings.load().secret_key)

    @cached_property
    def messenger(self) -> Messenger:
        """What tells people of things, from this process."""
        from everloop.automation.messenger import Messenger
        from everloop.backends.notify.mail import MailNotifier

        found = settings.load()
        mail = MailNotifier(found.smtp, found.mail_from)
        return Messenger(self._notifier, mail, settings.secret)

    def courier(self) -> Courier:
        """What delivers to the webhooks, in this process."""
        from everloop.automation.courier import Courier

        return Courier(self._catalog, self._notifier, self._secrets)

    @cached_property
    def governance(self) -> GovernanceService:
        """Charters, cards, stories."""
        from everloop.governance.service import GovernanceService

        needs = ("data", "tracking", "registry", "evaluation", "deployment", "predictions")
        return self._service(GovernanceService, *needs)

    def online_features(self, feature_set: str) -> OnlineFeatures:
        """The online side of a feature set: push what became known, look up what is."""
        from everloop.features.online import OnlineFeatures

        return OnlineFeatures(self.features.feature_set(feature_set), self.online)

    def open_router(
        self, *, only: tuple[str, ...] = (), worker: str = "", readonly: bool = False
    ) -> Router:
        """Routes of this process, not loaded yet: call ``refresh()``.

        Args:
            only: Deployments to serve; empty means all.
            worker: Name under which revisions are acknowledged.
            readonly: Open the online store for reading only, as serving workers do.
        """
        from everloop.serving.loader import RouteLoader, Router

        services = self.serving_services(readonly=readonly)
        loader = RouteLoader(services.models, services.load, services.features)
        return Router(self.deployment, loader, only=only, worker=worker, pid=os.getpid())

    def serving_services(self, *, readonly: bool = True) -> ServingServices:
        """What serving is composed of."""
        from everloop.registry.flavors import load_predictor
        from everloop.serving.worker import ServingServices

        return ServingServices(
            deployments=self.deployment,
            models=self.registry,
            predictions=self.predictions,
            load=partial(load_predictor, registry=self.registry),
            features=lambda name: self._served_features(name, readonly=readonly),
            close=self.close,
        )

    def _served_features(self, name: str, *, readonly: bool) -> ServedFeatures:
        from everloop.features.online import OnlineFeatures
        from everloop.serving.route import ServedFeatures

        found = self.features.feature_set(name)
        store = self._online_reader if readonly else self.online
        return ServedFeatures(
            request_schema=found.request_schema,
            names=tuple(found.names),
            time_field=found.time,
            lookup=OnlineFeatures(found, store),
        )

    @cached_property
    def _online_reader(self) -> OnlineStore:
        from everloop.backends.online.lmdb import LmdbOnline

        return LmdbOnline(self._local("the online store") / "online", readonly=True)

    def log_answers(self, answers: Answers) -> None:
        """Log what was answered, durably, past any buffer."""
        from everloop.serving.log import prediction_table

        if len(answers):
            self.predictions.log(answers.snapshot.deployment, prediction_table([answers]))

    def executor(self, address: str) -> Executor:
        """The cluster that ``run(on=...)`` names, by its scheme.

        Args:
            address: ``ray`` (what ``RAY_ADDRESS`` says, else the cluster that this machine is a
                node of), ``ray://host:port``, or one of a plug-in's (``everloop.executors``).

        Raises:
            InvalidInput: If nothing executes at such an address.
            BackendError: If no cluster answers there.
            MissingExtra: Without its library.
        """
        if address.partition("://")[0] == "ray":
            from everloop.backends.exec.ray import RayExecutor

            is_named = address not in ("ray", "ray://")
            return RayExecutor(address if is_named else settings.load().ray_address or "auto")
        made: Executor = plugged_in("executors", address)
        return made

    def file_server(self, source: DataSource, scheme: str) -> FileServer:
        """What serves the files of a source, asked from this process."""
        from everloop.backends.sources.serve import file_server

        guarded, hosts = source.guarded and not self.is_remote, settings.load().source_hosts
        return file_server(source, scheme, settings.secret, guarded=guarded, hosts=hosts)

    def query_server(self, source: DataSource) -> QueryServer:
        """The database of a source, asked from this process."""
        from everloop.backends.sources.serve import query_server

        guarded = source.guarded and not self.is_remote
        return query_server(source, settings.secret, guarded=guarded)

    def place(self) -> Place:
        """Where this workspace is, for the workers of a cluster: no path in it is relative."""
        if self.is_remote:
            address, token = settings.login_of(self.location, self._login)
            return Place(address, "", token, self.actor)
        where = self.location
        if where.startswith("sqlite:///"):
            where = f"sqlite:///{Path(where.removeprefix('sqlite:///')).absolute()}"
        elif "://" not in where:
            where = str(self.folder.absolute())
        return Place(where, self._object_place.where, "", self.actor)

    def loop_runner(self, root: Path | None = None) -> LoopRunner:
        """What does the work of the loops in this process."""
        from everloop.automation.runner import LoopRunner

        return LoopRunner(self, root=root)

    def files_at(self, pattern: str, most: int) -> dict[str, str]:
        """The files at ``s3://bucket/...`` that match, by name, with what changes if one does."""
        from everloop.backends.blobs.s3_files import files_at

        return files_at(pattern, endpoint=settings.load().s3_endpoint, most=most)

    def reap(self) -> None:
        """Mark the runs whose owner died as lost; a server does so by itself, unasked."""
        if not self.is_remote:
            self.tracking.reap()

    def lineage_exporter(self, target: str) -> LineageExporter:
        """What hands the event log on as OpenLineage: to a file, or to the server at a URL."""
        from everloop.governance.export import LineageExporter, reader_of

        found = settings.load()
        sink: EventSink
        if target.startswith(("http://", "https://")):
            from everloop.backends.openlineage.http import HttpSink

            sink, name = HttpSink(target, key=found.openlineage_key), target
        else:
            from everloop.backends.openlineage.file import FileSink

            path = Path(target).expanduser().absolute()
            sink, name = FileSink(path), str(path)
        return LineageExporter(self, sink, reader_of(name), namespace=found.openlineage_namespace)

    def service(self, area: str) -> Service:
        """The service of `area`."""
        found: Service = getattr(self, area)
        return found

    def close(self) -> None:
        """Give back connections and files; safe to call twice."""
        for store in ("online", "_online_reader"):
            if store in self.__dict__:
                self.__dict__.pop(store).close()
        if "login" in self.__dict__:
            self.__dict__.pop("login").close()
        if self.catalog is not None:
            self.catalog.close()
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        """Within the block plain functions (``ev.read``, pipelines, ...) act in this workspace."""
        self._entered.append(enter_workspace(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        leave_workspace(self._entered.pop())
        self.close()

    def __repr__(self) -> str:
        return f"Workspace({self.location!r})"

    @property
    def _catalog(self) -> Catalog:
        if self.catalog is None:
            raise StateError(f"{self.location} is a server; its catalog is not here")
        return self.catalog

    def _local(self, what: str) -> Path:
        if self.is_remote:
            raise StateError(f"{what} lives beside the server", hint="run this where the server is")
        return self.folder

    def _remote(self, service: type[_S]) -> _S:
        from everloop.access.remote import remote

        assert self._transport is not None
        return remote(service, self._transport)

    def _service(self, service: type[_S], *needs: str) -> _S:
        if self._transport is not None:
            return self._remote(service)
        others = [getattr(self, area) for area in needs]
        make: Any = service
        made: _S = make(self._catalog, self.blobs, self._authorizer, *others)
        return made
