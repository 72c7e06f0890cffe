"""Who is in the alliance: invitations, enrolment, approval, key rings, and the sites' node keys.

An invitation is single use and expires; only its secret's digest is kept. Enrolling brings a key ring and the
signed statement that puts it into force; the operator's approval logs that statement. A statement is logged
within ten minutes of its signing or not at all, so when approval comes later the member applies once more
with the same invitation, and its ring takes force then.
"""

import logging
import secrets
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlmodel import Session, col, func, select

from federation import wire
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services.statements import admit
from hub.tables import InstitutionRow, InvitationRow, RingRow, SiteRow, StatementRow
from storage.encoding import check_institution, format_time, sha256_hex, unb64
from storage.errors import FedhubError, Refused, Rejected
from storage.keyring import KeyRing, read_ring
from storage.signing import key_hint, open_envelope, public_pem
from storage.statements import read_statement

HOUR_S = 3600
FRESH_S = 600  # a statement is logged within ten minutes of its signing
_log = logging.getLogger("fedhub.alliance")


# --- the operator itself --------------------------------------------------------------------------------


def found(hub: Hub, session: Session, roots: Sequence[bytes]) -> None:
    """Make the operator the first member, at the first start; later, check that it is still the same.

    Args:
        roots: the operator's ring, oldest first.
    Raises:
        FedhubError: ``E_KEYRING_PIN``; the operator's home is not the one that founded this hub.
    """
    name, pin = hub.operator.institution, sha256_hex(roots[0])
    member = session.get(InstitutionRow, name)
    if member is not None:
        if member.pin != pin:
            raise Rejected(
                "E_KEYRING_PIN",
                f"{name}: this hub was founded with the ring {member.pin}, the operator's home has {pin}",
                "Point FEDHUB_OPERATOR_HOME at the home that founded it.",
            )
        return
    read_ring(name, list(roots), pin)
    now = hub.ledger.now()
    session.add(InstitutionRow(name=name, role="operator", state="approved", pin=pin, joined_at=now))
    session.flush()
    _add_roots(session, name, roots[:1], first=1)
    raw = hub.operator.sign("keyring", [("1.root.json", pin)], {"version": 1}, now=now)
    _put_in_force(hub, session, name, raw)


# --- joining --------------------------------------------------------------------------------------------


def invite(hub: Hub, session: Session, actor: Actor, request: wire.InvitationRequest) -> wire.Invitation:
    """A single-use invitation for one name and role; only this answer holds its secret."""
    decide(actor, "invite", Thing(request.institution))
    _check_name(request.institution)
    if request.role == "operator":
        raise bad_field("role", "a hub has one operator")
    member = session.get(InstitutionRow, request.institution)
    if member is not None and member.state != "pending":
        raise conflict(
            "E_MEMBER", f"{request.institution} is a member already", "See `fedhub institution show`."
        )
    operator = session.get_one(InstitutionRow, hub.operator.institution)
    secret, now = secrets.token_urlsafe(32), hub.ledger.now()
    row = InvitationRow(
        digest=_digest(secret),
        institution=request.institution,
        role=request.role,
        created_at=now,
        expires_at=now + request.valid_hours * HOUR_S,
    )
    session.add(row)
    return wire.Invitation(
        endpoint=hub.settings.public,
        origin=hub.settings.origin,
        log_key=hub.keys.log.vkey,
        operator=operator.name,
        operator_pin=operator.pin,
        fleet_ca=hub.fleet_ca,
        institution=request.institution,
        role=request.role,
        secret=secret,
    )


