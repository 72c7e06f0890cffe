"""Joining the alliance: invitations, enrolment, approval, key rings, sites."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from sqlmodel import select

from federation.client import HubClient
from federation.home import Home
from federation.joining import post_status
from federation.rotation import prepare_rotation
from hub.access import Actor
from hub.api.app import open_hub
from hub.context import Hub
from hub.services import alliance
from hub.services.alliance import introduce_site
from hub.tables import InvitationRow, SiteRow
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.keyring import read_ring
from storage.ringmaker import make_ring
from storage.signing import sign
from storage.statements import compose
from tests.databases import DATABASES, database_url
from tests.hubs import OPERATOR, HubInProcess, enrolment, running_hub


@pytest.fixture(scope="module", params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    folder = tmp_path_factory.mktemp("hub")
    with database_url(request.param, folder) as url, running_hub(folder, database_url=url) as made:
        yield made


@pytest.fixture(scope="module")
def lab(hub: HubInProcess) -> Home:
    return hub.enrol("lab-a.example")


@pytest.fixture
def operator(hub: HubInProcess) -> Iterator[HubClient]:
    with hub.client(hub.operator) as client:
        yield client


def node_pem(curve: ec.EllipticCurve | None = None) -> str:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


class Nodes:
    """SuperLink's list of nodes, away when told so."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.away = False

    def register_node(self, public_key_pem: str, name: str) -> str:
        if self.away:
            raise Unchecked("E_SUPERLINK", "SuperLink does not answer")
        return self.keys.setdefault(public_key_pem, str(2**63 + len(self.keys)))

    def list_nodes(self) -> list[object]:
        return []


# --- the founder --------------------------------------------------------------------------------------------


def test_the_first_start_makes_the_operator_the_first_entry_of_the_log(hub: HubInProcess) -> None:
    with hub.client(hub.operator) as client:
        first = client.statements(kind="keyring").items[0]
        info = client.hub()
    assert (first.index, first.issuer) == (0, OPERATOR)
    assert info.operator_pin == hub.operator.ring.pin


def test_a_second_start_finds_everything_as_it_was(tmp_path: Path) -> None:
    with running_hub(tmp_path) as first:
        lab = first.enrol("lab-a.example")
        vkey = first.hub.keys.log.vkey
    with running_hub(tmp_path) as second, second.client(lab) as client:
        assert client.whoami().institution == "lab-a.example"
        assert client.hub().log_key == vkey
        assert len(client.statements().items) == 2


def test_two_processes_of_one_hub_share_members_tokens_and_log(hub: HubInProcess) -> None:
    url = hub.settings.database
    with running_hub(hub.folder, database_url=url) as replica:
        home = hub.enrol("shared.example")
        with hub.client(home) as here, replica.client(home) as there:
            made = here.create_token("both", ["read"])
            assert there.whoami() == here.whoami()
            assert [record.id for record in there.all_statements()] == [r.id for r in here.all_statements()]
        with replica.client(token=made.token) as there:
            assert there.whoami().by == "personal"
        first, second = hub.hub.ledger.publish(), replica.hub.ledger.publish()
        assert first == second


def test_another_operator_s_home_does_not_open_this_hub(tmp_path: Path) -> None:
    with running_hub(tmp_path / "a") as hub:
        settings = hub.settings
    other = settings.model_copy(update={"operator_home": tmp_path / "b"})
    with pytest.raises(Rejected) as caught:
        open_hub(other)
    assert caught.value.code == "E_KEYRING_PIN" and "FEDHUB_OPERATOR_HOME" in caught.value.hint


def test_a_home_of_another_institution_is_not_taken_for_the_operator_s(hub: HubInProcess, lab: Home) -> None:
    other = hub.settings.model_copy(update={"operator_home": lab.path})
    with pytest.raises(Unchecked, match="FEDHUB_OPERATOR_HOME"):
        open_hub(other)


# --- invitations --------------------------------------------------------------------------------------------


def test_an_invitation_says_what_to_trust_and_only_its_digest_is_kept(hub: HubInProcess) -> None:
    made = hub.invite("lab-z.example", "lab")
    assert (made.operator_pin, made.log_key) == (hub.operator.ring.pin, hub.hub.keys.log.vkey)
    with hub.hub.database.session_scope(write=False) as session:
        row = session.exec(select(InvitationRow).where(InvitationRow.institution == "lab-z.example")).one()
        assert row.digest == sha256_hex(made.secret.encode())
    for path in hub.folder.rglob("fedhub.db*"):
        assert made.secret.encode() not in path.read_bytes()


