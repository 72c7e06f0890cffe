"""The public log as static files: checkpoint, checkpoints, tiles, entry bundles and key rings.

A reader needs no account and no API: these are the objects that the ledger wrote, under the same names as in
the store. All but the newest checkpoint never change.
"""

import re

from fastapi import APIRouter, Response

from hub.api.auth import HubHere
from hub.errors import not_found

router = APIRouter(tags=["log"])

_NUMBER = r"(x[0-9]{3}/){0,6}[0-9]{3}"
_FILES = re.compile(
    rf"log/(checkpoints/[0-9]{{1,16}}|tile/([0-9]{{1,2}}|entries)/{_NUMBER}(\.p/[0-9]{{1,3}})?)"
    r"|keyrings/[a-z0-9.-]{1,253}/[0-9]{1,6}\.root\.json"
)
IMMUTABLE = "public, max-age=31536000, immutable"


@router.head("/log/checkpoint", include_in_schema=False)
@router.get("/log/checkpoint", response_class=Response)
def checkpoint(hub: HubHere) -> Response:
    """The newest signed head of the log."""
    return _file(hub, "log/checkpoint", "text/plain; charset=utf-8", "no-cache")


@router.head("/log/{path:path}", include_in_schema=False)
@router.get("/log/{path:path}", response_class=Response)
def log_file(hub: HubHere, path: str) -> Response:
    """A tile, an entry bundle or an older checkpoint."""
    kind = "text/plain; charset=utf-8" if path.startswith("checkpoints/") else "application/octet-stream"
    return _file(hub, f"log/{path}", kind, IMMUTABLE)


@router.head("/keyrings/{path:path}", include_in_schema=False)
@router.get("/keyrings/{path:path}", response_class=Response)
def keyring_file(hub: HubHere, path: str) -> Response:
    """One version of an institution's key ring."""
    return _file(hub, f"keyrings/{path}", "application/json", IMMUTABLE)


def _file(hub: HubHere, key: str, kind: str, caching: str) -> Response:
    if key != "log/checkpoint" and _FILES.fullmatch(key) is None:
        raise not_found("file", key)
    if hub.store.size(key) is None:
        raise not_found("file", key)
    headers = {
        "Cache-Control": caching,
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return Response(hub.store.get(key), media_type=kind, headers=headers)