def enrol(hub: Hub, session: Session, request: wire.EnrolRequest) -> wire.Institution:
    """Apply with an invitation and a key ring; applying again with the same ring renews its statement.

    Raises:
        Refused: ``E_INVITATION``, the secret is unknown, used, expired or for another name.
        Rejected: the ring or its statement does not hold.
    """
    _check_name(request.institution)
    roots = [_unb64(root, "roots") for root in request.roots]
    pin = sha256_hex(roots[0])
    invitation = session.get(InvitationRow, _digest(request.secret))
    member = session.get(InstitutionRow, request.institution)
    _check_invitation(hub, invitation, member, request.institution, pin)
    assert invitation is not None
    ring = read_ring(request.institution, roots, pin)
    if len(roots) != 1:
        raise bad_field("roots", "enrol with ring version 1; later versions follow one by one")
    raw = request.statement.encode()
    _check_ring_statement(raw, ring)
    if member is None or member.pin != pin:
        member = _new_member(hub, session, member, request, invitation.role, roots[0])
    invitation.used_at = hub.ledger.now()
    session.add(invitation)
    if member.state == "approved":
        _put_in_force(hub, session, member.name, raw)
    else:
        hub.ledger.rehearse(session, raw)
        member.keyring_bundle = raw
        session.add(member)
    return told(session, member)


def _check_invitation(
    hub: Hub, invitation: InvitationRow | None, member: InstitutionRow | None, name: str, pin: str
) -> None:
    hint = "Ask the operator for a new invitation."
    if invitation is None or invitation.institution != name:
        raise Refused("E_INVITATION", f"no such invitation for {name}", hint, field="secret")
    again = member is not None and member.pin == pin and invitation.used_at is not None
    if again:
        return
    if invitation.used_at is not None:
        raise Refused("E_INVITATION", f"the invitation for {name} was used already", hint, field="secret")
    if invitation.expires_at <= hub.ledger.now():
        when = format_time(invitation.expires_at)
        raise Refused("E_INVITATION", f"the invitation for {name} expired at {when}", hint, field="secret")
    if member is not None and member.state != "pending":
        raise conflict(
            "E_MEMBER", f"{name} is a member already, with another ring", "A ring is rotated instead."
        )


def _check_ring_statement(raw: bytes, ring: KeyRing) -> None:
    statement = read_statement(open_envelope(raw))
    newest = ring.newest
    if statement.kind != "keyring" or statement.issuer != ring.institution:
        raise Rejected("E_STATEMENT", f"the statement must be the keyring statement of {ring.institution}")
    if statement.subject != newest.digest or statement.predicate["version"] != newest.version:
        raise Rejected(
            "E_SUBJECT", f"the keyring statement is not about ring version {newest.version} that came with it"
        )


def _new_member(
    hub: Hub, session: Session, old: InstitutionRow | None, request: wire.EnrolRequest, role: str, root: bytes
) -> InstitutionRow:
    """A pending member; an application that waited under the same name with another ring gives way."""
    if old is not None:
        for ring in session.exec(select(RingRow).where(RingRow.institution == old.name)):
            session.delete(ring)
        session.flush()
        session.delete(old)
        session.flush()
    member = InstitutionRow(
        name=request.institution,
        role=role,
        state="pending",
        pin=sha256_hex(root),
        contact=request.contact[:500],
        joined_at=hub.ledger.now(),
    )
    session.add(member)
    session.flush()
    _add_roots(session, member.name, [root], first=1)
    return member


def approve(hub: Hub, session: Session, actor: Actor, name: str) -> wire.Institution:
    """Let a pending institution in, and log its ring's statement.

    When more than ten minutes have passed since it was signed, the answer's ``ring_version`` is 0: the ring
    takes force when the institution applies once more.
    """
    decide(actor, "approve", Thing(name))
    member = _member(session, name)
    if member.state == "suspended":
        raise conflict("E_MEMBER", f"{name} is suspended")
    if member.state == "approved":
        return told(session, member)
    member.state = "approved"
    raw, member.keyring_bundle = member.keyring_bundle, None
    session.add(member)
    session.flush()
    if raw is not None and abs(read_statement(open_envelope(raw)).issued_at - hub.ledger.now()) <= FRESH_S:
        _put_in_force(hub, session, name, raw)
    return told(session, member)


# --- key rings ------------------------------------------------------------------------------------------


