"""``fedhub verify``: check a pack offline, with nothing but files and public keys.

No account, no network, no clock but this machine's: a pack, the auditor's own ``trust.json``, and an answer
step by step, V1 to V15. The checks are ``storage.verify``; here arguments become one call, and its report
text or JSON.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub.terminal import terminal_of
from storage.encoding import parse_time, read_json
from storage.errors import Exit, Rejected, Unchecked

if TYPE_CHECKING:
    from storage.grants import Use
    from storage.trust import Trust

app = typer.Typer(add_completion=False, help="Check a pack offline.")

USE_LIMIT_BYTES = 1 << 16


@app.command()
def verify(
    ctx: typer.Context,
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="Folder that a pack was written to.")],
    trust: Annotated[Path, typer.Option(help="Your own trust.json; never one that came with the pack.")],
    files: Annotated[
        Path | None, typer.Option(help="Folder with the files of a version, all of them and no others.")
    ] = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="A use to check: {grant, grantee, action, asset, name, duo[, at]}."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="File with the last checkpoint you accepted; written when all holds."),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="Refuse less than SIGNED, GRANTED, TRAINED or APPROVED."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Check as of YYYY-MM-DDThh:mm:ssZ instead of now.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> Exit:
    """Check a pack offline, step by step: V1 to V15, as docs/trust.md numbers them.

    Exit code 0: every step holds, but for those that the last line counts as not checked. 1: refused, with
    the name of the first rule that does not hold. 2: wrong usage, or your own files cannot be read.
    """
    from storage.saved_checkpoint import save_state
    from storage.verify import examine

    terminal = terminal_of(ctx)
    terminal.json = terminal.json or as_json
    moment = int(time.time()) if at is None else _moment(at)
    report = examine(
        pack,
        read_trust(trust),
        now=moment,
        files=files,
        use=None if use is None else _use(use),
        state=state,
        require=require,
    )
    if report.ok and state is not None:
        save_state(state, report)
    heading = f"Checking {pack} as of {at}, a moment that you chose" if at else f"Checking {pack}"
    return terminal.done(report.as_json(), heading, *report.lines(), exit_code=report.exit)


def _moment(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 11:
        return int(text)
    try:
        return parse_time(text)
    except Rejected as error:
        raise Unchecked("E_INPUT", f"--at: {error.message}") from error


def _use(text: str) -> "Use":
    from storage.grants import Use

    try:
        found = read_json(os.fsencode(text), code="E_INPUT", limit=USE_LIMIT_BYTES)
    except Rejected as error:
        raise Unchecked("E_INPUT", f"--use: {error.message}") from error
    return Use.parse(found)


def read_trust(path: Path) -> "Trust":
    """The auditor's own ``trust.json``.

    Raises:
        Unchecked: ``E_TRUST``.
    """
    from storage.trust import HINT, Trust

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Unchecked("E_TRUST", f"{path}: cannot be read ({error.strerror})", HINT) from error
    return Trust.read(raw)
