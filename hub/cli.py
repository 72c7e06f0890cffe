"""The command ``fedhub``: finds the module of a group of commands, runs it, and answers with an exit code.

Exit codes: 0 done, or checked and true; 1 refused, or checked and not true; 2 wrong usage, or not possible.
Nothing heavy is imported here: a module of ``hub.commands`` is opened only when its group is asked for, so an
auditor's ``fedhub verify`` needs neither a network library nor a training one.

The only broad ``except`` of the project stands here: a crash must end as 2 with one line, since Python's own
answer to an uncaught exception is 1, which means "checked and not true".
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import cast

import click
import typer

import hub
from hub.terminal import Terminal
from storage.causes import find_cause
from storage.errors import Exit, FedhubError, Unchecked

# group -> module under hub.commands, what it is for
GROUPS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "The main job, end to end, on real processes"),
    "sandbox": ("sandbox", "A whole alliance on this machine"),
    "hub": ("operation", "Run a hub: up, status, invite, doctor, gc, backup, restore"),
    "login": ("login", "Prove to the hub who this home is"),
    "whoami": ("whoami", "Who the hub takes this home for"),
    "token": ("tokens", "Personal tokens: new, list, revoke"),
    "institution": ("institutions", "Members and their key rings: create, approve, trust, show, rotate"),
    "data": ("datasets", "Datasets that stay on-site: describe, list, show"),
    "model": ("models", "Models: push, pull, diff, lineage, list, show, tag"),
    "app": ("apps", "A lab's own code as Flower app bundles: push, show; Flower's own runs: allow, run"),
    "grant": ("grants", "Signed permissions: issue, list, show, revoke, verify"),
    "plan": ("plans", "Training plans: new, check, submit, show, list"),
    "run": ("runs", "Runs of plans: start, watch, list, show, cancel, resume, finish"),
    "site": ("sites", "The lab agent: check, init, up, status, ledger, approve"),
    "evaluate": ("evaluation", "Evaluate a model version on this site's held-out rows"),
    "release": ("releases", "Releases: propose, approve, publish, list"),
    "audit": ("audit", "For auditors: export a pack, read the log"),
    "verify": ("verify", "Check a pack offline, with nothing but files and public keys"),
}

# What an extra brings, by the name that a failed import shows; a hub finds numpy and flwr in its own extra.
_EXTRAS: dict[str, tuple[str, ...]] = {
    "pull": ("httpx", "pydantic", "pydantic_core", "jwt", "tenacity", "tuf", "securesystemslib"),
    "lab": ("torch", "flwr", "numpy", "safetensors"),
    "hub": (
        *("alembic", "fastapi", "jinja2", "markdown_it", "minio", "prometheus_client", "psycopg"),
        *("pydantic_settings", "sqlalchemy", "sqlmodel", "starlette", "uvicorn"),
    ),
    "demo": ("sklearn",),
}
_PACKAGES = ("hub", "federation", "storage")


def main(argv: list[str] | None = None) -> int:
    """Run one command line and give its exit code; never raises."""
    return int(dispatch(sys.argv[1:] if argv is None else argv))


def dispatch(argv: list[str], terminal: Terminal | None = None) -> Exit:
    """Run ``argv`` at ``terminal``; by default the one that this process was started from."""
    named = os.environ.get("FEDHUB_HOME")
    terminal = terminal or Terminal(Path(named) if named else None)
    terminal.call = dispatch
    terminal.json = terminal.json or "--json" in argv  # before parsing: even a usage error is JSON then
    try:
        _check_packages()
        return _run(argv, terminal)
    except FedhubError as error:
        return _explain(terminal, error.exit, error.code, error.message, error.hint)
    except click.exceptions.Exit as error:
        return Exit(error.exit_code)
    except click.UsageError as error:
        return _explain_usage(terminal, error)
    except (click.Abort, KeyboardInterrupt):
        return _explain(terminal, Exit.FAILED, "E_INTERRUPTED", "interrupted", "")
    except ModuleNotFoundError as error:
        return _explain_missing(terminal, argv, error)
    except BrokenPipeError:
        # The reader went away (`fedhub … | head`); python would complain once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:
        if os.environ.get("FEDHUB_DEBUG") == "1":
            traceback.print_exc(file=terminal.err)
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = "this is a defect; run again with FEDHUB_DEBUG=1 for the traceback and report it"
        return _explain(terminal, Exit.FAILED, "E_CRASH", message, hint)


def _run(argv: list[str], terminal: Terminal) -> Exit:
    rest = _take_global_options(list(argv), terminal)
    if not rest or rest[0] in ("--help", "-h", "help"):
        print(_overview(), file=terminal.out if rest else terminal.err)
        return Exit.DONE if rest else Exit.FAILED
    if rest[0] == "--version":
        print(f"fedhub {hub.__version__}", file=terminal.out)
        return Exit.DONE
    group, args = rest[0], rest[1:]
    if group not in GROUPS:
        raise click.UsageError(f"there is no command {group!r}; fedhub --help lists them")
    module = import_module(f"hub.commands.{GROUPS[group][0]}")
    command = typer.main.get_command(cast(typer.Typer, module.app))
    if terminal.json and group == "verify" and "--json" not in args:
        args = ["--json", *args]  # the verifier reads its own options, so that it needs nothing of ours
    with command.make_context(f"fedhub {group}", args, obj=terminal) as context:
        result = command.invoke(context)
    if not isinstance(result, Exit):
        raise TypeError(f"fedhub {group} answered {result!r}, which is no exit code")
    return result


def _take_global_options(argv: list[str], terminal: Terminal) -> list[str]:
    while argv:
        if argv[0] == "--json":
            argv = argv[1:]
        elif argv[0] == "--home":
            if len(argv) < 2:
                raise click.UsageError("--home needs a folder")
            terminal.home_path = Path(argv[1])
            argv = argv[2:]
        elif argv[0].startswith("--home="):
            terminal.home_path = Path(argv[0].removeprefix("--home="))
            argv = argv[1:]
        else:
            break
    return argv


def _overview() -> str:
    lines = ["Usage: fedhub [--home DIR] [--json] GROUP COMMAND …", ""]
    lines += [f"  {name:<12} {about}" for name, (_module, about) in GROUPS.items()]
    lines += [
        "",
        "  --home DIR   the institution's folder (default: $FEDHUB_HOME or ./.fedhub)",
        "  --json       answer with JSON",
        "  --version    the version of fedhub",
        "",
        "fedhub GROUP --help explains a group, fedhub GROUP COMMAND --help a command.",
        "Exit codes: 0 done; 1 refused, or checked and not true; 2 wrong usage, or could not be done.",
    ]
    return "\n".join(lines)


def _check_packages() -> None:
    """Refuse to run on packages that are not ours: other distributions use the same three names."""
    parents = set()
    for name in _PACKAGES:
        file = getattr(import_module(name), "__file__", None)
        parents.add(Path(file).parent.parent if file else None)
    if len(parents) > 1 or None in parents or not hasattr(hub, "__version__"):
        hint = "install fedhub into an environment of its own"
        raise Unchecked("E_PACKAGES", "hub, federation and storage do not come from one installation", hint)


def _explain(terminal: Terminal, code: Exit, slug: str, message: str, hint: str) -> Exit:
    terminal.problem = {"code": slug, "message": message, "hint": hint}
    found = find_cause(slug)
    if found is not None:
        terminal.problem |= {"cause": found.cause, "owner": found.owner, "step": found.step}
    if terminal.json:
        print(json.dumps({"error": terminal.problem}, sort_keys=True), file=terminal.err, flush=True)
    else:
        print(f"fedhub: {slug}: {message}", file=terminal.err, flush=True)
        if hint:
            print(f"  what to do: {hint}", file=terminal.err, flush=True)
        if found is not None:
            print(f"  cause: {found.cause}", file=terminal.err, flush=True)
            print(f"  next step ({found.owner}): {found.step}", file=terminal.err, flush=True)
    return code


def _explain_usage(terminal: Terminal, error: click.UsageError) -> Exit:
    name = error.ctx.command_path if error.ctx else "fedhub"
    return _explain(terminal, Exit.FAILED, "E_USAGE", error.format_message(), f"{name} --help")


def _explain_missing(terminal: Terminal, argv: list[str], error: ModuleNotFoundError) -> Exit:
    missing = (error.name or "").partition(".")[0]
    extra = next((name for name, brought in _EXTRAS.items() if missing in brought), None)
    if extra is None:
        return _explain(terminal, Exit.FAILED, "E_CRASH", f"cannot import {error.name}", "reinstall fedhub")
    if extra == "lab" and "hub" in argv[:4]:
        extra = "hub"
    if {"demo", "sandbox"} & set(argv[:4]):  # they need all of it, whatever was missed first
        extra = "demo"
    message = f"this command needs {missing}, which is not installed"
    return _explain(terminal, Exit.FAILED, "E_EXTRA", message, f"pip install 'fedhub[{extra}]'")
