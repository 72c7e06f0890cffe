"""``fedhub model``: push signed versions, pull them verified."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, Terminal, short, table, terminal_of
from storage.errors import Exit, Refused, Unchecked

if TYPE_CHECKING:
    from federation import wire
    from federation.pulling import Pulled

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Models and their signed versions.")


@app.command("new", cls=Command)
def new(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    recipe: Annotated[str, typer.Option(help="The training code, such as text-classification.")],
    base: Annotated[
        Path | None,
        typer.Option(help="The frozen base model that adapters sit on.", exists=True, file_okay=False),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A recipe parameter, NAME=VALUE; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the fresh weights.", min=0)] = 1,
) -> Exit:
    """Make the folder of an untaught model for a recipe, ready to push: fresh weights and config.json.

    With --base the weights are LoRA adapters and head; config.json pins the base's files by digest.
    """
    from federation.training import make_model
    from hub.commands.recipe_settings import chosen

    terminal = terminal_of(ctx)
    parameters = chosen(recipe, setting or [], base)
    if folder.exists() and any(folder.iterdir()):
        raise Unchecked("E_TARGET", f"{folder} is not empty", "choose another folder for the model")
    folder.mkdir(parents=True, exist_ok=True)
    made = make_model(recipe, parameters, folder, seed, bases=[base] if base else [])
    return terminal.done(
        {"folder": str(folder), "recipe": recipe, "sha256": made.sha256, "size": made.size},
        f"{folder}: an untaught model for {recipe}, {made.size} bytes of weights.",
        f"Next: fedhub model push {folder} INSTITUTION/NAME",
    )


@app.command("push", cls=Command)
def push(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    name: Annotated[str, typer.Argument(help="INSTITUTION/NAME, in your own namespace.")],
    tag: Annotated[list[str] | None, typer.Option(help="A name for this version; may be repeated.")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="SPDX identifier.")] = None,
) -> Exit:
    """Upload a folder and sign it as the next version: all of it or nothing.

    Safe formats only: files that run code when they are loaded are refused before anything is sent.
    """
    from federation.publishing import push_version

    terminal = terminal_of(ctx)
    total = _refuse_unsafe(folder)
    home = home_of(terminal)
    with home.client() as client, terminal.progress("push", total) as moved:
        version = push_version(home, client, folder, name, license_id=license_id, tags=tag or [], moved=moved)
    return terminal.done(
        version.model_dump(),
        f"{version.name}@{version.version} is signed and logged; asset id {version.asset_id}",
        *([f"Tags: {', '.join(version.tags)}"] if version.tags else []),
        f"Next: a plan, or: fedhub grant issue {version.name}@{version.version} --to FIRM --action pull",
    )


@app.command("pull", cls=Command)
def pull(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where to install it; must not exist yet.", show_default=False)
    ] = None,
    grant: Annotated[str | None, typer.Option(help="Lean on this grant and no other.")] = None,
    duo: Annotated[
        list[str] | None, typer.Option(help="A term you accept, DUO:nnnnnnn; may be repeated.")
    ] = None,
    pack: Annotated[Path | None, typer.Option(help="Leave the evidence pack in this new folder.")] = None,
    into_hf_cache: Annotated[
        bool, typer.Option("--into-hf-cache", help="Install it where from_pretrained finds it offline.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="With --into-hf-cache: one more name to load it by, such as main.")
    ] = None,
    verify_only: Annotated[
        bool,
        typer.Option("--verify-only", help="FOLDER is there: check it against the version, fetch nothing."),
    ] = False,
) -> Exit:
    """Download a version, check every byte and signature by this home's own pins, then install it at once.

    On any failure nothing stands at FOLDER, and the error names the file. A pull that was cut goes on where
    it stopped when it is repeated.
    """
    from federation.pulling import find_version, pull_version, verify_folder
    from federation.stock_cache import cache_folder, pull_into_cache

    _check_places(folder, pack, into_hf_cache=into_hf_cache, verify_only=verify_only, revision=revision)
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        if verify_only:
            assert folder is not None
            return _tell_pulled(terminal, verify_folder(home, client, reference, folder), pack, "Verified")
        wanted = find_version(client, reference)
        with terminal.progress("pull", sum(file.size for file in wanted.files)) as moved:
            if folder is None:
                cache = cache_folder()
                pulled = pull_into_cache(
                    home, client, reference, cache, revision=revision, grant=grant, duo=duo or [], moved=moved
                )
            else:
                pulled = pull_version(
                    home, client, reference, folder, grant=grant, duo=duo or [], moved=moved, keep_pack=pack
                )
    return _tell_pulled(terminal, pulled, pack, "Pulled")


def _check_places(
    folder: Path | None, pack: Path | None, *, into_hf_cache: bool, verify_only: bool, revision: str | None
) -> None:
    """Refuse places that contradict each other before anything is asked of the hub."""
    wrong = None
    if (folder is None) != into_hf_cache:
        wrong = "a pull goes to FOLDER or with --into-hf-cache to the cache"
    elif verify_only and into_hf_cache:
        wrong = "--verify-only needs a FOLDER"
    elif revision is not None and not into_hf_cache:
        wrong = "--revision is for --into-hf-cache"
    elif pack is not None and (into_hf_cache or verify_only):
        wrong = "--pack is for a pull to FOLDER"
    if wrong:
        raise Unchecked("E_USAGE", wrong, "see: fedhub model pull --help")


def _tell_pulled(terminal: Terminal, pulled: "Pulled", pack: Path | None, verb: str) -> Exit:
    version = pulled.version
    by = f"under grant {short(pulled.grant)}" if pulled.grant else "without a grant (own or public)"
    total, count = sum(file.size for file in version.files), len(version.files)
    name = f"{version.name}@{version.version}"
    lines = {
        "Pulled": (
            f"Pulled {name} {by}: {count} files, {total:,} bytes, all verified.",
            f"Installed at {pulled.folder}.",
        ),
        "Verified": (f"{pulled.folder} is {name}: {count} files, {total:,} bytes, all verified.",),
    }
    return terminal.done(
        {
            "name": version.name,
            "version": version.version,
            "asset_id": version.asset_id,
            "folder": str(pulled.folder),
            "grant": pulled.grant,
            "pack": str(pack) if pack else None,
            "steps": pulled.report.as_json()["steps"],
        },
        *lines[verb],
    )


@app.command("sign", cls=Command)
def sign(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@REVISION", help="Branch, tag or commit id.")],
    files: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Your own copy of the files.")
    ] = None,
    trust_hub: Annotated[
        bool, typer.Option("--trust-hub", help="Sign what the hub shows, without a copy of your own.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(help="A name for this version; may be repeated.")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="SPDX identifier.")] = None,
) -> Exit:
    """Make a draft, pushed by a stock client, the next signed version.

    The draft is compared with FILES first, file by file: until then it is only the hub's word, since no token
    can sign.
    """
    from federation.signing_drafts import sign_draft

    if (files is None) != trust_hub:
        raise Unchecked(
            "E_USAGE", "give --files DIR or --trust-hub", "--files compares the draft with your own folder"
        )
    name, _, revision = reference.partition("@")
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        version = sign_draft(
            home, client, name, revision or "main", files=files, license_id=license_id, tags=tag or []
        )
    seen = f"compared with {files}" if files else "not compared: the hub was trusted"
    return terminal.done(
        version.model_dump(),
        f"{version.name}@{version.version} is signed and logged; asset id {version.asset_id}",
        f"Its {len(version.files)} files were {seen}.",
    )


@app.command("visibility", cls=Command)
def visibility(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="INSTITUTION/NAME, in your own namespace.")],
    wanted: Annotated[Literal["public", "gated", "private"], typer.Argument(metavar="public|gated|private")],
) -> Exit:
    """Say who may read a model: everybody, those with a grant, or only they know of it."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        model = client.set_visibility(name, wanted)
    return terminal.done(model.model_dump(), f"{model.name} is {model.visibility}.")


