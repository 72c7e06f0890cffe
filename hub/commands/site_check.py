"""``fedhub site check``: what stands between this machine and a hub, before joining and after."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hub.terminal import Terminal, table, terminal_of
from storage.causes import cause_of
from storage.errors import Exit


def check(
    ctx: typer.Context,
    hub: Annotated[str | None, typer.Option(metavar="URL", help="Before joining: the hub's address.")] = None,
    invitation: Annotated[
        str | None, typer.Option(metavar="CODE", help="Before joining: the invitation's code.")
    ] = None,
    name: Annotated[str, typer.Option(help="The site's name within your institution.")] = "main",
) -> Exit:
    """Check what this site stands on, and say for each fault its cause, its owner and the next step.

    Name, port, certificate and clock of the hub, Fleet address and download origin; keys, pins, registration,
    disk, memory, recipes, datasets and consents. It only looks: connections to those three addresses alone,
    and no more is told to the hub than who is asking.
    """
    from federation.site_check import check_home, check_hub, check_machine, target_of

    terminal = terminal_of(ctx)
    home = None
    if (terminal.home_folder / "home.json").exists():
        home = _open(terminal.home_folder)
    target = target_of(hub, invitation, home)
    findings = [*check_hub(target), *check_machine(home)]
    if home is not None:
        findings += check_home(home, name)
    rows = [_row(each.what, each.state, each.seen, each.code) for each in findings]
    return _answer(terminal, rows)


def _open(folder: Path) -> Any:
    from federation.home import Home

    return Home.open(folder)


def _row(what: str, state: str, seen: str, code: str) -> dict[str, str]:
    row = {"what": what, "state": state, "seen": seen}
    if code:
        found = cause_of(code)
        row |= {"code": code, "cause": found.cause, "owner": found.owner, "step": found.step}
    return row


def _answer(terminal: Terminal, rows: list[dict[str, str]]) -> Exit:
    bad = [row for row in rows if row["state"] == "broken"]
    marks = {"ok": "ok", "broken": "BROKEN", "skipped": "skipped"}
    lines = table(("check", "", "found"), [(row["what"], marks[row["state"]], row["seen"]) for row in rows])
    for row in bad:
        lines += [
            f"{row['what']}: {row['code']}: {row['cause']}",
            f"  next step ({row['owner']}): {row['step']}",
        ]
    lines.append(f"{len(bad)} of {len(rows)} checks found a fault." if bad else "All is well.")
    return terminal.done(
        {"ok": not bad, "findings": rows}, *lines, exit_code=Exit.REFUSED if bad else Exit.DONE
    )