def keyring(session: Session, name: str) -> list[bytes]:
    """The roots of a member's ring that are in force, oldest first; anybody may read them."""
    _member(session, name)
    query = select(RingRow.root).where(RingRow.institution == name, col(RingRow.statement).is_not(None))
    return list(session.exec(query.order_by(col(RingRow.version))))


def update_keyring(
    hub: Hub, session: Session, actor: Actor, name: str, request: wire.KeyRingUpdate
) -> wire.Institution:
    """Add the next ring version and log the statement that puts it into force."""
    decide(actor, "change key ring", Thing(name, name))
    member = _member(session, name)
    root, raw = _unb64(request.root, "root"), request.statement.encode()
    held = [*session.exec(select(RingRow).where(RingRow.institution == name).order_by(col(RingRow.version)))]
    ring = read_ring(name, [*(row.root for row in held if row.root != root), root], member.pin)
    _check_ring_statement(raw, ring)
    if not any(row.root == root for row in held):
        _add_roots(session, name, [root], first=ring.newest.version)
    _put_in_force(hub, session, name, raw)
    return told(session, member)


def _add_roots(session: Session, name: str, roots: Sequence[bytes], *, first: int) -> None:
    for version, root in enumerate(roots, start=first):
        session.add(RingRow(institution=name, version=version, root=root))
    session.flush()


def _put_in_force(hub: Hub, session: Session, name: str, raw: bytes) -> None:
    row = admit(session, hub.ledger, raw)
    version = read_statement(open_envelope(raw)).predicate["version"]
    ring = session.get_one(RingRow, (name, version))
    ring.statement = row.id
    session.add(ring)
    session.flush()


# --- showing --------------------------------------------------------------------------------------------


def institutions(session: Session, actor: Actor) -> list[wire.Institution]:
    """All members by name."""
    decide(actor, "see alliance", Thing("institutions"))
    return _told(session)


def names(session: Session, actor: Actor) -> Sequence[str]:
    """Names of all members, in order."""
    decide(actor, "see alliance", Thing("institutions"))
    return session.exec(select(InstitutionRow.name).order_by(InstitutionRow.name)).all()


def institution(session: Session, actor: Actor, name: str) -> wire.Institution:
    """One member."""
    decide(actor, "see alliance", Thing(name))
    return told(session, _member(session, name))


def told(session: Session, row: InstitutionRow) -> wire.Institution:
    """A member as the API tells it."""
    (member,) = _told(session, InstitutionRow.name == row.name)
    return member


def _told(session: Session, *conditions: Any) -> list[wire.Institution]:
    """Members by name, each with its ring in force and its newest status list, all in one statement."""
    name = col(InstitutionRow.name)
    ring = select(func.max(RingRow.version)).where(
        RingRow.institution == name, col(RingRow.statement).is_not(None)
    )
    newest = select(func.max(StatementRow.log_index)).where(
        StatementRow.kind == "status", StatementRow.issuer == name
    )
    status = col(StatementRow.log_index) == newest.correlate(InstitutionRow).scalar_subquery()
    query = select(
        InstitutionRow, ring.correlate(InstitutionRow).scalar_subquery(), StatementRow.bundle
    ).outerjoin(StatementRow, status)
    return [
        wire.Institution(
            name=row.name,
            role=cast(wire.Role, row.role),
            state=row.state,  # type: ignore[arg-type]  # the column holds the three states
            pin=row.pin,
            ring_version=version or 0,
            joined_at=format_time(row.joined_at),
            status_until=_until(bundle) if bundle else None,
        )
        for row, version, bundle in session.exec(query.where(*conditions).order_by(name))
    ]


def _until(status: bytes) -> str:
    """When a status list ends."""
    return str(read_statement(open_envelope(status)).predicate["nextUpdate"])


