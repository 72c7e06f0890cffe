"""Pages of data sets: descriptions of data that stay where they are, and data sets shared on purpose."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from federation import wire
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.services import alliance, datasets, dossiers
from hub.web.clients import Client
from hub.web.croissants import read_view
from hub.web.rendering import Visitor, page, sign_in_first

router = APIRouter(include_in_schema=False)
KEPT = ("site", "hub")


@router.get("/datasets", response_class=HTMLResponse)
def dataset_list(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    search: str = "",
    owner: str = "",
    license: str = "",  # noqa: A002  # the form's word
    kept: str = "",
    cursor: str | None = None,
) -> Response:
    """Both kinds, each in its own list: by name, owner, licence and where the rows lie."""
    if not actor.known:
        return sign_in_first(request)
    wanted = datasets.Wanted(search.strip()[:200], owner[:253], license.strip()[:128])
    lists = []
    for kind, look in (("site", datasets.on_site), ("hub", datasets.shared)):
        if kept in KEPT and kept != kind:
            continue
        found, following = look(hub, session, actor, wanted, cursor=cursor if kept == kind else None)
        more = request.url.include_query_params(cursor=following, kept=kind).query if following else ""
        shown = [(one, read_view(one.croissant)) for one in found]
        lists.append((kind, shown, f"/datasets?{more}" if more else ""))
    return page(
        request,
        hub,
        actor,
        "datasets.html",
        lists=lists,
        wanted=wanted,
        kept=kept,
        owners=alliance.names(session, actor),
    )


@router.get("/datasets/{institution}/{name}", response_class=RedirectResponse)
def dataset_by_name(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, institution: str, name: str
) -> Response:
    """The newest version of a name, which stock clients print as its address."""
    if not actor.known:
        return sign_in_first(request)
    found = datasets.newest(hub, session, actor, f"{institution}/{name}")
    return RedirectResponse(f"/datasets/{found.asset_id}", 303)


@router.get("/datasets/{asset_id}", response_class=HTMLResponse)
def dataset(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, asset_id: str) -> Response:
    """One data set as its Croissant file describes it, with its files and ways to pull where it is shared."""
    if not actor.known:
        return sign_in_first(request)
    found = datasets.dataset(hub, session, actor, asset_id)
    grants, _ = dossiers.grants(hub, session, actor, asset_id=asset_id)
    return page(
        request,
        hub,
        actor,
        "dataset.html",
        dataset=found,
        view=read_view(found.croissant),
        pretty=_pretty(found.croissant),
        papers=dossiers.papers(hub, session, actor, asset_id),
        grants=grants,
        files=datasets.files(session, found),
        clients=_clients(hub, found) if found.kept == "hub" else [],
    )


def _pretty(croissant: str) -> str:
    try:
        return json.dumps(json.loads(croissant), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return croissant


def _clients(hub: Hub, found: wire.Dataset) -> list[Client]:
    endpoint, name, folder = hub.settings.public, found.name, found.name.partition("/")[2]
    revision = f"v{found.version}"
    return [
        Client(
            "fedhub",
            "checks every byte and signature",
            f"fedhub data pull {name}@{found.version} ./{folder}",
        ),
        Client(
            "Python",
            "the datasets library, unchanged",
            "import os\n"
            f'os.environ["HF_ENDPOINT"], os.environ["HF_TOKEN"] = "{endpoint}", "TOKEN"\n'
            "from datasets import load_dataset\n"
            f'rows = load_dataset("{name}", revision="{revision}")',
        ),
        Client(
            "hf",
            "the Hugging Face command, unchanged",
            f"export HF_ENDPOINT={endpoint} HF_TOKEN=TOKEN\n"
            f"hf download {name} --repo-type dataset --revision {revision} --local-dir ./{folder}",
        ),
        Client(
            "curl",
            "the hub's API: an answer with an address for each file",
            f'curl -H "Authorization: Bearer TOKEN" -H "Content-Type: application/json" \\\n'
            f"     -d '{json.dumps({'asset_id': found.asset_id})}' \\\n"
            f"     {endpoint}/api/v1/pulls",
        ),
    ]
