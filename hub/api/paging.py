"""Lists in pages: the answer is a plain list, and its ``Link`` header names the next page (RFC 8288)."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

Cursor = Annotated[str | None, Query(max_length=600, description="As the last answer's Link header gave it")]


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Name the next page, if there is one."""
    if cursor is not None:
        asked = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
        response.headers["Link"] = (
            f'<{request.url.path}?{urlencode([*asked, ("cursor", cursor)])}>; rel="next"'
        )