@app.command("list", cls=Command)
def list_models(ctx: typer.Context, search: Annotated[str, typer.Argument()] = "") -> Exit:
    """List the models this home may see."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = client.models(search or None)
    rows = [(model.name, model.visibility, model.versions, _state(model.newest)) for model in found]
    return terminal.done(
        {"models": [each.model_dump() for each in found]},
        *table(("model", "visibility", "versions", "newest"), rows),
    )


@app.command("show", cls=Command)
def show(
    ctx: typer.Context, reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION|:TAG]")]
) -> Exit:
    """Show a model's versions, or one version's files."""
    from federation.pulling import find_version, split_reference

    terminal = terminal_of(ctx)
    name, number, tag = split_reference(reference)
    with home_of(terminal).client() as client:
        if number is None and tag is None:
            model = client.model(name)
            rows = [
                (each.version, short(each.asset_id), ", ".join(each.tags), _state(each), each.created_at)
                for each in model.versions
            ]
            lines = [f"{model.name}, owner {model.owner}, {model.visibility}"]
            lines += table(("version", "asset id", "tags", "state", "made"), rows)
            return terminal.done(model.model_dump(), *lines)
        version = find_version(client, reference)
    lines = [
        f"{version.name}@{version.version}, {_state(version)}, made {version.created_at}",
        f"  asset id {version.asset_id}",
        f"  license {version.license or 'not stated'}, tags {', '.join(version.tags) or 'none'}",
        f"  made by the run of plan {version.plan}" if version.plan else "  its owner's word alone: no plan",
    ]
    lines += table(
        ("file", "bytes", "sha256"), [(each.name, each.size, each.sha256) for each in version.files]
    )
    return terminal.done(version.model_dump(), *lines)


@app.command("tag", cls=Command)
def tag_version(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    tag: Annotated[str, typer.Argument()],
) -> Exit:
    """Give a version a tag; a tag is made once and stays."""
    from federation.pulling import split_reference

    terminal = terminal_of(ctx)
    name, number, _tag = split_reference(reference)
    if number is None:
        raise Unchecked("E_USAGE", f"{reference!r} names no version", "write INSTITUTION/NAME@VERSION")
    with home_of(terminal).client() as client:
        version = client.tag(name, tag, number)
    return terminal.done(version.model_dump(), f"{name}:{tag} is {name}@{number}.")


@app.command("diff", cls=Command)
def diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")],
    after: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")],
) -> Exit:
    """Say what changed from one version to another: files, and tensors by name, type and shape.

    Only the headers of safetensors files are read, a few kilobytes each.
    """
    from dataclasses import asdict

    from federation.comparing import compare
    from federation.pulling import find_version

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        old, new = find_version(client, before), find_version(client, after)
        found = compare(client, old, new)
    rows = [("added", name, "") for name in found.files_added]
    rows += [("removed", name, "") for name in found.files_removed]
    rows += [("changed", name, "") for name in found.files_changed]
    rows += [("tensor added", name, what) for name, what in found.tensors_added.items()]
    rows += [("tensor removed", name, what) for name, what in found.tensors_removed.items()]
    rows += [
        ("tensor reshaped", name, f"{was} -> {now}") for name, (was, now) in found.tensors_reshaped.items()
    ]
    rows += [("header not read", name, "") for name in found.unread]
    return terminal.done(
        {"before": f"{old.name}@{old.version}", "after": f"{new.name}@{new.version}", **asdict(found)},
        f"{old.name}@{old.version} -> {new.name}@{new.version}: "
        + (
            "the same files" if found.same else f"{found.tensors_alike} tensors alike in name, type and shape"
        ),
        *(table(("what", "name", "type and shape"), rows) if rows else []),
    )


@app.command("lineage", cls=Command)
def show_lineage(
    ctx: typer.Context, reference: Annotated[str, typer.Argument(metavar="NAME@VERSION|NAME:TAG")]
) -> Exit:
    """Show where a version came from: plans, participants and base versions, back to the first."""
    from federation.comparing import lineage
    from federation.pulling import find_version

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        line = lineage(client, find_version(client, reference))
    rows = []
    for one in line:
        by = f"{one.rounds} rounds by {', '.join(one.participants)}" if one.rounds else ""
        asset = short(one.version.asset_id) if one.version else "-"
        rows.append((one.reference, asset, _state(one.version) if one.version else "-", one.how, by))
    said = [
        {
            "reference": one.reference,
            "asset_id": one.version.asset_id if one.version else None,
            "how": one.how,
            "rounds": one.rounds,
            "participants": list(one.participants),
        }
        for one in line
    ]
    return terminal.done(
        {"lineage": said}, *table(("version", "asset id", "state", "it is", "training"), rows)
    )


def _refuse_unsafe(folder: Path) -> int:
    """Refuse files that run code when loaded, before any byte leaves; gives the folder's size in bytes."""
    from federation.stock_names import LARGEST_BYTES, check_portable, check_unreserved
    from hub.services.formats import check_content

    total, paths = 0, sorted(folder.rglob("*"))
    names = [path.relative_to(folder).as_posix() for path in paths]
    check_unreserved(names)
    check_portable(names)
    for path in paths:
        if path.is_symlink() or not path.is_file():
            continue  # the manifest refuses what is no regular file, with the better message
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            if size > LARGEST_BYTES:
                rule = f"{name}: at most {LARGEST_BYTES} bytes, found {size}"
                raise Refused("E_LIMIT", rule, "save it as shards of 5 GB: stock clients download no more")
            check_content(name, size, read)
            total += size
    return total


def _state(version: "wire.ModelVersion | wire.NewestVersion | None") -> str:
    if version is None:
        return "no version"
    return f"@{version.version}, " + ("released" if version.released else "not released")
