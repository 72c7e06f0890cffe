"""Pages of models; those of data sets are in ``dataset_pages``."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from federation import wire
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.errors import not_found
from hub.services import alliance, catalogue, dossiers, registry
from hub.services.dossiers import Measure
from hub.services.mlflow_names import mlflow_names
from hub.web.cards import render_card
from hub.web.charts import span
from hub.web.clients import Client
from hub.web.rendering import Visitor, page, sign_in_first

router = APIRouter(include_in_schema=False)


@router.get("/models", response_class=HTMLResponse)
def model_list(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    search: str = "",
    owner: str = "",
    visibility: str = "",
    license: str = "",  # noqa: A002  # the form's word
    released: str = "",
    tag: str = "",
    cursor: str | None = None,
) -> Response:
    """Models that the visitor may see, by name, owner, licence, openness, tag and release."""
    if not actor.known:
        return sign_in_first(request)
    wanted = catalogue.Wanted(
        search.strip()[:200],
        owner[:253],
        license.strip()[:128],
        visibility,
        bool(released),
        tag.strip()[:128],
    )
    found, following = catalogue.find(hub, session, actor, wanted, cursor=cursor)
    more = request.url.include_query_params(cursor=following).query if following else ""
    return page(
        request,
        hub,
        actor,
        "models.html",
        models=found,
        wanted=wanted,
        owners=alliance.names(session, actor),
        more_at=f"/models?{more}" if more else "",
    )


@router.get("/models/{institution}/{name}", response_class=HTMLResponse)
def model(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    institution: str,
    name: str,
    version: int | None = None,
) -> Response:
    """One model: card, how to pull, versions, files, lineage, evaluations, signatures, grants."""
    if not actor.known:
        return sign_in_first(request)
    found = registry.show(hub, session, actor, f"{institution}/{name}")
    shown = _shown(found, version)
    if shown is None:
        return page(request, hub, actor, "model.html", model=found, shown=None)
    papers = dossiers.papers(hub, session, actor, shown.asset_id)
    text = dossiers.card(hub, session, actor, found, shown)
    grants, _ = dossiers.grants(hub, session, actor, asset_id=shown.asset_id)
    return page(
        request,
        hub,
        actor,
        "model.html",
        model=found,
        shown=shown,
        card=render_card(text) if text.strip() else "",
        clients=_clients(hub, shown, mlflow_names(session, [found.name])[found.name]),
        lineage=dossiers.lineage(hub, session, actor, shown),
        measures=[(one, _picture(one)) for one in dossiers.measures(papers)],
        papers=papers,
        approvals=registry.approvals(hub, session, actor, found.name, shown.version),
        verify=_verify(shown),
        grants=[grant for grant in grants if "pull" in grant.actions],
    )


def _shown(model: wire.Model, version: int | None) -> wire.ModelVersion | None:
    """The version asked for; else the newest released one, else the newest."""
    if version is not None:
        wanted = [one for one in model.versions if one.version == version]
        if not wanted:
            raise not_found("version", f"{model.name}@{version}")
        return wanted[0]
    ordered = sorted(model.versions, key=lambda one: (one.released, one.version))
    return ordered[-1] if ordered else None


def _verify(version: wire.ModelVersion) -> str:
    export = f"fedhub audit export {version.name}@{version.version} ./pack"
    return f"{export}\nfedhub verify ./pack --trust trust.json"


def _picture(one: Measure) -> Markup:
    label = (
        f"{one.metric} {one.value:.3f}, 95 % between {one.low:.3f} and {one.high:.3f}, wanted {one.bar:.3f}"
    )
    return span(one.value, one.low, one.high, one.bar, label)


def _clients(hub: Hub, version: wire.ModelVersion, mlflow_name: str) -> list[Client]:
    endpoint, name, folder = hub.settings.public, version.name, version.name.partition("/")[2]
    revision = f"v{version.version}"
    host, plain = endpoint.partition("://")[2], " --plain-http" if endpoint.startswith("http:") else ""
    return [
        Client(
            "fedhub",
            "checks every byte and signature",
            f"fedhub model pull {name}@{version.version} ./{folder}",
        ),
        Client(
            "hf",
            "the Hugging Face command, unchanged",
            f"export HF_ENDPOINT={endpoint} HF_TOKEN=TOKEN\n"
            f"hf download {name} --revision {revision} --local-dir ./{folder}",
        ),
        Client(
            "Python",
            "huggingface_hub, transformers, peft",
            "import os\n"
            f'os.environ["HF_ENDPOINT"], os.environ["HF_TOKEN"] = "{endpoint}", "TOKEN"\n'
            "from huggingface_hub import snapshot_download\n"
            f'folder = snapshot_download("{name}", revision="{revision}")',
        ),
        Client(
            "MLflow",
            "the registry of the mlflow command and library",
            f"export MLFLOW_TRACKING_URI={endpoint} MLFLOW_TRACKING_TOKEN=TOKEN\n"
            f"mlflow artifacts download -u models:/{mlflow_name}/{version.version} -d ./{folder}",
        ),
        Client(
            "OCI",
            "oras, crane and other registry clients; signatures are referrers",
            f"echo TOKEN | oras login {host} --username any --password-stdin{plain}\n"
            f"oras pull {host}/{name.lower()}:{revision} --output ./{folder}{plain}",
        ),
        Client(
            "curl",
            "the hub's API: an answer with an address for each file",
            f'curl -H "Authorization: Bearer TOKEN" -H "Content-Type: application/json" \\\n'
            f"     -d '{json.dumps({'asset_id': version.asset_id})}' \\\n"
            f"     {endpoint}/api/v1/pulls",
        ),
    ]
