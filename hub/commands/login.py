"""``fedhub login``: prove to the hub who this home is, or turn a personal token into a home."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, terminal_of
from storage.errors import Exit, Unchecked

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def login(
    ctx: typer.Context,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with a personal token; - reads standard input."),
    ] = None,
    endpoint: Annotated[str, typer.Option(help="The hub's address, with --token-file.")] = "",
    trust: Annotated[
        Path | None, typer.Option(help="Your institution's trust.json, with --token-file.", exists=True)
    ] = None,
) -> Exit:
    """Log in: an institution by signing with its key, a person by a personal token.

    An institution's home needs no option. A person gives --token-file, --endpoint and --trust once; that
    makes a home that can read and pull, and never sign.
    """
    terminal = terminal_of(ctx)
    if token_file is None:
        if endpoint or trust:
            raise Unchecked("E_USAGE", "--endpoint and --trust belong to --token-file", "fedhub login --help")
        home = home_of(terminal)
    else:
        from federation.client import HubClient
        from federation.home import Home

        if not endpoint or trust is None:
            raise Unchecked("E_USAGE", "--token-file needs --endpoint and --trust", "fedhub login --help")
        token = _read_token(token_file)
        with HubClient(endpoint, token=token) as client:
            person = client.whoami()
        home = Home.create_for_person(
            terminal.home_folder,
            institution=person.institution,
            role=person.role,
            endpoint=endpoint,
            token=token,
            trust=trust.read_bytes(),
        )
    with home.client() as client:
        who = client.whoami()
    return terminal.done(
        {"home": str(home.path), **who.model_dump()},
        f"Logged in to {home.endpoint} as {who.institution} ({who.role}), by {who.by} token.",
        "Next: fedhub whoami, or any command; tokens are renewed by themselves.",
    )


def _read_token(path: Path) -> str:
    text = sys.stdin.read() if str(path) == "-" else path.read_text()
    if not text.strip():
        raise Unchecked("E_USAGE", "the token is empty", "make one with: fedhub token new NAME")
    return text.strip()
