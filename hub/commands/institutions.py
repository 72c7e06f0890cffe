"""``fedhub institution``: members of the alliance, their key rings, and whom this home trusts."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.errors import Exit, Refused

if TYPE_CHECKING:
    from federation.client import HubClient
    from federation.home import Home

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Members of the alliance and their key rings."
)

STATUS_LIFE_S = 86_400  # a status list may live 24 h at most
STATUS_EVERY_S = 43_200


@app.command("create", cls=Command)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The name in the invitation, such as lab-a.example.")],
    invitation: Annotated[str, typer.Option(help="The code that the operator gave you.")],
    contact: Annotated[str, typer.Option(help="How the operator reaches you.")] = "",
) -> Exit:
    """Make this institution's home and keys on this machine, and apply at the hub.

    The invitation brings the hub's name, its log key, the operator's pin and the Fleet CA: from then on only
    what leads back to them is believed.
    """
    from federation.joining import join

    terminal = terminal_of(ctx)
    home, institution = join(terminal.home_folder, name, invitation, contact=contact)
    return terminal.done(
        {"home": str(home.path), **institution.model_dump()},
        f"Made {home.path} with the keys of {name}; they exist nowhere else, so back the folder up.",
        f"Applied at {home.endpoint} as {institution.role}: {institution.state}.",
        f"Pin of {name} (tell it to the operator and to partners by phone, not through the hub):",
        f"  {institution.pin}",
        "Next: wait for the operator's approval, then: fedhub whoami",
    )


@app.command("approve", cls=Command)
def approve(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument()],
    pin: Annotated[str, typer.Option(help="The pin they told you by another way.")],
) -> Exit:
    """Operator: admit an institution whose pin you compared by phone or on paper."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        applied = client.institution(name)
        if applied.pin != pin:
            message = f"{name} applied with the pin {applied.pin}, not with {pin}"
            raise Refused("E_KEYRING_PIN", message, "do not approve; ask them who really applied")
        institution = client.approve(name)
        home.pin(name, pin)
    return terminal.done(
        institution.model_dump(),
        f"{name} is {institution.state} as {institution.role}; its ring is logged, and this home pins it.",
    )


@app.command("trust", cls=Command)
def trust(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument()],
    pin: Annotated[str, typer.Option(help="sha256 of their 1.root.json, told by another way than the hub.")],
) -> Exit:
    """Pin another institution's key ring in this home's trust.json."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    home.pin(name, pin)
    return terminal.done(
        {"institution": name, "pin": pin, "trust": str(home.trust_path)},
        f"{home.trust_path} pins {name} to {pin}.",
        "Compare it by phone, contract or paper: a pin that came from the hub proves nothing.",
    )


@app.command("show", cls=Command)
def show(ctx: typer.Context, name: Annotated[str | None, typer.Argument()] = None) -> Exit:
    """Show an institution as the hub knows it, and what this home pins (default: your own)."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    wanted = name or home.institution
    with home.client() as client:
        found = client.institution(wanted)
    pinned = home.pins.get(wanted)
    says = "not pinned here"
    if pinned is not None:
        says = "pinned here" if pinned == found.pin else f"THIS HOME PINS {pinned}: do not deal with it"
    return terminal.done(
        {**found.model_dump(), "pinned": pinned},
        f"{found.name} ({found.role}), {found.state}, joined {found.joined_at}",
        f"  key ring version {found.ring_version}, pin {found.pin} ({says})",
        f"  status list valid until {found.status_until or 'never published'}",
    )


@app.command("list", cls=Command)
def list_institutions(ctx: typer.Context) -> Exit:
    """List the members of the alliance."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        members = client.institutions()
    pins = home.pins
    rows = [
        (
            each.name,
            each.role,
            each.state,
            f"v{each.ring_version}",
            short(each.pin),
            _pinned(pins, each.name, each.pin),
        )
        for each in members
    ]
    return terminal.done(
        {"institutions": [each.model_dump() for each in members]},
        *table(("institution", "role", "state", "ring", "pin", "this home"), rows),
    )


@app.command("rotate", cls=Command)
def rotate(
    ctx: typer.Context,
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")] = "targets",
) -> Exit:
    """Replace the key of one role by a fresh one; what the old key signed stays valid."""
    from federation.joining import rotate as rotate_key

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    version = rotate_key(home, role)
    with home.client("snapshot") as client:
        # at once: until a status list names the newest ring, nobody can lean on this institution
        data = publish_status(home, client)
    return terminal.done(
        {"institution": home.institution, "role": role, "ring_version": version, "status": data["statement"]},
        f"{home.institution} has a new {role} key; ring version {version} is logged and in force.",
        _status_line(home.institution, data),
        "Next: restart running agents.",
    )


@app.command("status", cls=Command)
def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: a fresh list every 12 hours.")] = False,
) -> Exit:
    """Sign and publish this institution's status list: what it has revoked, valid for 24 hours."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client("snapshot") as client:
        while True:
            data = publish_status(home, client)
            if not watch:
                break
            terminal.say(_status_line(home.institution, data))
            if terminal.stop.wait(STATUS_EVERY_S):
                return Exit.DONE
    return terminal.done(data, _status_line(home.institution, data))


def publish_status(home: "Home", client: "HubClient") -> dict[str, object]:
    """Sign the next status list, post it, and tell what it says."""
    from federation.joining import post_status

    posted = post_status(home, client, next_update=int(time.time()) + STATUS_LIFE_S)
    return {"institution": home.institution, "statement": posted.id, "sequence": posted.sequence}


def _status_line(institution: str, data: dict[str, object]) -> str:
    return f"Status list {data['sequence']} of {institution} is published, valid for 24 h (renew: --watch)."


def _pinned(pins: dict[str, str], name: str, pin: str) -> str:
    if name not in pins:
        return "not pinned"
    return "pinned" if pins[name] == pin else "PINNED TO ANOTHER RING"
