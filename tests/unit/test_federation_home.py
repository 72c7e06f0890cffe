"""A home holds keys, pins and own statements; nothing the hub says changes whom it trusts."""

import base64
import json
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from federation.home import KEY_ROLES, Home, Place, decode_invitation, write_atomically
from federation.rotation import finish_rotation, prepare_rotation
from storage.checkpoint import LogKey
from storage.encoding import canonical, sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.signing import check_signature, open_envelope
from storage.statements import read_statement

LOG_KEY = LogKey.generate("hub.example").vkey


def place(**changes: str) -> Place:
    given = {
        "hub": "hub.example",
        "endpoint": "http://127.0.0.1:1",
        "fleet": "127.0.0.1:2",
        "fleet_ca": "PEM",
        "operator": "operator.example",
        "operator_pin": "a" * 64,
        "log_key": LOG_KEY,
    }
    return Place(**{**given, **changes})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "lab-a", "lab-a.example", "lab", place())


@dataclass
class RingServer:
    """A client that serves the roots it was given, as a hub would."""

    roots: list[bytes]

    def keyring(self, _name: str) -> list[str]:
        return [base64.b64encode(root).decode() for root in self.roots]


def test_a_new_home_opens_again_with_everything_it_was_made_with(home: Home) -> None:
    again = Home.open(home.path)
    assert again == home
    assert (again.institution, again.role, again.hub) == ("lab-a.example", "lab", "hub.example")
    assert again.pins == {"operator.example": "a" * 64, "lab-a.example": again.ring.pin}


def test_private_keys_are_readable_by_their_owner_only(home: Home) -> None:
    for name in (*KEY_ROLES, "node"):
        mode = stat.S_IMODE((home.path / "keys" / f"{name}.pem").stat().st_mode)
        assert mode == 0o600, name
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_key_that_others_can_read_is_not_used(home: Home) -> None:
    (home.path / "keys" / "targets.pem").chmod(0o644)
    with pytest.raises(Unchecked, match="0600"):
        home.key("targets")


def test_a_key_kept_elsewhere_is_named_with_what_to_do(home: Home) -> None:
    (home.path / "keys" / "root.pem").unlink()
    with pytest.raises(Unchecked) as caught:
        home.key("root")
    assert caught.value.code == "E_KEY_MISSING"
    assert "root" in caught.value.message and caught.value.hint


def test_a_second_home_never_overwrites_keys(home: Home) -> None:
    before = (home.path / "keys" / "root.pem").read_bytes()
    with pytest.raises(Unchecked) as caught:
        Home.create(home.path, "lab-a.example", "lab", place())
    assert caught.value.code == "E_HOME"
    assert (home.path / "keys" / "root.pem").read_bytes() == before


def test_a_home_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FedhubError):
        Home.create(tmp_path / "x", "Not A Name", "lab", place())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "E_HOME"),
        ("[]", "E_HOME"),
        ('{"institution":"a.example"}', "E_HOME"),
        ('{"institution":1,"role":"lab","hub":"h","endpoint":"e","fleet":"f"}', "E_HOME"),
        ('{"institution":"a","role":"lab","hub":"h","endpoint":"e","fleet":"f","more":1}', "E_HOME"),
        ('{"institution":"a","institution":"b","role":"lab","hub":"h","endpoint":"e","fleet":"f"}', "E_HOME"),
    ],
)
def test_a_malformed_home_is_named_and_not_repaired(home: Home, text: str, rule: str) -> None:
    (home.path / "home.json").write_text(text)
    with pytest.raises(Unchecked) as caught:
        Home.open(home.path)
    assert caught.value.code == rule
    assert str(home.path) in caught.value.message


def test_a_missing_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Unchecked) as caught:
        Home.open(tmp_path / "nowhere")
    assert "institution create" in caught.value.hint


def test_a_statement_is_signed_by_the_key_of_its_kinds_role(home: Home) -> None:
    root = home.ring.versions[1]
    raw = home.sign("keyring", [("1.root.json", root.digest)], {"version": 1})
    envelope = open_envelope(raw)
    assert envelope.hint in root.roles["targets"]
    check_signature(root.roles["targets"][envelope.hint], envelope)
    statement = read_statement(envelope)
    assert (statement.issuer, statement.predicate["hub"]) == ("lab-a.example", "hub.example")