def test_only_the_operator_invites(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client, pytest.raises(Refused, match="only for the operator"):
        client.invite("friend.example", "lab")


@pytest.mark.parametrize(
    ("name", "role", "field"),
    [
        ("not a name", "lab", "institution"),
        ("nodot", "lab", "institution"),
        ("x.example", "operator", "role"),
    ],
)
def test_an_invitation_that_makes_no_sense_is_refused_by_its_field(
    operator: HubClient, name: str, role: str, field: str
) -> None:
    with pytest.raises(Refused) as caught:
        operator.invite(name, role)
    assert (caught.value.status, caught.value.field) == (422, field)


def test_a_member_is_not_invited_again(operator: HubClient, lab: Home) -> None:
    with pytest.raises(Refused) as caught:
        operator.invite("lab-a.example", "lab")
    assert caught.value.status == 409


def test_a_repeated_invitation_request_does_not_make_a_second_one(hub: HubInProcess) -> None:
    with hub.client(hub.operator) as client:
        token = client.create_token("once", ["read", "write"]).token
    body = {"institution": "once.example", "role": "lab"}
    with hub.http(token=token) as http:
        headers = {"Idempotency-Key": "0123456789abcdef"}
        first = http.post("/api/v1/invitations", json=body, headers=headers)
        again = http.post("/api/v1/invitations", json=body, headers=headers)
        other = http.post("/api/v1/invitations", json={**body, "role": "firm"}, headers=headers)
    assert (first.status_code, again.status_code, again.json()["code"]) == (201, 409, "E_TOLD_ONCE")
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
    with hub.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(InvitationRow).where(InvitationRow.institution == "once.example")).all()
    assert len(rows) == 1
    for path in hub.folder.rglob("fedhub.db*"):
        assert first.json()["secret"].encode() not in path.read_bytes()


# --- enrolment ----------------------------------------------------------------------------------------------


def test_an_institution_joins_by_invitation_and_approval(hub: HubInProcess, operator: HubClient) -> None:
    invitation, home = hub.invite("joins.example", "firm"), hub.new_home("joins.example", "firm")
    with hub.client() as client:
        applied = client.enrol(enrolment(home, invitation.secret, contact="mail@joins.example"))
    assert (applied.state, applied.role, applied.pin, applied.ring_version) == (
        "pending",
        "firm",
        home.ring.pin,
        0,
    )
    approved = operator.approve("joins.example")
    assert (approved.state, approved.ring_version) == ("approved", 1)
    assert operator.approve("joins.example") == approved  # a repeat changes nothing
    roots = [base64.b64decode(root) for root in operator.keyring("joins.example")]
    assert read_ring("joins.example", roots, home.ring.pin).pin == home.ring.pin
    (entry,) = operator.statements(kind="keyring", issuer="joins.example").items
    assert entry.issuer == "joins.example"


def test_a_pending_ring_is_neither_served_nor_logged(hub: HubInProcess, operator: HubClient) -> None:
    hub.enrol("pending.example", approve=False)
    assert operator.keyring("pending.example") == []
    assert operator.statements(issuer="pending.example").items == []


def test_an_invitation_is_good_once(hub: HubInProcess) -> None:
    invitation, home = hub.invite("first.example", "lab"), hub.new_home("first.example", "lab")
    thief = hub.new_home("first.example", "lab", folder="thief")
    with hub.client() as client:
        client.enrol(enrolment(home, invitation.secret))
        with pytest.raises(Refused, match="used already"):
            client.enrol(enrolment(thief, invitation.secret))
        again = client.enrol(
            enrolment(home, invitation.secret)
        )  # the same ring: an answer was lost on the way
    assert again.pin == home.ring.pin


