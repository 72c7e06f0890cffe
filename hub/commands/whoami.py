"""``fedhub whoami``: who the hub takes this home for."""

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, terminal_of
from storage.errors import Exit

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def whoami(ctx: typer.Context) -> Exit:
    """Ask the hub who this home is, and by which key or token it knows."""
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        who = client.whoami()
    by = f"by its {who.key_role} key" if who.key_role else f"by a personal token ({', '.join(who.scopes)})"
    return terminal.done(who.model_dump(), f"{who.institution} ({who.role}) at {home.endpoint}, {by}")
