"""``fedhub plan``: what a run will do, drafted, signed and consented to before it starts."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hub.commands import plan_options as options
from hub.commands.apps import bundle_bytes
from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.errors import Exit, Unchecked

if TYPE_CHECKING:
    from federation.plan import Config

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Training plans: drafted, signed, consented to."
)


KEPT_UPDATES = "  each site's updates are kept: the plan's owner, auditors and the operator can read them"


@app.command("new", cls=Command)
def new(
    ctx: typer.Context,
    folder: options.Folder,
    model: options.Model,
    participant: options.Participant,
    rounds: options.Rounds,
    min_participants: options.MinParticipants = None,
    approvals: options.Approvals = None,
    setting: options.Setting = None,
    strategy: options.Strategy = "FedAvg",
    strategy_parameter: options.StrategyParameter = None,
    weighting: options.Weighting = None,
    max_examples: options.MaxExamples = 1_000_000,
    compression: options.Compression = "none",
    keep_updates: options.KeepUpdates = False,
    bad_update: options.BadUpdate = "leave-out",
    seed: options.Seed = 1,
    quorum: options.Quorum = None,
    deadline: options.Deadline = 600,
    days: options.Days = 30,
    epsilon: options.Epsilon = None,
    delta: options.Delta = None,
    harmonise: options.Harmonise = False,
    harmonise_column: options.HarmoniseColumn = None,
    count_labels: options.CountLabels = False,
    report: options.Report = True,
    smallest_cohort: options.SmallestCohort = None,
    app_: options.App = None,
) -> Exit:
    """Draft a plan in a folder: plan.json, recipe.json or app.fab, config.json. Nothing is signed yet."""
    from federation.planning import Terms, draft_plan

    terminal = terminal_of(ctx)
    if (epsilon is None) != (delta is None):
        raise Unchecked("E_USAGE", "--epsilon and --delta belong together", "give both or neither")
    home = home_of(terminal)
    with home.client() as client:
        bundle = None if app_ is None else bundle_bytes(client, app_)
    terms = Terms(
        participants=participant,
        rounds=rounds,
        min_participants=min_participants,
        approvals=approvals,
        days=days,
        parameters=settings_of(setting),
        strategy=strategy,
        strategy_parameters=settings_of(strategy_parameter),
        weighting=weighting,
        max_examples=max_examples,
        compression=compression,
        keep_updates=keep_updates,
        bad_update=bad_update,
        seed=seed,
        quorum=quorum,
        round_deadline_s=deadline,
        epsilon=epsilon,
        delta=delta,
        harmonise=harmonise_column or harmonise,
        count_labels=count_labels,
        report=report and bundle is None,
        smallest_cohort=smallest_cohort,
        app=bundle,
    )
    with home.client() as client:
        draft = draft_plan(client, folder, model, terms)
    return terminal.done(
        {"folder": str(folder), "base": draft.base_name, **draft.members},
        f"Drafted in {folder}: {rounds} rounds from {draft.base_name} over {len(participant)} sites.",
        f"Read its three files, then: fedhub plan check {folder} && fedhub plan submit {folder}",
    )


@app.command("check", cls=Command)
def check(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="FOLDER|PLAN", help="A draft's folder, or a plan's id.")],
) -> Exit:
    """Check a draft or a submitted plan: signature by your own pins, files, code as installed here."""
    from federation.app_bundle import check_named, read_bundle
    from federation.app_terms import APP_FILE
    from federation.deciding import read_checked_plan
    from federation.plan import check_recipe
    from federation.planning import check_draft, fetch_app, read_draft

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    same = "the recipe installed here is byte for byte the code that the plan names"
    if Path(plan).is_dir():
        found = check_draft(home, read_draft(Path(plan)))
        said = "draft, not signed"
    else:
        with home.client() as client:
            found, _shown = read_checked_plan(home, client, plan)
            if found.config.app is not None:
                check_named(read_bundle(fetch_app(client, found.code)), found.config.app)
        said = f"signed by {found.issuer}, as pinned here"
    config = found.config
    if config.app is None:
        check_recipe(config, found.code)
    else:
        which = Path(plan) / APP_FILE if Path(plan).is_dir() else plan
        same = f"the owner's own app {found.code}, {config.app.size:,} bytes: fedhub app show {which}"
    return terminal.done(
        {
            "plan": None if Path(plan).is_dir() else found.id,
            "issuer": found.issuer,
            "rounds": found.rounds,
            "minParticipants": found.min_participants,
            "approvals": found.approvals,
            "code": found.code,
            "config": config.digest,
            "participants": [{"institution": s.institution, "dataset": s.dataset} for s in found.sites],
        },
        f"Plan ({said}): {found.rounds} rounds of {config.strategy}, {config.recipe} {short(found.code)}",
        f"  {same}",
        f"  participants {', '.join(site.institution for site in found.sites)}; each round needs "
        f"{found.min_participants}; a release needs {found.approvals} approvals",
        f"  parameters {json.dumps(dict(config.parameters), sort_keys=True)}",
        f"  strategy parameters {json.dumps(dict(config.strategy_parameters), sort_keys=True)}, weighting "
        f"{config.weighting}, compression {config.compression}, a bad update: {config.bad_update}",
        *([KEPT_UPDATES] if config.keep_updates else []),
        *asked_of_sites(config),
    )


@app.command("submit", cls=Command)
def submit(ctx: typer.Context, folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)]) -> Exit:
    """Sign a draft and submit it; the labs it names can consent from now on."""
    from federation.planning import read_draft, submit_draft

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        plan = submit_draft(home, client, read_draft(folder))
    waiting = ", ".join(each.institution for each in plan.participants)
    return terminal.done(
        plan.model_dump(exclude={"bundle", "recipe", "config"}),
        f"Plan {plan.id} is signed and logged; it never changes from now on.",
        f"Next: {waiting} consent with: fedhub site approve {short(plan.id)}",
    )


@app.command("list", cls=Command)
def list_plans(ctx: typer.Context) -> Exit:
    """List the plans this home takes part in."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = client.plans()
    rows = [
        (
            short(each.id),
            each.issuer,
            each.rounds,
            f"{sum(1 for site in each.participants if site.consent)} of {len(each.participants)}",
            each.run or "not started",
            each.expires,
        )
        for each in found
    ]
    return terminal.done(
        {"plans": [each.model_dump(exclude={"bundle", "recipe", "config"}) for each in found]},
        *table(("plan", "owner", "rounds", "consents", "run", "expires"), rows),
    )


