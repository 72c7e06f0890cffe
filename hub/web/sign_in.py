"""Signing in with a personal token, and out again."""

import re
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from hub.access import ANONYMOUS, Actor
from hub.api.auth import HubHere
from hub.api.limits import Rate, address_of
from hub.context import Hub
from hub.services.identity import actor_of
from hub.web.rendering import COOKIE, Visitor, page
from storage.errors import Refused

SIGNED_IN_S = 12 * 3600
_INSIDE = re.compile(r"/(?![/\\])[A-Za-z0-9._~/?&=%@:+-]{0,500}")
_FROM_HERE = ("same-origin", "none")

router = APIRouter(include_in_schema=False)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent from a page of this hub."""
    if request.headers.get("sec-fetch-site", "none") not in _FROM_HERE:
        raise Refused("E_ACCESS", "this form was sent from another site", "Sign in on the hub's own page.")
    body = (await request.body()).decode("ascii", errors="replace")
    return dict(parse_qsl(body))


Form = Annotated[dict[str, str], Depends(_form)]


def inside(path: str) -> str:
    """A path of this hub, so that signing in never leads elsewhere.

    >>> inside("/models?search=a"), inside("//elsewhere.example"), inside("https://elsewhere.example")
    ('/models?search=a', '/', '/')
    """
    return path if _INSIDE.fullmatch(path) else "/"


@router.get("/sign-in", response_class=HTMLResponse)
def sign_in_form(request: Request, hub: HubHere, actor: Visitor, to: str = "/") -> HTMLResponse:
    """Where a personal token is given."""
    return page(request, hub, actor, "sign_in.html", to=inside(to), problem="")


@router.post("/sign-in", response_class=HTMLResponse)
def sign_in(request: Request, hub: HubHere, form: Form) -> Response:
    """Check the token and keep it in the visitor's browser."""
    token, to = form.get("token", "").strip(), inside(form.get("to", "/"))
    try:
        _personal(request, hub, token)
    except Refused as error:
        return page(request, hub, ANONYMOUS, "sign_in.html", error.status, to=to, problem=error.message)
    answer = RedirectResponse(to, 303)
    answer.set_cookie(
        COOKIE,
        token,
        httponly=True,
        samesite="strict",
        secure=hub.settings.public.startswith("https:"),
        max_age=SIGNED_IN_S,
    )
    return answer


def _personal(request: Request, hub: Hub, token: str) -> Actor:
    try:
        actor = actor_of(hub, f"Bearer {token}")
        if actor.by != "personal":
            raise Refused("E_TOKEN", "only a personal token signs in here", status=401)
        return actor
    except Refused as error:
        failed: Rate = request.app.state.failed_logins
        wait_s = failed.take(address_of(request.scope))
        if wait_s:
            rule = f"too many failed logins; try again in {int(wait_s) + 1} s"
            raise Refused("E_RATE", rule, status=429) from error
        raise


@router.post("/sign-out")
def sign_out(form: Form) -> Response:
    """Forget the token."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
