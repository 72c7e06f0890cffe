"""``fedhub audit``: evidence to take away, and the log's own words."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.errors import Exit, Rejected, Unchecked

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Evidence packs and the transparency log.")


@app.command("export", cls=Command)
def export(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")],
    out: Annotated[Path, typer.Option(help="A new folder for the pack.")],
    state: Annotated[
        Path | None,
        typer.Option(help="The auditor's state file: the pack then connects to what it saw last."),
    ] = None,
) -> Exit:
    """Write the pack that anyone can verify offline: statements, proofs, key rings, one signed checkpoint.

    Nothing in it is believed for being in it: fedhub verify checks it by the auditor's own trust.json.
    """
    from federation.pulling import beside, fetch_pack, find_version

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    if out.exists():
        raise Unchecked("E_TARGET", f"{out} is there already", "choose another folder, or remove it first")
    with home.client() as client, beside(out) as place:
        version = find_version(client, reference)
        pack = place / "pack"
        fetch_pack(home, client, version.asset_id, pack, state=state)
        statements = len(list((pack / "statements").iterdir()))
        size = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
        os.rename(pack, out)
    return terminal.done(
        {"pack": str(out), "asset_id": version.asset_id, "statements": statements, "bytes": size},
        f"Wrote {out}: {statements} statements with their proofs, {size:,} bytes.",
        f"Next, on any machine, without a network: fedhub verify {out} --trust trust.json",
    )


@app.command("recompute", cls=Command)
def recompute(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    number: Annotated[
        int | None, typer.Option("--round", help="This round only (default: all that are closed).", min=1)
    ] = None,
) -> Exit:
    """Repeat a run's sums from the updates that its plan kept, and compare with the round statements.

    For the plan's owner, auditors and the operator. Everything is checked by this home's own pins.
    """
    from federation.deciding import read_checked_plan
    from federation.finishing import base_version, check_chain
    from federation.joint_statistics import check_statistics
    from federation.pulling import manifest_of
    from federation.recomputing import check_kept
    from federation.recomputing import recompute as repeat

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        found, _shown = read_checked_plan(home, client, plan)
        check_kept(found)
        manifest = manifest_of(client, base_version(client, found), found.base)
        chain = check_chain(home, client, found, manifest)
        rounds = repeat(home, client, found, chain, number=number)
        scaled = chain.statistics and check_statistics(home, client, found, chain.statistics)
    for one in rounds:
        if not one.same:
            raise Rejected(
                "E_AGGREGATE_DIFFERS",
                f"round {one.round} of plan {found.id}: the round statement names {one.stated}, "
                f"the updates of its receipts give {one.found}",
                "keep the evidence, and ask the operator how this aggregate was made",
            )
    rows = [
        (one.round, len(one.sites), f"{one.update_bytes:,}", short(one.found), f"{one.seconds:.2f}")
        for one in rounds
    ]
    return terminal.done(
        {
            "plan": found.id,
            "strategy": found.config.strategy,
            "rounds": [
                {"round": one.round, "aggregate": one.found, "same": True, "sites": list(one.sites)}
                for one in rounds
            ],
            "statistics": chain.statistics,
        },
        f"Recomputed {len(rounds)} of {len(chain.rounds)} rounds of {found.config.strategy}: "
        "each aggregate is byte for byte the one that its round statement names.",
        *(
            [
                f"The joint statistics {short(chain.statistics or '')} are the sum of what "
                f"{len(scaled.institutions)} sites signed."
            ]
            if scaled
            else []
        ),
        *table(("round", "updates", "bytes", "aggregate", "seconds"), rows),
    )


@app.command("report", cls=Command)
def report(
    ctx: typer.Context,
    saved: Annotated[Path, typer.Argument(metavar="REPORT", help="As saved from fedhub --json run report.")],
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="Folder that a pack was written to.")],
    trust: Annotated[Path, typer.Option(help="Your own trust.json; never one that came with the pack.")],
) -> Exit:
    """Check a saved benefit report against a pack, offline: the pack is verified, then each row made again.

    Every row must be what the figures say that the site's receipt in the pack names by digest.
    """
    from federation.benefit import check_with_statements, read_saved
    from hub.commands.verify import read_trust
    from storage.pack_files import PackFolder
    from storage.signing import open_envelope
    from storage.statements import read_statement
    from storage.verify import examine

    terminal = terminal_of(ctx)
    told = read_saved(saved)
    verified = examine(pack, read_trust(trust), now=int(time.time()))
    if not verified.ok:
        return terminal.done(verified.as_json(), *verified.lines(), exit_code=verified.exit)
    bundles = PackFolder(pack).bundles()
    statements = {one.id: one for one in (read_statement(open_envelope(raw)) for _, raw in bundles)}
    rows = check_with_statements(statements, told)
    return terminal.done(
        {"plan": told.plan, "rows": rows, "pack": str(pack)},
        f"The pack is verified, and the benefit report is what {rows} of its receipts say.",
    )


@app.command("log", cls=Command)
def log(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as grant or receipt.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Only statements of this institution.")] = None,
    plan: Annotated[str | None, typer.Option(help="Only statements about this plan.")] = None,
) -> Exit:
    """List the logged statements that this home may read, in log order."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        info = client.hub()
        found = list(client.all_statements(kind=kind, issuer=issuer, plan=plan))
    rows = [(each.index, each.kind, each.issuer, short(each.id)) for each in found]
    return terminal.done(
        {"log_base": info.log_base, "statements": [each.model_dump(exclude={"bundle"}) for each in found]},
        *table(("index", "kind", "issuer", "statement"), rows),
        f"The log itself, for anyone: {info.log_base.rstrip('/')}/checkpoint",
    )