@app.command("show", cls=Command)
def show(ctx: typer.Context, plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Exit:
    """Show a plan: its terms, its files, who has consented."""
    from federation.deciding import resolve_plan

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = resolve_plan(client, plan)
    rows = []
    for site in found.participants:
        answer = f"declined: {site.declined}" if site.declined else "waiting"
        rows.append(
            (
                site.institution,
                short(site.dataset),
                f"consent {short(site.consent)}" if site.consent else answer,
                "online" if site.site_online else "offline",
            )
        )
    config = json.loads(base64.b64decode(found.config))
    return terminal.done(
        {**found.model_dump(exclude={"bundle", "recipe", "config"}), "config": config},
        f"plan {found.id} of {found.issuer}, run {found.run or 'not started'}",
        f"  base {found.base_asset}, {found.rounds} rounds, each needs {found.min_participants}, "
        f"release needs {found.approvals}, expires {found.expires}",
        *told_of_app(config.get("app"), plan),
        *table(("institution", "dataset", "answer", "site"), rows),
    )


def asked_of_sites(config: "Config") -> list[str]:
    """What a plan has its sites tell besides updates, for stewards to read before they consent."""
    lines = []
    floor = f"nothing is told about fewer than {config.smallest_cohort} rows"
    if config.harmonise is not None:
        what = f"count, sum and spread of {len(config.harmonise.columns)} columns"
        labels = " and rows by class" if config.harmonise.labels else ""
        lines.append(f"  joint scaling: before round 1 each site tells {what}{labels}; {floor}")
    if config.report:
        lines.append(
            "  benefit report: at the end each site trains a model of its own beside the shared one and "
            f"tells how often each is right on held-out rows; {floor}"
        )
    return lines


def told_of_app(app: dict[str, Any] | None, plan: str) -> list[str]:
    """What a steward is told of a plan whose code no fedhub ships."""
    if app is None:
        return []
    return [
        f"  code: an app of the plan's owner, sha256 {app['sha256']}, {app['size']:,} bytes",
        f"  read it before you consent: fedhub app show {plan} --out DIR",
    ]


def settings_of(texts: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` texts as members; what type a value is, its rule decides."""
    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Unchecked("E_USAGE", f"{text!r} is not NAME=VALUE", "for example --set epochs=2")
        found[name] = value
    return found
