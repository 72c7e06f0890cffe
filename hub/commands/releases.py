"""``fedhub release``: a version that enough participants approved, and that firms may trust to be so."""

from typing import Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.errors import Exit

app = typer.Typer(
    no_args_is_help=True, help="Releases: approved by the participants, published by the owner."
)

_VERSION = typer.Argument(metavar="NAME@VERSION|NAME:TAG")


@app.command("propose", cls=Command)
def propose(ctx: typer.Context, reference: Annotated[str, _VERSION]) -> Exit:
    """Owner: see who can approve a version, what they measured, and what to ask of them."""
    from federation.deciding import approvals_of
    from federation.pulling import find_version
    from storage.signing import open_envelope
    from storage.statements import read_statement

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    results = []
    with home.client() as client:
        version = find_version(client, reference)
        approvals = approvals_of(home, client, version)
        for record in client.all_statements(kind="test-result", subject=version.asset_id):
            said = read_statement(open_envelope(record.bundle.encode())).predicate
            results.append({"institution": record.issuer, "passed": said.get("passedTests", [])})
    return terminal.done(
        {
            "name": version.name,
            "version": version.version,
            "needed": approvals.needed,
            "participants": list(approvals.participants),
            "approved_by": list(approvals.approved_by),
            "evaluations": results,
        },
        f"{version.name}@{version.version}: {len(approvals.approved_by)} of {approvals.needed} approvals",
        *(f"  {each['institution']} measured {', '.join(each['passed'])}" for each in results),
        f"Ask {', '.join(approvals.participants)} for:",
        f"  fedhub release approve {version.name}@{version.version}",
    )


@app.command("approve", cls=Command)
def approve(ctx: typer.Context, reference: Annotated[str, _VERSION]) -> Exit:
    """Participant: verify the version's evidence by your own pins, and sign your approval of its release."""
    from federation.deciding import approve_release
    from federation.pulling import beside, check_pack, fetch_pack, find_version

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client, beside(home.path / "approve") as place:
        version = find_version(client, reference)
        pack = place / "pack"
        fetch_pack(home, client, version.asset_id, pack)
        check_pack(home, pack, require="TRAINED")
        record = approve_release(home, client, version, pack)
    return terminal.done(
        {"name": version.name, "version": version.version, "verdict": record.id, "index": record.index},
        f"{home.institution} approves {version.name}@{version.version}: its evidence was verified here.",
        f"Signed and logged at {record.index}. The owner publishes when enough have: fedhub release publish",
    )


@app.command("publish", cls=Command)
def publish(ctx: typer.Context, reference: Annotated[str, _VERSION]) -> Exit:
    """Owner: release a version that enough participants approved; refused below that number."""
    from federation.deciding import publish_release
    from federation.pulling import find_version

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        version = find_version(client, reference)
        record = publish_release(home, client, version)
    return terminal.done(
        {"name": version.name, "version": version.version, "release": record.id, "index": record.index},
        f"{version.name}@{version.version} is released, logged at {record.index}.",
        f"Next: fedhub grant issue {version.name}@{version.version} --to FIRM --action pull",
    )


@app.command("list", cls=Command)
def list_releases(ctx: typer.Context) -> Exit:
    """List the released versions, the newest first."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        released = client.releases()
    rows = [
        (
            f"{each.name}@{each.version}",
            short(each.asset_id),
            short(each.plan),
            ", ".join(each.approved_by),
            each.released_at,
        )
        for each in released
    ]
    return terminal.done(
        {"releases": [each.model_dump() for each in released]},
        *table(("release", "asset id", "plan", "approved by", "released"), rows),
    )
