"""The only wiring: settings become a hub, and a hub becomes the two applications that serve it.

``open_hub`` brings the tables up to date, opens store and keys, refuses a log that the rows do not lead to,
and makes the operator the first member. ``create_app`` serves API, log and pages; ``create_download_app``
serves downloads on an origin of their own.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from sqlalchemy.exc import DBAPIError

from federation.home import Home, Place
from federation.wire import Problem
from hub import __version__
from hub.api import (
    alliance,
    apps,
    coordinator,
    health,
    log,
    mlflow,
    oci,
    plans,
    pulls,
    registry,
    runs,
    statements,
    uploads,
)
from hub.api import revisions as drafts
from hub.api.health import Meters
from hub.api.huggingface import files, repos, trees, xet
from hub.api.huggingface import uploads as transfers
from hub.api.lane import Lanes
from hub.api.limits import Doorkeeper, Rate
from hub.api.problems import add_problems
from hub.api.quick import QuickPaths, quick_routes
from hub.context import Hub, NodeRegistry
from hub.database import Database
from hub.errors import no_room
from hub.keys import HubKeys, keys_of
from hub.ledger import Ledger, Publisher, has_entries
from hub.services import alliance as members
from hub.settings import Settings
from storage.blobs import BlobStore
from storage.errors import Unchecked
from storage.stores import folder_of, open_store

ROUTERS: tuple[APIRouter, ...] = (
    alliance.router,
    statements.router,
    uploads.router,
    registry.router,
    drafts.router,
    pulls.router,
    plans.router,
    apps.router,
    runs.router,
    coordinator.router,
)
# At the hub's root, where stock Hugging Face clients expect them; the last one answers what is left.
HUGGINGFACE: tuple[APIRouter, ...] = (
    repos.router,
    trees.router,
    transfers.router,
    xet.router,
    repos.unknown_router,
)
# Where clients of other registries expect them.
REGISTRIES: tuple[APIRouter, ...] = (mlflow.router, oci.router)
PAGES = "hub.web.pages"


# --- the hub --------------------------------------------------------------------------------------------


def open_hub(settings: Settings, *, nodes: NodeRegistry | None = None) -> Hub:
    """One process's hub, ready to serve; the first start founds it.

    Args:
        nodes: SuperLink's list of nodes; None: no runs can start.
    Raises:
        Unchecked: a setting is wrong, or a part cannot be opened.
        FedhubError: ``E_LOG_FORK``, the database is not the one that the published log was made from;
            ``E_HUB_FULL``.
    """
    try:
        keys = keys_of(settings)
        database = Database(settings.database, busy_s=settings.database_busy_s, pool=settings.database_pool)
        try:
            return _open(settings, keys, database, nodes)
        except BaseException:
            database.close()
            raise
    except (OSError, DBAPIError) as error:
        full = no_room(error)
        if full is None:
            raise
        raise full from error


def _open(settings: Settings, keys: HubKeys, database: Database, nodes: NodeRegistry | None) -> Hub:
    database.upgrade()
    fleet_ca = fleet_authority(settings)
    operator = operator_home(settings, keys, fleet_ca)
    store = store_of(settings, keys, make=not has_entries(database))
    ledger = Ledger(database, store, keys.log, operator.institution)
    ledger.check_start()
    hub = Hub(
        settings, database, store, ledger, keys, operator, fleet_ca, nodes, inner_store_of(settings, keys)
    )
    roots = [version.raw for _number, version in sorted(operator.ring.versions.items())]
    with database.only_one("found"), database.session_scope() as session:
        members.found(hub, session, roots)
    with database.session_scope(write=False) as session, ledger.evidence(session):
        pass  # the whole log is read now, so that no request waits for it
    return hub


def store_of(settings: Settings, keys: HubKeys, *, make: bool = False) -> BlobStore:
    """The object store that the settings name.

    Args:
        make: whether a missing one is made: only for a hub that has nothing in it yet.
    """
    access = settings.store_access_key
    return open_store(
        settings.store,
        settings.store_public,
        access=None if access is None else access.get_secret_value(),
        secret=store_secret_of(settings, keys),
        make=make,
    )


def store_secret_of(settings: Settings, keys: HubKeys) -> str:
    """What signs orders and addresses: the setting, or for a folder without one the hub's own secret.

    The folder's server is told the same by ``hub.serve``.
    """
    secret = settings.store_secret_key
    return keys.blob_secret if secret is None else secret.get_secret_value()


def near_store_of(settings: Settings, keys: HubKeys) -> BlobStore:
    """The same store, signing for the address at which this machine reaches it."""
    return store_of(settings.model_copy(update={"store_public_url": None}), keys)


def inner_store_of(settings: Settings, keys: HubKeys) -> BlobStore | None:
    """An S3 store as the hub itself reaches it, where clients are given another address."""
    if settings.store_public_url is None or folder_of(settings.store) is not None:
        return None
    return near_store_of(settings, keys)


def fleet_authority(settings: Settings) -> str:
    """PEM of the authority that labs trust for the Fleet port; empty when there is no SuperLink."""
    if settings.superlink == "off":
        return ""
    if settings.superlink == "external" and settings.fleet_ca is not None:
        return _read_text(settings.fleet_ca, "FEDHUB_FLEET_CA")
    from federation.flower.tls import make_fleet_tls

    host = settings.fleet.rpartition(":")[0].strip("[]")
    return make_fleet_tls(settings.superlink_dir / "tls", (host,)).ca.read_text()


def operator_home(settings: Settings, keys: HubKeys, fleet_ca: str) -> Home:
    """The operator's home; made with fresh keys when the folder is not there."""
    folder = settings.operator_folder
    if (folder / "home.json").exists():
        home = Home.open(folder)
        if (home.institution, home.hub) != (settings.operator, settings.origin):
            raise Unchecked(
                "E_SETTING",
                f"FEDHUB_OPERATOR_HOME: {folder} is the home of {home.institution} at {home.hub},"
                f" not of {settings.operator} at {settings.origin}",
            )
        return home.moved(endpoint=settings.public, fleet=settings.fleet)
    place = Place(
        hub=settings.origin,
        endpoint=settings.public,
        fleet=settings.fleet,
        fleet_ca=fleet_ca,
        operator=settings.operator,
        operator_pin="",
        log_key=keys.log.vkey,
    )
    return Home.create(folder, settings.operator, "operator", place)


