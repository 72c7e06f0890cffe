"""``fedhub grant``: signed permissions on exact digests, which end and can be withdrawn."""

import time
from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, Terminal, short, table, terminal_of
from storage.encoding import check_institution, format_time
from storage.errors import Exit, Rejected, Unchecked

SIGN = "{} signs one with: fedhub institution status --watch"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Signed permissions: who, which digest, what for, until when.",
)


@app.command("issue", cls=Command)
def issue(
    ctx: typer.Context,
    asset: Annotated[
        str, typer.Argument(metavar="ASSET", help="NAME@VERSION, a dataset's name, or an asset id.")
    ],
    to: Annotated[str, typer.Option(help="The institution that is permitted.")],
    action: Annotated[
        list[str] | None, typer.Option(help="pull or evaluate; may be repeated. Training needs site approve.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366)] = 30,
    duo: Annotated[
        list[str] | None, typer.Option(help="A term the grantee must accept, DUO:nnnnnnn.")
    ] = None,
    depth: Annotated[int, typer.Option(help="How many times it may be delegated.", min=0, max=3)] = 0,
    parent: Annotated[str | None, typer.Option(help="Delegate this grant instead of an own asset.")] = None,
) -> Exit:
    """Permit an institution something on one exact asset, for a time."""
    from federation.deciding import issue_grant

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    actions = action or ["pull"]
    if "train" in actions:
        hint = "a lab consents to one plan: fedhub site approve PLAN"
        raise Unchecked("E_USAGE", "training is not granted but consented to", hint)
    unknown = sorted(set(actions) - {"pull", "evaluate"})
    if unknown:
        raise Unchecked("E_USAGE", f"there is no action {unknown[0]!r}", "write --action pull or evaluate")
    with home.client() as client:
        asset_id = _asset_id(client, asset)
        client.institution(check_institution(to))  # a grant to nobody would be signed and logged all the same
        record = issue_grant(
            home, client, asset_id, to, actions, days=days, duo=duo or [], depth=depth, parent=parent
        )
        until = client.institution(home.institution).status_until
    return terminal.done(
        {
            "grant": record.id,
            "index": record.index,
            "asset": asset_id,
            "grantee": to,
            "actions": sorted(actions),
            "status_until": until,
        },
        f"{to} may {' and '.join(sorted(actions))} {asset} for {days} days; grant {record.id}",
        f"Signed and logged at {record.index}. To end it: fedhub grant revoke {short(record.id)}",
        *_usable_while(home.institution, until),
    )


def _usable_while(institution: str, until: str | None) -> list[str]:
    """What the issuer of a grant still has to do so that it can be used; nothing where its list is fresh."""
    if not _is_over(until, _now()):
        return []
    return [
        f"Nobody can use it yet: {institution} has no status list that is valid now. Keep this running:",
        "  fedhub institution status --watch",
    ]


def _is_over(until: str | None, now: str) -> bool:
    return until is None or now > until  # times of statements have one form: their order is that of the texts


def _now() -> str:
    return format_time(int(time.time()))


@app.command("list", cls=Command)
def list_grants(ctx: typer.Context) -> Exit:
    """List the grants this home gave or holds, and whether they can be used now."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = [_described(record) for record in client.all_statements(kind="grant")]
        revocations = list(client.all_statements(kind="revocation"))
        now = _now()
        members = client.institutions() if found else []
        stale = {each.name for each in members if _is_over(each.status_until, now)}
    revoked = {(record.issuer, _statement(record).subject) for record in revocations}
    grants = {each["id"]: each for each in found}
    for each in found:
        each["state"] = _state(each, grants, revoked, now, stale)
    rows = [
        (
            short(each["id"]),
            short(each["asset"]),
            each["issuer"],
            each["grantee"],
            "+".join(each["actions"]),
            each["expires"],
            each["state"],
            each["plan"],
        )
        for each in found
    ]
    columns = ("grant", "asset", "issuer", "grantee", "actions", "expires", "state", "plan")
    lines = table(columns, rows)
    if any(each["state"] == "stale" for each in found):
        lines += ["stale: its issuer has no status list that is valid now; fedhub institution status --watch"]
    return terminal.done({"grants": found}, *lines)


def _state(
    grant: dict[str, Any],
    grants: Mapping[str, dict[str, Any]],
    revoked: Container[tuple[str, str]],
    now: str,
    stale: Container[str] = (),
) -> str:
    """What stands against using it now: of itself, else of the grant that it delegates.

    Args:
        stale: who has no status list that is valid now. Pulls and evaluations ask for one, a plan's consent
            does not.
    """
    if (grant["issuer"], grant["id"]) in revoked:
        return "revoked"
    if now < grant["notBefore"]:
        return "not yet"
    if now >= grant["expires"]:
        return "ended"
    if grant["issuer"] in stale and "plan" not in grant["conditions"]:
        return "stale"
    parent = grants.get(grant["parent"])
    return "valid" if parent is None else _state(parent, grants, revoked, now, stale)


@app.command("show", cls=Command)
def show(ctx: typer.Context, grant: Annotated[str, typer.Argument(metavar="ID")]) -> Exit:
    """Show one grant as it was signed."""
    terminal = terminal_of(ctx)
    described = _described(_grant(terminal, grant))
    lines = [f"grant {described['id']}, logged at {described['index']}"]
    lines += [f"  {name}: {value}" for name, value in described.items() if name not in ("id", "index")]
    return terminal.done(described, *lines)


@app.command("revoke", cls=Command)
def revoke(
    ctx: typer.Context,
    grant: Annotated[str, typer.Argument(metavar="ID")],
    reason: Annotated[
        Literal["withdrawn", "compromised", "superseded", "error"], typer.Option(help="Why; it is published.")
    ] = "withdrawn",
) -> Exit:
    """Withdraw a grant or consent: from now on nothing can lean on it; what was done before stays valid."""
    from federation.deciding import revoke as revoke_statement

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    record = _grant(terminal, grant)
    with home.client() as client:
        posted = revoke_statement(home, client, record.id, reason=reason)
    return terminal.done(
        {"revoked": record.id, "revocation": posted.id, "index": posted.index},
        f"Grant {short(record.id)} is revoked from log index {posted.index} on ({reason}).",
        "Next: fedhub institution status (so that offline verifiers see it within a day).",
    )


@app.command("verify", cls=Command)
def verify(ctx: typer.Context, grant: Annotated[str, typer.Argument(metavar="ID")]) -> Exit:
    """Check a grant's signature under this home's own pins, and whether it can be used now."""
    from federation.deciding import read_signed
    from storage.encoding import parse_time

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    record = _grant(terminal, grant)
    with home.client() as client:
        statement = read_signed(home, client, record.bundle, kind="grant", issuer=record.issuer)
        revoked = [
            each.id
            for each in client.all_statements(kind="revocation", subject=statement.id, issuer=record.issuer)
        ]
        until = client.institution(record.issuer).status_until
    said = statement.predicate
    now = int(time.time())
    if revoked:
        raise Rejected(
            "E_REVOKED", f"grant {statement.id} was revoked by {record.issuer}", "ask for a new one"
        )
    if not parse_time(said["notBefore"], "E_STATEMENT") <= now < parse_time(said["expires"], "E_STATEMENT"):
        message = f"grant {statement.id} is valid from {said['notBefore']} to {said['expires']}"
        raise Rejected("E_GRANT_EXPIRED", message, "ask for a new one")
    if until is None:
        raise Rejected("E_STATUS_MISSING", f"no status list of {record.issuer}", SIGN.format(record.issuer))
    if _is_over(until, format_time(now)):
        raise Rejected(
            "E_STATUS_STALE",
            f"the status list of {record.issuer} was good until {until}",
            SIGN.format(record.issuer),
        )
    return terminal.done(
        {"id": statement.id, "valid": True, "issuer": record.issuer, "grantee": said["grantee"]},
        f"Grant {statement.id}: signed by {record.issuer} as pinned here, in its window, not revoked.",
        "A pull checks it again, with its parents and the log.",
    )


def _grant(terminal: Terminal, reference: str) -> Any:
    with home_of(terminal).client() as client:
        found = [each for each in client.all_statements(kind="grant") if each.id.startswith(reference)]
    if len(found) != 1 or len(reference) < 8:
        raise Unchecked(
            "E_NOT_FOUND", f"{reference}: {len(found)} grants have such an id", "fedhub grant list"
        )
    return found[0]


def _asset_id(client: Any, reference: str) -> str:
    from federation.pulling import find_dataset, find_version
    from storage.encoding import is_digest

    if is_digest(reference):
        return reference
    if "@" in reference or ":" in reference:
        return find_version(client, reference).asset_id
    return find_dataset(client, reference).asset_id


def _statement(record: Any) -> Any:
    from storage.signing import open_envelope
    from storage.statements import read_statement

    return read_statement(open_envelope(record.bundle.encode()))


def _described(record: Any) -> dict[str, Any]:
    statement = _statement(record)
    said = statement.predicate
    return {
        "id": statement.id,
        "index": record.index,
        "issuer": said["issuer"],
        "grantee": said["grantee"],
        "actions": said["actions"],
        "asset": statement.subject,
        "conditions": said["conditions"],
        "notBefore": said["notBefore"],
        "expires": said["expires"],
        "depth": said["depth"],
        "parent": said.get("parent"),
        "plan": short(said["conditions"].get("plan")),
    }