def test_kept_statements_are_found_by_kind_and_never_changed(home: Home) -> None:
    raw = home.sign("keyring", [("1.root.json", home.ring.pin)], {"version": 1})
    statement_id = home.keep(raw)
    assert home.keep(raw) == statement_id
    assert [(found.id, text) for found, text in home.statements("keyring")] == [(statement_id, raw)]
    assert list(home.statements("grant")) == []


def test_what_was_read_once_is_found_out_anew_when_its_bytes_change(home: Home) -> None:
    """Pins, ring and own papers are remembered by their bytes alone, never by where they lie."""
    kept = home.keep(home.sign("keyring", [("1.root.json", home.ring.pin)], {"version": 1}))
    assert [found.id for found, _ in home.statements()] == [kept]
    home.pins.clear()
    assert home.pins[home.institution] == home.ring.pin
    paper = home.path / "statements" / f"{kept}.sigstore.json"
    paper.write_bytes(paper.read_bytes()[:-20])
    with pytest.raises(Rejected):
        list(home.statements())
    root = home.path / "keyring" / "1.root.json"
    good = root.read_bytes()
    root.write_bytes(good + b" ")
    with pytest.raises(Rejected) as caught:
        _ = home.ring
    assert caught.value.code == "E_KEYRING_PIN"
    root.write_bytes(good)
    assert home.ring.pin == home.pins[home.institution]
    home.trust_path.write_bytes(home.trust_path.read_bytes().replace(home.ring.pin.encode(), b"d" * 64))
    with pytest.raises(Rejected):
        _ = home.ring


def test_a_pin_is_added_once_and_never_changed_by_a_command(home: Home) -> None:
    home.pin("firm.example", "b" * 64)
    home.pin("firm.example", "b" * 64)
    assert home.pins["firm.example"] == "b" * 64
    assert home.trust.institutions["firm.example"] == "b" * 64
    with pytest.raises(Refused) as caught:
        home.pin("firm.example", "c" * 64)
    assert caught.value.code == "E_KEYRING_PIN"
    assert home.pins["firm.example"] == "b" * 64


@pytest.mark.parametrize(
    ("name", "pin"), [("firm.example", "b" * 63), ("firm.example", "B" * 64), ("Firm", "b" * 64)]
)
def test_a_malformed_pin_is_refused_before_trust_is_written(home: Home, name: str, pin: str) -> None:
    before = home.trust_path.read_bytes()
    with pytest.raises(Rejected):
        home.pin(name, pin)
    assert home.trust_path.read_bytes() == before


def test_an_unpinned_institution_has_no_ring_whatever_the_hub_serves(home: Home, tmp_path: Path) -> None:
    firm = Home.create(tmp_path / "firm", "firm.example", "firm", place())
    served = RingServer([firm.ring.versions[1].raw])
    with pytest.raises(Refused) as caught:
        home.ring_of("firm.example", served)
    assert caught.value.code == "E_KEYRING_PIN"
    assert "institution trust firm.example" in caught.value.hint


def test_a_ring_that_does_not_lead_to_the_pin_is_rejected_and_not_kept(home: Home, tmp_path: Path) -> None:
    impostor = Home.create(tmp_path / "firm", "firm.example", "firm", place())
    home.pin("firm.example", "d" * 64)
    with pytest.raises(Rejected) as caught:
        home.ring_of("firm.example", RingServer([impostor.ring.versions[1].raw]))
    assert caught.value.code == "E_KEYRING_PIN"
    assert not (home.path / "peers" / "firm.example").exists()


def test_a_ring_once_seen_is_read_without_the_hub_and_cannot_be_rolled_back(
    home: Home, tmp_path: Path
) -> None:
    firm = Home.create(tmp_path / "firm", "firm.example", "firm", place())
    home.pin("firm.example", firm.ring.pin)
    second, _statement = prepare_rotation(firm, "snapshot")
    assert finish_rotation(firm, "snapshot") == 2
    grown = RingServer([firm.ring.versions[1].raw, second])
    assert home.ring_of("firm.example", grown).newest.version == 2
    assert home.ring_of("firm.example").newest.version == 2
    with pytest.raises(Rejected, match="older or another"):
        home.ring_of("firm.example", RingServer(grown.roots[:1]))


