"""``fedhub sandbox``: a whole alliance on this machine, for learning and for testing clients against."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from hub.terminal import Command, terminal_of
from storage.errors import Exit, Unchecked

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A whole alliance on this machine.")

PORT_HELP = "A port to use instead of a free one."


@app.callback()
def sandbox() -> None:
    """A whole alliance on this machine."""


@app.command("up", cls=Command)
def up(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where everything lies; kept between starts.")],
    port: Annotated[int | None, typer.Option(help=PORT_HELP, min=1, max=65535)] = None,
    download_port: Annotated[int | None, typer.Option(help=PORT_HELP, min=1, max=65535)] = None,
    blob_port: Annotated[int | None, typer.Option(help=PORT_HELP, min=1, max=65535)] = None,
    fleet_port: Annotated[int | None, typer.Option(help=PORT_HELP, min=1, max=65535)] = None,
) -> Exit:
    """Start hub, SuperLink, operator, owner, three labs with data and agents, and a firm; until Ctrl-C.

    FEDHUB_DATABASE_URL and FEDHUB_STORE_* choose database and object store; unset, they are SQLite and a
    folder under DIR. With --json the first line, when all is ready, says where everything is.
    """
    from hub.demo.alliance import Alliance, check_ours

    terminal = terminal_of(ctx)
    check_ours(folder)
    given = {"port": port, "download_port": download_port, "blob_port": blob_port, "fleet_port": fleet_port}
    assert terminal.call is not None  # hub.cli runs this
    ports = {name: number for name, number in given.items() if number is not None}
    alliance = Alliance(folder, terminal.call, ports=ports)
    interrupt_on_signals()
    terminal.say(f"Starting an alliance in {folder} …")
    try:
        alliance.up()
        described = alliance.description()
        if terminal.json:
            terminal.write_json(described)
        for line in _lines(described):
            terminal.say(line)
        while not terminal.stop.wait(0.5):
            crashed = alliance.crashed()
            if crashed is not None:
                hint = f"read {crashed.log}, then start again: everything is still there"
                raise Unchecked("E_SANDBOX", f"{crashed.name} ended by itself", hint)
    except KeyboardInterrupt:
        terminal.say("Stopping …")
    finally:
        alliance.down()
    terminal.say(f"Stopped. Everything is still in {folder}; start it again with the same command.")
    return Exit.DONE


def interrupt_on_signals() -> None:
    """Let SIGTERM end a command as Ctrl-C does; only the main thread can ask for signals.

    SIGINT is asked for too: a shell starts background commands with it ignored.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)


def _lines(described: dict[str, object]) -> list[str]:
    institutions = described["institutions"]
    assert isinstance(institutions, dict)
    lines = [f"The hub answers at {described['endpoint']} (a page for people, the API below /api/v1).", ""]
    lines += [
        f"  {name:<18} {each['role']:<9} fedhub --home {each['home']} …"
        for name, each in institutions.items()
    ]
    lines += ["", "Try: fedhub --home <one of these> whoami. Ctrl-C stops it all; nothing is lost."]
    return lines
