"""``fedhub run``: the one execution of a plan, from its start to a signed version."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, Terminal, short, table, terminal_of
from storage.errors import Exit, Unchecked

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Runs of training plans.")

_POLL_S = 0.4
_LOOK_S = 5.0
_OVER = ("finished", "stopped", "cancelled")
_FAULTS = 20  # newest that are shown; --json has them all


@app.command("start", cls=Command)
def start(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the run is over.")] = False,
) -> Exit:
    """Start the run of a plan whose participants have consented."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = resolve_plan(client, plan)
        run = client.start_run(found.id)
        if wait:
            terminal.say(f"The run of plan {short(found.id)} is {run.state}.")
            return _watch(terminal, client, found.id, until_s=None)
    return terminal.done(
        run.model_dump(),
        f"The run of plan {short(found.id)} is {run.state}: {run.rounds_planned} rounds.",
        f"Next: fedhub run watch {short(found.id)}",
    )


@app.command("watch", cls=Command)
def watch(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.", min=0)] = None,
) -> Exit:
    """Follow a run: one line per event, with --json one document per line, until it is over."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        return _watch(terminal, client, resolve_plan(client, plan).id, until_s=timeout)


@app.command("list", cls=Command)
def list_runs(ctx: typer.Context) -> Exit:
    """List the runs this home takes part in."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = client.runs()
    rows = [
        (
            short(each.plan),
            each.state,
            f"{each.rounds_closed} of {each.rounds_planned}",
            each.started_at,
            each.reason,
        )
        for each in found
    ]
    return terminal.done(
        {"runs": [each.model_dump() for each in found]},
        *table(
            ("plan", "state", "rounds", "started", "reason"), [[cell or "" for cell in row] for row in rows]
        ),
    )


