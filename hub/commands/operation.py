"""``fedhub hub``: run a hub, look after it, invite members."""

import base64
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, Terminal, short, terminal_of
from storage.errors import Exit

if TYPE_CHECKING:
    from federation.home import Home
    from hub.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run a hub.")

_HIDDEN_PARENT = typer.Option(hidden=True, help="End when this process ends.")


@app.command("up", cls=Command)
def up(
    ctx: typer.Context,
    parent: Annotated[int | None, _HIDDEN_PARENT] = None,
) -> Exit:
    """Start the hub and everything it needs; until Ctrl-C.

    Settings are FEDHUB_* variables; without any, SQLite, a folder as object store and SuperLink as a child
    are used under ./.fedhub. The first start makes the operator's home with its key ring.
    """
    from federation.lifeline import die_with
    from hub.serve import run_hub, where

    terminal = terminal_of(ctx)
    if parent is not None:
        die_with(parent)
    settings = _settings(terminal)
    first = not (settings.operator_folder / "home.json").exists()
    terminal.say(f"Starting the hub {settings.origin} …")
    run_hub(settings, ready=lambda hub: _announce(terminal, settings, where(hub), first))
    return terminal.done({"stopped": True}, "The hub has stopped; nothing acknowledged is lost.")


@app.command("status", cls=Command)
def status(ctx: typer.Context) -> Exit:
    """Ask the hub how it is: members, sites, runs, log."""
    from urllib.parse import urljoin

    terminal = terminal_of(ctx)
    home = _operator(terminal)
    with home.client() as client:
        info = client.hub()
        members, sites, runs = client.institutions(), client.sites(), client.runs()
    pending = [each.name for each in members if each.state == "pending"]
    online = sum(1 for each in sites if each.online)
    running = [each for each in runs if each.state in ("starting", "running")]
    return terminal.done(
        {
            **info.model_dump(),
            "endpoint": home.endpoint,
            "institutions": len(members),
            "pending": pending,
            "sites_online": online,
            "sites": len(sites),
            "runs": len(runs),
            "running": [each.plan for each in running],
        },
        f"{info.origin} {info.version} at {home.endpoint}, operated by {info.operator}",
        f"  {len(members)} institutions, {online} of {len(sites)} sites online, {len(runs)} runs, "
        f"{len(running)} going on",
        f"  log {urljoin(info.log_base + '/', 'checkpoint')}",
        *(
            f"Waiting: {name}; compare its pin, then: fedhub institution approve {name} --pin PIN"
            for name in pending
        ),
    )


@app.command("invite", cls=Command)
def invite(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The institution's name, such as lab-a.example.")],
    role: Annotated[Literal["owner", "lab", "firm", "auditor"], typer.Argument()],
    hours: Annotated[int, typer.Option(help="How long the code is good for.", min=1, max=720)] = 72,
) -> Exit:
    """Operator: make an invitation code, good once, for one institution.

    It says where the hub is and what to trust; send it by a way that strangers cannot change.
    """
    from storage.encoding import canonical

    terminal = terminal_of(ctx)
    home = _operator(terminal)
    with home.client() as client:
        made = client.invite(name, role, valid_hours=hours)
    raw = canonical(made.model_dump(mode="json"))
    code = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return terminal.done(
        {"institution": name, "role": role, "code": code, "valid_hours": hours},
        f"Invitation of {name} as {role}, good once within {hours} hours:",
        f"  {code}",
        f"They run: fedhub --home DIR institution create {name} --invitation CODE, and tell you their pin.",
    )


@app.command("doctor", cls=Command)
def doctor(ctx: typer.Context) -> Exit:
    """Check what a hub stands on: parts, disk, keys, ports, store, database, clock, log; says what to do."""
    from hub.commands.doctor import diagnose

    terminal = terminal_of(ctx)
    return diagnose(terminal, _settings(terminal))


