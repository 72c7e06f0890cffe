"""How a page becomes an answer: who is looking, in which language, with which headers.

A visitor signs in with a personal token, kept in a cookie that scripts cannot read; with
``FEDHUB_OPEN_PAGES`` anybody who reaches the hub sees the pages as an auditor would.
"""

from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from hub import __version__
from hub.access import ANONYMOUS, Actor
from hub.api.auth import HubHere
from hub.context import Hub
from hub.services.identity import actor_of
from hub.web.words import LANGUAGES, Words, choose_language
from storage.errors import Refused

COOKIE = "fedhub_token"
LANGUAGE_COOKIE = "fedhub_language"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {
    "fedhub.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "proof.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}
# An auditor of no institution: nothing is its own.
PASSER_BY = Actor("", "auditor", "personal", frozenset({"read"}))
SHORT = 12


def static_file(name: str) -> bytes:
    """The bytes of one of the sheet, scripts and picture."""
    return files("hub.web").joinpath("static", name).read_bytes()


# In the addresses of static files, so that browsers may keep them for good.
FINGERPRINT = sha256(b"".join(static_file(name) for name in sorted(STATIC))).hexdigest()[:SHORT]


def bytes_told(size: float) -> str:
    """A size for people.

    >>> bytes_told(999), bytes_told(1536), bytes_told(2_500_000)
    ('999 B', '1.5 kB', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def figure(value: object) -> str:
    """A number as tables show it; other values as they are.

    >>> figure(0.123456), figure(12), figure("x")
    ('0.1235', '12', 'x')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def moment(text: object) -> str:
    """A time of the wire as people read it; always UTC.

    >>> moment("2026-01-02T03:04:05Z")
    '2026-01-02 03:04:05'
    """
    return str(text).replace("T", " ").removesuffix("Z")


_templates = Environment(
    loader=PackageLoader("hub.web", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {"bytes": bytes_told, "figure": figure, "moment": moment}


# --- who is looking -----------------------------------------------------------------------------------------


def visitor(request: Request, hub: HubHere) -> Actor:
    """Whoever signed in; else, on open pages, somebody who may read what auditors read; else nobody known."""
    token = request.cookies.get(COOKIE)
    if token:
        try:
            actor = actor_of(hub, f"Bearer {token}")
        except Refused:
            actor = ANONYMOUS
        if actor.by == "personal":
            return actor
    return PASSER_BY if hub.settings.open_pages else ANONYMOUS


Visitor = Annotated[Actor, Depends(visitor)]


def sign_in_first(request: Request) -> RedirectResponse:
    """Where somebody unknown is sent, and comes back from."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/sign-in?to={quote(request.url.path + query)}", 303)


# --- the answer ---------------------------------------------------------------------------------------------


def page(
    request: Request, hub: Hub, actor: Actor, name: str, status: int = 200, **values: Any
) -> HTMLResponse:
    """A template with these values, for this visitor in their language."""
    asked = request.query_params.get("lang")
    language = choose_language(
        asked, request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", "")
    )
    text = _templates.get_template(name).render(
        status=status,
        path=request.url.path,
        origin=hub.settings.origin,
        endpoint=hub.settings.public,
        version=__version__,
        actor=actor,
        signed_in=bool(actor.institution),
        language=language,
        languages=LANGUAGES,
        other_languages=[
            (code, own, str(request.url.include_query_params(lang=code).query))
            for code, own in LANGUAGES.items()
            if code != language
        ],
        t=Words(language),
        fingerprint=FINGERPRINT,
        **values,
    )
    headers = {
        "Content-Security-Policy": CONTENT_POLICY,
        "Cache-Control": "no-store",
        "Content-Language": language,
        "Vary": "Accept-Language, Cookie",
    }
    answer = HTMLResponse(text, status, headers)
    if asked in LANGUAGES:
        answer.set_cookie(LANGUAGE_COOKIE, asked, samesite="strict", httponly=True, max_age=366 * 86_400)
    return answer
