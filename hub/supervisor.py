"""Keeps runs going: starts their Flower runs, watches them, and starts the next attempt when one dies.

Everything it knows is in the database, so a hub that was killed goes on where it was. A leased row lets one
process at a time do the work; should a lease be lost unnoticed, the unique row of each attempt still keeps
two processes from starting the same one. Whatever stops a run for good is written into its ``reason``.

A Flower run cannot be started again: each attempt is a new one, and its coordinator goes on after the last
round in the log. SuperLink forgets runs and nodes when it restarts, so every look registers the keys that
it lacks.

Read ``Supervisor.look``.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from hub.background import Background, Housekeeper, Lease, Worker, new_holder
from hub.context import Hub, NodeRegistry
from hub.services import events, plans, rounds, run_ends, run_updates, runs
from hub.services.events import Kind
from hub.tables import ACTIVE_RUNS, AttemptRow, PlanRow, RunRow, SiteRow
from storage.encoding import format_time, parse_time
from storage.errors import FedhubError, Refused, Rejected, Unchecked

MAX_BACKOFF_S = 30.0
SEEN_EVERY_S = 30  # how exactly the last sight of a site is kept
END_GRACE_S = 10  # for a coordinator that has ended its run to leave by itself
_log = logging.getLogger("fedhub.supervisor")


class FlowerRun(Protocol):
    """State of one Flower run."""

    @property
    def state(self) -> str:
        """pending, starting, running or finished."""

    @property
    def outcome(self) -> str:
        """completed, failed, stopped; empty before the end."""

    @property
    def details(self) -> str:
        """Why it ended so."""


@runtime_checkable
class FlowerControl(NodeRegistry, Protocol):
    """What starts and watches Flower runs: ``federation.flower.control.Control``.

    Each method raises ``Unchecked`` while SuperLink is away, ``Refused`` when it says no.
    """

    def start_run(self, config: Mapping[str, str | int]) -> str:
        """Start our coordinator with this configuration; returns the Flower run's id."""

    def status(self, run_id: str) -> FlowerRun | None:
        """How far a Flower run is; None when SuperLink does not know it."""

    def stop(self, run_id: str) -> None:
        """Stop a Flower run; one that is over or unknown stays as it is."""


# --- runs -----------------------------------------------------------------------------------------------