@app.command("show", cls=Command)
def show(ctx: typer.Context, plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Exit:
    """Show a run: its rounds, their metrics, and who refused."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        run = client.whole_run(resolve_plan(client, plan).id)
    return terminal.done(run.model_dump(), *_run_lines(run))


@app.command("cancel", cls=Command)
def cancel(ctx: typer.Context, plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Exit:
    """End a run; its last aggregate is kept."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        run = client.cancel_run(resolve_plan(client, plan).id)
    return terminal.done(
        run.model_dump(),
        f"The run of plan {short(run.plan)} is {run.state} after {run.rounds_closed} rounds.",
    )


@app.command("resume", cls=Command)
def resume(ctx: typer.Context, plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Exit:
    """Go on with a stopped run from its last aggregate; no round counts twice."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        run = client.resume_run(resolve_plan(client, plan).id)
    return terminal.done(
        run.model_dump(),
        f"The run of plan {short(run.plan)} goes on after round {run.rounds_closed}, attempt {run.attempt}.",
        f"Next: fedhub run watch {short(run.plan)}",
    )


@app.command("finish", cls=Command)
def finish(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    name: Annotated[str | None, typer.Option(help="The new version's model (default: the base's).")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A name for the version; may be repeated.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="SPDX identifier (default: the base's).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Leave the version's files in this new folder.")] = None,
) -> Exit:
    """Owner: make the last aggregate a signed version, after checking the rounds by your own pins."""
    from federation.finishing import finish_run

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    if out is not None and out.exists():
        raise Unchecked("E_TARGET", f"{out} is there already", "choose another folder")
    with home.client() as client:
        version, chain = finish_run(
            home, client, plan, name=name, license_id=license_id, tags=tag or [], keep=out
        )
    return terminal.done(
        {**version.model_dump(), "rounds": len(chain.rounds), "receipts": len(chain.receipts)},
        f"Checked {len(chain.rounds)} round statements and {len(chain.receipts)} receipts: the chain holds.",
        f"{version.name}@{version.version} is signed with its provenance; asset id {version.asset_id}",
        f"Next: participants run: fedhub evaluate {version.name}@{version.version}",
    )


@app.command("report", cls=Command)
def report(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    check: Annotated[
        Path | None, typer.Option(help="Check this saved report (--json) against the receipts instead.")
    ] = None,
) -> Exit:
    """What the run brought each site: its own model beside the shared one, checked by your own pins.

    Every row is made again from the figures that the site's signed receipt names. No gain and no loss is
    claimed while the 95 % intervals overlap.
    """
    from federation.benefit import check_report, read_saved
    from federation.deciding import read_checked_plan

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        found, _shown = read_checked_plan(home, client, plan)
        told = client.report(found.id) if check is None else read_saved(check)
        checked = check_report(home, client, found, told)
    return terminal.done({**told.model_dump(), "checked": checked}, *report_lines(told, checked))


def report_lines(report: "wire.BenefitReport", checked: Mapping[str, str]) -> list[str]:
    """The report as a table; shares with the 95 % interval around each."""
    rows = [
        (
            each.institution,
            each.rows or "–",
            _share(each.local),
            _share(each.federated),
            _share(each.majority),
            each.verdict,
            f"{short(each.receipt)} {checked.get(each.dataset, '')}" if each.receipt else "–",
        )
        for each in report.sites
    ]
    return [
        f"What the run of plan {short(report.plan)} brought each site, on its own held-out rows "
        f"(nothing is told about fewer than {report.smallest_cohort}):",
        *table(("site", "rows", "own model", "shared model", "commonest label", "verdict", "receipt"), rows),
        "Gain or loss: the intervals of the shared model and of the better of the other two do not overlap.",
    ]


def _share(found: "wire.Measured | None") -> str:
    return "–" if found is None else f"{found.share:.3f} ({found.low:.3f}-{found.high:.3f})"


def _watch(terminal: Terminal, client: "HubClient", plan: str, until_s: float | None) -> Exit:
    after, started = 0, time.monotonic()
    run, looked = client.run(plan, newest=0), started
    while True:
        events = client.events(plan, after=after)
        for event in events:
            after = event.id
            if terminal.json:
                terminal.write_json(event.model_dump())
            else:
                terminal.say(f"{event.at}  {event.kind:<15} {_told(event.data)}".rstrip())
        if events or time.monotonic() - looked > _LOOK_S:  # what happened may have ended the run
            run, looked = client.run(plan, newest=0), time.monotonic()
        if run.state in _OVER:
            break
        if until_s is not None and time.monotonic() - started > until_s:
            message = f"the run is {run.state} after {until_s:g} s"
            raise Unchecked("E_TIMEOUT", message, "watch it again, or: fedhub run show")
        if terminal.stop.wait(_POLL_S):
            return Exit.DONE
    run = client.whole_run(plan)
    terminal.done({"run": run.model_dump()}, *_run_lines(run))
    return Exit.DONE if run.state == "finished" else Exit.REFUSED


def _run_lines(run: "wire.Run") -> list[str]:
    lines = [
        f"Run of plan {short(run.plan)}: {run.state}, {run.rounds_closed} of {run.rounds_planned} rounds"
    ]
    if run.error is not None:
        lines += fault_lines(run.error)
    if run.reason:
        lines.append(f"  {run.reason}")
    rows = [
        (each.round, f"{each.seconds:.2f}", len(each.receipts), short(each.aggregate), _told(each.metrics))
        for each in run.rounds
    ]
    if rows:
        lines += table(("round", "seconds", "sites", "aggregate", "metrics"), rows)
    for each in run.faults[:_FAULTS]:
        where = f"{each.site}, round {each.round}" if each.round else each.site or ""
        lines += [f"{where}:", *fault_lines(each)]
    if run.state == "finished":
        asked = f"fedhub run report {short(run.plan)}, where the plan asks for one"
        lines.append(f"Next: {asked}; then fedhub run finish {short(run.plan)}")
    return lines


def fault_lines(each: "wire.Fault") -> list[str]:
    """What is wrong, whose move it is, and what that is."""
    said = f"  {each.code}: {each.cause}"
    return [f"{said} ({each.message})" if each.message else said, f"  next step ({each.owner}): {each.step}"]


def _told(data: dict[str, Any]) -> str:
    cells = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in data.items()
    )
    return " ".join(cells)
