"""An institution joins the alliance, renews its keys, and says what it has revoked.

Trust begins with the invitation code alone: the hub's origin, its log key, the operator's pin and the Fleet
CA come from it, and the hub that answers must say the same.
"""

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.home import Home, Place, decode_invitation
from federation.rotation import finish_rotation, prepare_rotation
from storage.encoding import format_time, sha256_hex
from storage.errors import Refused, Unchecked
from storage.signing import open_envelope, public_pem
from storage.statements import read_statement

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient


@dataclass(frozen=True)
class PostedStatus:
    """A status list as logged: its statement's id and its sequence number."""

    id: str
    sequence: int


def join(path: Path, name: str, code: str, *, contact: str = "") -> tuple[Home, "wire.Institution"]:
    """Make a home for the invited institution ``name`` and apply at the hub with its key ring.

    A home that an earlier try left behind is used again, so a hub that was away costs no second set of keys.

    Raises:
        Unchecked: the code is damaged (E_INVITATION), or the hub cannot be reached.
        Refused: the invitation is for another name, or the hub that answers is not the one it speaks of.
    """
    from federation.client import HubClient
    from federation.wire import EnrolRequest, Invitation

    try:
        invitation = Invitation.model_validate(decode_invitation(code))
    except ValueError as error:
        message = "the invitation code lacks members or has others"
        raise Unchecked("E_INVITATION", message, "ask the operator for it again") from error
    if invitation.institution != name:
        message = f"the invitation is for {invitation.institution}, not for {name}"
        raise Refused("E_INVITATION", message, f"fedhub institution create {invitation.institution} …")
    with HubClient(invitation.endpoint) as client:
        info = client.hub()
        _check_hub(invitation, info)
        place = Place(
            hub=invitation.origin,
            endpoint=invitation.endpoint,
            fleet=info.fleet,
            fleet_ca=invitation.fleet_ca,
            operator=invitation.operator,
            operator_pin=invitation.operator_pin,
            log_key=invitation.log_key,
        )
        home = _home(path, name, invitation.role, place)
        root = home.ring.versions[1].raw
        statement = home.sign("keyring", [("1.root.json", sha256_hex(root))], {"version": 1})
        request = EnrolRequest(
            institution=name,
            secret=invitation.secret,
            roots=[base64.b64encode(root).decode()],
            statement=statement.decode(),
            contact=contact,
        )
        return home, client.enrol(request)


def rotate(home: Home, role: str) -> int:
    """Give ``role`` a fresh key: the next ring is logged at the hub, then takes its place here."""
    root, statement = prepare_rotation(home, role)
    with home.client() as client:
        client.update_keyring(home.institution, root, statement)
    return finish_rotation(home, role)


def post_status(home: Home, client: "HubClient", *, next_update: int) -> PostedStatus:
    """Sign and post the next status list: the unexpired revocations of this institution, repeated.

    Args:
        next_update: seconds since 1970 until which the list is valid; at most 24 h from now.
    """
    newest = home.ring.newest
    revoked: set[str] = set()
    keys: dict[str, int] = {}
    sequence = 0
    for record in client.all_statements(issuer=home.institution, kind="status"):
        earlier = read_statement(open_envelope(record.bundle.encode()))
        sequence = max(sequence, earlier.predicate["sequence"])
    for record in client.all_statements(issuer=home.institution, kind="revocation"):
        revocation = read_statement(open_envelope(record.bundle.encode()))
        target = revocation.subject
        if revocation.predicate["target"] == "statement":
            revoked.add(target)
        else:
            from_index = revocation.predicate.get("fromIndex", record.index)
            keys[target] = min(from_index, keys.get(target, from_index))
    members = {
        "sequence": sequence + 1,
        "nextUpdate": format_time(min(next_update, int(time.time()) + 86_400)),
        "revoked": sorted(revoked),
        "keys": [{"hint": hint, "fromIndex": keys[hint]} for hint in sorted(keys)],
    }
    bundle = home.sign("status", [(f"{newest.version}.root.json", newest.digest)], members)
    return PostedStatus(client.post_statement(bundle).id, sequence + 1)


def _home(path: Path, name: str, role: str, place: Place) -> Home:
    if not (path / "home.json").exists():
        return Home.create(path, name, role, place)
    home = Home.open(path)
    if (home.institution, home.hub) != (name, place.hub):
        message = f"{path} is the home of {home.institution} at {home.hub}"
        raise Unchecked("E_HOME", message, "choose another folder with --home")
    return home.moved(endpoint=place.endpoint, fleet=place.fleet)


def _check_hub(invitation: "wire.Invitation", info: "wire.HubInfo") -> None:
    said = (invitation.origin, invitation.log_key, invitation.operator, invitation.operator_pin)
    answers = (info.origin, info.log_key, info.operator, info.operator_pin)
    for what, expected, found in zip(
        ("name", "log key", "operator", "operator's pin"), said, answers, strict=True
    ):
        if expected != found:
            message = (
                f"the hub at {invitation.endpoint} has the {what} {found}, the invitation says {expected}"
            )
            raise Refused(
                "E_INVITATION", message, "this is not the hub you were invited to: call the operator"
            )


def register_site(home: Home, name: str) -> "wire.Site":
    """Register the home's Flower node key at the hub; a repeat changes nothing.

    The Fleet address is asked for again, since the hub may have moved; who may answer there was said by the
    invitation alone.
    """
    node = home.key("node")
    with home.client("snapshot") as client:
        home.moved(endpoint=home.endpoint, fleet=client.hub().fleet)
        return client.register_site(name, public_pem(node.public_key()))
