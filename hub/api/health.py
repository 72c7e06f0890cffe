"""Whether the hub lives, whether it can serve, and its figures for Prometheus.

``Meters`` counts requests of this process; everything else is asked of the database when somebody looks.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, func, select

from hub import __version__
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.tables import InstitutionRow, LogHeadRow, LogSequenceRow, RunRow, SiteRow
from storage.errors import FedhubError

router = APIRouter(tags=["health"])
BEHIND_S = 60  # a log that lags this long behind its rows is not healthy
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """Counts this process's requests and prints all figures in Prometheus' text form."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, str]] = Counter()  # method, route, status
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request, by its route's template."""
        with self._lock:
            self._requests[method, route, str(status)] += 1
            self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds += seconds

    def text(self, session: Session) -> str:
        """One figure a line."""
        return "".join(f"{line}\n" for line in [*self._rows(session), *self._own()])

    def _own(self) -> Iterator[str]:
        with self._lock:
            requests, buckets, seconds = self._requests.copy(), list(self._buckets), self._seconds
        yield "# TYPE fedhub_requests_total counter"
        for (method, route, status), count in sorted(requests.items()):
            labels = {"method": method, "route": route, "status": status}
            yield f"fedhub_requests_total{_labels(labels)} {count}"
        yield "# TYPE fedhub_request_seconds histogram"
        total = 0
        for edge, count in zip([*map(str, BUCKETS_S), "+Inf"], buckets, strict=True):
            total += count
            yield f'fedhub_request_seconds_bucket{{le="{edge}"}} {total}'
        yield f"fedhub_request_seconds_sum {seconds:.6f}"
        yield f"fedhub_request_seconds_count {total}"

    def _rows(self, session: Session) -> Iterator[str]:
        yield "# TYPE fedhub_build gauge"
        yield f"fedhub_build{_labels({'version': __version__})} 1"
        online = select(func.count()).select_from(SiteRow).where(col(SiteRow.online))
        figures = {
            "fedhub_log_entries": session.exec(select(LogSequenceRow.next_index)).one(),
            "fedhub_log_published": session.exec(select(LogHeadRow.size)).one(),
            "fedhub_sites_online": session.exec(online).one(),
        }
        for name, value in figures.items():
            yield f"# TYPE {name} gauge"
            yield f"{name} {value}"
        members = select(InstitutionRow.state, func.count()).group_by(InstitutionRow.state)
        runs = select(RunRow.state, func.count()).group_by(RunRow.state)
        for name, query in (("fedhub_institutions", members), ("fedhub_runs", runs)):
            yield f"# TYPE {name} gauge"
            for state, count in session.exec(query):
                yield f"{name}{_labels({'state': state})} {count}"


def _labels(labels: Mapping[str, str]) -> str:
    """Labels as Prometheus writes them; a method can be any text that a client sends."""
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


@router.head("/healthz", include_in_schema=False)
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
    return Response(meters.text(session), media_type=TEXT)


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