def test_an_invitation_is_for_its_own_name_and_time(
    hub: HubInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = hub.invite("named.example", "lab")
    other, home = hub.new_home("other.example", "lab"), hub.new_home("named.example", "lab")
    with hub.client() as client:
        with pytest.raises(Refused, match="no such invitation"):
            client.enrol(enrolment(other, invitation.secret))
        with pytest.raises(Refused, match="no such invitation"):
            client.enrol(enrolment(home, "x" * 43))
        monkeypatch.setattr(hub.hub.ledger, "_clock", lambda: time.time() + 73 * 3600)
        with pytest.raises(Refused, match="expired"):
            client.enrol(enrolment(home, invitation.secret))


def test_a_ring_of_another_name_is_refused(hub: HubInProcess) -> None:
    invitation = hub.invite("victim.example", "lab")
    home, stranger = hub.new_home("victim.example", "lab"), hub.new_home("stranger.example", "lab")
    root = base64.b64encode(stranger.ring.versions[1].raw).decode()
    with hub.client() as client, pytest.raises(Rejected) as caught:
        client.enrol(enrolment(home, invitation.secret, roots=[root]))
    assert caught.value.code == "E_KEYRING_NAME"


def test_a_statement_that_is_not_of_the_ring_is_refused(hub: HubInProcess) -> None:
    invitation, home = hub.invite("mixed.example", "lab"), hub.new_home("mixed.example", "lab")
    ring = [("1.root.json", "0" * 64)]
    wrong = [
        home.sign("keyring", ring, {"version": 1}),
        home.sign("revocation", [("key.pem", "0" * 64)], {"target": "key", "reason": "error"}),
    ]
    with hub.client() as client:
        for statement in wrong:
            with pytest.raises(Rejected):
                client.enrol(enrolment(home, invitation.secret, statement=statement.decode()))
        assert (
            client.enrol(enrolment(home, invitation.secret)).state == "pending"
        )  # the invitation is still good


def test_one_ring_under_two_names_is_refused(hub: HubInProcess, lab: Home) -> None:
    invitation, home = hub.invite("twin.example", "lab"), hub.new_home("twin.example", "lab")
    stolen = {role: [lab.key(role)] for role in ("targets", "snapshot", "timestamp")}
    root = make_ring(
        "twin.example",
        {"root": [home.key("root")], **stolen},
        version=1,
        expires_at=int(time.time()) + 86_400,
        signers=[home.key("root")],
    )
    payload = compose(
        "keyring",
        [("1.root.json", sha256_hex(root))],
        {"version": 1},
        issuer="twin.example",
        hub="hub.example",
    )
    request = enrolment(
        home,
        invitation.secret,
        roots=[base64.b64encode(root).decode()],
        statement=sign(lab.key("targets"), payload).decode(),
    )
    with hub.client() as client, pytest.raises(FedhubError):
        client.enrol(request)
    with hub.client(lab) as client:
        assert client.whoami().institution == "lab-a.example"  # and nothing of the attempt is left


@pytest.mark.parametrize("roots", [["not base64!"], ["e30="], []])
def test_roots_that_are_none_are_refused(hub: HubInProcess, roots: list[str]) -> None:
    invitation = hub.invite("noroot.example", "lab")
    body = {"institution": "noroot.example", "secret": invitation.secret, "roots": roots, "statement": "{}"}
    with hub.http() as http:
        answer = http.post("/api/v1/institutions", json=body)
    assert answer.status_code == 422 and answer.json()["code"].startswith("E_")


def test_approval_after_ten_minutes_takes_force_when_the_member_applies_again(
    hub: HubInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation, home = hub.invite("late.example", "lab"), hub.new_home("late.example", "lab")
    with hub.client() as client:
        client.enrol(enrolment(home, invitation.secret))
    monkeypatch.setattr(hub.hub.ledger, "_clock", lambda: time.time() + 700)
    steward = Actor(OPERATOR, "operator", "access", frozenset({"read", "write"}), "targets")
    with hub.hub.database.session_scope() as session:
        late = alliance.approve(hub.hub, session, steward, "late.example")
    assert (late.state, late.ring_version) == ("approved", 0)
    monkeypatch.undo()
    with hub.client() as client:
        again = client.enrol(enrolment(home, invitation.secret))
    assert (again.state, again.ring_version) == ("approved", 1)
    with hub.client(home) as client:
        assert client.whoami().institution == "late.example"


def test_approving_needs_the_operator_s_targets_key(hub: HubInProcess, lab: Home) -> None:
    hub.enrol("waits.example", approve=False)
    with hub.client(lab) as client, pytest.raises(Refused, match="only for the operator"):
        client.approve("waits.example")
    with hub.client(hub.operator, "snapshot") as client, pytest.raises(Refused) as caught:
        client.approve("waits.example")
    assert caught.value.code == "E_KEY_ROLE"


def test_nobody_approves_whom_nobody_knows(operator: HubClient) -> None:
    with pytest.raises(Unchecked) as caught:
        operator.approve("nobody.example")
    assert caught.value.code == "E_NOT_FOUND"


# --- rings --------------------------------------------------------------------------------------------------


def test_a_ring_is_rotated_by_its_owner_alone(hub: HubInProcess, lab: Home) -> None:
    home = hub.enrol("turns.example")
    root, statement = prepare_rotation(home, "targets")
    with hub.client(lab) as client, pytest.raises(Refused):
        client.update_keyring("turns.example", root, statement)
    with hub.client(home, "snapshot") as client, pytest.raises(Refused) as caught:
        client.update_keyring("turns.example", root, statement)
    assert caught.value.code == "E_KEY_ROLE"
    with hub.client(home) as client:
        assert client.update_keyring("turns.example", root, statement).ring_version == 2
        assert client.update_keyring("turns.example", root, statement).ring_version == 2  # an answer was lost
        assert len(client.keyring("turns.example")) == 2


def test_a_ring_that_does_not_continue_the_last_one_changes_nothing(hub: HubInProcess) -> None:
    home, other = hub.enrol("steady.example"), hub.new_home("usurper.example", "lab")
    forged = make_ring(
        "steady.example",
        {role: [other.key(role)] for role in ("root", "targets", "snapshot", "timestamp")},
        version=2,
        expires_at=int(time.time()) + 86_400,
        signers=[other.key("root")],
    )
    statement = home.sign("keyring", [("2.root.json", sha256_hex(forged))], {"version": 2})
    with hub.client(home) as client:
        with pytest.raises(Rejected) as caught:
            client.update_keyring("steady.example", forged, statement)
        assert caught.value.code == "E_KEYRING"
        assert client.institution("steady.example").ring_version == 1
        assert client.whoami().institution == "steady.example"


def test_rings_are_public_and_institutions_are_not(hub: HubInProcess, lab: Home) -> None:
    with hub.client() as client:
        assert len(client.keyring("lab-a.example")) == 1
        with pytest.raises(Unchecked, match="login"):
            client.institutions()
    with hub.http() as http:
        assert http.get("/api/v1/institutions").status_code == 401
        assert http.get("/api/v1/institutions/nobody.example/keyring").status_code == 404


def test_a_status_list_is_shown_with_its_age(hub: HubInProcess) -> None:
    home = hub.enrol("honest.example")
    with hub.client(home) as client:
        assert client.institution("honest.example").status_until is None
        post_status(home, client, next_update=int(time.time()) + 3600)
        assert client.institution("honest.example").status_until is not None


# --- sites --------------------------------------------------------------------------------------------------


@pytest.fixture
def with_nodes(tmp_path: Path) -> Iterator[tuple[HubInProcess, Nodes]]:
    nodes = Nodes()
    with running_hub(tmp_path, nodes=nodes) as made:
        yield made, nodes


def node_of(hub: Hub, name: str) -> str | None:
    with hub.database.session_scope(write=False) as session:
        return session.exec(select(SiteRow.node_id).where(SiteRow.name == name)).one()


def test_a_site_s_key_reaches_superlink_and_a_repeat_changes_nothing(
    with_nodes: tuple[HubInProcess, Nodes],
) -> None:
    hub, nodes = with_nodes
    lab, pem = hub.enrol("lab-a.example"), node_pem()
    with hub.client(lab, "snapshot") as client:
        made = client.register_site("main", pem)
        assert client.register_site("main", pem) == made
        assert [site.name for site in client.sites()] == ["main"]
    assert made.key_hint == sha256_hex(pem.encode())
    assert node_of(hub.hub, "main") == nodes.keys[pem]


def test_a_site_is_registered_while_superlink_is_away_and_introduced_later(
    with_nodes: tuple[HubInProcess, Nodes],
) -> None:
    hub, nodes = with_nodes
    nodes.away = True
    lab, pem = hub.enrol("lab-a.example"), node_pem()
    with hub.client(lab, "snapshot") as client:
        made = client.register_site("main", pem)
    assert node_of(hub.hub, "main") is None and not introduce_site(hub.hub, made.key_hint)
    nodes.away = False
    assert introduce_site(hub.hub, made.key_hint)
    assert node_of(hub.hub, "main") == nodes.keys[pem]


def test_a_site_may_get_a_new_key_but_never_another_site_s(with_nodes: tuple[HubInProcess, Nodes]) -> None:
    hub, _nodes = with_nodes
    lab, thief, pem = hub.enrol("lab-a.example"), hub.enrol("thief.example"), node_pem()
    with hub.client(lab, "snapshot") as client:
        client.register_site("main", node_pem())
        client.register_site("main", pem)
        assert len(client.sites()) == 1
    with hub.client(thief, "snapshot") as client, pytest.raises(Refused) as caught:
        client.register_site("main", pem)
    assert (caught.value.code, caught.value.status) == ("E_SITE_KEY", 409)


def test_what_flower_does_not_take_is_no_node_key(hub: HubInProcess, lab: Home) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    others = [
        edwards.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode(),
        node_pem(ec.SECP256K1()),
        "not a key",
        "",
    ]
    with hub.client(lab, "snapshot") as client:
        for pem in others:
            with pytest.raises(Refused) as caught:
                client.register_site("main", pem)
            assert caught.value.field == "public_key"


def test_a_site_s_name_cannot_be_a_path(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab, "snapshot") as client, pytest.raises(Refused) as caught:
        client.register_site("../x", node_pem())
    assert caught.value.field == "name"
