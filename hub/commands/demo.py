"""``fedhub demo``: the main job, end to end, on real processes."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from hub.terminal import Command, terminal_of
from storage.errors import Exit

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def demo(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where everything is made; an earlier demo there is removed.")
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Leave hub and agents running until Ctrl-C.")] = False,
) -> Exit:
    """Show the whole journey: six institutions, rounds over three labs, release, pull, audit, and refusals.

    Takes about a minute. Nothing is mocked: the hub, SuperLink, the store's server and the labs' agents are
    processes of their own, and the data are real scans of digits. DIR/report.json says what was found.
    """
    from hub.commands.sandbox import interrupt_on_signals
    from hub.demo.alliance import clear
    from hub.demo.journey import Journey

    terminal = terminal_of(ctx)
    clear(folder)
    interrupt_on_signals()
    journey = Journey(folder, terminal)
    try:
        report = journey.walk()
        if keep:
            terminal.say(f"The hub's page: {journey.alliance.hub_info['endpoint']}. Ctrl-C stops everything.")
            with suppress(KeyboardInterrupt):
                terminal.stop.wait()
    finally:
        journey.alliance.down()
    return terminal.done(
        report, f"To go on with this alliance, and to see its page: fedhub sandbox up --dir {folder}"
    )
