"""How every command answers: text for people, one JSON document with ``--json``, and an ``Exit``.

A command's function does one thing and ends with ``terminal.done(data, lines)``. ``data`` is what a program
gets, ``lines`` what a person reads; the last line says what to do next. Progress is drawn only on a terminal.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import click
import typer.core

from storage.errors import Exit


@dataclass
class Terminal:
    """Where a command was called from: its home, its streams, and whether a program reads the answer.

    Attributes:
        home_path: what ``--home`` or FEDHUB_HOME names; None when neither is given.
        stop: set by another thread to end a command that runs until it is told.
        call: runs another command line, as ``hub.cli`` does; commands that tell a story of commands use it.
        answer: what the command answered, for a program that called it in this process.
        problem: code, message and hint of the error that ended it; empty when none did.
    """

    home_path: Path | None
    json: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    stop: threading.Event = field(default_factory=threading.Event)
    call: "Callable[[list[str], Terminal], Exit] | None" = None
    answer: dict[str, Any] = field(default_factory=dict)
    problem: dict[str, str] = field(default_factory=dict)

    @property
    def home_folder(self) -> Path:
        """Where the home is, or is to be made."""
        return self.home_path or Path(".fedhub")

    def done(self, data: dict[str, Any], *lines: str, exit_code: Exit = Exit.DONE) -> Exit:
        """Answer and end: ``data`` for a program, ``lines`` for a person."""
        self.answer = data
        if self.json:
            self.write_json(data)
        else:
            for line in lines:
                self.say(line)
        return exit_code

    def say(self, line: str) -> None:
        """One line for a person, at once; nothing when a program reads."""
        if not self.json:
            print(line, file=self.out, flush=True)

    def write_json(self, data: dict[str, Any]) -> None:
        """One JSON document on a line of its own, at once."""
        print(json.dumps(data, sort_keys=True), file=self.out, flush=True)

    @contextmanager
    def progress(self, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar that is moved by numbers of bytes; drawn only when a person watches a terminal."""
        if self.json or not self.err.isatty() or total_bytes < 1 << 20:
            yield _ignore
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(file=self.err), transient=True) as bar:
            task = bar.add_task(what, total=total_bytes)
            yield lambda count: bar.advance(task, count)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The rows as lines of aligned columns; one line that says so when there are none."""
    if not rows:
        return ["(none)"]
    texts = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]
    return [line.rstrip() for line in lines]


def short(digest: str | None) -> str:
    """A digest for people: enough to recognise it, and to give back to a command that takes ids."""
    return "-" if digest is None else digest[:12]


class Command(typer.core.TyperCommand):
    """A command with ``--home`` and ``--json``, wherever on the line they stand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            typer.core.TyperOption(
                param_decls=["--home"],
                help="The institution's folder.",
                show_default="$FEDHUB_HOME or ./.fedhub",
                type=click.Path(path_type=Path),
                expose_value=False,
                callback=_set_home,
            )
        )
        self.params.append(
            typer.core.TyperOption(
                param_decls=["--json"],
                help="Answer with one JSON document.",
                is_flag=True,
                expose_value=False,
                callback=_set_json,
            )
        )


def terminal_of(ctx: click.Context) -> Terminal:
    """The terminal that ``hub.cli`` gave to this call."""
    terminal = ctx.find_object(Terminal)
    if terminal is None:
        raise RuntimeError("a command was called without hub.cli")
    return terminal


def _set_home(ctx: click.Context, _option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        terminal_of(ctx).home_path = value


def _set_json(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        terminal_of(ctx).json = True


def _ignore(_count: int) -> None:
    """Nobody watches."""
