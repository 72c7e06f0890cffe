"""``fedhub data``: describe data that stay on-site, and see what others described."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hub.commands.homes import home_of
from hub.terminal import Command, short, table, terminal_of
from storage.errors import Exit

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Datasets: described on-site and never uploaded, or shared on purpose.",
)


@app.command("describe", cls=Command)
def describe(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder with the tables.")],
    name: Annotated[str, typer.Argument(help="INSTITUTION/NAME, in your own namespace.")],
    description: Annotated[
        str, typer.Option(help="One sentence for people.")
    ] = "A dataset that stays on-site.",
    license_id: Annotated[
        str, typer.Option("--license", help="SPDX identifier of its terms.")
    ] = "LicenseRef-Site",
    duo: Annotated[
        list[str] | None, typer.Option(help="A term of use, DUO:nnnnnnn; may be repeated.")
    ] = None,
) -> Exit:
    """Describe a folder of CSV tables and publish the signed description; the rows stay where they are.

    Published: column names and types, row counts, terms. Kept in the home: the salted manifest with the
    files' digests.
    """
    from federation.publishing import describe_dataset

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        dataset = describe_dataset(
            home, client, folder, name, description=description, license_id=license_id, duo=duo or []
        )
    return terminal.done(
        dataset.model_dump(),
        f"{dataset.name} version {dataset.version} is described; asset id {dataset.asset_id}",
        f"Signed and logged. Its rows stay in {folder.resolve()}, its manifest in {home.site}.",
        "Next: fedhub site up, and tell model owners the dataset's name.",
    )


@app.command("share", cls=Command)
def share(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME@REVISION", help="Branch, tag or commit id.")],
    files: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Your own copy of the files.")],
    description: Annotated[str, typer.Option(help="One sentence for people.")],
    license_id: Annotated[str, typer.Option("--license", help="SPDX identifier of its terms.")],
    duo: Annotated[
        list[str] | None, typer.Option(help="A term of use, DUO:nnnnnnn; may be repeated.")
    ] = None,
) -> Exit:
    """Sign a draft of a data set whose files were uploaded on purpose: others may then be granted them.

    The draft is compared with FILES first. For data that stay on-site use `fedhub data describe`.
    """
    from federation.signing_drafts import share_draft

    name, _, revision = reference.partition("@")
    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        made = share_draft(
            home,
            client,
            name,
            revision or "main",
            files=files,
            description=description,
            license_id=license_id,
            duo=duo or [],
        )
    return terminal.done(
        made.model_dump(exclude={"manifest"}),
        f"{made.name} version {made.version} is signed and logged; asset id {made.asset_id}",
        f"Its files lie in the hub. Next: fedhub grant issue {made.asset_id} --to FIRM --action pull.",
    )


@app.command("pull", cls=Command)
def pull(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A shared data set.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    duo: Annotated[
        list[str] | None, typer.Option(help="A term of use that you accept, DUO:nnnnnnn; may be repeated.")
    ] = None,
) -> Exit:
    """Pull a shared data set; every byte and signature is checked before the folder is there.

    Data that stay on-site cannot be pulled: the hub has none of their files.
    """
    from federation.pulling_datasets import pull_dataset

    terminal = terminal_of(ctx)
    home = home_of(terminal)
    with home.client() as client:
        pulled = pull_dataset(home, client, reference, folder, duo=duo or [])
    total, count = sum(file.size for file in pulled.manifest.files), len(pulled.manifest.files)
    by = f"under grant {short(pulled.grant)}" if pulled.grant else "without a grant (own or public)"
    return terminal.done(
        {
            "name": pulled.name,
            "version": pulled.version,
            "asset_id": pulled.manifest.asset_id,
            "folder": str(folder),
            "grant": pulled.grant,
        },
        f"Pulled {pulled.name}@{pulled.version} {by}: {count} files, {total:,} bytes, all verified.",
        f"Installed at {folder}.",
    )


@app.command("visibility", cls=Command)
def visibility(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="INSTITUTION/NAME of a shared data set of yours.")],
    wanted: Annotated[Literal["public", "gated", "private"], typer.Argument(metavar="public|gated|private")],
) -> Exit:
    """Say who may read a shared data set: everybody, those with a grant, or only they know of it."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        client.set_dataset_visibility(name, wanted)
    return terminal.done({"name": name, "visibility": wanted}, f"{name} is {wanted}.")


@app.command("list", cls=Command)
def list_datasets(
    ctx: typer.Context,
    search: Annotated[str, typer.Argument(help="Part of the name.")] = "",
    kept: Annotated[
        Literal["site", "hub"] | None, typer.Option(help="Only those that stay on-site, or only shared ones.")
    ] = None,
) -> Exit:
    """List data sets: those that stay on-site, and those whose files their owners shared in the hub."""
    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        kinds = [kept] if kept else ["site", "hub"]
        found = [each for kind in kinds for each in client.datasets(kind, search=search or None)]
    where = {"site": "stays on-site", "hub": "in the hub"}
    rows = [
        (each.name, each.version, where[each.kept], short(each.asset_id), each.license or "", each.created_at)
        for each in found
    ]
    return terminal.done(
        {"datasets": [each.model_dump(exclude={"croissant"}) for each in found]},
        *table(("dataset", "version", "rows", "asset id", "license", "described"), rows),
    )


@app.command("show", cls=Command)
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="INSTITUTION/NAME or an asset id.")],
) -> Exit:
    """Show what is published of a dataset: its Croissant description."""
    from federation.pulling import find_dataset

    terminal = terminal_of(ctx)
    with home_of(terminal).client() as client:
        found = find_dataset(client, name)
    croissant = json.loads(found.croissant)
    lines = [
        f"{found.name} version {found.version}, asset id {found.asset_id}",
        "  its rows stay on-site"
        if found.kept == "site"
        else f"  its files lie in the hub, {found.visibility}",
        f"  {croissant.get('description')}",
    ]
    for records in croissant.get("recordSet", []):
        fields = records.get("field", [])
        lines.append(
            f"  table {records.get('name')}: {len(fields)} columns. {records.get('description', '')}".rstrip()
        )
    return terminal.done({**found.model_dump(exclude={"croissant"}), "croissant": croissant}, *lines)
