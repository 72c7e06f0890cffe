"""How a stock client's request becomes a repository, a commit and a warning.

Revisions and file paths are read from the raw path: a revision's own slashes arrive as ``%2F``, and only
there can they be told from those between revision and file.
"""

import re
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Path, Request, Response
from sqlmodel import Session
from starlette.convertors import Convertor, register_url_convertor

from hub.access import Actor
from hub.api.auth import CurrentActor, HubHere, ReadSession
from hub.api.huggingface.refusals import header_text
from hub.context import Hub
from hub.errors import bad_field
from hub.glances import Glance
from hub.services import revisions
from hub.services.commits import Commit
from hub.services.revisions import Kind, Repo
from hub.tables import RevisionRow
from storage.encoding import format_time, parse_time

GRANT_WARNING_S = 7 * 86_400
DAY_S = 86_400


class KindConvertor(Convertor[str]):
    """``models`` or ``datasets`` in a path, and nothing else: no route is greedy."""

    regex = "models|datasets"

    def convert(self, value: str) -> str:
        """The kind that the path says."""
        return value.removesuffix("s")

    def to_string(self, value: str) -> str:
        """The path's word for a kind."""
        return f"{value}s"


register_url_convertor("repokind", KindConvertor())

Namespace = Annotated[str, Path(max_length=253)]
Name = Annotated[str, Path(max_length=96)]


def repo_of(
    hub: HubHere, session: ReadSession, actor: CurrentActor, kind: Kind, ns: Namespace, name: Name
) -> Repo:
    """The repository that an API path names, if the caller may know of it."""
    return revisions.find(hub, session, actor, kind, f"{ns}/{name}")


RepoHere = Annotated[Repo, Depends(repo_of)]


def revision_and_path(request: Request, skip: int) -> tuple[str, str]:
    """Revision and path that stand in the raw path after ``skip`` segments, both decoded."""
    segments = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0].split("/")[1 + skip :]
    try:
        decoded = [unquote(segment, errors="strict") for segment in segments]
    except UnicodeDecodeError as error:
        raise bad_field("path", "is not UTF-8") from error
    return (decoded[0] if decoded else ""), "/".join(decoded[1:]).strip("/")


def visible(session: Session, actor: Actor, repo: Repo, text: str) -> RevisionRow:
    """The commit that a revision names, if the caller may know its files' names.

    Raises:
        Unchecked: ``E_REVISION``.
        Refused: ``E_GATED``; a draft of others.
    """
    row = revisions.resolve(session, actor, repo, text)
    revisions.check_visible(actor, repo, row)
    return row


# --- what answers bear ------------------------------------------------------------------------------------


def moment(seconds: int) -> str:
    """A time as clients parse it."""
    return format_time(seconds).replace("Z", ".000Z")


def warn(response: Response, topic: str, text: str) -> None:
    """Have the client print a line, once per topic."""
    response.headers.append("X-HF-Warning", header_text(f"{topic}; {text}"))


def warn_about(
    hub: Hub,
    source: Session | Glance,
    response: Response,
    repo: Repo,
    row: Commit,
    grant: str | None = None,
) -> None:
    """Say that a commit is not signed, or that the grant that shows it ends soon."""
    if row.statement is None and row.asset_id is not None:
        warn(response, "unsigned", f"{repo.name} at {row.id[:12]} is a draft: nobody has signed it")
    if grant is not None:
        with hub.ledger.evidence(source) as evidence:
            found = evidence.get(grant)
        if found is not None:
            left_s = parse_time(found.says["expires"]) - hub.ledger.now()
            if left_s < GRANT_WARNING_S:
                days = max(0, left_s // DAY_S)
                warn(
                    response,
                    "grant",
                    f"the grant for {repo.name} ends in {days} days: {found.says['expires']}",
                )


def page_link(hub: Hub, request: Request, cursor: str) -> str:
    """The ``Link`` header to the next page, absolute as clients need it."""
    asked = [item for item in request.scope["query_string"].decode("ascii", "replace").split("&") if item]
    kept = [item for item in asked if not item.startswith("cursor=")]
    path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
    return f'<{hub.settings.public}{path}?{"&".join([*kept, f"cursor={cursor}"])}>; rel="next"'


_FLAG = re.compile(r"(?i:true|1)")


def flag(value: Any) -> bool:
    """Whether a query member says yes."""
    return _FLAG.fullmatch(str(value)) is not None
