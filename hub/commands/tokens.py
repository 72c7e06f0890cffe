"""``fedhub token``: personal tokens for people and stock clients. They read and write, and can never sign."""

from typing import Annotated, Literal

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, table, terminal_of
from storage.errors import Exit

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Personal tokens for people and stock clients."
)


@app.command("new", cls=Command)
def new(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What the token is for; shown in lists.")],
    scope: Annotated[Literal["read", "write"], typer.Option(help="write includes read.")] = "read",
    days: Annotated[int, typer.Option(help="Days until it expires.", min=1, max=366)] = 90,
) -> Exit:
    """Make a token. Its text is shown once: the hub keeps only a digest."""
    terminal = terminal_of(ctx)
    scopes = ["read"] if scope == "read" else ["read", "write"]
    with home_of(terminal).client() as client:
        made = client.create_token(name, scopes, valid_days=days)
    return terminal.done(
        made.model_dump(),
        f"Token {made.name!r} ({', '.join(made.scopes)}), id {made.id}, until {made.expires_at}:",
        f"  {made.token}",
        f"It is not shown again. To end it: fedhub token revoke {made.id}",
    )


@app.command("list", cls=Command)
def list_tokens(ctx: typer.Context) -> Exit:
    """List this institution's tokens, without their texts."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        tokens = client.list_tokens()
    rows = [
        (each.id, each.name, "+".join(each.scopes), each.expires_at, each.last_used_at or "never")
        for each in tokens
    ]
    return terminal.done(
        {"tokens": [each.model_dump() for each in tokens]},
        *table(("id", "name", "scopes", "expires", "last used"), rows),
    )


@app.command("revoke", cls=Command)
def revoke(ctx: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")]) -> Exit:
    """End a token at once."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        client.revoke_token(token_id)
    return terminal.done(
        {"revoked": token_id}, f"Token {token_id} is revoked; the next request with it is refused."
    )
