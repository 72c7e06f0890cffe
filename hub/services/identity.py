"""Who is calling: logins by signed JWT, access tokens, personal tokens, the coordinator's token.

An institution proves itself by ``private_key_jwt`` (RFC 7523, ES256) and gets an access token of at most five
minutes. A person's token is random, scoped, expiring and revocable, and only its digest is kept. No token can
sign.
"""

import base64
import binascii
import hmac
import logging
import secrets
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal, cast

import jwt
from sqlalchemy import bindparam, delete
from sqlalchemy import select as rows_of
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session, SQLModel, col, select

from federation import wire
from hub.access import ANONYMOUS, COORDINATOR, Actor, KeyRole, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, no_room, not_found
from hub.glances import Glance
from hub.services.remembering import keep_token
from hub.tables import InstitutionRow, PersonalTokenRow, SeenAssertionRow
from storage.encoding import format_time, is_digest, read_json
from storage.errors import Refused, Rejected, Unchecked

PERSONAL_PREFIX = "fhp_"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
TOKEN_LIMIT = 4096  # characters
USED_EVERY_S = 60  # how exactly the last use of a personal token is kept
DAY_S = 86_400
_log = logging.getLogger("fedhub.identity")

_tokens, _members = SQLModel.metadata.tables["personal_token"], SQLModel.metadata.tables["institution"]
# Who is behind a personal token, and whether both are still good: asked with every request.
BEARER = (
    rows_of(_tokens, _members.c.state, _members.c.role)
    .outerjoin_from(_tokens, _members, _members.c.name == _tokens.c.institution)
    .where(_tokens.c.digest == bindparam("digest"))
)
MEMBER = rows_of(_members.c.state, _members.c.role).where(_members.c.name == bindparam("name"))


@dataclass(frozen=True)
class _Proof:
    """An assertion that holds: whose it is, and what makes it good only once."""

    institution: str
    role: KeyRole
    digest: str  # of key hint and jti
    expires: int


# --- login ----------------------------------------------------------------------------------------------


def login(hub: Hub, form: dict[str, str]) -> wire.AccessToken:
    """Exchange a signed assertion for an access token.

    Args:
        form: members of RFC 7523 section 2.2, ``grant_type=client_credentials`` with ``client_assertion``.
    Raises:
        Refused: ``E_LOGIN`` (401), with the rule that the assertion breaks.
    """
    if form.get("grant_type") != "client_credentials":
        raise bad_field("grant_type", "must be client_credentials")
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise bad_field("client_assertion_type", f"must be {ASSERTION_TYPE}")
    # Checked before anything is written: on SQLite a stranger's attempt shall not take the writers' turn.
    with hub.database.session_scope(write=False) as session:
        proof = _check_assertion(hub, session, form.get("client_assertion", ""))
    with hub.database.session_scope() as session:
        session.exec(delete(SeenAssertionRow).where(col(SeenAssertionRow.expires_at) < hub.ledger.now()))
        _use_once(session, proof)
    life_s = hub.settings.access_token_s
    now = hub.ledger.now()
    claims = {
        "iss": hub.settings.origin,
        "aud": _audience(hub),
        "sub": proof.institution,
        "key_role": proof.role,
        "iat": now,
        "exp": now + life_s,
        "jti": secrets.token_hex(8),
    }
    token = jwt.encode(claims, hub.keys.token_secret, algorithm="HS256")
    return wire.AccessToken(access_token=token, expires_in=life_s)


