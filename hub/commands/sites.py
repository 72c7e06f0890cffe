"""``fedhub site``: the lab agent on this machine, what it did, and what its steward consents to."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub.commands.homes import home_of
from hub.commands.plans import KEPT_UPDATES, asked_of_sites, told_of_app
from hub.commands.site_check import check
from hub.terminal import Command, Terminal, short, table, terminal_of
from storage.causes import cause_of
from storage.errors import Exit, FedhubError

if TYPE_CHECKING:
    from federation.home import Home
    from federation.plan import Config

ONLINE_POLL_S = 0.5
_REFUSALS = 5  # newest that the status shows

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The lab agent, its ledger, and the steward's consents."
)


app.command("check", cls=Command)(check)


@app.command("init", cls=Command)
def init(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="The site's name within your institution.")] = "main",
) -> Exit:
    """Register this site's node key at the hub, so that its agent may connect."""
    from federation.joining import register_site

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    site = register_site(home, name)
    return terminal.done(
        site.model_dump(),
        f"Site {site.name} of {site.institution} is registered with the node key {short(site.key_hint)}.",
        "Next: fedhub data describe FOLDER NAME, then: fedhub site up",
    )


@app.command("up", cls=Command)
def up(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="The site's name within your institution.")] = "main",
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> Exit:
    """Run the lab agent until Ctrl-C: outbound connections only, no port is opened.

    It does what this home's own consents allow, refuses everything else with a signed refusal, and keeps both
    in the site's ledger. It is started again when it ends, and signs the status list every 12 hours.
    """
    from federation.lifeline import die_with
    from federation.supervisor import run_site

    terminal = terminal_of(ctx)
    if parent is not None:
        die_with(parent, signal.SIGTERM)
    home = home_of(terminal)
    watch = threading.Thread(target=_tell_online, args=(terminal, home, name), daemon=True)
    watch.start()

    def say(line: str) -> None:
        print(line, file=terminal.err, flush=True)

    run_site(home, name=name, say=say, stop=terminal.stop)
    return terminal.done({"stopped": True}, "The agent has stopped; its ledger keeps what was done.")


@app.command("status", cls=Command)
def status(ctx: typer.Context) -> Exit:
    """Show this institution's sites as the hub sees them, its datasets, and what plans took from them."""
    from federation.ledger import SiteLedger
    from federation.site_log import SiteLog
    from storage.encoding import format_time

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        sites = [each for each in client.sites() if each.institution == home.institution]
    datasets = home.datasets()
    with SiteLedger(home.site / "ledger.db") as ledger:
        spent = ledger.spent()
        refusals = ledger.refusals()
    trouble = SiteLog(home).newest()
    lines = [
        f"site {each.name}: {'online' if each.online else 'OFFLINE'}, seen {each.last_seen or 'never'}"
        for each in sites
    ]
    lines += [f"dataset {each.name} ({short(each.asset_id)}) in {each.folder}" for each in datasets]
    rows = [
        (
            short(each.plan),
            short(each.dataset),
            each.rounds,
            each.evaluations,
            each.examples,
            each.epsilon or "no guarantee",
        )
        for each in spent
    ]
    lines += table(("plan", "dataset", "rounds", "evaluations", "rows used", "epsilon"), rows)
    lines.append(f"{len(refusals)} orders refused; see: fedhub site ledger")
    for each in refusals[-_REFUSALS:]:
        lines += [f"round {each.round} of plan {short(each.plan)}:", *cause_lines(each.code, each.message)]
    if trouble is not None:
        lines += [f"in the way since {format_time(trouble.at)}:", *cause_lines(trouble.code, trouble.message)]
    return terminal.done(
        {
            "sites": [each.model_dump() for each in sites],
            "datasets": [
                {"name": each.name, "asset_id": each.asset_id, "folder": str(each.folder)}
                for each in datasets
            ],
            "spent": [vars(each) for each in spent],
            "refused": len(refusals),
            "refusals": [
                {"plan": each.plan, "round": each.round, **caused(each.code, each.message)}
                for each in refusals[-_REFUSALS:]
            ],
            "trouble": None if trouble is None else caused(trouble.code, trouble.message),
        },
        *(lines if sites else ["No site is registered: fedhub site init", *lines]),
    )


@app.command("policy", cls=Command)
def policy(
    ctx: typer.Context,
    smallest_cohort: Annotated[
        int | None,
        typer.Option(help="Tell nothing about fewer rows, whatever a plan says.", min=1, max=1_000_000),
    ] = None,
) -> Exit:
    """Show, or set, what this site insists on beyond what plans say."""
    from federation.site_policy import SitePolicy, read_policy, write_policy

    home = home_of(terminal := terminal_of(ctx))
    if smallest_cohort is not None:
        write_policy(home, SitePolicy(smallest_cohort))
    found = read_policy(home)
    return terminal.done(
        {"smallestCohort": found.smallest_cohort},
        f"Smallest cohort of this site: {found.smallest_cohort} rows; the larger of this and a plan's holds.",
    )


