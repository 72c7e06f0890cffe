"""``fedhub evaluate``: what a version is worth on this site's held-out rows, signed."""

import time
from typing import Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, terminal_of
from storage.errors import Exit

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def evaluate(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")],
    at_least: Annotated[
        str | None,
        typer.Option(
            help="The accuracy that passes, such as 0.90 (default: the majority class's; an app needs one)."
        ),
    ] = None,
) -> Exit:
    """Evaluate a version of a plan you took part in on your own held-out rows; sign and log the result.

    Using the rows is receipted under your consent. Only the accuracy, the loss and the number of rows leave.
    """
    from federation.pulling import find_version
    from federation.version_evaluation import evaluate_version
    from storage.encoding import parse_decimal

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    if at_least is not None:
        parse_decimal(at_least, "E_USAGE")
    with home.client("snapshot") as client:
        version = find_version(client, reference)
        found = evaluate_version(home, client, version, now=int(time.time()), at_least=at_least)
    lines = []
    for each in found:
        result = "PASSED" if each.passed else "FAILED"
        result += ", as the result that was logged before says" if each.repeated else ""
        guess = "" if each.majority is None else f"majority class {each.majority:.4f}, "
        lines.append(
            f"{version.name}@{version.version} on {each.institution}'s rows: accuracy {each.accuracy:.4f}, "
            f"{guess}n={each.examples}: {result}"
        )
    return terminal.done(
        {"name": version.name, "version": version.version, "evaluations": [vars(each) for each in found]},
        *lines,
        f"Signed and logged. Next: fedhub release approve {version.name}@{version.version}",
    )