def _read_text(path: Path, setting: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unchecked("E_SETTING", f"{setting}: cannot read {path}: {error}") from error


# --- the applications -----------------------------------------------------------------------------------


def create_app(settings: Settings, *, hub: Hub | None = None) -> FastAPI:
    """API, public log, health and pages of one hub.

    Args:
        hub: an open one; by default it is opened from the settings.
    """
    here = hub or open_hub(settings)
    app = FastAPI(
        title="fedhub",
        version=__version__,
        summary="A hub for an alliance: members, signed statements, models, data sets, plans and runs.",
        lifespan=_lifespan,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.hub = here
    app.state.lanes = Lanes(here.database, settings.database_pool)
    app.state.failed_logins = Rate(settings.logins_per_minute)
    app.state.meters = Meters()
    add_problems(app)
    app.router.routes.extend(quick_routes())
    app.include_router(log.router)
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(router, prefix="/api/v1")
    if find_spec(PAGES) is not None:
        from hub.web import pages

        app.include_router(pages.router)
        app.state.error_page = pages.error_page
    for router in (*HUGGINGFACE, *REGISTRIES):
        app.include_router(router)
    app.add_middleware(QuickPaths, hub=here, lanes=app.state.lanes)
    app.add_middleware(Doorkeeper, settings=settings, observe=app.state.meters.observe)
    _describe(app)
    return app


def create_download_app(settings: Settings, *, hub: Hub | None = None) -> FastAPI:
    """The download origin of the same hub: capabilities in, signed addresses of the store out."""
    here = hub or open_hub(settings)
    app = FastAPI(
        title="fedhub downloads", version=__version__, openapi_url=None, docs_url=None, redoc_url=None
    )
    app.state.hub = here
    app.state.lanes = Lanes(here.database, settings.database_pool)
    app.state.meters = Meters()
    add_problems(app)
    app.include_router(pulls.download_router)
    app.include_router(files.download_router)
    app.add_middleware(Doorkeeper, settings=settings, observe=app.state.meters.observe)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    hub: Hub = app.state.hub
    publisher = Publisher(
        hub.ledger, batch_s=hub.settings.publish_batch_s, poll_s=hub.settings.publish_poll_s
    )
    publisher.start()
    try:
        yield
    finally:
        publisher.stop()


def _describe(app: FastAPI) -> None:
    """OpenAPI with the problem document and the two ways to log in."""
    make = app.openapi

    def described() -> dict[str, object]:
        document = make()
        parts: dict[str, dict[str, object]] = document.setdefault("components", {})
        parts.setdefault("schemas", {})["Problem"] = _schema_of_problem()
        parts["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An access token (POST /api/v1/token) or a personal token (fhp_…).",
            }
        }
        document["security"] = [{"bearer": []}, {}]
        return document

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _schema_of_problem() -> Mapping[str, object]:
    return Problem.model_json_schema(ref_template="#/components/schemas/{model}")
