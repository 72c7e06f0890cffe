"""Whether the hub lives, whether it can serve, and its figures for Prometheus.

``Meters`` counts requests of this process; everything else is asked of the database when somebody looks.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, func, select

from hub import __version__
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.tables import InstitutionRow, LogHeadRow, LogSequenceRow, RunRow, SiteRow
from storage.errors import FedhubError

router = APIRouter(tags=["health"])
disable_created_metrics()
BEHIND_S = 60  # a log that lags this long behind its rows is not healthy
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """The figures of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ["method", "route", "status"]
        self._requests = Counter("fedhub_requests", "Requests answered", names, registry=self.registry)
        self._seconds = Histogram(
            "fedhub_request_seconds", "Time to answer", ["route"], registry=self.registry
        )
        self._entries = Gauge("fedhub_log_entries", "Statements sequenced", registry=self.registry)
        self._published = Gauge(
            "fedhub_log_published", "Statements under the signed head", registry=self.registry
        )
        self._members = Gauge("fedhub_institutions", "Institutions", ["state"], registry=self.registry)
        self._runs = Gauge("fedhub_runs", "Runs", ["state"], registry=self.registry)
        self._sites = Gauge("fedhub_sites_online", "Sites whose agent is connected", registry=self.registry)
        about = Gauge("fedhub_build", "Version of this hub", ["version"], registry=self.registry)
        about.labels(__version__).set(1)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request, by its route's template."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def read_rows(self, session: Session) -> None:
        """Take the figures that rows hold."""
        self._entries.set(session.exec(select(LogSequenceRow.next_index)).one())
        self._published.set(session.exec(select(LogHeadRow.size)).one())
        self._sites.set(
            session.exec(select(func.count()).select_from(SiteRow).where(col(SiteRow.online))).one()
        )
        self._members.clear()
        self._runs.clear()
        for state, count in session.exec(
            select(InstitutionRow.state, func.count()).group_by(InstitutionRow.state)
        ):
            self._members.labels(state).set(count)
        for state, count in session.exec(select(RunRow.state, func.count()).group_by(RunRow.state)):
            self._runs.labels(state).set(count)


@router.get("/healthz")
def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", responses={503: {"description": "A part that the hub needs does not answer"}})
def ready(hub: HubHere) -> JSONResponse:
    """Database, store and log answer; each with `ok` or what is wrong."""
    checks = {"database": _database(hub), "store": _store(hub), "log": _log(hub)}
    good = all(said == "ok" for said in checks.values())
    return JSONResponse({"status": "ok" if good else "not ready", "checks": checks}, 200 if good else 503)


@router.get("/metrics", response_class=Response)
def metrics(request: Request, session: ReadSession) -> Response:
    """Figures in Prometheus' text form."""
    meters: Meters = request.app.state.meters
    meters.read_rows(session)
    return Response(generate_latest(meters.registry), media_type=TEXT)


def _database(hub: Hub) -> str:
    try:
        with hub.database.session_scope(write=False) as session:
            session.exec(select(LogSequenceRow.next_index)).one()
    except SQLAlchemyError as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def _store(hub: Hub) -> str:
    try:
        hub.store.size("log/checkpoint")
    except (FedhubError, OSError) as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def _log(hub: Hub) -> str:
    try:
        with hub.database.session_scope(write=False) as session:
            waiting_s = hub.ledger.waiting_s(session)
    except SQLAlchemyError:
        return "not known"
    return "ok" if waiting_s < BEHIND_S else f"oldest statement waits {waiting_s} s to be published"