@app.command("base", cls=Command)
def base(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A base model: config.json, tokenizer, safetensors.", exists=True, file_okay=False
        ),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Name this folder no more.")] = False,
) -> Exit:
    """Name a folder with a frozen base model, pulled or installed, for plans that put adapters on it.

    Naming it permits nothing: a plan pins its base by the digest of every file, and only a consent lets it
    train. Without FOLDER, list the folders named.
    """
    from federation.site_bases import add_base, base_folders, forget_base

    home = home_of(terminal := terminal_of(ctx))
    if folder is None:
        named = [str(each) for each in base_folders(home)]
        return terminal.done(
            {"bases": named}, *(named or ["No base model is named: fedhub site base FOLDER"])
        )
    if forget:
        known = forget_base(home, folder)
        said = "is named no more" if known else "was not named"
        return terminal.done({"folder": str(folder), "forgotten": known}, f"{folder} {said}.")
    files = add_base(home, folder)
    rows = [(name, files[name]) for name in sorted(files)]
    return terminal.done(
        {"folder": str(folder.resolve()), "files": files},
        f"Plans that pin these files may find them in {folder.resolve()}:",
        *table(("file", "sha256"), rows),
    )


@app.command("ledger", cls=Command)
def ledger_(
    ctx: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only this plan.")] = None,
) -> Exit:
    """List what this site was told to do, what it did, and what it refused; kept here, at the site."""
    from federation.ledger import SiteLedger
    from storage.encoding import format_time

    terminal = terminal_of(ctx)
    with SiteLedger(home_of(terminal).site / "ledger.db") as ledger:
        orders = [each for each in ledger.orders() if each.plan.startswith(plan or "")]
        answers = {each.order_id: each for each in ledger.answers()}
        refusals = {each.order_id: each for each in ledger.refusals()}
    entries = []
    for order in orders:
        answer, refusal = answers.get(order.id), refusals.get(order.id)
        entries.append(
            {
                "at": format_time(order.received_at),
                "order": order.id,
                "plan": order.plan,
                "action": order.action,
                "round": order.round,
                "examples": answer.examples if answer else None,
                "receipt": answer.receipt_id if answer else None,
                "refused": refusal.code if refusal else None,
                "why": refusal.message if refusal else None,
                "error": caused(refusal.code, refusal.message) if refusal else None,
            }
        )
    rows = [
        (
            each["at"],
            short(str(each["plan"])),
            each["action"],
            each["round"],
            f"REFUSED {each['refused']}" if each["refused"] else _did(each),
        )
        for each in entries
    ]
    return terminal.done(
        {"entries": entries}, *table(("received", "plan", "action", "round", "what was done"), rows)
    )


@app.command("approve", cls=Command)
def approve(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    max_rounds: Annotated[int | None, typer.Option(help="Consent to fewer rounds.", min=1)] = None,
    min_participants: Annotated[int | None, typer.Option(help="Ask for more participants.", min=1)] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="A lower ceiling of privacy loss, with --delta.")
    ] = None,
    delta: Annotated[str | None, typer.Option()] = None,
    decline: Annotated[str | None, typer.Option(help="Decline instead, with this reason.")] = None,
) -> Exit:
    """Steward: consent to exactly this plan, after checking it by your own pins; or decline it.

    The consent is signed with the targets key, logged, and kept here: the agent trains on nothing else.
    """
    from federation.deciding import consent, read_checked_plan

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        found, _shown = read_checked_plan(home, client, plan)
        if decline is not None:
            client.decline(found.id, decline)
            return terminal.done(
                {"plan": found.id, "declined": decline},
                f"Declined plan {short(found.id)}; {found.issuer} sees the reason.",
            )
        record = consent(
            home,
            client,
            found,
            max_rounds=max_rounds,
            min_participants=min_participants,
            epsilon=epsilon,
            delta=delta,
        )
    return terminal.done(
        {"plan": found.id, "consent": record.id, "index": record.index},
        f"{home.institution} consents to plan {short(found.id)} of {found.issuer}: {found.rounds} rounds, "
        f"code {short(found.code)}.",
        *told_of_app(_app_of(found.config), short(found.id))[:1],
        *([KEPT_UPDATES] if found.config.keep_updates else []),
        *asked_of_sites(found.config),
        f"Signed, logged at {record.index}, kept in {home.path}/statements. "
        f"To end it: fedhub grant revoke {short(record.id)}",
    )


def _app_of(config: "Config") -> dict[str, object] | None:
    return None if config.app is None else vars(config.app)


def caused(code: str, message: str) -> dict[str, str]:
    """A code with its words, for a program."""
    found = cause_of(code)
    return {
        "code": code,
        "message": message,
        "cause": found.cause,
        "owner": found.owner,
        "step": found.step,
    }


def cause_lines(code: str, message: str) -> list[str]:
    """The same, for a person."""
    found = cause_of(code)
    return [f"  {code}: {found.cause} ({message})", f"  next step ({found.owner}): {found.step}"]


def _tell_online(terminal: Terminal, home: "Home", name: str) -> None:
    """Say once that the hub sees this site online."""
    while not terminal.stop.wait(ONLINE_POLL_S):
        try:
            with home.client("snapshot") as client:
                sites = client.sites()
        except FedhubError:
            continue  # the supervisor says what is wrong
        if any(each.online for each in sites if (each.institution, each.name) == (home.institution, name)):
            break
    if terminal.json:
        terminal.write_json({"institution": home.institution, "site": name, "online": True})
    terminal.say(f"Site {name} of {home.institution} is online at {home.fleet}. Ctrl-C stops it.")


def _did(entry: dict[str, object]) -> str:
    if entry["receipt"] is None:
        return "nothing yet"
    return f"{entry['examples']} rows, receipt {short(str(entry['receipt']))}"
