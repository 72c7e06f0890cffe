"""Routes of the alliance: login, tokens, invitations, institutions, key rings, sites."""

import base64
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from federation import wire
from hub import __version__
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.limits import Rate, address_of
from hub.api.once import OnceHere
from hub.api.problems import responses
from hub.errors import bad_field
from hub.services import alliance, faults, identity
from storage.errors import FedhubError, Refused

router = APIRouter(tags=["alliance"])


class KeyRingRoots(BaseModel):
    """The roots of a key ring in force, oldest first, base64."""

    roots: list[str]


LOGIN_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "client_assertion_type", "client_assertion"],
                    "properties": {
                        "grant_type": {"type": "string", "const": "client_credentials"},
                        "client_assertion_type": {"type": "string", "const": identity.ASSERTION_TYPE},
                        "client_assertion": {"type": "string", "description": "ES256 JWT, kid = key hint"},
                    },
                }
            }
        },
    }
}


async def login_form(request: Request) -> dict[str, str]:
    """The members of the form in the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise bad_field("Content-Type", "a login is application/x-www-form-urlencoded")
    try:
        pairs = parse_qsl((await request.body()).decode("ascii"), strict_parsing=True, max_num_fields=8)
    except ValueError as error:
        raise bad_field("body", "not a form") from error
    return dict(pairs)


class Guard:
    """Slows down guessing: failed logins and enrolments of one address are counted.

    Only failures wait: whoever shares the address and proves who they are is let in.
    """

    def __init__(self, request: Request) -> None:
        self._rate: Rate = request.app.state.failed_logins
        self._address = address_of(request.scope)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, FedhubError):
            return
        wait_s = self._rate.take(self._address)
        if wait_s:
            hint = f"Try again in {int(wait_s) + 1} s."
            raise Refused("E_RATE", "too many failed logins", hint, status=429) from error


Guarded = Annotated[Guard, Depends(Guard)]


@router.post("/token", openapi_extra=LOGIN_FORM, responses=responses(401))
def token(
    hub: HubHere, guard: Guarded, form: Annotated[dict[str, str], Depends(login_form)]
) -> wire.AccessToken:
    """Exchange a JWT signed with a ring key (RFC 7523) for an access token of at most five minutes."""
    with guard:
        return identity.login(hub, form)


@router.get("/hub", responses=responses())
def hub_info(hub: HubHere, session: ReadSession) -> wire.HubInfo:
    """What this hub says of itself; anybody may ask."""
    return alliance.hub_info(hub, session, __version__)


@router.get("/whoami", responses=responses())
def whoami(actor: CurrentActor) -> wire.WhoAmI:
    """As whom the hub sees the caller."""
    return identity.whoami(actor)


@router.get("/tokens", responses=responses())
def list_tokens(session: ReadSession, actor: CurrentActor) -> list[wire.PersonalToken]:
    """The institution's personal tokens, without their texts."""
    return identity.list_tokens(session, actor)


@router.post("/tokens", status_code=201, responses=responses(409))
def create_token(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    once: OnceHere,
    request: wire.PersonalTokenRequest,
) -> wire.PersonalToken:
    """A new personal token; its text is in this answer only."""

    def make() -> wire.PersonalToken:
        return identity.create_token(hub, session, actor, request)

    return once.answer(hub, session, wire.PersonalToken, make, secret=True)


@router.delete("/tokens/{token_id}", status_code=204, responses=responses(404))
def revoke_token(hub: HubHere, session: WriteSession, actor: CurrentActor, token_id: str) -> Response:
    """End a personal token at once."""
    identity.revoke_token(hub, session, actor, token_id)
    return Response(status_code=204)


@router.post("/invitations", status_code=201, responses=responses(409))
def invite(
    hub: HubHere, session: WriteSession, actor: CurrentActor, once: OnceHere, request: wire.InvitationRequest
) -> wire.Invitation:
    """A single-use invitation (operator); its secret is in this answer only."""

    def make() -> wire.Invitation:
        return alliance.invite(hub, session, actor, request)

    return once.answer(hub, session, wire.Invitation, make, secret=True)


@router.post("/institutions", status_code=201, responses=responses(409))
def enrol(
    hub: HubHere, session: WriteSession, guard: Guarded, request: wire.EnrolRequest
) -> wire.Institution:
    """Apply with an invitation's secret and a key ring; no login."""
    with guard:
        return alliance.enrol(hub, session, request)


@router.get("/institutions", responses=responses())
def institutions(session: ReadSession, actor: CurrentActor) -> list[wire.Institution]:
    """All members."""
    return alliance.institutions(session, actor)


@router.get("/institutions/{name}", responses=responses(404))
def institution(session: ReadSession, actor: CurrentActor, name: str) -> wire.Institution:
    """One member."""
    return alliance.institution(session, actor, name)


@router.post("/institutions/{name}/approve", responses=responses(404, 409))
def approve(hub: HubHere, session: WriteSession, actor: CurrentActor, name: str) -> wire.Institution:
    """Let a pending institution in (operator, targets key); `ring_version` 0 asks it to apply once more."""
    return alliance.approve(hub, session, actor, name)


@router.get("/institutions/{name}/keyring", responses=responses(404))
def keyring(session: ReadSession, name: str) -> KeyRingRoots:
    """The roots of a member's key ring, oldest first; anybody may read them, and checks them by a pin."""
    return KeyRingRoots(roots=[base64.b64encode(root).decode() for root in alliance.keyring(session, name)])


@router.post("/institutions/{name}/keyring", responses=responses(404, 409))
def update_keyring(
    hub: HubHere, session: WriteSession, actor: CurrentActor, name: str, request: wire.KeyRingUpdate
) -> wire.Institution:
    """Put the next version of the caller's own ring into force (targets key)."""
    return alliance.update_keyring(hub, session, actor, name, request)


@router.get("/sites", responses=responses())
def sites(session: ReadSession, actor: CurrentActor) -> list[wire.Site]:
    """All sites, and whether their agents are connected."""
    return alliance.sites(session, actor)


@router.post("/sites", status_code=201, responses=responses(409))
def register_site(hub: HubHere, actor: CurrentActor, request: wire.SiteRequest) -> wire.Site:
    """Register the Flower node key of one of the caller's sites."""
    return alliance.register_site(hub, actor, request)


@router.post("/sites/trouble", status_code=204, responses=responses())
def tell_trouble(hub: HubHere, session: WriteSession, actor: CurrentActor, told: wire.SiteTrouble) -> None:
    """Say what keeps one of the caller's agents from its work; the runs that it takes part in show it."""
    faults.tell(hub, session, actor, told)
