"""Routes of models, versions, tags, releases and data sets."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession, actor_at_once, in_lists_lane
from hub.api.paging import link_next
from hub.api.problems import responses
from hub.context import Hub
from hub.services import catalogue, datasets, registry

router = APIRouter(tags=["registry"])
Number = Annotated[int, Path(ge=1, lt=1 << 31)]
RAW = {"content": {"application/json": {}}, "description": "The bytes of manifest.json"}


class TagTarget(BaseModel):
    """The version that a new tag names."""

    model_config = ConfigDict(extra="forbid")
    version: int = Field(ge=1, lt=1 << 31)


class Filters(BaseModel):
    """Which models to list."""

    search: str | None = Field(None, max_length=200, description="Part of the name, in any case")
    owner: str | None = Field(None, max_length=253, description="An institution")
    license: str | None = Field(None, max_length=128, description="SPDX expression or part of one")
    visibility: Literal["public", "gated", "private"] | None = None
    released: bool = Field(False, description="Only models with a released version")
    tag: str | None = Field(None, max_length=128, description="A tag of one of its versions")
    asset_id: str | None = Field(None, max_length=64, description="The asset id of one of its versions")
    cursor: str | None = Field(None, max_length=600, description="As the last answer's Link header gave it")


@router.get("/models", response_model=list[wire.ListedModel], responses=responses())
async def search(hub: HubHere, request: Request, wanted: Annotated[Filters, Query()]) -> Response:
    """Models that the caller may see, by name, without their versions and files."""
    return await in_lists_lane(request, partial(_page, hub, request, wanted))


def _page(hub: Hub, request: Request, wanted: Filters) -> Response:
    asked = catalogue.Wanted(
        text=wanted.search or "",
        owner=wanted.owner or "",
        license=wanted.license or "",
        visibility=wanted.visibility or "",
        released=wanted.released,
        tag=wanted.tag or "",
        asset_id=wanted.asset_id or "",
    )
    with hub.database.glance() as glance:
        actor = actor_at_once(request, hub, glance)
        found, following = catalogue.page(
            hub, glance, actor, asked, cursor=wanted.cursor, limit=hub.settings.page_size
        )
    response = JSONResponse(found)
    link_next(request, response, following)
    return response


@router.get("/models/{institution}/{name}", response_model=wire.Model, responses=responses(404))
def model(hub: HubHere, request: Request, institution: str, name: str) -> Response:
    """One model with its versions."""
    del institution, name  # read from the request: ``hub.api.quick`` calls the same
    return model_answer(hub, request)


def model_answer(hub: Hub, request: Request, brief: bool = True) -> Response:
    """The answer to a request for one model; it is always brief (``hub.api.quick``)."""
    del brief
    name = "{institution}/{name}".format_map(request.path_params)
    with hub.database.glance() as glance:
        actor = actor_at_once(request, hub, glance)
        said = registry.show_text(hub, glance, actor, name)
    return Response(said, media_type="application/json")


@router.put("/models/{institution}/{name}/visibility", responses=responses(404))
def visibility(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    institution: str,
    name: str,
    request: wire.VisibilityChange,
) -> wire.Model:
    """Say who may see the caller's model; to open it wider needs a login with the targets key."""
    return registry.set_visibility(hub, session, actor, f"{institution}/{name}", request.visibility)


@router.post("/models/{institution}/{name}/versions", status_code=201, responses=responses(409, 413))
def publish(
    hub: HubHere, actor: CurrentActor, institution: str, name: str, request: wire.VersionPost
) -> wire.ModelVersion:
    """Make uploaded files a signed version, whole or not at all."""
    return registry.publish(hub, actor, f"{institution}/{name}", request)


@router.get("/models/{institution}/{name}/versions/{version}", responses=responses(404))
def version(
    hub: HubHere, session: ReadSession, actor: CurrentActor, institution: str, name: str, version: Number
) -> wire.ModelVersion:
    """One version of a model."""
    return registry.version(hub, session, actor, f"{institution}/{name}", version)


@router.get(
    "/models/{institution}/{name}/versions/{version}/manifest",
    response_class=Response,
    responses={200: RAW, **responses(404)},
)
def manifest(
    hub: HubHere, session: ReadSession, actor: CurrentActor, institution: str, name: str, version: Number
) -> Response:
    """The version's `manifest.json`; its digest is the asset id."""
    raw = registry.manifest(hub, session, actor, f"{institution}/{name}", version)
    return Response(raw, media_type="application/json")


@router.get("/models/{institution}/{name}/versions/{version}/approvals", responses=responses(404))
def approvals(
    hub: HubHere, session: ReadSession, actor: CurrentActor, institution: str, name: str, version: Number
) -> wire.Approvals:
    """Who has approved the version's release, and how many it needs."""
    return registry.approvals(hub, session, actor, f"{institution}/{name}", version)


@router.put("/models/{institution}/{name}/tags/{tag}", responses=responses(404, 409))
def tag(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    institution: str,
    name: str,
    tag: str,
    request: TagTarget,
) -> wire.ModelVersion:
    """Give a version a new tag; a tag never moves."""
    return registry.tag(hub, session, actor, f"{institution}/{name}", tag, request.version)


@router.get("/releases", responses=responses())
def released(hub: HubHere, session: ReadSession, actor: CurrentActor) -> list[wire.Release]:
    """Released versions, newest first."""
    return catalogue.released_versions(hub, session, actor)


class DatasetFilters(BaseModel):
    """Which data sets to list."""

    kept: Literal["site", "hub"] = Field(
        "site", description="Where the rows lie: at their site, or shared here"
    )
    search: str | None = Field(None, max_length=200, description="Part of the name, in any case")
    owner: str | None = Field(None, max_length=253, description="An institution")
    license: str | None = Field(None, max_length=128, description="SPDX expression or part of one")
    cursor: str | None = Field(None, max_length=600, description="As the last answer's Link header gave it")


@router.get("/datasets", responses=responses())
def dataset_list(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    response: Response,
    wanted: Annotated[DatasetFilters, Query()],
) -> list[wire.Dataset]:
    """Data sets that members described, whose rows never leave their sites; or those shared on purpose."""
    asked = datasets.Wanted(wanted.search or "", wanted.owner or "", wanted.license or "")
    look = datasets.shared if wanted.kept == "hub" else datasets.on_site
    found, following = look(hub, session, actor, asked, cursor=wanted.cursor)
    link_next(request, response, following)
    return found


@router.get("/datasets/{asset_id}", responses=responses(404))
def dataset(hub: HubHere, session: ReadSession, actor: CurrentActor, asset_id: str) -> wire.Dataset:
    """One data set of either kind."""
    return datasets.dataset(hub, session, actor, asset_id)
