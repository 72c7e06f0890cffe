"""``fedhub app``: a lab's own code, pushed, read before anybody consents; and Flower's own runs, unsigned."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.encoding import is_digest
from storage.errors import Exit, Refused, Unchecked

if TYPE_CHECKING:
    from federation.app_bundle import AppBundle
    from federation.client import HubClient
    from federation.flower.control import Control
    from hub.settings import Settings

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A lab's own code as Flower app bundles (FAB)."
)


@app.command("push", cls=Command)
def push(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="A bundle, made by: flwr build")]
) -> Exit:
    """Upload an app bundle by its digest. Nothing runs it before a plan names it and labs consent."""
    from federation.app_bundle import read_bundle_file
    from federation.planning import push_app

    terminal = terminal_of(ctx)
    raw, bundle = read_bundle_file(file)
    with home_of(terminal).client() as client:
        push_app(client, raw)
    return terminal.done(
        _data(bundle),
        f"The app {bundle.name} {bundle.version} is at the hub: {bundle.sha256}, {bundle.size:,} bytes.",
        f"Next: fedhub plan new DIR --app {short(bundle.sha256)}… (the whole digest, or the file)",
    )


@app.command("show", cls=Command)
def show(
    ctx: typer.Context,
    which: Annotated[str, typer.Argument(metavar="FILE|SHA256|PLAN", help="A file, a digest or a plan.")],
    out: Annotated[
        Path | None, typer.Option(help="Unpack it into this new folder, to read the code.")
    ] = None,
) -> Exit:
    """Show what is in an app bundle, checked against its own list; with --out, lay its files out to read.

    Nothing of it is run. A plan's bundle is checked against the digest that the plan names.
    """
    from federation.app_bundle import read_bundle, unpack

    terminal = terminal_of(ctx)
    if Path(which).is_file():
        raw = bundle_bytes(None, which)
    else:
        with home_of(terminal).client() as client:
            raw = bundle_bytes(client, which)
    bundle = read_bundle(raw)
    lines = [
        f"app {bundle.name} {bundle.version}, {bundle.size:,} bytes",
        f"  sha256 {bundle.sha256}",
        f"  in a plan its ClientApp {bundle.client} runs at the labs and its ServerApp nowhere",
        *(f"  setting {name} = {value!r}" for name, value in sorted(bundle.settings.items())),
        *table(
            ("file", "bytes", "sha256"),
            [(each.name, len(each.data), short(each.sha256)) for each in bundle.files],
        ),
    ]
    if out is not None:
        try:
            unpack(bundle, out)
        except OSError as error:
            raise Unchecked(
                "E_TARGET", f"{out}: {error.strerror}", "name a folder that is not there"
            ) from error
        lines.append(f"Its files lie in {out}: read them before you consent.")
    return terminal.done(_data(bundle), *lines)


def bundle_bytes(client: "HubClient | None", which: str) -> bytes:
    """The bytes of a bundle that a person names by a file, its digest or a plan.

    Args:
        client: asked when ``which`` is no file.
    Raises:
        Unchecked: there is none of that name. Rejected: it is not what its digest says.
    """
    from federation.app_bundle import read_bundle_file
    from federation.plan import read_config
    from federation.planning import fetch_app
    from storage.encoding import unb64

    if client is None or Path(which).is_file():
        return read_bundle_file(Path(which))[0]
    plans = [plan for plan in client.plans() if len(which) >= 8 and plan.id.startswith(which)]
    if len(plans) == 1:
        return fetch_app(client, _app_of(read_config(unb64(plans[0].config)).app, which))
    if not is_digest(which):
        raise Unchecked(
            "E_NOT_FOUND", f"{which!r} is no file, no whole digest and no plan", "fedhub plan list"
        )
    return fetch_app(client, which)


def _app_of(terms: object, plan: str) -> str:
    from federation.app_terms import AppTerms

    if not isinstance(terms, AppTerms):
        raise Unchecked("E_APP", f"plan {plan} names a recipe, not an app", f"fedhub plan check {plan}")
    return terms.sha256


def _data(bundle: "AppBundle") -> dict[str, object]:
    return {
        "sha256": bundle.sha256,
        "size": bundle.size,
        "name": bundle.name,
        "version": bundle.version,
        "client": bundle.client,
        "settings": dict(bundle.settings),
        "files": [{"name": e.name, "sha256": e.sha256, "size": len(e.data)} for e in bundle.files],
    }


# --- Flower's own runs --------------------------------------------------------------------------------------

_KEY_BYTES = 1 << 16
UNSIGNED = "UNSIGNED: no plan, no consents, no receipts; nothing of it can become a version or a release"


@app.command("allow", cls=Command)
def allow(
    ctx: typer.Context,
    which: Annotated[str, typer.Argument(metavar="FILE|SHA256", help="A bundle, or its whole digest.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Allow it no more.")] = False,
) -> Exit:
    """Operator, where the hub runs: let SuperLink start this bundle's ServerApp, for stock Flower nodes.

    Its ServerApp then runs here, kept from all files but its own. Read its code first: fedhub app show.
    """
    from federation.app_bundle import read_bundle_file
    from federation.flower.allowed_apps import set_allowed

    terminal = terminal_of(ctx)
    sha256 = read_bundle_file(Path(which))[1].sha256 if Path(which).is_file() else which
    found = set_allowed(_settings().superlink_dir, sha256, not withdraw)
    verb = "no longer allowed" if withdraw else "allowed from the next run on"
    return terminal.done(
        {"sha256": sha256, "allowed": sorted(found)},
        f"The app {sha256} is {verb}; {len(found)} are allowed.",
        *([] if withdraw else [f"A run of it is {UNSIGNED}."]),
    )


@app.command("run", cls=Command)
def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A bundle that is allowed.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the app, NAME=VALUE; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for its end and show what it printed.")] = True,
) -> Exit:
    """Operator, where the hub runs: start a plain Flower run, by value, on nodes of stock flower-supernode.

    Lab agents refuse its messages. It leaves no evidence.
    """
    import time

    from federation.app_bundle import read_bundle_file, run_config, typed_parameters
    from federation.flower.allowed_apps import note_run, read_allowed
    from hub.commands.plans import settings_of

    terminal = terminal_of(ctx)
    raw, bundle = read_bundle_file(file)
    folder = _settings().superlink_dir
    if bundle.sha256 not in read_allowed(folder):
        raise Refused(
            "E_APP_NOT_ALLOWED", f"the app {bundle.sha256} is not allowed here", f"fedhub app allow {file}"
        )
    given = typed_parameters(bundle, settings_of(setting))
    config = {name: value for name, value in run_config(bundle, given).items() if name in given}
    with _control() as control:
        number = control.start_bundle(raw, config)
        note_run(folder, {"run": number, "app": bundle.sha256, "at": int(time.time()), "signed": False})
        terminal.say(f"Flower run {number} has started. {UNSIGNED}.")
        outcome = "started"
        if wait:
            for text in control.logs(number):
                terminal.say(text.rstrip("\n"))
            ended = control.status(number)
            outcome = ended.outcome if ended is not None else "unknown"
    return terminal.done(
        {"run": number, "app": bundle.sha256, "signed": False, "outcome": outcome},
        f"Flower run {number}: {outcome}. {UNSIGNED}.",
        exit_code=Exit.DONE if outcome in ("started", "completed") else Exit.FAILED,
    )


@app.command("runs", cls=Command)
def runs(ctx: typer.Context) -> Exit:
    """Operator, where the hub runs: list the bundles that are allowed and the unsigned runs of them."""
    from federation.flower.allowed_apps import noted_runs, read_allowed
    from storage.encoding import format_time

    terminal = terminal_of(ctx)
    folder = _settings().superlink_dir
    allowed, noted = sorted(read_allowed(folder)), noted_runs(folder)
    rows = [(each["run"], short(each["app"]), format_time(each["at"]), "UNSIGNED") for each in noted]
    return terminal.done(
        {"allowed": allowed, "runs": noted},
        *(f"allowed {each}" for each in allowed),
        *table(("flower run", "app", "started", "evidence"), rows),
    )


@app.command("admit", cls=Command)
def admit(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call the node.")],
    key: Annotated[Path, typer.Option(help="The stock node's public key, as PEM or by ssh-keygen.")],
) -> Exit:
    """Operator, where the hub runs: let a stock flower-supernode in by its key, until SuperLink restarts."""
    terminal = terminal_of(ctx)
    pem = node_pem(key)
    with _control() as control:
        node = control.register_node(pem, name)
    return terminal.done(
        {"node": node, "name": name},
        f"The stock node {name} may connect as node {node}. It has no dataset here, so no plan reaches it.",
    )


def node_pem(path: Path) -> str:
    """The public key in a file, in the one form that SuperLink takes; a private key is not sent anywhere.

    Raises:
        Unchecked: ``E_INPUT``.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from storage.signing import public_pem

    hint = 'make one with: ssh-keygen -t ecdsa -b 384 -N "" -f node.key, and name node.key.pub'
    try:
        with path.open("rb") as file:
            raw = file.read(_KEY_BYTES)
    except OSError as error:
        raise Unchecked("E_INPUT", f"{path}: cannot be read ({error.strerror})", hint) from error
    if b"PRIVATE KEY" in raw:
        raise Unchecked("E_INPUT", f"{path}: is a private key, which its node alone should hold", hint)
    spoken = (
        serialization.load_ssh_public_key if raw.startswith(b"ecdsa-") else serialization.load_pem_public_key
    )
    try:
        found = spoken(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unchecked("E_INPUT", f"{path}: is no public key", hint) from error
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise Unchecked("E_INPUT", f"{path}: expected a key on an elliptic curve", hint)
    return public_pem(found)


def _settings() -> "Settings":
    from hub.commands.care import check_founded
    from hub.settings import load_settings

    settings = load_settings()
    check_founded(settings)
    return settings


def _control() -> "Control":
    from federation.flower.control import Control
    from hub.keys import keys_of

    settings = _settings()
    given = settings.control_token
    token = keys_of(settings).control_token if given is None else given.get_secret_value()
    return Control(settings.control, token)