def _check_assertion(hub: Hub, session: Session, assertion: str) -> _Proof:
    header, claims = _read_jwt(assertion)
    hint = header.get("kid")
    if header.get("alg") != "ES256" or not isinstance(hint, str) or not is_digest(hint):
        raise _refuse("the assertion's header must be ES256 with kid = the key's hint")
    found = hub.ledger.key_in_force(session, hint)
    if found is None:
        raise _refuse("the assertion's kid is no key of a ring in force")
    if found.role not in ("targets", "snapshot"):
        raise _refuse(f"a {found.role} key cannot log in", "Use the targets or the snapshot key.")
    _check_claims(hub, claims, found.institution)
    try:
        jwt.decode(
            assertion,
            found.key,
            algorithms=["ES256"],
            options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except jwt.InvalidTokenError as error:
        raise _refuse("the assertion's signature is wrong") from error
    member = session.get(InstitutionRow, found.institution)
    if member is None or member.state != "approved":
        raise _refuse(f"{found.institution} is not an approved member")
    return _Proof(member.name, cast(KeyRole, found.role), _digest(f"{hint} {claims['jti']}"), claims["exp"])


def _check_claims(hub: Hub, claims: dict[str, Any], institution: str) -> None:
    now, longest = hub.ledger.now(), hub.settings.assertion_s
    for name in ("iss", "sub"):
        if claims.get(name) != institution:
            raise _refuse(f"the assertion's {name} is not the institution whose key signed it")
    if claims.get("aud") != hub.settings.origin:
        raise _refuse(f"the assertion is for another audience than {hub.settings.origin}")
    expires, jti = claims.get("exp"), claims.get("jti")
    if type(expires) is not int or not now < expires <= now + longest:
        raise _refuse(
            f"the assertion must expire within {longest} s of the hub's clock, {format_time(now)}",
            "Compare the clocks.",
        )
    if not isinstance(jti, str) or not 16 <= len(jti) <= 128:
        raise _refuse("the assertion's jti must be a text of 16 to 128 characters")


def _use_once(session: Session, proof: _Proof) -> None:
    seen = SeenAssertionRow(digest=proof.digest, expires_at=proof.expires)
    try:
        with session.begin_nested():
            session.add(seen)
            session.flush()
    except IntegrityError as error:
        raise _refuse("the assertion was used before") from error


def _read_jwt(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, read strictly; nothing is believed yet."""
    parts = token.split(".")
    if len(token) > TOKEN_LIMIT or len(parts) != 3:
        raise _refuse("the assertion is not a JWT")
    try:
        found = [read_json(_unb64url(part), code="E_LOGIN") for part in parts[:2]]
    except (Rejected, binascii.Error, ValueError) as error:
        raise _refuse("the assertion is not a JWT") from error
    if not all(isinstance(part, dict) for part in found):
        raise _refuse("the assertion is not a JWT")
    return found[0], found[1]


def _unb64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _refuse(rule: str, hint: str = "") -> Refused:
    return Refused("E_LOGIN", f"login: {rule}", hint, status=401)


def _audience(hub: Hub) -> str:
    return f"{hub.settings.origin}/api"


# --- who a token is -------------------------------------------------------------------------------------


def actor_of(hub: Hub, authorization: str | None, glance: Glance | None = None) -> Actor:
    """The actor that an ``Authorization`` header names; none: ``ANONYMOUS``.

    A token is looked up each time, in one statement: one that was revoked a moment ago is refused.

    Args:
        glance: one to read with; by default one is opened.
    Raises:
        Refused: ``E_TOKEN`` (401) when a header is there and is not good.
    """
    if authorization is None:
        return ANONYMOUS
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not 16 <= len(token) <= TOKEN_LIMIT or not token.isascii():
        raise _bad_token("not a bearer token")
    if hmac.compare_digest(token, hub.keys.coordinator_token):
        return COORDINATOR
    find = _personal_actor if token.startswith(PERSONAL_PREFIX) else _access_actor
    if glance is not None:
        return find(hub, glance, token)
    with hub.database.glance() as own:
        return find(hub, own, token)


def _access_actor(hub: Hub, glance: Glance, token: str) -> Actor:
    head = token.partition(".")[0]
    try:
        # Our own header, byte for byte: nothing of a stranger's is parsed before its signature is checked.
        if head != _own_header():
            raise jwt.InvalidTokenError("not ours")
        claims = jwt.decode(
            token,
            hub.keys.token_secret,
            algorithms=["HS256"],
            audience=_audience(hub),
            issuer=hub.settings.origin,
            options={"require": ["exp", "sub", "key_role"], "verify_iat": False, "verify_exp": False},
        )
    except jwt.InvalidTokenError as error:
        raise _bad_token("the access token is not one of this hub's") from error
    if claims["exp"] <= hub.ledger.now():
        raise _bad_token("the access token has expired")
    members = glance.rows(MEMBER, {"name": claims["sub"]})
    role = _approved_role(claims["sub"], members[0] if members else None)
    return Actor(claims["sub"], role, "access", frozenset({"read", "write"}), claims["key_role"])


def _personal_actor(hub: Hub, glance: Glance, token: str) -> Actor:
    now = hub.ledger.now()
    rows = glance.rows(BEARER, {"digest": _digest(token)})
    if not rows:
        raise _bad_token("the personal token is not known")
    row = rows[0]
    if row.revoked_at is not None:
        raise _bad_token(f"the personal token {row.name!r} was revoked")
    if row.expires_at <= now:
        raise _bad_token(f"the personal token {row.name!r} has expired")
    actor = Actor(
        row.institution, _approved_role(row.institution, row), "personal", frozenset(row.scopes.split())
    )
    if row.last_used_at is None or row.last_used_at + USED_EVERY_S <= now:
        _note_use(hub, glance, row.id, now)
    return actor


def _note_use(hub: Hub, glance: Glance, token_id: str, now: int) -> None:
    glance.let_go()  # one connection at a time
    try:
        with hub.database.session_scope() as writer:
            used = writer.get(PersonalTokenRow, token_id)
            if used is not None:
                used.last_used_at = now
                writer.add(used)
    except OperationalError as error:
        if no_room(error) is None:
            raise
        _log.warning("the use of a token is not noted: %s", no_room(error))  # who only reads, reads on


def _approved_role(name: str, member: Any) -> str:
    if member is None or member.state != "approved":
        raise _bad_token(f"{name} is not an approved member")
    return str(member.role)


@cache
def _own_header() -> str:
    # PyJWT writes its header as compact JSON with sorted members.
    return jwt.encode({}, b"x" * 32, algorithm="HS256").partition(".")[0]


def _bad_token(rule: str) -> Refused:
    return Refused("E_TOKEN", f"token: {rule}", "Log in again, or make a new token.", status=401)


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


# --- personal tokens ------------------------------------------------------------------------------------


def whoami(actor: Actor) -> wire.WhoAmI:
    """What the hub knows of the caller."""
    decide(actor, "see own", Thing("whoami"))
    assert actor.institution is not None
    return wire.WhoAmI(
        institution=actor.institution,
        role=cast(wire.Role, actor.role),
        by=cast(Literal["access", "personal"], actor.by),
        scopes=sorted(actor.scopes),
        key_role=actor.key_role,
    )


def create_token(
    hub: Hub, session: Session, actor: Actor, request: wire.PersonalTokenRequest
) -> wire.PersonalToken:
    """A new personal token of the caller's institution; only this answer holds its text."""
    decide(actor, "keep tokens", Thing("tokens", actor.institution))
    assert actor.institution is not None
    if not set(request.scopes) <= actor.scopes:
        raise Refused(
            "E_SCOPE", "a token cannot make one with more scopes than it has", status=403, field="scopes"
        )
    token = PERSONAL_PREFIX + secrets.token_urlsafe(32)
    now = hub.ledger.now()
    row = PersonalTokenRow(
        id=secrets.token_hex(8),
        institution=actor.institution,
        name=request.name,
        digest=_digest(token),
        scopes=" ".join(sorted(set(request.scopes))),
        created_at=now,
        expires_at=now + request.valid_days * DAY_S,
    )
    session.add(row)
    session.flush()
    keep_token(hub, row)
    return _told(row).model_copy(update={"token": token})


def list_tokens(session: Session, actor: Actor) -> list[wire.PersonalToken]:
    """The institution's tokens that are not revoked, newest first."""
    decide(actor, "see own", Thing("tokens", actor.institution))
    query = select(PersonalTokenRow).where(
        PersonalTokenRow.institution == actor.institution, col(PersonalTokenRow.revoked_at).is_(None)
    )
    return [_told(row) for row in session.exec(query.order_by(col(PersonalTokenRow.created_at).desc()))]


def revoke_token(hub: Hub, session: Session, actor: Actor, token_id: str) -> None:
    """End one of the institution's tokens at once."""
    decide(actor, "keep tokens", Thing("tokens", actor.institution))
    row = session.get(PersonalTokenRow, token_id)
    if row is None or row.institution != actor.institution or row.revoked_at is not None:
        raise not_found("token", token_id)
    row.revoked_at = hub.ledger.now()
    session.add(row)
    session.flush()
    try:
        keep_token(hub, row)
    except Unchecked as error:  # a token is ended also while the store is away
        _log.warning("token %s is revoked, but the store does not remember it: %s", row.id, error)


def _told(row: PersonalTokenRow) -> wire.PersonalToken:
    return wire.PersonalToken(
        id=row.id,
        name=row.name,
        scopes=row.scopes.split(),
        created_at=format_time(row.created_at),
        expires_at=format_time(row.expires_at),
        last_used_at=None if row.last_used_at is None else format_time(row.last_used_at),
    )
