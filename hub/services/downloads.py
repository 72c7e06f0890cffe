"""Addresses of large files for clients that follow them again and again: each request is decided anew.

A stock client resumes a cut transfer at the address it was given, minutes or hours later. So the address is
not the store's, which would outlive a revoked grant, but one on the download origin with a signed capability:
whose it is, by which token, for which file of which version. The origin asks the log, the membership and the
token again on every request, and sends the client on to an address of the store that lives seconds. Nothing
is kept of it.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import jwt
from sqlmodel import Session, select

from hub.access import ANONYMOUS, Actor
from hub.context import Hub
from hub.errors import not_found
from hub.services.commits import Commit
from hub.services.pulls import ensure_receipt
from hub.services.revisions import Kind, Repo, load, readable
from hub.tables import BlobRow, InstitutionRow, PersonalTokenRow, RevisionRow, VersionFileRow
from storage.encoding import sha256_hex
from storage.errors import Refused

LEAST_S = 300
MOST_S = 86_400
PERSONAL = "fhp_"


@dataclass(frozen=True)
class Bearer:
    """Who asks, and the digest of the personal token that said so; empty for other logins."""

    actor: Actor
    token_digest: str = ""

    @classmethod
    def of(cls, actor: Actor, authorization: str | None) -> "Bearer":
        """From a request's header, which has been checked."""
        token = (authorization or "").partition(" ")[2].strip()
        return cls(actor, sha256_hex(token.encode()) if token.startswith(PERSONAL) else "")


class Stored(Protocol):
    """A file whose bytes lie in the store; ``repo_files.RepoFile`` is one."""

    @property
    def path(self) -> str:
        """Its name in the version."""

    @property
    def sha256(self) -> str:
        """Of its bytes."""

    @property
    def size(self) -> int:
        """In bytes."""


@dataclass(frozen=True)
class StoredFile:
    """A file by itself."""

    path: str
    sha256: str
    size: int


def address(hub: Hub, bearer: Bearer, repo: Repo, row: Commit, file: Stored) -> str:
    """Where the bearer may read a file's bytes, whole or by ranges, as long as it would be allowed."""
    life_s = min(LEAST_S + file.size // hub.settings.slow_link_bytes, MOST_S)
    claims = {
        "by": bearer.actor.institution or "",
        "token": bearer.token_digest,
        "kind": repo.kind,
        "repo": repo.name,
        "commit": row.id,
        "path": file.path,
        "sha256": file.sha256,
        "exp": hub.ledger.now() + life_s,
    }
    return f"{hub.settings.downloads}/f/{jwt.encode(claims, _secret(hub), algorithm='HS256')}"


def hand_over(
    hub: Hub, session: Session, bearer: Bearer, repo: Repo, row: Commit, file: Stored, grant: str | None
) -> str:
    """``address``, after the receipt of a pull under ``grant`` was logged; ends the session's transaction."""
    if grant is not None:
        session.commit()  # gives the connection back before another one is taken
        ensure_receipt(hub, str(bearer.actor.institution), str(row.asset_id), grant)
    return address(hub, bearer, repo, row, file)


def locate(hub: Hub, session: Session, capability: str) -> str:
    """The store's address for one capability, after asking anew whether its bearer may read the file.

    Raises:
        Refused: ``E_CAPABILITY``, not one of ours or over; ``E_TOKEN``, the token ended; ``E_GATED``.
        Unchecked: ``E_NOT_FOUND``; the repository, commit or file is gone.
    """
    claims = _read(hub, capability)
    actor = _actor(hub, session, claims)
    repo = load(session, cast(Kind, claims["kind"]), claims["repo"])
    row = None if repo is None else session.get(RevisionRow, (repo.kind, repo.name, claims["commit"]))
    if repo is None or row is None or row.asset_id is None:
        raise not_found("file", claims["path"])
    readable(hub, session, actor, repo, row)
    query = select(VersionFileRow).where(
        VersionFileRow.asset_id == row.asset_id, VersionFileRow.name == claims["path"]
    )
    file = session.exec(query).first()
    blob = session.get(BlobRow, claims["sha256"])
    if file is None or blob is None or file.sha256 != blob.sha256:
        raise not_found("file", claims["path"])
    filename = file.name.rpartition("/")[2]
    return hub.store.signed_url(blob.key, expires_s=hub.settings.signed_url_s, filename=filename)


def _read(hub: Hub, capability: str) -> dict[str, Any]:
    try:
        claims = jwt.decode(
            capability,
            _secret(hub),
            algorithms=["HS256"],
            options={"require": ["exp"], "verify_exp": False, "verify_iat": False},
        )
    except jwt.InvalidTokenError as error:
        raise _over() from error
    if claims["exp"] <= hub.ledger.now():
        raise _over()
    return claims


def _over() -> Refused:
    return Refused("E_CAPABILITY", "this download address is unknown or over", "Ask the hub for a fresh one.")


def _actor(hub: Hub, session: Session, claims: dict[str, Any]) -> Actor:
    if not claims["by"]:
        return ANONYMOUS
    member = session.get(InstitutionRow, claims["by"])
    if member is None or member.state != "approved":
        raise Refused("E_ACCESS", f"{claims['by']} is no approved member", "Ask the operator.")
    check_token(hub, session, claims["token"])
    return Actor(member.name, member.role, "personal", frozenset({"read"}))


def check_token(hub: Hub, session: Session, digest: str) -> None:
    """Return only while the personal token that a bearer came with is good; nothing to ask for other logins.

    Raises:
        Refused: ``E_TOKEN``.
    """
    if digest:
        token = session.exec(select(PersonalTokenRow).where(PersonalTokenRow.digest == digest)).first()
        if token is None or token.revoked_at is not None or token.expires_at <= hub.ledger.now():
            raise Refused("E_TOKEN", "the token that asked for this address has ended", "Make a new token.")


def _secret(hub: Hub) -> bytes:
    return hub.keys.derive("file address")