@app.command("gc", cls=Command)
def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> Exit:
    """Remove bytes that no version, draft, log entry, run or upload needs; a running hub does so by itself.

    It may run beside the hub. FEDHUB_UNUSED_HOURS is how long uploads are kept that became nothing.
    """
    from hub.commands.care import existing_hub
    from hub.services.garbage import sweep

    terminal = terminal_of(ctx)
    with existing_hub(_settings(terminal)) as hub:
        swept = sweep(hub, dry_run=dry_run)
    said = swept.as_json()
    verb = "Would remove" if dry_run else "Removed"
    return terminal.done(
        {**said, "dry_run": dry_run},
        f"{verb} {said['blobs']} blobs, {said['objects']} stray objects ({said['bytes']:,} bytes), "
        f"{said['assets']} manifests, {said['uploads']} late uploads, {said['parts']} cut ones.",
    )


@app.command("backup", cls=Command)
def backup(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    operator_home: Annotated[
        bool, typer.Option("--operator-home", help="Add the operator's signing keys; keep it very safe then.")
    ] = False,
) -> Exit:
    """Copy database, hub keys and certificates into a new folder while the hub runs.

    Objects are not in it: copy the store folder, or mirror the bucket, right after this, never before.
    """
    import time

    from hub.commands.care import check_founded
    from hub.services.backups import write_backup

    terminal = terminal_of(ctx)
    settings = _settings(terminal)
    check_founded(settings)
    note = write_backup(settings, folder, now=int(time.time()), with_operator=operator_home)
    return terminal.done(
        {**note, "folder": str(folder)},
        f"{folder} holds the {note['database']} database with {note['entries']} log entries, and the keys.",
        "Next: copy the object store. The log in it may be newer than this database, never older.",
    )


@app.command("restore", cls=Command)
def restore(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A backup; left out: only bring the rows up to the log."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Drop the database that is there.")] = False,
) -> Exit:
    """Put a backup back, then add every statement that the published log has and the database lacks.

    The hub must stand still, and its object store must be in place. After a crash, run it again.
    """
    from hub.commands.care import restore_hub

    terminal = terminal_of(ctx)
    restored = restore_hub(_settings(terminal), folder, replace=replace)
    lines = [f"The database had {restored.rows} log entries and got {restored.statements} back from the log."]
    lines += [f"Member restored: {name}; look at its role" for name in restored.members]
    lines += [f"Version restored: {name}" for name in restored.versions]
    lines += [
        f"Version NOT restored, bytes or manifest are not in the store: {name}" for name in restored.missing
    ]
    lines += [f"Plan {short(plan)}: its issuer submits it again" for plan in restored.plans]
    lines += [f"Visibility as it was set last: {said}" for said in restored.visibility]
    lines += [f"Tag restored: {tag}" for tag in restored.tags]
    lines += [f"Token stays revoked: {token}" for token in restored.revoked]
    lines += [f"Token LOST, to be made anew (fedhub token new): {token}" for token in restored.lost_tokens]
    lines += [f"Drafts LOST, or an upload that became nothing: {name}" for name in restored.lost_drafts]
    return terminal.done(asdict(restored), *lines, "Next: fedhub hub doctor, then fedhub hub up")


def _settings(terminal: Terminal) -> "Settings":
    from hub.settings import load_settings

    given: dict[str, Any] = {}
    if terminal.home_path is not None:
        given["operator_home"] = terminal.home_path
    return load_settings(**given)


def _operator(terminal: Terminal) -> "Home":
    """The operator's home: the one that is named, else the one that the settings say."""
    from federation.home import Home

    if terminal.home_path is not None:
        return home_of(terminal)
    return Home.open(_settings(terminal).operator_folder)


def _announce(terminal: Terminal, settings: "Settings", told: dict[str, str], first: bool) -> None:
    home = settings.operator_folder
    if terminal.json:
        terminal.write_json({**told, "home": str(home)})
        return
    if first:
        terminal.say(
            f"Made the operator's home {home} with its key ring: back it up, and move root.pem away."
        )
    terminal.say(f"The hub answers at {told['endpoint']}; labs connect to {told['fleet']}.")
    terminal.say(f"Operator {told['operator']}, pin {told['operator_pin']}")
    terminal.say(
        f"Next, in another terminal: fedhub --home {home} hub invite NAME ROLE. Ctrl-C stops the hub."
    )