class Supervisor:
    """Looks at all runs again and again, from a thread of its own.

    Args:
        control: SuperLink.
        clock: seconds that only grow, for how long SuperLink or sites have been waited for.
    """

    def __init__(
        self, hub: Hub, control: FlowerControl, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hub, self._control, self._clock = hub, control, clock
        self._lease = Lease(hub, "supervisor", new_holder())
        self._began = hub.ledger.now()  # before it, nobody could have been heard
        self._away_since: float | None = None
        self._waiting: dict[str, float] = {}  # plan -> since when its next attempt waits for sites

    def release(self) -> None:
        """Let another process supervise."""
        self._lease.release()

    def look(self) -> None:
        """One look at everything; whatever needs doing is done or begun."""
        if not self._lease.hold():
            return
        try:
            self._know_nodes()
        except Unchecked as error:
            self._superlink_away(error)
            return
        if self._away_since is not None:
            _log.info("SuperLink answers again")
            self._away_since = None
        for work, found in ((self._watch, self._active()), (self._clear_up, self._ended())):
            for plan_id in found:
                try:
                    work(plan_id)
                except FedhubError as error:  # of this run; the others go on
                    _log.error("run %s: %s", plan_id[:12], error)

    def _active(self) -> list[str]:
        with self._hub.database.session_scope(write=False) as session:
            query = select(RunRow.plan).where(col(RunRow.state).in_(ACTIVE_RUNS))
            return list(session.exec(query.order_by(col(RunRow.started_at))))

    def _ended(self) -> list[str]:
        """Runs that are over while an attempt of theirs is not."""
        with self._hub.database.session_scope(write=False) as session:
            query = select(AttemptRow.plan).join(RunRow, col(RunRow.plan) == AttemptRow.plan).distinct()
            over = col(RunRow.state).not_in(ACTIVE_RUNS)
            return list(session.exec(query.where(over, AttemptRow.state != "ended")))

    # --- nodes ------------------------------------------------------------------------------------------

    def _know_nodes(self) -> None:
        """Register the keys that SuperLink lacks, and keep what it says of the others."""
        nodes = {node.public_key.strip(): node for node in self._control.list_nodes()}
        with self._hub.database.session_scope(write=False) as session:
            sites = session.exec(select(SiteRow)).all()
        now = self._hub.ledger.now()
        for site in sites:
            node = nodes.get(site.public_key.strip())
            if node is None:
                node_id, online = self._register(site), False
            else:
                node_id, online = node.id, node.online
            if node_id is None:
                continue
            stale = online and now - (site.last_seen or 0) >= SEEN_EVERY_S
            if (node_id, online) != (site.node_id, site.online) or stale:
                self._keep_node(site.key_hint, node_id, online, now)

    def _register(self, site: SiteRow) -> str | None:
        try:
            return self._control.register_node(site.public_key, site.institution)
        except Refused as error:
            _log.error(
                "site %s of %s: SuperLink does not take its key: %s", site.name, site.institution, error
            )
            return None

    def _keep_node(self, hint: str, node_id: str, online: bool, now: int) -> None:
        with self._hub.database.session_scope() as session:
            site = session.get(SiteRow, hint)
            if site is not None:
                site.node_id, site.online = node_id, online
                site.last_seen = now if online else site.last_seen
                session.add(site)

    def _superlink_away(self, error: Unchecked) -> None:
        """Tell every run that waits, once; stop them when patience ends."""
        if self._away_since is None:
            self._away_since = self._clock()
            _log.error("SuperLink is away: %s", error)
            for plan_id in self._active():
                self._say(
                    plan_id, Kind.WAITING, {"for": "SuperLink", "reason": error.message[: events.MAX_TEXT]}
                )
        stop_expired(self._hub)
        patience_s = self._hub.settings.superlink_patience_s
        if self._clock() - self._away_since >= patience_s:
            for plan_id in self._active():
                reason = f"{error.code}: SuperLink was away for {patience_s} s: {error.message}"
                self._stop(
                    plan_id, f"{reason}\nThe operator starts it; then: fedhub run resume {plan_id[:12]}"
                )

    # --- one run ----------------------------------------------------------------------------------------

    def _watch(self, plan_id: str) -> None:
        with self._hub.database.session_scope(write=False) as session:
            run = session.get(RunRow, plan_id)
            if run is None or not run.active:
                return
            attempt = session.get(AttemptRow, (plan_id, run.attempt))
            plan = session.get_one(PlanRow, plan_id)
            refusals = run_ends.new_refusals(self._hub, session, plan_id)
            done = run_ends.is_done(self._hub, session, plan_id)
        for refusal in refusals:
            self._say(plan_id, Kind.SITE_REFUSED, refusal)
        if self._hub.ledger.now() >= plan.expires_at:
            expired = format_time(plan.expires_at)
            self._stop(plan_id, f"E_PLAN_EXPIRED: it expired {expired}\nSubmit a new plan.")
        elif attempt is not None and attempt.state == "leaving":
            self._send_off(attempt, "the run was stopped and goes on with another attempt")
        elif attempt is not None and attempt.state != "ended":
            self._check(run, attempt)
        elif done:
            self._close_finished(plan_id)
        else:
            self._go_on(run, attempt)

    def _close_finished(self, plan_id: str) -> None:
        """The coordinator died after the last round and before it could say so."""
        with self._hub.database.session_scope() as session:
            run = session.get(RunRow, plan_id, with_for_update=True)
            if run is not None and run.active:
                runs.close(self._hub, session, run, "finished", None)

    def _go_on(self, run: RunRow, before: AttemptRow | None) -> None:
        """Start the next attempt when its time has come and enough sites are there, or give up."""
        most = self._hub.settings.run_attempts
        if run.failures >= most:
            detail = before.detail if before is not None else None
            self._stop(
                run.plan,
                f"E_ATTEMPTS: {most} attempts in a row closed no round; the last: {detail or 'no details'}"
                f"\nSee to the cause; then: fedhub run resume {run.plan[:12]}",
            )
        elif self._hub.ledger.now() >= run.next_attempt_at and self._sites_ready(run):
            self._waiting.pop(run.plan, None)
            self._start(run)

    def _sites_ready(self, run: RunRow) -> bool:
        """Whether enough sites are connected, or were waited for long enough."""
        with self._hub.database.session_scope(write=False) as session:
            plan = session.get_one(PlanRow, run.plan)
            online = sum(plans.online_sites(session, plan.participants).values())
            with self._hub.ledger.evidence(session) as evidence:
                entry = evidence.get(run.plan)
        needed = entry.says["minParticipants"] if entry is not None else 0
        if online >= min(needed, len(plan.participants)):
            return True
        since = self._waiting.get(run.plan)
        if since is None:
            self._waiting[run.plan] = self._clock()
            self._say(run.plan, Kind.WAITING, {"for": "sites", "online": online, "needed": needed})
            return self._hub.settings.sites_patience_s == 0
        return self._clock() - since >= self._hub.settings.sites_patience_s

    def _start(self, run: RunRow) -> None:
        """Begin the next attempt: first its row, which only one process can make, then the Flower run."""
        number = run.attempt + 1
        try:
            with self._hub.database.session_scope() as session:
                if not self._begin(session, run.plan, number):
                    return
        except IntegrityError:  # another process made this attempt
            return
        except (Refused, Rejected) as error:
            hint = error.hint or f"fedhub run resume {run.plan[:12]}"
            self._stop(run.plan, f"{error.code}: {error.message}\n{hint}")
            return
        config: dict[str, str | int] = {
            "hub": self._hub.settings.internal,
            "plan": run.plan,
            "attempt": number,
            "token-file": str(self._hub.keys.coordinator_file.absolute()),
        }
        try:
            flower_run = self._control.start_run(config)
        except FedhubError as error:
            self._end_attempt(run.plan, number, f"{error.code}: {error.message}")
            return
        with self._hub.database.session_scope() as session:
            attempt = session.get_one(AttemptRow, (run.plan, number), with_for_update=True)
            attempt.flower_run = flower_run
            session.add(attempt)
        _log.info("run %s: attempt %d is Flower run %s", run.plan[:12], number, flower_run)

    def _begin(self, session: Session, plan_id: str, number: int) -> bool:
        run = session.get(RunRow, plan_id, with_for_update=True)
        if run is None or not run.active or run.attempt != number - 1:
            return False
        now = self._hub.ledger.now()
        with self._hub.ledger.evidence(session) as evidence:
            entry = evidence.get(plan_id)
            if entry is not None:
                plans.check_startable(session, entry, evidence, now=now)
        last = rounds.last_round(session, plan_id)
        first_round = 1 if last is None else last.round + 1
        run.attempt = number
        session.add(run)
        session.add(
            AttemptRow(plan=plan_id, number=number, state="starting", first_round=first_round, started_at=now)
        )
        data: dict[str, events.Value] = {"attempt": number, "first_round": first_round}
        events.append(session, plan_id, Kind.ATTEMPT_STARTED, data, at=now)
        return True

    def _check(self, run: RunRow, attempt: AttemptRow) -> None:
        """See whether an attempt still goes on as it should."""
        if attempt.flower_run is None:
            self._end_attempt(run.plan, attempt.number, "the hub died while starting it")
            return
        try:
            found = self._control.status(attempt.flower_run)
        except FedhubError as error:
            _log.warning("run %s: %s", run.plan[:12], error)
            why = self._overdue(run, attempt)  # no answer is no reason to wait for ever
            if why is not None:
                self._stop_flower(attempt.flower_run)
                self._end_attempt(run.plan, attempt.number, why)
            return
        if found is None:
            self._end_attempt(run.plan, attempt.number, "SuperLink has restarted")
        elif found.state == "finished":
            self._finished(run.plan, attempt.number, f"{found.outcome}: {found.details}".strip(": "))
        else:
            why = self._overdue(run, attempt)
            if why is not None:
                self._stop_flower(attempt.flower_run)
                self._end_attempt(run.plan, attempt.number, why)

    def _finished(self, plan_id: str, number: int, details: str) -> None:
        """The Flower run is over; the coordinator may have ended the run a moment ago."""
        with self._hub.database.session_scope(write=False) as session:
            run = session.get(RunRow, plan_id)
        if run is not None and run.active:
            self._end_attempt(plan_id, number, f"the coordinator ended without a result ({details})")

    def _overdue(self, run: RunRow, attempt: AttemptRow) -> str | None:
        """Why an attempt that Flower takes for alive is given up, or None."""
        settings, now = self._hub.settings, self._hub.ledger.now()
        if attempt.heard_at is None:
            if now - max(attempt.started_at, self._began) > settings.attempt_start_s:
                return f"its coordinator asked for no work within {settings.attempt_start_s} s"
            return None
        silent_s = now - max(attempt.heard_at, self._began)
        if attempt.beats and silent_s > settings.coordinator_silence_s:
            return f"its coordinator was silent for {silent_s} s"
        with self._hub.database.session_scope(write=False) as session:
            last = rounds.last_round(session, run.plan)
            number = 1 if last is None else last.round + 1
            deadline = runs.deadline(session, run, number)
        if deadline is not None and now - parse_time(deadline, "E_TIME") > settings.round_grace_s:
            return f"round {number} is {settings.round_grace_s} s past its deadline"
        if deadline is None and not attempt.beats and silent_s > settings.attempt_start_s:
            return f"its coordinator opened no round within {settings.attempt_start_s} s and is silent"
        return None

    # --- ends -------------------------------------------------------------------------------------------

    def _end_attempt(self, plan_id: str, number: int, detail: str) -> None:
        """Note that an attempt is over; while its run goes on, the next begins after a pause."""
        with self._hub.database.session_scope() as session:
            run = session.get(RunRow, plan_id, with_for_update=True)
            attempt = session.get(AttemptRow, (plan_id, number), with_for_update=True)
            if run is None or attempt is None or attempt.state == "ended":
                return
            now = self._hub.ledger.now()
            failed = run.active and run.attempt == number and attempt.state != "leaving"
            attempt.state, attempt.detail, attempt.ended_at = "ended", detail[:500], now
            session.add(attempt)
            if not failed:
                return
            run.failures += 1
            pause_s = min(self._hub.settings.run_backoff_s * 2 ** (run.failures - 1), MAX_BACKOFF_S)
            run.next_attempt_at = now + round(pause_s)
            session.add(run)
            data: dict[str, events.Value] = {"attempt": number, "reason": detail[: events.MAX_TEXT]}
            events.append(session, plan_id, Kind.ATTEMPT_ENDED, data, at=now)
        _log.warning("run %s: attempt %d ended: %s", plan_id[:12], number, detail)

    def _stop(self, plan_id: str, reason: str) -> None:
        with self._hub.database.session_scope() as session:
            run = session.get(RunRow, plan_id, with_for_update=True)
            if run is not None and run.active:
                runs.close(self._hub, session, run, "stopped", reason)
        self._waiting.pop(plan_id, None)

    def _say(self, plan_id: str, kind: Kind, data: Mapping[str, events.Value]) -> None:
        with self._hub.database.session_scope() as session:
            if session.get(RunRow, plan_id, with_for_update=True) is not None:
                events.append(session, plan_id, kind, data, at=self._hub.ledger.now())

    def _clear_up(self, plan_id: str) -> None:
        """End the attempts of a run that is over, and drop the updates that its plan does not keep."""
        self._waiting.pop(plan_id, None)
        with self._hub.database.session_scope(write=False) as session:
            run = session.get_one(RunRow, plan_id)
            live = session.exec(
                select(AttemptRow).where(AttemptRow.plan == plan_id, AttemptRow.state != "ended")
            ).all()
            keep_updates = plans.load(self._hub, session, plan_id)[2].config.keep_updates
        by_itself = run.state in ("finished", "stopped")
        if by_itself and self._hub.ledger.now() - (run.ended_at or 0) < END_GRACE_S and self._goes_on(live):
            return
        for attempt in live:
            self._send_off(attempt, f"the run is {run.state}")
        if not keep_updates:
            run_updates.drop(self._hub, plan_id)

    def _goes_on(self, attempts: Sequence[AttemptRow]) -> bool:
        for attempt in attempts:
            found = None if attempt.flower_run is None else self._control.status(attempt.flower_run)
            if found is not None and found.state != "finished":
                return True
        return False

    def _send_off(self, attempt: AttemptRow, detail: str) -> None:
        if attempt.flower_run is not None:
            self._stop_flower(attempt.flower_run)
        self._end_attempt(attempt.plan, attempt.number, detail)

    def _stop_flower(self, flower_run: str) -> None:
        try:
            self._control.stop(flower_run)
        except FedhubError as error:
            _log.warning("Flower run %s could not be stopped: %s", flower_run, error)


def stop_expired(hub: Hub) -> None:
    """Stop the runs whose plans are over, with a SuperLink or without."""
    with hub.database.session_scope(write=False) as session:
        query = select(RunRow.plan).join(PlanRow).where(col(RunRow.state).in_(ACTIVE_RUNS))
        over = list(session.exec(query.where(col(PlanRow.expires_at) <= hub.ledger.now())))
    for plan_id in over:
        with hub.database.session_scope() as session:
            run = session.get(RunRow, plan_id, with_for_update=True)
            if run is not None and run.active:
                expired = format_time(session.get_one(PlanRow, plan_id).expires_at)
                reason = f"E_PLAN_EXPIRED: it expired {expired}\nSubmit a new plan."
                runs.close(hub, session, run, "stopped", reason)


class Expiry:
    """Ends what a hub without a SuperLink would leave waiting: runs that it had begun when it had one."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lease = Lease(hub, "expiry", new_holder())

    def look(self) -> None:
        """One look."""
        if self._lease.hold():
            stop_expired(self._hub)

    def release(self) -> None:
        """Let another process do it."""
        self._lease.release()


def start_supervisor(hub: Hub) -> Background:
    """The hub's background work; runs are supervised when there is a SuperLink."""
    workers: dict[str, Worker] = {"housekeeper": Housekeeper(hub)}
    if isinstance(hub.nodes, FlowerControl):
        workers["supervisor"] = Supervisor(hub, hub.nodes)
    else:
        workers["expiry"] = Expiry(hub)
    background = Background(workers, hub.settings.supervise_s, hub.bell)
    background.start()
    return background