@pytest.mark.parametrize("role", KEY_ROLES)
def test_rotation_changes_one_key_and_keeps_the_chain(home: Home, role: str) -> None:
    before = home.ring.newest
    root, statement = prepare_rotation(home, role)
    assert home.ring.newest == before, "nothing changes before the hub has logged it"
    assert finish_rotation(home, role) == 2
    after = Home.open(home.path).ring.newest
    assert after.digest == sha256_hex(root)
    assert {name for name in KEY_ROLES if after.roles[name].keys() != before.roles[name].keys()} == {role}
    assert read_statement(open_envelope(statement)).predicate["version"] == 2
    assert not (home.path / "keys" / "next").exists()
    home.sign("status", [("2.root.json", after.digest)], status_members())


def status_members() -> dict[str, object]:
    import time

    from storage.encoding import format_time

    return {"sequence": 1, "nextUpdate": format_time(int(time.time()) + 60), "revoked": [], "keys": []}


def test_an_abandoned_rotation_does_not_stand_in_the_way_of_the_next(home: Home) -> None:
    prepare_rotation(home, "targets")
    prepare_rotation(home, "timestamp")
    assert finish_rotation(home, "timestamp") == 2
    assert home.ring.newest.version == 2


def test_a_hub_that_moved_changes_the_address_and_no_pin(home: Home) -> None:
    pins = home.pins
    moved = home.moved(endpoint="http://127.0.0.1:9", fleet="127.0.0.1:8")
    assert Home.open(home.path) == moved
    assert Home.open(home.path).pins == pins


def test_a_dataset_is_remembered_with_its_folder_and_its_manifest_stays(home: Home, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    made = home.add_dataset("lab-a.example/digits", rows, b"manifest", b"croissant")
    assert home.datasets() == [made] == [home.dataset(sha256_hex(b"manifest"))]
    assert made.folder == rows.resolve()
    with pytest.raises(Unchecked) as caught:
        home.dataset("e" * 64)
    assert "data describe" in caught.value.hint


def test_a_persons_home_holds_a_token_that_others_cannot_read_and_no_key(home: Home, tmp_path: Path) -> None:
    made = Home.create_for_person(
        tmp_path / "me",
        institution="lab-a.example",
        role="lab",
        endpoint="http://127.0.0.1:1",
        token="secret",
        trust=home.trust_path.read_bytes(),
    )
    assert not made.has_keys
    assert stat.S_IMODE((made.path / "token").stat().st_mode) == 0o600
    with pytest.raises(Unchecked) as caught:
        made.sign("keyring", [("1.root.json", "a" * 64)], {"version": 1})
    assert caught.value.code == "E_KEY_MISSING"


@pytest.mark.parametrize("damage", ["", "!!!", "eyJh", base64.urlsafe_b64encode(b'{"a": 1}').decode(), "é"])
def test_a_damaged_invitation_code_is_refused(damage: str) -> None:
    with pytest.raises(Unchecked) as caught:
        decode_invitation(damage)
    assert caught.value.code == "E_INVITATION"


def test_an_invitation_code_survives_the_line_breaks_of_a_mail() -> None:
    said = {"endpoint": "http://127.0.0.1:1", "secret": "s" * 50}
    code = base64.urlsafe_b64encode(canonical(said)).rstrip(b"=").decode()
    broken = "\n".join(code[start : start + 20] for start in range(0, len(code), 20))
    assert decode_invitation(broken) == said


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_damaged_trust_file_is_the_readers_own_fault_and_exit_2(home: Home) -> None:
    home.trust_path.write_text(json.dumps({"hub": "hub.example"}))
    with pytest.raises(Unchecked) as caught:
        home.pin("firm.example", "b" * 64)
    assert caught.value.code == "E_TRUST"