def hub_info(hub: Hub, session: Session, version: str) -> wire.HubInfo:
    """What anybody may know of this hub."""
    operator = session.get_one(InstitutionRow, hub.operator.institution)
    return wire.HubInfo(
        origin=hub.settings.origin,
        operator=operator.name,
        operator_pin=operator.pin,
        log_key=hub.keys.log.vkey,
        version=version,
        fleet=hub.settings.fleet,
        fleet_ca=hub.fleet_ca,
        log_base=f"{hub.settings.public}/log",
    )


# --- sites ----------------------------------------------------------------------------------------------


def register_site(hub: Hub, actor: Actor, request: wire.SiteRequest) -> wire.Site:
    """Register a site's node key; SuperLink learns it now, or when it is there again.

    Raises:
        Refused: the key is another site's, or no key that Flower takes.
    """
    decide(actor, "register site", Thing(request.name, actor.institution))
    assert actor.institution is not None
    key = _node_key(request.public_key)
    hint = key_hint(key)
    with hub.database.session_scope() as session:
        _keep_site(hub, session, actor.institution, request.name, hint, public_pem(key))
    # Not inside a transaction: SuperLink may be slow, and nobody shall wait for it.
    introduce_site(hub, hint)
    with hub.database.session_scope(write=False) as session:
        return _told_site(session.get_one(SiteRow, hint))


def _keep_site(hub: Hub, session: Session, institution: str, name: str, hint: str, pem: str) -> None:
    known = session.get(SiteRow, hint)
    if known is not None:
        if (known.institution, known.name) != (institution, name):
            raise conflict("E_SITE_KEY", f"key {hint} is registered for another site", "Make a new node key.")
        return
    query = select(SiteRow).where(SiteRow.institution == institution, SiteRow.name == name)
    older = session.exec(query).first()
    if older is not None:
        session.delete(older)
        session.flush()
    row = SiteRow(
        key_hint=hint, institution=institution, name=name, public_key=pem, created_at=hub.ledger.now()
    )
    session.add(row)


def introduce_site(hub: Hub, hint: str) -> bool:
    """Tell SuperLink a node's key; false when it is away, and then the supervisor tries again."""
    if hub.nodes is None:
        return False
    with hub.database.session_scope(write=False) as session:
        site = session.get(SiteRow, hint)
    if site is None:
        return False
    try:
        node_id = hub.nodes.register_node(site.public_key, site.institution)
    except FedhubError as error:
        _log.warning("site %s of %s is not registered yet: %s", site.name, site.institution, error)
        return False
    with hub.database.session_scope() as session:
        kept = session.get(SiteRow, hint)
        if kept is not None:
            kept.node_id = node_id
            session.add(kept)
    return True


def sites(session: Session, actor: Actor) -> list[wire.Site]:
    """All sites by institution and name."""
    decide(actor, "see alliance", Thing("sites"))
    query = select(SiteRow).order_by(SiteRow.institution, SiteRow.name)
    return [_told_site(row) for row in session.exec(query)]


def _told_site(row: SiteRow) -> wire.Site:
    return wire.Site(
        institution=row.institution,
        name=row.name,
        key_hint=row.key_hint,
        online=row.online,
        last_seen=None if row.last_seen is None else format_time(row.last_seen),
    )


def _node_key(pem: str) -> EllipticCurvePublicKey:
    rule = "must be the PEM SubjectPublicKeyInfo of a P-256, P-384 or P-521 key"
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as error:
        raise bad_field("public_key", rule) from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in (
        "secp256r1",
        "secp384r1",
        "secp521r1",
    ):
        raise bad_field("public_key", rule)
    return key


# --- small things ---------------------------------------------------------------------------------------


def _member(session: Session, name: str) -> InstitutionRow:
    member = session.get(InstitutionRow, name)
    if member is None:
        raise not_found("institution", name)
    return member


def _check_name(name: str) -> None:
    try:
        check_institution(name)
    except Rejected as error:
        raise bad_field("institution", error.message) from error


def _unb64(text: str, field: str) -> bytes:
    try:
        return unb64(text, "E_FIELD")
    except Rejected as error:
        raise bad_field(field, "not base64") from error


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
